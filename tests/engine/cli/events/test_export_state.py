"""What is exported has the state of then, where the code is there that made it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from cli_bench import Project

ONCE = """
dspex: 1
topology: once
sources: {{ {u}.in: {{}} }}
nodes:
  by_k: {{ from: {u}.in, key_by: k }}
  first: {{ from: by_k, dedupe: k, within: 1s }}
sinks: {{ {u}.out: {{ from: first }} }}
"""


@pytest.fixture
def burst(tmp_path: Path, nats_url: str) -> Project:
    """Six events of a key that came while no engine ran, of which one went through."""
    one = Project(tmp_path, f"b{os.urandom(5).hex()}", 'topologies = ["once.yaml"]', NATS_URL=nats_url)
    one.write("once.yaml", ONCE.format(u=one.u))
    assert one.here("apply", "--yes").code == 0
    rows = "".join(f"{json.dumps({'k': 'a', 'n': n})}\n" for n in range(6))
    assert one.here("publish", one.input, "-", stdin=rows).code == 0
    with one.start("run", "--pools", "none") as run:
        run.until("ready")
        for n in range(6):
            assert one.here("runs", "wait", f"@last-{n}").code == 0
        assert run.end() == 0, run.errors()
    return one


@pytest.mark.long
def test_runs_of_a_burst_end_as_they_did_when_their_files_are_replayed(burst: Project) -> None:
    (done,) = burst.here("--json", "runs", "export", "--topology", "once", "-o", "several").objects()
    assert done["files"] == 6
    assert burst.here("runs", "export", "@last", "-o", "last.jsonl").code == 0
    for path, runs in (("several", 6), ("last.jsonl", 1)):
        replayed = burst.here("--json", "replay", "--file", path, NATS_URL="nats://127.0.0.1:1")
        (said,) = replayed.objects()
        assert (replayed.code, said["same"], said["runs"], said["without"]) == (0, True, runs, ""), said
