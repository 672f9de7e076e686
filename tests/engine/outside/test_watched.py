"""`dspex watch topology/node` shows what programs say while they work: a real server, an engine, and a pool with children."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_bench import Project

PROGRAM = """
import asyncio
from pathlib import Path

from dspex.workers import context


async def slow(text: str) -> dict:
    for step in ("looks", "thinks"):
        context().status(f"{step} at {text}")
        while not Path(step).exists():
            await asyncio.sleep(0.01)
    return {"reply": text}
"""
SAYS = """
dspex: 1
topology: says
sources: {{ {u}.in: {{}} }}
nodes:
  work: {{ from: {u}.in, program: "slowly:slow", signature: "text -> reply" }}
sinks: {{ {u}.out: {{ from: work }} }}
"""
SETTINGS = 'topologies = ["says.yaml"]\npools.lightweight = { size = 1, programs = ["slowly:*"] }\n'


@pytest.fixture
def project(tmp_path: Path, unique: str, nats_url: str) -> Iterator[Project]:
    made = Project(tmp_path, unique, SETTINGS, NATS_URL=nats_url)
    made.write("slowly.py", PROGRAM)
    made.write("says.yaml", SAYS.format(u=unique))
    with made.start("run") as run:
        run.until("ready in")
        yield made
        assert run.end() == 0, run.errors()


@pytest.mark.long
def test_who_watches_a_node_sees_what_its_programs_say_and_then_the_result(project: Project) -> None:
    with (
        project.start("watch", "says/work", "--count", "1") as people,
        project.start("--json", "watch", "says/work", "--count", "1", "--progress") as machine,
        project.start("--json", "watch", "says/work", "--count", "1", "--start", "all") as plain,
    ):
        project.here("publish", project.input, "text=a card")
        first = json.loads(machine.until('"progress"'))
        assert (first["kind"], first["node"], first["text"]) == ("progress", "says/work", "looks at a card")
        (project.folder / "looks").touch()
        assert "thinks at a card" in people.until("thinks")
        (project.folder / "thinks").touch()
        for watching in (people, machine, plain):
            assert watching.process.wait(60) == 0, watching.errors()
    result = json.loads(machine.lines[-1])
    assert (result["data"]["reply"], result["run"]) == ("a card", first["run"])
    assert ["kind" in json.loads(line) for line in plain.lines] == [False]  # scripts of before see what they saw
