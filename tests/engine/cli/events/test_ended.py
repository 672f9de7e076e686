"""Verbs that are ended from outside."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from pathlib import Path

import pytest
from cli_bench import Project
from waiting import eventually


@pytest.mark.parametrize("how", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.long)])
def test_a_replay_of_many_files_that_is_ended_begins_no_other_file(native: Project, how: signal.Signals) -> None:
    (run,) = (one["run"] for one in native.publish("text=abcd").objects())
    folder = native.folder / f"histories-{how.name}"
    folder.mkdir()
    assert native.here("runs", "export", run, "-o", "one.jsonl").code == 0
    for name in ("a", "b"):
        os.mkfifo(folder / f"{name}.jsonl")
    with native.start("replay", "--file", str(folder)) as replay:
        with (native.folder / "one.jsonl").open("rb") as one, (folder / "a.jsonl").open("wb") as first:
            replay.process.send_signal(how)  # while it reads the first one
            shutil.copyfileobj(one, first)
        assert replay.process.wait(60) == 128 + how  # of the second one nobody writes a byte
        said = "interrupted" if how == signal.SIGINT else "ended by SIGTERM"
        assert (replay.lines, replay.errors().splitlines()[-1]) == ([], said)


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone has /proc")
def test_an_engine_that_hears_sigterm_drains_however_early_that_is(native: Project) -> None:
    with native.start("run", "--pools", "none") as run:
        file = Path(f"/proc/{run.process.pid}/status")

        def hears() -> bool:
            caught = next(line for line in file.read_text().splitlines() if line.startswith("SigCgt:"))
            return bool(int(caught.split()[1], 16) >> (signal.SIGTERM - 1) & 1)

        eventually(hears)
        assert run.end() == 0, run.errors()
