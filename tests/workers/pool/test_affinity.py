"""Calls of one key go to one process of a pool where that has room, and wait for none."""

from __future__ import annotations

import asyncio
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
from pool_bench import config, program, running, work

from dspex.workers.pool.slots import NEAR, Slots


@pytest.mark.asyncio
async def test_calls_of_one_key_are_answered_by_one_process_and_all_processes_have_work(model: Any) -> None:
    async with running(config(model.url, size=2, slots=4)) as bench:
        keys = [f"customer {n}" for n in range(24)]
        found = {key: set[str]() for key in keys}
        for key in keys * 2:
            (record,) = await bench.ask(work(spec=program("pid"), affinity=key))
            found[key].add((record.outputs or {})["reply"])
        assert {len(pids) for pids in found.values()} == {1}
        assert len(set[str]().union(*found.values())) == 2


class Wanting:
    """A call that wants a slot, and says which child it got."""

    def __init__(self, affinity: str | None) -> None:
        self.slots, self.affinity, self.child = 1, affinity, 0

    def begin(self, child: Any) -> None:
        self.child = child.pid

    def refuse(self, error: Exception) -> None:
        raise error


def children(*pids: int) -> list[Any]:
    """Stand-ins for processes: what slots know of one."""
    return [SimpleNamespace(pid=pid, hello=True, retiring=False, gone=asyncio.Event(), busy=0, calls=0) for pid in pids]


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
