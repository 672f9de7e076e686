"""The virtual loop: exact time, no waiting, no surprises."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from dspex.bus.memory.virtual import VirtualLoop


def test_time_stands_still_until_it_is_moved(loop: VirtualLoop) -> None:
    assert loop.time() == 0
    loop.settle()
    assert loop.time() == 0
    loop.advance(2.5)
    assert loop.time() == 2.5


def test_a_day_passes_in_no_time(loop: VirtualLoop) -> None:
    ticks = 0

    async def clock() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(60)
            ticks += 1

    task = loop.create_task(clock())
    loop.advance(3 * 86400)
    assert ticks == 3 * 1440
    assert not task.done()


def test_timers_fire_in_order_at_their_own_time(loop: VirtualLoop) -> None:
    seen: list[tuple[str, float]] = []

    async def at(seconds: float, name: str) -> None:
        await asyncio.sleep(seconds)
        seen.append((name, loop.time()))

    tasks = [loop.create_task(at(s, n)) for s, n in ((0.3, "c"), (0.1, "a"), (0.2, "b"), (0.1, "a2"), (5.0, "late"))]
    loop.advance(0.3)
    assert seen == [("a", 0.1), ("a2", 0.1), ("b", 0.2), ("c", 0.3)]
    loop.advance(4.6)
    assert len(seen) == 4
    loop.advance(0.1)
    assert seen[4] == ("late", 5.0)
    assert all(t.done() for t in tasks)


def test_many_small_steps_add_up_exactly(loop: VirtualLoop) -> None:
    for _ in range(1000):
        loop.advance(0.1)
    assert loop.time() == 100.0


def test_a_timer_set_by_a_timer_fires_in_the_same_advance(loop: VirtualLoop) -> None:
    seen: list[float] = []
    loop.call_later(1, lambda: loop.call_later(1, lambda: seen.append(loop.time())))
    loop.advance(10)
    assert seen == [2.0]
    assert loop.time() == 10


def test_settle_runs_everything_that_is_ready(loop: VirtualLoop) -> None:
    depth = 0

    async def chain(n: int) -> None:
        nonlocal depth
        depth = max(depth, n)
        if n < 100:
            await asyncio.create_task(chain(n + 1))

    task = loop.create_task(chain(0))
    loop.settle()
    assert task.done()
    assert depth == 100


def test_a_virtual_loop_that_never_comes_to_rest_is_reported(loop: VirtualLoop) -> None:
    async def spin() -> None:
        while True:
            await asyncio.sleep(0)

    task = loop.create_task(spin())
    with pytest.raises(RuntimeError, match="no rest"):
        loop.settle()
    task.cancel()
    loop.settle()
    assert task.cancelled()


def test_run_gives_the_result_or_raises_the_error(loop: VirtualLoop) -> None:
    async def fine() -> int:
        await asyncio.sleep(0)
        return 42

    async def bad() -> None:
        raise ValueError("told you")

    assert loop.run(fine()) == 42
    with pytest.raises(ValueError, match="told you"):
        loop.run(bad())


def test_run_moves_the_clock_only_with_advance(loop: VirtualLoop) -> None:
    async def nap() -> float:
        await asyncio.sleep(90_000)  # longer than asyncio lets a selector wait at once
        return loop.time()

    with pytest.raises(RuntimeError, match=r"nap waits for time to pass"):
        loop.run(nap())
    assert loop.time() == 0
    assert loop.run(nap(), advance=True) == 90_000


def test_run_reports_a_wait_that_nothing_can_end(loop: VirtualLoop) -> None:
    async def hang() -> None:
        await asyncio.Event().wait()

    with pytest.raises(RuntimeError, match="nobody will do"):
        loop.run(hang(), advance=True)


def test_a_timeout_is_a_timer_like_any_other(loop: VirtualLoop) -> None:
    async def wait() -> None:
        await asyncio.wait_for(asyncio.Event().wait(), 3)

    task = loop.create_task(wait())
    loop.advance(2.999)
    assert not task.done()
    loop.advance(0.001)
    assert isinstance(task.exception(), TimeoutError)


def test_closing_a_virtual_loop_ends_its_tasks_and_generators() -> None:
    loop = VirtualLoop()
    ended: list[str] = []

    async def worker() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("worker")

    async def numbers() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            ended.append("generator")

    async def reader() -> None:
        await anext(generator)

    generator = numbers()
    loop.create_task(worker())
    loop.run(reader())
    loop.close()
    assert ended == ["worker", "generator"]
    assert loop.is_closed()
    loop.close()
