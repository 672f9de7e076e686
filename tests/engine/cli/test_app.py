"""The CLI as a whole: output, exit codes, errors. A process of its own is started only where that is the point."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from cli_bench import in_this_process as dspex
from cli_bench import kept_logging, objects

from dspex import __main__ as cli
from dspex.bus.local import login
from dspex.bus.local.server import LocalServer
from dspex.bus.settings.not_built import VERBS
from dspex.engine.cli import app


@pytest.fixture
def folder(tmp_path: Path, no_settings: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working directory, an environment without settings, and logging as it was at the end."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    with kept_logging():
        yield tmp_path


def test_help_lists_the_verbs_and_is_shown_where_no_verb_is_given(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 0
    bare = capsys.readouterr().out
    assert cli.main(["-h"]) == 0
    assert capsys.readouterr().out == bare
    for verb in ("server", "doctor", "config"):
        assert f"\n  {verb} " in bare


PATHS = [
    [word] if isinstance(found, str) else [word, verb.rpartition(":")[2].rstrip("_")]
    for words in app.VERBS.values()
    for word, found in words.items()
    for verb in ([found] if isinstance(found, str) else found.verbs)
]


def test_help_groups_the_verbs_and_cuts_nothing_off(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    told = dspex("-h").out
    assert all(f"\n{heading}:\n" in told for heading in app.VERBS)
    assert all(f"\n  {path[0]} " in told for path in PATHS)
    assert "..." not in told.partition("\n\n")[2]  # behind the usage


@pytest.mark.parametrize("path", PATHS, ids=" ".join)
def test_help_promises_no_verb_that_is_not_there(folder: Path, path: list[str]) -> None:
    told = dspex(*path, "-h")
    assert told.code == 0, told.err
    assert told.out.startswith(f"Usage: dspex {' '.join(path)} ")
    assert " ".join(path) not in VERBS
    if len(path) == 2:
        bare = dspex(path[0])
        assert (bare.code, bare.err, f"\n  {path[1]} " in bare.out) == (0, "", True)


def test_a_command_imports_only_what_it_needs(folder: Path) -> None:
    """Each of these costs a command more than the command itself: 0.1 to 1 s of a core."""
    code = "import sys; from dspex.__main__ import main; main(['status']); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    loaded = set(done.stdout.split())
    assert "dspex.engine.cli.status" in loaded
    hosting = "dspex.engine.hosting.engine"
    unwanted = {"rich", "pygments", "attr", "aiohttp", "nats", "dspy", "pyarrow", "psutil", hosting, "dspex.engine.cli.demo"}
    assert unwanted & loaded == set()


def test_a_server_is_started_once_found_and_stopped(folder: Path) -> None:
    command = [sys.executable, "-m", "dspex", "server", "start", "--port", "-1", "--json"]
    start = subprocess.run(command, capture_output=True, text=True, timeout=60)  # it outlives the process that starts it
    assert start.returncode == 0, start.stderr
    (state,) = objects(start.stdout)
    try:
        assert LocalServer.find(folder) == state["url"]
        again = dspex("server", "start")
        assert (again.code, "already running" in again.out) == (0, True)
        assert dspex("--json", "server", "status").objects() == [state]
        nats = folder / "nats"
        nats.write_text('#!/bin/sh\necho "$NATS_USER:$NATS_PASSWORD $*"\n')
        nats.chmod(0o755)
        (told,) = [line for line in again.out.splitlines() if "log in: " in line]
        path = {"PATH": f"{folder}:{os.environ['PATH']}"}
        said = subprocess.run(["sh", "-c", told.partition("log in: ")[2]], capture_output=True, text=True, env=path).stdout
        assert said == f"dspex:{login.read(folder / '.dspex')} --server {state['url']}\n"  # no argument is a secret
    finally:
        stop = dspex("server", "stop")
    assert (stop.code, stop.out) == (0, "stopped\n")
    pid = int(str(state["pid"]))
    psutil.wait_procs([psutil.Process(pid)] if psutil.pid_exists(pid) else [], 30)
    assert not psutil.pid_exists(pid)
    gone = dspex("server", "status")
    assert (gone.code, "no server is running" in gone.out) == (1, True)


def test_doctor_reports_each_check_and_fails_on_a_fault(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "dspex.toml").write_text(
        '[lm.main]\nmodel = "openai/x"\nkey_env = "NO_SUCH_KEY"\n'
        f'[lm.set]\nmodel = "openai/y"\nkey_env = "A_KEY"\n[pools.a]\n[pools.b]\npython = "{folder}/none"\n'
        "[server.local]\nport = -1\n"
    )
    monkeypatch.setenv("A_KEY", "sk-secret")
    found = dspex("doctor", "--json", "--no-ask")
    assert found.code == 1, found.err
    assert "sk-secret" not in found.out + found.err
    checks = {str(one["check"]): one for one in found.objects()}
    assert {name for name, one in checks.items() if not one["ok"]} == {"server", "lm.main", "pools.b"}
    assert checks["lm.main"]["fix"] == "export NO_SUCH_KEY"
    assert checks["lm.set"]["message"] == "openai/y; A_KEY is set; not asked"
    assert checks["settings"]["message"] == f"from dspex.toml; app {folder.name}"
    assert checks["topologies"]["message"].startswith("the settings name none")
    assert "dspy" in str(checks["pools.a"]["message"])
    assert {"nats-server", "sync_interval", "lm.set"} <= set(checks)


def test_config_show_says_where_each_value_comes_from(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "dspex.toml").write_text('app = "shop"\n')
    assert cli.main(["config", "show", "--json", "--server", "nats://x:1"]) == 0
    rows = {one["key"]: one for one in objects(capsys.readouterr().out)}
    assert rows["app"] == {"key": "app", "value": "shop", "origin": "dspex.toml:1"}
    assert rows["server.url"] == {"key": "server.url", "value": "nats://x:1", "origin": "flag"}
    assert cli.main(["config", "show"]) == 0
    assert "dspex.toml:1" in capsys.readouterr().out


def test_the_log_level_is_that_of_the_settings(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "dspex.toml").write_text('[telemetry]\nlog = "info,dspex.engine=error"\n')
    assert cli.main(["config", "show", "--json"]) == 0
    assert logging.getLogger("dspex.bus").getEffectiveLevel() == logging.INFO
    assert logging.getLogger("dspex.engine.hosting.host").getEffectiveLevel() == logging.ERROR
    (folder / "dspex.toml").write_text('[telemetry]\nlog = "loud"\n')
    assert cli.main(["config", "show"]) == 2
    assert "error[DX121] telemetry.log (dspex.toml:2): there is no log level 'loud'" in capsys.readouterr().err


def test_settings_errors_have_the_shape_of_all_errors(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "dspex.toml").write_text('ap = "shop"\n[engine]\nheartbeat = "x"\n')
    assert cli.main(["config", "show"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "error[DX102] engine.heartbeat (dspex.toml:3): 'x' is not a duration",
        '  fix: write "10s", "1m", "1h30m", "7d" or seconds',
        "error[DX104] ap (dspex.toml:1): there is no setting 'ap'",
        "  fix: did you mean app?",
    ]
    assert cli.main(["--json", "config", "show"]) == 2
    (one,) = objects(capsys.readouterr().err)
    assert one["error"]["code"] == "DX102"


@pytest.mark.parametrize("args", [["nonsense"], ["server", "start", "--prot", "1"]])
def test_wrong_usage_exits_2_in_the_same_shape(folder: Path, capsys: pytest.CaptureFixture[str], args: list[str]) -> None:
    assert cli.main(args) == 2
    out, err = capsys.readouterr()
    assert (out, err[:13]) == ("", "error[DX100] ")
    assert "\n  fix: see dspex" in err


def test_global_options_may_stand_anywhere_but_not_behind_two_dashes() -> None:
    move = app.globals_first
    assert move(["a", "--json", "b", "--server", "x", "-v"]) == ["--json", "--server", "x", "-v", "a", "b"]
    assert move(["a", "--server=x"]) == ["--server=x", "a"]
    assert move(["a", "--", "--json"]) == ["a", "--", "--json"]


def test_a_bug_is_reported_without_a_traceback_and_with_one_on_v(folder: Path) -> None:
    """The bug is real: a state file that a user made a folder of."""
    (folder / ".dspex" / "server.json").mkdir(parents=True)
    quiet = dspex("server", "start", "--port", "-1")
    assert (quiet.code, quiet.out) == (1, "")
    assert quiet.err.startswith("error[DX900] IsADirectoryError")
    assert "please report it" in quiet.err
    assert "Traceback" not in quiet.err
    loud = dspex("server", "start", "--port", "-1", "-v")
    assert "Traceback" in loud.err
    mine = [p for p in psutil.process_iter(["cmdline"]) if str(folder) in " ".join(p.info["cmdline"] or ())]
    assert mine == []  # nor is the server left that was started for nothing


def test_a_closed_pipe_behind_a_command_is_no_error(folder: Path) -> None:
    command = f"{sys.executable} -m dspex config show --json | head -1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(objects(done.stdout)) == 1
