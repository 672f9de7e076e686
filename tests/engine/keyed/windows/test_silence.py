"""What an engine takes for the silence of a source, where it does not know when its last event came."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

from engine_lab import APP, Lab

from dspex.bus import codecs, subjects
from dspex.bus.memory.server import MemoryBus, MemoryServer
from dspex.bus.message import Message
from dspex.bus.port import BusEvents, StreamConfig
from dspex.operators.topology import Topology

MakeLab = Callable[..., Lab]


def stated(one: Lab) -> float:
    """The highest watermark that was stated of the source."""
    said = [codecs.decode(m.data, codecs.MSGPACK) for m in one.messages(subjects.time(APP, "t", "s1", "*"))]
    return max((at for marks in said if (at := marks.get(0)) is not None), default=0.0)


def now(one: Lab) -> float:
    async def asked() -> float:
        return one.server.now

    return float(one.run(asked()))


def foreign(one: Lab, *held: str) -> None:
    """A stream of somebody else, which holds these subjects."""
    one.run(one.client.bus.ensure_stream(StreamConfig("EVENTS", list(held))))
    stream = one.server.streams["EVENTS"]
    info = stream.info
    stream.info = lambda now: replace(info(now), own=False)  # type: ignore[method-assign]


def counting(**options: Any) -> Topology:
    topology = Topology("t")
    topology.source("in", idle="5s", stream="EVENTS", **options).key_by("k").window("10s").count(name="w").sink("out")
    return topology


def test_windows_close_after_a_restart_though_the_last_that_was_read_is_of_another_subject(lab: MakeLab) -> None:
    one = lab(counting())
    foreign(one, "in", "other")
    one.start()
    one.publish("in", {"k": "a"})
    one.publish("other", {})
    one.advance(6)
    one.kill()
    one.start("b")
    one.advance(8)
    assert one.messages("in")[0].time + 5 < stated(one) <= now(one) - 5  # it was silent before the restart, too
    one.advance(20)
    one.publish("in", {"k": "a"})
    one.advance(30)
    assert stated(one) < now(one)
    assert [w["value"] for w in one.outputs("out")] == [1, 1]


def test_windows_close_behind_a_gap_that_was_passed_over(lab: MakeLab) -> None:
    one = lab(counting(on_gap="skip"))
    foreign(one, "in")
    one.start()
    one.publish("in", {"k": "a"})
    one.advance(1)
    one.kill()
    one.publish("in", {"k": "a"})
    one.run(one.client.bus.purge("EVENTS", "in", below=3))
    one.start("b")
    one.advance(30)
    one.publish("in", {"k": "a"})
    one.advance(30)
    assert stated(one) < now(one)
    assert [w["value"] for w in one.outputs("out")] == [1, 1]


class Slow(MemoryBus):
    """A connection on which the answer what lies last on the source is still on its way when the next event has come."""

    def __init__(self, server: MemoryServer) -> None:
        super().__init__(server, BusEvents())
        self.before_answer: Callable[[], Awaitable[None]] | None = None

    async def last(self, stream: str, subject: str) -> Message | None:
        found = await super().last(stream, subject)
        if subject == "in" and self.before_answer is not None:
            before, self.before_answer = self.before_answer, None
            await before()
        return found


def test_an_event_that_comes_while_the_server_is_asked_for_silence_does_not_run_ahead_by_that(lab: MakeLab) -> None:
    topology = Topology("t")
    topology.source("in", idle="5s").key_by("k").window("10s").count(name="w").sink("out")
    one = lab(topology)
    bus = Slow(one.server)
    one.start(bus=bus)
    one.publish("in", {"k": "a"})
    one.advance(60)

    async def comes() -> None:
        await one.client.publish("in", {"k": "a"})
        (source,) = [r for r in one.hosts["a"][0].runners if r.source is not None]
        while source.pumps["source"].at != 2 or not source.partitions[0].settled.is_set():
            await asyncio.sleep(0)  # until it is read, and stored

    bus.before_answer = comes
    one.advance(12)
    assert bus.before_answer is None
    assert stated(one) < now(one)
    one.publish("in", {"k": "a"})
    one.advance(30)
    assert one.letters() == []
    assert sum(w["value"] for w in one.outputs("out")) == 3
