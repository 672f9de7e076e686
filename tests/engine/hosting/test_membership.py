"""Engines tell each other what they own, and spread partitions without claiming from those that live."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from typing import Any

import msgpack
import orjson
import pytest
from engine_lab import APP, Lab

from dspex.bus import subjects
from dspex.bus.errors import Unreachable
from dspex.bus.local.processes import is_dead, process
from dspex.bus.memory.server import MemoryBus
from dspex.bus.port import BusEvents, NewMessage
from dspex.operators.topology import Topology

MakeLab = Callable[..., Lab]


def spread(partitions: int = 8, name: str = "spread") -> Topology:
    topology = Topology(name)
    topology.source(f"in.{name}", partitions=partitions).map(lambda d: d, name="same").sink(f"out.{name}")
    return topology


def claims(one: Lab) -> int:
    logs = one.messages(subjects.log(APP, "*", "*", "*"))
    return sum(msgpack.unpackb(m.data, strict_map_key=False)["kind"] == "claim" for m in logs)


def publish(one: Lab, numbers: range) -> None:
    for n in numbers:
        one.publish("in.spread", {"n": n}, key=f"k{n}")


def owned(one: Lab) -> dict[str, int]:
    return {name: sum(len(r.partitions) for r in host.runners) for name, (host, _) in one.hosts.items()}


def keys(one: Lab) -> dict[str, Any]:
    async def read() -> dict[str, Any]:
        bucket = await one.client.bus.bucket(subjects.bucket(APP))
        return {key: orjson.loads(value) for key, (value, _) in (await bucket.items()).items()}

    found: dict[str, Any] = one.run(read())
    return found


def test_engines_that_join_and_leave_claim_each_partition_that_moves_once(lab: MakeLab) -> None:
    one = lab(spread(8))
    one.start("a")
    assert (owned(one), claims(one)) == ({"a": 8}, 8)
    one.start("b")
    one.advance(5)
    assert (owned(one), claims(one)) == ({"a": 4, "b": 4}, 12)
    one.start("c")
    one.advance(5)
    assert sorted(owned(one).values()) == [2, 3, 3]
    assert claims(one) == 14
    one.drain("c")
    one.advance(5)
    assert (owned(one), claims(one)) == ({"a": 4, "b": 4}, 16)
    one.advance(60)
    assert claims(one) == 16


def test_an_idle_partition_costs_no_message_and_no_key(lab: MakeLab) -> None:
    one = lab(spread(16))
    one.start()
    before = len(one.messages(">"))
    one.advance(600)
    assert len(one.messages(">")) == before
    assert set(keys(one)) == {"engine.a", "torn.spread"}  # one for all partitions


def test_topologies_of_one_partition_are_shared_among_engines(lab: MakeLab) -> None:  # P14
    one = lab(*[spread(1, f"t{n}") for n in range(6)])
    one.start("a")
    one.start("b")
    one.advance(5)
    assert owned(one) == {"a": 3, "b": 3}


class Busy(MemoryBus):
    """Its commits of events take 20 seconds."""

    async def commit(self, drafts: Sequence[NewMessage], *, timeout: float = 5.0) -> int:
        if any(d.subject == "out.spread" for d in drafts):
            await asyncio.sleep(20)
        return await super().commit(drafts, timeout=timeout)


def test_a_new_owner_waits_until_the_old_one_has_committed_what_it_took(lab: MakeLab) -> None:
    one = lab(spread(2))
    one.start("a", bus=Busy(one.server, BusEvents()))
    publish(one, range(8))
    one.start("b")
    one.advance(10)
    assert (owned(one)["b"], claims(one)) == (0, 2)
    one.advance(60)
    assert (owned(one), claims(one)) == ({"a": 1, "b": 1}, 3)
    assert sorted(o["n"] for o in one.outputs("out.spread")) == list(range(8))


class Outage(MemoryBus):
    """A connection that can be without a server."""

    down = False

    async def trip(self) -> None:
        if Outage.down:
            raise Unreachable("no server")
        await super().trip()


@pytest.mark.parametrize("lasts", [30.0, 30.5])
@pytest.mark.parametrize("after", [0.1, 0.6])  # seconds: whoever spoke last, and looks first
def test_an_outage_of_the_server_makes_no_engine_take_over_from_another(lab: MakeLab, after: float, lasts: float) -> None:
    one = lab(spread(8))
    for name in ("a", "b"):
        one.start(name, bus=Outage(one.server, BusEvents()))
    one.advance(10 + after)
    before = claims(one)
    Outage.down = True
    one.advance(lasts)
    Outage.down = False
    one.advance(30)
    assert owned(one) == {"a": 4, "b": 4}
    assert claims(one) == before


class Freezing(MemoryBus):
    """A connection of a process that can be frozen."""

    def __init__(self, one: Lab) -> None:
        super().__init__(one.server, BusEvents())
        self.thawed = asyncio.Event()
        self.thawed.set()

    async def trip(self) -> None:
        await self.thawed.wait()
        await super().trip()


def test_an_engine_that_was_frozen_takes_off_its_list_what_it_lost_and_gets_its_share_again(lab: MakeLab) -> None:
    one = lab(spread(2))
    one.start("a")
    bus = Freezing(one)
    host = one.start("b", bus=bus)
    one.advance(5)
    (mine,) = host.runners[0].partitions
    bus.thawed.clear()
    one.advance(8)
    assert owned(one)["a"] == 2  # five heartbeats without a sign of life
    publish(one, range(6))
    bus.thawed.set()
    one.advance(0.5)
    assert ["spread", "s1", mine] not in keys(one)["engine.b"]["owns"]
    one.advance(10)
    assert owned(one) == {"a": 1, "b": 1}
    assert claims(one) == 5  # two at first, one for b, one for a when b was silent, one for b when it was back
    publish(one, range(6, 12))
    one.advance(1)
    assert sorted(o["n"] for o in one.outputs("out.spread")) == list(range(12))


def test_a_process_is_dead_only_by_the_boot_and_the_process_ids_of_this_machine() -> None:
    here = process()
    gone = {**here, "pid": _free_pid()}
    assert is_dead(gone)
    assert not is_dead(here)
    assert not is_dead({**gone, "boot": "00000000-0000-4000-8000-000000000000"})  # another machine of the same host name
    assert not is_dead({**gone, "pids": "pid:[1]"})  # another container
    assert not is_dead({"host": here["host"], "pids": here["pids"], "pid": gone["pid"]})  # who does not say which boot
    assert not is_dead({})


def _free_pid() -> int:
    """A process id that nobody has."""
    pid = os.fork()
    if not pid:
        os._exit(0)
    os.waitpid(pid, 0)
    return pid
