"""The tables of all partitions of a stage: as those of one are read, and with few questions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from engine_lab import APP, Lab

from dspex.bus import subjects
from dspex.bus.memory.server import MemoryBus
from dspex.bus.message import Message
from dspex.bus.port import BusEvents, NewMessage, StreamConfig
from dspex.engine.log import commit_log, latest
from dspex.engine.log.entries import unpack
from dspex.engine.log.latest import look
from dspex.engine.log.positions import sequence_before
from dspex.operators.topology import Topology

MakeLab = Callable[..., Lab]
PARTITIONS = range(64)


class Counting(MemoryBus):
    """Counts the logs whose entries are asked for one by one."""

    def __init__(self, one: Lab) -> None:
        super().__init__(one.server, BusEvents())
        self.alone: set[str] = set()

    async def scan(self, stream: str, filters: Sequence[str], *, start: int, stop: int) -> list[Message]:
        self.alone |= {f for f in filters if f.startswith(subjects.log(APP, "kept", "s2", 0)[:-1]) and f[-1].isdigit()}
        return await super().scan(stream, filters, start=start, stop=stop)


@pytest.mark.parametrize("most", [500, 1, 0], ids=["all at once", "but for those that are behind", "one by one"])
def test_tables_of_many_partitions_are_those_of_each_of_them(lab: MakeLab, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    monkeypatch.setattr(commit_log, "LEAST", 2_000)
    monkeypatch.setattr(latest, "EACH", most)
    topology = Topology("kept")
    keyed = topology.source("in").key_by("k", name="by")
    keyed.stateful(lambda s, d, ctx: (d["text"], [d]), init=str, name="last").sink("out")
    one = lab(topology, max_payload=10_000)
    one.start()
    for n in range(60):  # some seldom, some often, and a few that an entry does not hold
        key, size = (f"k{n % 50}", 10) if n < 10 or n > 57 else (f"often{n % 3}", 9_000 if n % 20 == 0 else 700)
        one.publish("in", {"k": key, "text": str(n) * (size // 2)})
    one.advance(1)
    logs = [[unpack(m.data) for m in one.messages(subjects.log(APP, "kept", "s2", i))] for i in PARTITIONS]
    assert any("snapshot" in e for log in logs for e in log)
    assert any("pieces" in e for log in logs for e in log)
    bus = Counting(one)
    found = one.run(latest.look_at_many(bus, APP, "kept", "s2", PARTITIONS))
    each: list[Any] = [one.run(look(one.client.bus, APP, "kept", "s2", i)) for i in PARTITIONS]
    for its, wanted in zip(found, each, strict=True):
        assert (its.keyed.rows, its.positions.rows) == (wanted.keyed.rows, wanted.positions.rows)
    assert sum(len(its.keyed.rows) for its in found) == 13
    assert (len(bus.alone) == 0, len(bus.alone) == 64) == (most == 500, most == 0)


@pytest.mark.parametrize("within", [0, 1, 16, 1000])
def test_the_place_of_a_time_is_exact_or_lower_by_no_more_than_will_do(lab: MakeLab, within: int) -> None:
    one, drafts = lab(), [NewMessage("s", b"")]
    bus = one.client.bus
    one.run(bus.ensure_stream(StreamConfig("S", ["s"])))
    for _ in range(300):
        one.run(bus.publish_all(drafts))
        one.advance(1)
    info, messages = one.run(bus.stream("S")), one.run(bus.scan("S", ["s"], start=1, stop=300))
    for message in messages[::7]:
        before, found = message.sequence - 1, one.run(sequence_before(bus, info, message.time, within=within))
        assert max(0, before - within) <= found <= before
