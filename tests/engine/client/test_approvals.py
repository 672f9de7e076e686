"""`dspex approvals` as a shell sees it, on a real server with a running engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from cli_bench import Project
from waiting import eventually, until

from dspex.bus.message import Event
from dspex.bus.settings.model import Settings
from dspex.engine.client.client import Client, connect
from dspex.engine.hosting.engine import Engine
from dspex.operators.topology import Topology

KEYS = ["id", "topology", "node", "stage", "partition", "since", "due", "shown", "digest", "run", "key", "session"]


@pytest.mark.asyncio
async def test_people_decide_on_the_command_line(tmp_path: Path, unique: str, nats_url: str) -> None:
    project, topology = Project(tmp_path, unique, NATS_URL=nats_url), Topology("asking")
    topology.source(project.input).approve(name="ok", show=["n"], timeout="1h").sink(project.output)
    settings = Settings.load(server__url=nats_url, app=unique)
    async with Engine(topology, settings=settings, pools="none"), connect(settings=settings) as client:
        for n in range(3):
            await client.publish(project.input, {"n": n, "more": "x"})
        await until(lambda: _waiting(client))
        await asyncio.to_thread(_decided, project)
        assert await _first(client.watch(project.output, start="all"), 2) == [{"n": 0, "more": "x"}, {"n": 7, "more": "x"}]


async def _waiting(client: Client) -> bool:
    return len([a async for a in client.approvals()]) == 3


async def _first(events: AsyncIterator[Event[Any]], count: int) -> list[Any]:
    return [(await anext(events)).data for _ in range(count)]


def _decided(project: Project) -> None:
    waits = project.here("--json", "approvals", "ls", "--topology", "asking", "--since", "1h").objects()
    assert [list(w) for w in waits] == [KEYS] * 3
    assert [w["shown"] for w in waits] == [{"n": n} for n in range(3)]
    ids = [w["id"] for w in waits]
    lines = project.here("approvals", "ls").out.splitlines()
    assert lines[0].split() == ["id", "since", "node", "due", "shown"]
    assert [line.split()[0] for line in lines[1:]] == ids
    shown = project.here("approvals", "show", ids[0][-8:]).out
    assert 'shown  {"n":0}\ndata   {"n":0,"more":"x"}' in shown
    assert project.here("approvals", "accept", ids[0][-8:]).code == 0
    assert project.here("--json", "approvals", "edit", ids[1], "n:=7", "--note", "less").code == 0
    done = project.here("approvals", "reject", ids[2], "--note", "no")
    assert (done.code, done.out) == (0, f"rejected: {ids[2]}\n")
    again = project.here("--json", "approvals", "accept", ids[2])
    assert (again.code, again.error()["code"]) == (1, "DX626")
    letters = eventually(lambda: project.here("--json", "dlq", "ls").objects())
    assert [letter["message"].rpartition(": ")[2] for letter in letters] == ["no"]
    told = project.here("--json", "audit", "ls").objects()
    assert [(e["verb"], e["what"]["decision"]) for e in told if e["verb"] == "decide"] == [
        ("decide", "accept"),
        ("decide", "accept"),
        ("decide", "reject"),
    ]
    assert eventually(lambda: project.here("approvals", "ls").err) == "nothing waits for a decision\n"
    assert project.here("--json", "approvals", "show", ids[0]).error()["code"] == "DX626"
    assert project.here("--json", "approvals", "ls", "--topology", "askin").error()["code"] == "DX105"
