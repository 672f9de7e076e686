"""Many exported runs are done again by several processes, and all is said as by one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from io import FileIO
from pathlib import Path
from typing import Any

import pytest
from engine_lab import Lab
from waiting import eventually

MakeLab = Callable[..., Lab]
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere one process does it")

MODULE = """
import os
from pathlib import Path
from dspex import Topology

def size(d):
    with Path("pids").open("a") as pids:
        pids.write(f"{{os.getpid()}}\\n")
    return {{**d, "size": len(d["text"]){more}}}

topology = Topology("sized")
topology.source("in").map(size, name="size").sink("out")
"""
COMMAND = [sys.executable, "-m", "dspex"]


@pytest.fixture
def folder(lab: MakeLab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a topology, and exported runs of it: of texts of one to nine characters."""
    monkeypatch.chdir(tmp_path)
    space: dict[str, Any] = {}
    exec(MODULE.format(more=""), space)
    one = lab(space["topology"])
    one.start()
    (tmp_path / "runs").mkdir()
    for n in range(1, 10):
        run = one.client.run(one.publish("in", {"text": "a" * n}))
        one.advance(1)
        one.run(run.export(tmp_path / "runs" / f"{n}.jsonl"))
    (tmp_path / "pids").unlink()
    return tmp_path


def replayed(folder: Path, *words: str, more: str = "") -> tuple[int, str, str, int]:
    """Exit code, output, errors, and how many processes did it."""
    (folder / "sized.py").write_text(MODULE.format(more=more))
    (folder / "pids").write_text("")
    command = [*COMMAND, *words, "--with", "sized:topology"]
    done = subprocess.run(command, cwd=folder, env=os.environ, capture_output=True, text=True, timeout=120)
    return done.returncode, done.stdout, done.stderr, len({*(folder / "pids").read_text().split()})


ONE, FAILS = ' + (d["text"] == "aaaa")', " + (1 // (len(d['text']) - 5) > 9)"
SAID = [
    ("--json replay", ONE, False),
    ("replay", FAILS, True),
    ("replay --as markdown", "", True),
    ("--json replay", "", False),
]


@pytest.mark.parametrize(("words", "more", "damaged"), SAID)
def test_several_processes_say_byte_for_byte_what_one_says(folder: Path, words: str, more: str, damaged: bool) -> None:
    if damaged:
        file = folder / "runs" / "7.jsonl"
        file.write_bytes(file.read_bytes()[:-90])
    files = ["--quiet", *words.split(), "--file", "runs", "--jobs"]  # progress says how fast it is
    *one, alone = replayed(folder, *files, "1", more=more)
    *several, together = replayed(folder, *files, "3", more=more)
    assert several == one
    assert one[0] == (1 if damaged else 6 if more else 0), one
    assert alone == 1 < together


def test_a_few_files_are_done_by_one_process(folder: Path) -> None:
    code, _, _, processes = replayed(folder, "replay", "--file", "runs")
    assert (code, processes) == (0, 1)


def test_processes_are_for_strict_replays_of_files(folder: Path) -> None:
    for words in (["--file", "runs", "--mode", "live"], ["@last"]):
        code, _, said, _ = replayed(folder, "replay", *words, "--jobs", "2")
        assert (code, "several processes" in said) == (2, True), said
    assert replayed(folder, "replay", "--file", "runs", "--jobs", "0")[0] == 2


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_processes_end_with_the_replay_however_that_ends(folder: Path, how: signal.Signals) -> None:
    (folder / "sized.py").write_text(MODULE.format(more=""))
    for name in ("1.jsonl", "2.jsonl"):
        (folder / "runs" / name).unlink()
        os.mkfifo(folder / "runs" / name)
    command = [*COMMAND, "replay", "--file", "runs", "--with", "sized:topology", "--jobs", "9"]
    with (
        subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as replay,
        (folder / "runs" / "1.jsonl").open("wb", buffering=0) as first,  # when a process has begun to read it
    ):
        replay.send_signal(how)
        out, said = replay.communicate(timeout=60)  # when none of them has the ends of these pipes any more
        assert replay.returncode == (-how if how == signal.SIGKILL else 128 + how), said
        assert out == ""
        eventually(lambda: nobody_reads(first))  # a process that is killed closes one file after the other


def nobody_reads(file: FileIO) -> bool:
    try:
        file.write(b"-")
    except BrokenPipeError:
        return True
    return False
