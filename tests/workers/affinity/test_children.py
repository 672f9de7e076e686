"""Calls of one key go to one process of a pool where that has room, and wait for none."""

from __future__ import annotations

import os
import signal
from collections import Counter
from typing import Any

import pytest
from pool_bench import APP, Bench, IdleChild, light, program, running, work

from dspex.bus import subjects
from dspex.workers.pool.slots import NEAR, Slots


@pytest.mark.asyncio
async def test_calls_of_one_key_are_answered_by_one_process_and_all_processes_have_work(model: Any) -> None:
    async with running(light(model.url, size=2, slots=4)) as bench:
        keys = [f"customer {n}" for n in range(24)]
        found = {key: set[str]() for key in keys}
        for key in keys * 2:
            (record,) = await bench.ask(work(spec=program("pid"), affinity=key))
            found[key].add((record.outputs or {})["reply"])
        assert {len(pids) for pids in found.values()} == {1}
        assert len(set[str]().union(*found.values())) == 2
        await _a_required_worker_is_killed(bench)


async def _a_required_worker_is_killed(bench: Bench) -> None:
    """Only its keys are told, each once."""
    await bench.bus.bucket(subjects.bucket(APP))

    async def asked(key: str) -> Any:
        (record,) = await bench.ask(work(spec=program("pid"), affinity=key, required=True))
        return record.outputs["reply"] if record.outputs is not None else (record.error or {})["type"]

    pids = {key: await asked(key) for key in "abcdefghijkl"}
    assert pids == {key: await asked(key) for key in pids}
    assert len(set(pids.values())) == 2, "who has least to do gets a new key"
    child = next(child for child in bench.pool.children.children if child.pid == pids["a"])
    os.kill(child.pid, signal.SIGKILL)
    await child.gone.wait()  # a call that it had got would be WorkerLost, and be made again
    lost = {key for key, pid in pids.items() if pid == pids["a"]}
    assert {key: await asked(key) for key in pids} == {key: "AffinityLost" if key in lost else pids[key] for key in pids}
    now = {key: await asked(key) for key in pids}
    assert {key for key in pids if now[key] != pids[key]} == lost


class Wanting:
    """A call that wants a slot, and says which child it got."""

    def __init__(self, affinity: str | None = None, only: Any = None) -> None:
        self.slots, self.affinity, self.only, self.child, self.error = 1, affinity, only, 0, ""

    def begin(self, child: Any) -> None:
        self.child = child.pid

    def refuse(self, error: Exception) -> None:
        self.error = type(error).__name__


def children(*pids: int) -> list[Any]:
    return [IdleChild(pid) for pid in pids]


def placed(slots: Slots, *affinities: str | None) -> list[int]:
    calls = [Wanting(affinity) for affinity in affinities]
    for call in calls:
        slots.take(call)
    return [call.child for call in calls]


def test_a_child_that_is_much_busier_than_another_gets_no_more_of_its_own() -> None:
    four = children(1, 2, 3, 4)
    placed(slots := Slots(four, 4, 8), *["the same"] * 16)
    busy = sorted(child.busy for child in four)
    assert sum(busy) == 16
    assert busy[-1] - busy[0] <= 8 // NEAR + 1
    assert slots.waiting == 0


def test_when_a_child_goes_only_its_keys_move() -> None:
    keys = [f"key {n}" for n in range(60)]
    before = dict(zip(keys, [placed(Slots(children(1, 2, 3), 3, 100), key)[0] for key in keys]))
    after = dict(zip(keys, [placed(Slots(children(1, 3), 2, 100), key)[0] for key in keys]))
    assert {key for key in keys if before[key] != after[key]} == {key for key in keys if before[key] == 2}
    assert min(Counter(before.values()).values()) > 2


def test_calls_that_wait_for_one_child_get_it_in_their_order_and_hold_up_nobody() -> None:
    one, other = two = children(1, 2)
    slots = Slots(two, 2, 1)
    first, *waiting = [Wanting(only=one) for _ in range(3)]
    for call in (first, *waiting):
        slots.take(call)
    assert ([first.child, *(call.child for call in waiting)], slots.waiting, slots.free) == ([1, 0, 0], 2, 1)
    assert placed(slots, None) == [2]
    slots.take(anywhere := Wanting())
    slots.vacate(one, 1)
    assert (waiting[0].child, anywhere.child) == (1, 0), "who waits for this child comes first"
    slots.leave(waiting[1])
    slots.vacate(other, 1)
    assert (anywhere.child, slots.waiting) == (2, 0)


def test_when_a_child_takes_no_more_calls_those_that_wait_for_it_are_told() -> None:
    one, _ = two = children(1, 2)
    slots = Slots(two, 2, 1)
    first, second, late = (Wanting(only=one) for _ in range(3))
    slots.take(first)
    slots.take(second)
    one.retiring = True
    slots.vacate(one, 1)
    slots.take(late)
    assert (second.error, late.error, slots.waiting) == ("WorkerLost", "WorkerLost", 0)


def test_too_many_calls_for_one_child_are_not_accepted() -> None:
    one, _ = two = children(1, 2)
    slots = Slots(two, 2, 2)
    for _ in range(2 + 4):
        slots.take(Wanting(only=one))
    assert slots.free == 2
    for _ in range(2):
        slots.take(Wanting(only=one))
    assert slots.free == 0
