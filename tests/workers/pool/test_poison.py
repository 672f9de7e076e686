"""A program that ends its process, in a pool that `dspex run` keeps: its neighbours come through."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_bench import Project

SETTINGS = """
topologies = ["poisoned.yaml"]
lm.main = { model = "openai/none", base_url = "http://127.0.0.1:1" }  # nobody asks it
pools.lightweight = { programs = ["programs:*"], size = 1, slots = 6 }
"""
PROGRAMS = """
import os, threading

together = threading.Barrier(6)

def answer(text):
    try:
        together.wait(0.5)  # all calls are in one process before one of them ends it
    except threading.BrokenBarrierError:
        pass
    if text == "poison":
        os._exit(1)
    return {"reply": text}
"""
TOPOLOGY = """
dspex: 1
topology: poisoned
sources: {{ {u}.in: {{}} }}
nodes:
  answer: {{ from: {u}.in, program: "programs:answer", signature: "text -> reply", retry: {{ attempts: 1 }} }}
sinks: {{ {u}.out: {{ from: answer }} }}
"""


@pytest.mark.long
def test_of_six_calls_in_one_process_only_the_one_that_ends_it_becomes_a_dead_letter(
    tmp_path: Path, unique: str, nats_url: str
) -> None:
    project = Project(tmp_path, unique, SETTINGS, NATS_URL=nats_url)
    project.write("poisoned.yaml", TOPOLOGY.format(u=unique))
    project.write("programs.py", PROGRAMS)
    texts = ["a", "b", "poison", "c", "d", "e"]
    (tmp_path / "rows.jsonl").write_text("".join(f'{{"text": "{text}"}}\n' for text in texts))
    with project.start("run") as run:
        run.until("ready")
        done = project.here("--json", "publish", project.input, "-f", "rows.jsonl", "--wait", "90s")
        assert done.code == 1, done.err
        letters = project.here("--json", "dlq", "ls").objects()
        assert [letter["event"]["data"]["text"] for letter in letters] == ["poison"]
        replies = [json.loads(line)["outputs"] for line in done.out.splitlines()]
        assert sorted(output["data"]["reply"] for outputs in replies for output in outputs) == ["a", "b", "c", "d", "e"]
        assert run.end() == 0, run.errors()
