"""What pools promise about their size: an operator's number is shared by all, and the backlog decides without swinging."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace

import orjson
import pytest

from dspex.bus import subjects
from dspex.bus.local.processes import process
from dspex.bus.memory.server import MemoryServer
from dspex.bus.memory.virtual import VirtualLoop
from dspex.bus.port import NewMessage, StreamConfig
from dspex.bus.records import PoolSize
from dspex.bus.serving.work_consumers import WorkConsumers
from dspex.workers.config import PoolConfig
from dspex.workers.pool.children.scaling import BEAT, SILENT, Scaling
from dspex.workers.pool.children.sizing import Needed, ScaleBounds, by_backlog, needed, spread

APP, POOL = "test", "light"
BOUNDS = ScaleBounds(1, 8, 60.0)
CONFIG = PoolConfig(APP, POOL, size=2, slots=4)


class World:
    """Processes of a pool on one server, in virtual time, each with its number of children in place of children."""

    def __init__(self) -> None:
        self.loop, self.server = VirtualLoop(), MemoryServer()
        self.sizes: dict[str, int] = {}
        self.load: dict[str, tuple[int, int]] = {}
        self.parents: dict[str, Scaling] = {}
        self.bus = self.server.connect()
        self.loop.run(self._begin(), advance=True)

    async def _begin(self) -> None:
        await self.bus.ensure_stream(StreamConfig(subjects.stream(APP), subjects.own_subjects(APP)))
        await WorkConsumers(self.bus, APP, [(POOL, 1)]).look()

    def join(self, id: str, config: PoolConfig = CONFIG, *, ready: bool = True) -> None:
        """A process that starts, and has its children at once; `ready`: and says so."""

        async def resize(size: int) -> None:
            self.sizes[id] = size

        async def go() -> None:
            found = Scaling(self.server.connect(), config, id, resize, lambda: self.load.get(id, (0, 0)), self._failed)
            self.sizes[id] = await found.begin()
            self.parents[id] = found
            if ready:
                found.start()

        self.loop.run(go(), advance=True)

    def leave(self, id: str) -> None:
        self.loop.run(self.parents.pop(id).stop(), advance=True)
        del self.sizes[id]

    def scale(self, size: int | None) -> None:
        """As `dspex pools scale` stores it."""

        async def go() -> None:
            bucket = await self.bus.bucket(subjects.bucket(APP))
            await bucket.put(subjects.size_key(POOL), PoolSize(size).pack())

        self.loop.run(go(), advance=True)

    def after(self, seconds: float = 2 * BEAT) -> dict[str, int]:
        """How many children each has, so much later."""
        self.loop.advance(seconds)
        return dict(sorted(self.sizes.items()))

    def work(self, number: int) -> None:
        async def go() -> None:
            for n in range(number):
                await self.bus.publish(NewMessage(subjects.work(APP, POOL, "t", "n"), b"%d" % n))

        self.loop.run(go(), advance=True)

    def _failed(self, error: BaseException) -> None:
        raise AssertionError from error


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    yield made
    made.loop.close()


# -- an operator's number
def test_without_a_number_each_process_has_as_many_as_its_settings_say(world: World) -> None:
    world.join("a")
    world.join("b", replace(CONFIG, size=3))
    assert world.after() == {"a": 2, "b": 3}


def test_a_number_is_of_all_processes_and_is_spread_evenly_whoever_joins_and_goes(world: World) -> None:
    world.join("a")
    world.scale(7)
    assert world.after() == {"a": 7}
    world.join("b")
    world.join("c")
    assert world.after() == {"a": 3, "b": 2, "c": 2}
    world.leave("b")
    assert world.after() == {"a": 4, "c": 3}
    world.scale(0)
    assert world.after() == {"a": 0, "c": 0}
    world.scale(None)
    assert world.after() == {"a": 2, "c": 2}


def test_a_process_that_falls_silent_is_replaced_by_the_others(world: World) -> None:
    world.join("a")
    world.join("b")
    world.scale(6)
    assert world.after() == {"a": 3, "b": 3}
    world.loop.run(world.parents["b"]._tasks.stop(), advance=True)  # pyright: ignore[reportPrivateUsage]
    assert world.after(BEAT * SILENT / 2)["a"] == 3
    assert world.after(BEAT * (SILENT + 2))["a"] == 6


def test_who_starts_gets_its_part_when_its_workers_are_ready(world: World) -> None:
    world.join("a")
    world.scale(6)
    world.after()
    world.join("b", ready=False)
    assert world.after(BEAT) == {"a": 6, "b": 3}
    world.loop.call_soon(world.parents["b"].start)
    assert world.after() == {"a": 3, "b": 3}


def test_a_process_of_this_machine_that_is_gone_is_not_waited_for(world: World) -> None:
    world.join("b")
    world.scale(6)
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        pass
    row = {**process(), "pid": gone.pid, "starting": False, "most": None, "busy": 0, "waiting": 0, "decided": None}

    async def left() -> None:
        bucket = await world.bus.bucket(subjects.bucket(APP))
        await bucket.put(f"{subjects.parents(POOL)}.a", orjson.dumps(row))

    world.loop.run(left(), advance=True)
    assert world.after(BEAT) == {"b": 6}


def test_a_number_outlives_all_processes_and_who_starts_begins_with_its_share(world: World) -> None:
    world.join("a")
    world.scale(5)
    world.after()
    world.leave("a")
    world.join("b")
    assert world.sizes == {"b": 5}


def test_one_that_is_drained_leaves_its_share_to_the_others(world: World) -> None:
    world.join("a")
    world.join("b")
    world.scale(4)
    world.after()
    world.parents["a"].resting = True
    assert world.after() == {"a": 0, "b": 4}


def test_what_no_operator_and_no_process_wrote_changes_nothing(world: World) -> None:
    world.join("a")
    world.scale(3)
    world.after()

    async def strange() -> None:
        bucket = await world.bus.bucket(subjects.bucket(APP))
        for n, value in enumerate((b"", b"{", b'{"most": -1}', b"[]", b'{"size": 1e99}', b'{"size": -1}', b'{"size": true}')):
            await bucket.put(f"{subjects.parents(POOL)}.{n}", value)
            await bucket.put(subjects.size_key(POOL), value)

    world.loop.run(strange(), advance=True)
    assert world.after() == {"a": 2}, "there is no number any more"


# -- the backlog
def test_one_slot_more_than_is_taken_or_waited_for_is_needed() -> None:
    assert [needed(busy, waiting, 4) for busy, waiting in ((0, 0), (1, 0), (3, 0), (4, 0), (4, 3), (4, 4))] == [
        0,
        1,
        1,
        2,
        2,
        3,
    ]


def test_a_pool_grows_at_once_and_shrinks_to_the_most_that_it_needed_in_the_cooldown() -> None:
    sizes: list[int] = []
    before: Needed = ()
    for now, need in ((0, 2), (10, 6), (20, 3), (30, 4), (69, 1), (70, 1), (89, 1), (90, 1), (150, 0)):
        size, before = by_backlog(before, float(now), need, BOUNDS)
        sizes.append(size)
    assert sizes == [2, 6, 6, 6, 6, 4, 4, 1, 1]


@pytest.mark.parametrize("load", [1, 3, 4, 7, 8, 40])
def test_under_a_steady_load_a_pool_takes_one_size_and_stays(load: int) -> None:
    """Its slots hold back what it sees of the load: what it cannot take waits elsewhere, so each look sees what fits."""
    size, before, seen = 1, (), list[int]()
    for look in range(300):
        size, before = by_backlog(before, look * BEAT, needed(min(load, size * 4), 0, 4), BOUNDS)
        seen.append(size)
    assert seen == sorted(seen)
    assert seen[-1] == seen[10] == min(8, load // 4 + 1)


def test_the_backlog_grows_all_processes_together_and_they_shrink_after_the_cooldown(world: World) -> None:
    config = replace(CONFIG, scale=BOUNDS)
    world.join("a", config)
    world.join("b", config)
    assert world.after() == {"a": 1, "b": 1}
    world.work(13)
    assert world.after(3 * BEAT) == {"a": 2, "b": 2}
    world.load["b"] = (4, 20)
    assert world.after(3 * BEAT) == {"a": 4, "b": 4}, "at most 8"
    world.load.clear()
    assert world.after(40.0) == {"a": 4, "b": 4}
    assert world.after(30.0) == {"a": 2, "b": 2}, "the durable calls still wait"


def test_who_takes_over_the_decision_begins_with_what_was_decided(world: World) -> None:
    config = replace(CONFIG, scale=BOUNDS)
    world.join("a", config)
    world.load["a"] = (8, 12)
    world.join("b", config)
    world.after(3 * BEAT)
    assert sum(world.sizes.values()) == 6
    world.load.clear()
    world.leave("a")
    assert world.after(3 * BEAT) == {"b": 6}
    assert world.after(70.0) == {"b": 1}


def test_one_that_joins_and_is_to_decide_begins_with_what_was_decided(world: World) -> None:
    config = replace(CONFIG, scale=BOUNDS)
    world.join("b", config)
    world.load["b"] = (8, 12)
    world.after(3 * BEAT)
    world.load.clear()
    world.after()
    world.join("a", config)
    assert world.after(3 * BEAT) == {"a": 3, "b": 3}
    assert world.after(70.0) == {"a": 1, "b": 0}


def test_an_operators_number_goes_before_the_backlog(world: World) -> None:
    world.join("a", replace(CONFIG, scale=BOUNDS))
    world.scale(3)
    world.load["a"] = (100, 100)
    assert world.after(60.0) == {"a": 3}
    world.scale(None)
    assert world.after() == {"a": 8}


def test_a_share_is_never_more_than_a_process_can_have() -> None:
    assert spread(10, {"b": None, "a": 2, "c": 3}) == {"a": 2, "b": 5, "c": 3}
    assert spread(10, {"a": 2, "b": 1}) == {"a": 2, "b": 1}
    assert spread(1, {"a": 0, "b": None}) == {"a": 0, "b": 1}
    assert spread(5, {}) == {}
