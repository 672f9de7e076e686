"""All that a topology did is replayed by several processes, and all is said as by one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest
from cli_bench import Project

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere one process does it")

MODULE = """
import os
from pathlib import Path
from dspex import Topology

def size(d):
    with Path("pids").open("a") as pids:
        pids.write(f"{{os.getpid()}}\\n")
    return {{**d, "size": len(d["text"]){more}}}

def total(state, d, ctx):
    now = state + d["size"]{kept}
    return now, [{{"total": now}}]

topology = Topology("sized")
by_text = topology.source("{u}.in").map(size, name="size").key_by("text", name="by")
by_text.stateful(total, init=int, name="total").sink("{u}.out")
"""
# A command that replays logs of a few arrivals in pieces.
FEW = "from dspex.engine.replay import pieces; pieces.SHARE = 5; from dspex.__main__ import main; raise SystemExit(main())"


@pytest.fixture(scope="module")
def sized(tmp_path_factory: pytest.TempPathFactory, nats_url: str) -> Project:
    """A project in which forty events were counted."""
    folder = tmp_path_factory.mktemp("sized")
    project = Project(folder, f"n{os.urandom(5).hex()}", 'topologies = ["sized:topology"]', NATS_URL=nats_url)
    project.write("sized.py", MODULE.format(u=project.u, more="", kept=""))
    with project.start("run", "--pools", "none") as run:
        run.until("ready")
        for n in range(10):
            lines = "".join(f'{{"text":"{"a" * (n % 3 + 1)}"}}\n' for _ in range(4))
            assert project.publish("-", stdin=lines).code == 0
        assert run.end() == 0, run.errors()
    return project


def replayed(sized: Project, *words: str, more: str = "", kept: str = "") -> tuple[int, Any, str, int]:
    """Exit code, what is said, errors, and how many processes did it."""
    sized.write("other.py", MODULE.format(u=sized.u, more=more, kept=kept))
    sized.write("pids", "")
    command = [
        sys.executable,
        "-c",
        FEW,
        "--json",
        "--quiet",
        "replay",
        "--topology",
        "sized",
        "--with",
        "other:topology",
        *words,
    ]
    done = subprocess.run(command, cwd=sized.folder, env=sized.env, capture_output=True, text=True, timeout=120)
    said = json.loads(done.stdout) if done.stdout else {}
    said.pop("seconds", None)
    return done.returncode, said, done.stderr, len({*(sized.folder / "pids").read_text().split()})


CODE = [
    ("", "", 0),
    (' + (d["text"] == "aaa")', "", 6),
    ("", " + (state > 6)", 6),
    (' + 1 // (len(d["text"]) - 2)', "", 6),
]


@pytest.mark.parametrize(("more", "kept", "code"), CODE)
def test_several_processes_say_of_a_topology_what_one_says(sized: Project, more: str, kept: str, code: int) -> None:
    *one, alone = replayed(sized, "--jobs", "1", more=more, kept=kept)
    *several, together = replayed(sized, "--jobs", "3", more=more, kept=kept)
    assert several == one
    assert one[0] == code, one
    assert alone == 1 < together


def test_what_is_published_or_called_is_done_by_one_process(sized: Project) -> None:
    for words in (["--to", "replay.>"], ["--mode", "live"]):
        code, _, said, _ = replayed(sized, "--jobs", "2", *words)
        assert (code, "several processes" in said) == (2, True), said
    assert replayed(sized, "--to", "replay.>")[3] == 1
