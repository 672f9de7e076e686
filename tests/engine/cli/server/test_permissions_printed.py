"""What `dspex server permissions` prints: for the server's configuration, for nsc, as JSON."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest
from cli_bench import Project

from dspex.bus.local.launch import find_binary

APP = "shop"


@pytest.mark.parametrize(
    ("args", "why"),
    [
        (["--role", "worker"], "--pool is missing"),
        (["--role", "reader"], "--subject is missing"),
        (["--role", "publisher", "--subject", "a b"], "is not a subject"),
        (["--role", "publisher", "--subject", "a", "--pool", "p"], "--pool means nothing"),
        (["--role", "approver", "--subject", "a"], "--subject means nothing"),
        (["--role", "engine", "--stream", "a.b"], "is not the name of a stream"),
        (["--role", "engine", "--user", "a.b"], "cannot be part of a subject"),
    ],
)
def test_what_a_role_lacks_or_does_not_take_is_said(tmp_path: Path, args: list[str], why: str) -> None:
    done = Project(tmp_path, APP).here("--json", "server", "permissions", *args)
    assert (done.code, why in done.error()["message"]) == (2, True)


def test_the_server_reads_subjects_of_any_letters(tmp_path: Path) -> None:
    project = Project(tmp_path, APP)
    for role, subject in {"publisher": "größe.in", "engine": 'a"b\\x41.out'}.items():
        user = project.here("server", "permissions", "--role", role, "--subject", subject).out
        user = re.sub(r"\$[A-Z_]+_PASSWORD", "p", user)
        (tmp_path / "nats.conf").write_text(f"authorization {{ users: [\n{user}\n] }}")
        checked = subprocess.run([find_binary(), "-t", "-c", tmp_path / "nats.conf"], capture_output=True, text=True)
        assert checked.returncode == 0, checked.stderr


def test_a_subject_is_one_to_nsc_and_no_command_to_a_shell(tmp_path: Path) -> None:
    project = Project(tmp_path, APP)
    args = ["server", "permissions", "--role", "publisher", "--nsc", "--subject"]
    (_, command) = project.here(*args, "a';touch${IFS}x;'").out.splitlines()
    allowed = ["$SYS.REQ.USER.INFO", "a';touch${IFS}x;'", "dspex.shop.told.publish", "$JS.API.STREAM.INFO.DSPEX_shop_keys"]
    assert shlex.split(command)[5:7] == ["--allow-pub", ",".join(allowed)]
    assert "no subject with a comma" in project.here("--json", *args, "a,dspex.shop.log.>").error()["message"]


def test_nsc_and_json_say_the_same(tmp_path: Path) -> None:
    project = Project(tmp_path, APP)
    (found,) = project.here("--json", "server", "permissions", "--role", "worker", "--pool", "gpu").objects()
    (comment, command) = project.here("server", "permissions", "--role", "worker", "--pool", "gpu", "--nsc").out.splitlines()
    assert found["inbox_prefix"] in comment
    assert f"--allow-pub '{','.join(found['publish'])}' --allow-sub '{','.join(found['subscribe'])}'" in command
    assert "--allow-pub-response" in command
