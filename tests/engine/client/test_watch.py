"""Watching shows events and results as people know them: with ids that can be used, and nothing of how they are stored."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest
from engine_lab import APP, Lab
from waiting import until

import dspex
from dspex.bus import codecs, subjects
from dspex.bus.errors import ProgramError, Saturated
from dspex.bus.memory.server import MemoryServer
from dspex.bus.memory.virtual import VirtualLoop
from dspex.bus.message import Event, Message
from dspex.engine.client.client import Client
from dspex.engine.client.status.health import faults
from dspex.engine.client.status.rows import Status
from dspex.operators.topology import Topology

MakeLab = Callable[..., Lab]


def asking(name: str = "ask", **options: Any) -> Topology:
    topology = Topology("asking", **options)
    topology.source("in").predict("text -> answer", name=name, retry={"attempts": 1}).sink("out")
    return topology


def watched(one: Lab, what: str, number: int) -> list[Event[Any]]:
    async def go() -> list[Event[Any]]:
        async with aclosing(cast("Any", one.client.watch(what, start="all"))) as events:
            return [await anext(events) for _ in range(number)]

    found: list[Event[Any]] = one.run(go())
    return found


def test_a_watched_source_and_sink_show_the_run_that_publishing_gave(lab: MakeLab) -> None:
    one = lab(asking())
    one.start()
    one.work()
    run = one.publish("in", {"text": "a"}, key="k", session="s")
    (source,), (sink,) = watched(one, "in", 1), watched(one, "out", 1)
    assert (source.id, source.run, sink.run, sink.cause is not None) == (run, run, run, True)


def test_a_watched_node_shows_its_results_under_its_name_and_no_subject_or_header_of_ours(lab: MakeLab) -> None:
    def answer(inputs: Any, request: Any) -> Any:
        if inputs["text"] == "bad":
            raise ProgramError("so bad")
        return {"answer": "yes"}

    one = lab(asking())
    one.answers["ask"] = answer
    one.start()
    one.work()
    runs = [one.publish("in", {"text": text}, key="k", session="s") for text in ("good", "bad")]
    good, bad = watched(one, "asking/ask", 2)
    assert [(e.subject, e.run, e.key, e.session, e.headers) for e in (good, bad)] == [
        ("asking/ask", run, "k", "s", {}) for run in runs
    ]
    assert good.data == {"answer": "yes"}
    assert bad.data == {"error": {"type": "ProgramError", "code": "DX608", "message": "so bad"}}
    assert "dspex." not in str([good.as_dict(), bad.as_dict()])
    one.kill()
    one.start("b", asking("reply", renamed_from={"reply": "ask"}))
    for name in ("asking/reply", "asking/ask"):
        assert [(e.subject, e.id) for e in watched(one, name, 2)] == [("asking/reply", good.id), ("asking/reply", bad.id)]


@pytest.mark.asyncio
async def test_an_event_that_nothing_stores_has_the_time_at_which_it_came() -> None:
    bus = MemoryServer().connect()
    async with Client(bus=bus, app=APP) as client, aclosing(cast("Any", client.watch("early.in"))) as events:
        first = asyncio.ensure_future(anext(events))

        async def heard() -> bool:  # who is not listening yet hears nothing
            await bus.send("early.in", b'{"n": 1}')
            return first.done()

        await until(heard)
        event = await first
    assert datetime.now(UTC) - event.time < timedelta(minutes=1)
    assert (event.data, event.id, event.run, event.sequence) == ({"n": 1}, "", "", None)


def pool(id: str, *, draining: bool, busy: int = 4) -> dict[str, Any]:
    row = {"pool": "lightweight", "id": id, "host": "h", "pid": 1, "size": 1, "slots": 4, "busy": busy, "ready": 1}
    return {**row, "restarts": 0, "draining": draining}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([pool("a", draining=True)], "pool lightweight has no worker that takes calls: its processes finish what they run"),
        ([pool("a", draining=True), pool("b", draining=False)], r"pool lightweight is saturated \(4 of 4 slots busy\)"),
        ([pool("b", draining=False)], r"pool lightweight is saturated \(4 of 4 slots busy\)"),
        ([], "pool lightweight has no worker"),
    ],
)
def test_a_pool_that_ends_is_no_saturated_one(rows: list[dict[str, Any]], message: str) -> None:
    """As after a kill of the `dspex run` that had started it: it finishes what it runs, and takes nothing."""

    async def go() -> None:
        bus = MemoryServer().connect()
        for row in rows:

            async def answer(asked: Message, row: dict[str, Any] = row) -> None:
                await bus.send(asked.reply, codecs.encode(row)[0])

            await bus.subscribe(subjects.control(APP, "lightweight"), answer)
        async with Client(bus=bus, app=APP) as client:
            with pytest.raises(Saturated, match=message):
                await client.call(dspex.predict("text -> lang"), {"text": "hi"}, timeout="60s")

    loop = VirtualLoop()
    loop.run(go(), advance=True)
    loop.close()


def test_calls_that_wait_for_a_pool_which_only_ends_are_a_fault(lab: MakeLab) -> None:
    one = lab(asking())
    one.start()
    one.publish("in", {"text": "a"})
    one.advance(1.5)
    found: Status = one.run(one.client.status())
    found["pools"] = [cast("Any", pool("a", draining=True))]
    assert "1 call waits for pool lightweight, and no worker of it is ready" in [f.message for f in faults(found)]
    found["pools"] = [cast("Any", pool("a", draining=False))]
    assert "pool" not in [f.check for f in faults(found)]
