"""Engines join, leave, die and freeze while keyed events flow: nothing is lost, doubled or out of order, and little is done."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import pytest
from engine_lab import APP, Lab

from dspex.bus import subjects
from dspex.bus.memory.handles import MemoryReader
from dspex.bus.memory.server import MemoryBus, MemoryServer
from dspex.bus.port import BusEvents
from dspex.operators.topology import Topology

MakeLab = Callable[..., Lab]
KEYS = 7


class Connection(MemoryBus):
    """Of a process that can be frozen: nothing that it does reaches the server then, nor comes back. `opened`: its readers."""

    def __init__(self, server: MemoryServer) -> None:
        super().__init__(server, BusEvents())
        self.thawed, self.opened = asyncio.Event(), list[str]()
        self.thawed.set()

    async def trip(self) -> None:
        await self.thawed.wait()
        await super().trip()
        await self.thawed.wait()

    async def reader(self, stream: str, filters: Sequence[str], **options: Any) -> MemoryReader:
        self.opened.append(options["name"])
        return await super().reader(stream, filters, **options)


def hops(count: int) -> Topology:
    """Keyed events that go over hops, one behind the other."""
    topology = Topology("keyed")
    stream = topology.source("in", partitions=2)
    for number in range(count):
        stream = stream.key_by("k", name=f"by_{number}").map(lambda d: d, name=f"seen_{number}")
    stream.sink("out")
    return topology


class Crowd:
    """Engines that come and go as a seed says, and events that are published meanwhile."""

    def __init__(self, one: Lab, seed: int) -> None:
        self.one, self.random, self.sent = one, Random(seed), 0
        self.started, self.frozen = 0, list[str]()

    def send(self, count: int) -> None:
        for n in range(self.sent, self.sent + count):
            self.one.publish("in", {"k": f"k{n % KEYS}", "n": n}, key=f"k{n % KEYS}")
        self.sent += count

    def join(self) -> None:
        self.started += 1
        self.one.start(f"e{self.started}", bus=Connection(self.one.server))

    def freeze(self) -> None:
        """One engine stands still, until it is thawed: maybe long after others have taken over."""
        name = self.random.choice([name for name in self.one.hosts if name not in self.frozen])
        self.connection(name).thawed.clear()
        self.frozen.append(name)

    def thaw(self) -> None:
        for name in self.frozen:
            self.connection(name).thawed.set()
        self.frozen.clear()

    def connection(self, name: str) -> Connection:
        bus = self.one.hosts[name][1]
        assert isinstance(bus, Connection)
        return bus

    def change(self) -> None:
        """One joins, leaves, dies or freezes, or those that were frozen go on."""
        able = [name for name in self.one.hosts if name not in self.frozen]
        what = self.random.choice(["join", "leave", "die", "freeze", "thaw"])
        if what == "thaw":
            self.thaw()
        elif what == "join" or len(able) < 2:
            self.join()
        elif what == "freeze":
            self.freeze()
        else:
            name = self.random.choice(able)
            self.one.drain(name) if what == "leave" else self.one.kill(name)


@pytest.mark.parametrize("seed", range(2))
def test_keyed_events_come_out_once_and_in_order_whatever_engines_come_and_go(lab: MakeLab, seed: int) -> None:  # P9
    one = lab(hops(2), seed=seed)
    crowd = Crowd(one, seed)
    crowd.join()
    crowd.join()
    for _ in range(14):
        crowd.send(5)
        crowd.change()
        crowd.send(2)
        one.advance(crowd.random.choice([0.0, 0.3, 2.0, 8.0]))
    crowd.thaw()
    one.advance(30)
    outputs = one.outputs("out")
    assert sorted(o["n"] for o in outputs) == list(range(crowd.sent))
    for key in range(KEYS):
        assert [o["n"] for o in outputs if o["k"] == f"k{key}"] == list(range(key, crowd.sent, KEYS))
    assert len({m.headers[subjects.EVENT_ID] for m in one.messages("out")}) == crowd.sent


def test_a_rebalance_moves_each_partition_once_and_makes_one_reader_of_each_stage_and_input(lab: MakeLab) -> None:  # P11
    one = lab(hops(3))
    crowd = Crowd(one, 0)
    crowd.join()
    crowd.send(KEYS)
    before = len(one.messages(subjects.log(APP, "keyed", "*", "*")))
    crowd.connection("e1").opened.clear()
    crowd.join()
    one.advance(4)
    moved = len(one.messages(subjects.log(APP, "keyed", "*", "*"))) - before
    assert moved == 3 * 32 + 1  # claims, of half of each stage
    for name in ("e1", "e2"):
        opened = Counter(crowd.connection(name).opened)
        assert len(opened) == 2 * 4 + 1  # records and events of each stage, and the source
        assert set(opened.values()) == {1}
    crowd.send(KEYS)
    one.advance(1)
    assert len(one.outputs("out")) == crowd.sent
