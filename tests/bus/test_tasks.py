"""Background tasks with one owner."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable

import pytest

from dspex.bus import tasks
from dspex.bus.tasks import Tasks, first

pytestmark = pytest.mark.asyncio


async def forever(ended: list[str] | None = None) -> None:
    try:
        await asyncio.Event().wait()
    finally:
        if ended is not None:
            ended.append("ended")


async def fail(text: str = "broken") -> None:
    raise LookupError(text)


async def test_stop_cancels_every_task_and_returns_after_their_cleanup() -> None:
    ended: list[str] = []
    owner = Tasks("owner")
    for i in range(3):
        owner.start(forever(ended), str(i))
    await asyncio.sleep(0)
    await owner.stop()
    assert (ended, len(owner)) == (["ended"] * 3, 0)


async def test_stop_cancels_tasks_in_the_order_of_their_start() -> None:
    ended: list[int] = []

    async def forever(number: int) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(number)

    owner = Tasks("owner")
    for i in range(100):
        owner.start(forever(i), str(i))
    await asyncio.sleep(0)
    await owner.stop()
    assert ended == list(range(100))


async def test_an_owner_starts_tasks_again_after_stop() -> None:
    owner = Tasks("owner")
    owner.start(forever(), "a")
    await owner.stop()
    task = owner.start(forever(), "b")
    assert (len(owner), task.get_name()) == (1, "owner.b")
    await owner.stop()


async def test_stop_cancels_a_task_that_another_task_starts_while_it_is_cancelled() -> None:
    owner = Tasks("owner")
    ended: list[str] = []

    async def starts_another() -> None:
        try:
            await forever()
        finally:
            owner.start(forever(ended), "late")
            await asyncio.sleep(0)

    owner.start(starts_another(), "first")
    await asyncio.sleep(0)
    await owner.stop()
    assert (ended, len(owner)) == (["ended"], 0)


async def test_a_task_that_stops_its_owner_is_not_cancelled() -> None:
    owner = Tasks("owner")
    ended: list[str] = []
    owner.start(forever(ended), "other")

    async def stops() -> None:
        await owner.stop()
        ended.append("stopper")

    await owner.start(stops(), "stopper")
    assert ended == ["ended", "stopper"]


async def test_a_task_that_swallows_a_cancellation_is_cancelled_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "CANCEL_AGAIN", 0.01)

    async def swallows() -> None:
        try:
            await forever()
        except asyncio.CancelledError:
            await forever()

    owner = Tasks("owner")
    owner.start(swallows(), "deaf")
    await asyncio.sleep(0)
    await owner.stop()
    assert len(owner) == 0


async def test_a_failure_is_reported_with_the_name_of_its_task_and_the_others_go_on() -> None:
    reported: list[tuple[str, str]] = []
    owner = Tasks("owner", lambda name, error: reported.append((name, str(error))))
    other = owner.start(forever(), "other")
    await asyncio.wait([owner.start(fail(), "bad")])
    assert (reported, other.done()) == ([("bad", "broken")], False)
    await owner.stop()  # reported once, so not raised here


async def test_wait_raises_the_first_failure() -> None:
    owner = Tasks("owner")
    owner.start(fail("one"), "a")
    owner.start(fail("two"), "b")
    with pytest.raises(LookupError, match="one"):
        await owner.wait()
    await owner.stop()


async def test_stop_raises_a_failure_that_nobody_has_heard_of_and_only_once() -> None:
    owner = Tasks("owner")
    await asyncio.wait([owner.start(fail(), "a")])
    with pytest.raises(LookupError, match="broken"):
        await owner.stop()
    await owner.stop()


async def test_a_cancelled_task_is_no_failure() -> None:
    owner = Tasks("owner")
    owner.start(forever(), "a").cancel()
    await owner.finish(timeout=5)
    await owner.stop()
    assert owner.failure is None


async def test_finish_waits_for_tasks_to_end_by_themselves() -> None:
    owner, done = Tasks("owner"), asyncio.Event()

    async def waits() -> None:
        await done.wait()

    owner.start(waits(), "a")
    asyncio.get_running_loop().call_soon(done.set)
    await owner.finish(timeout=5)
    assert len(owner) == 0


async def test_finish_returns_when_the_time_is_up() -> None:
    owner = Tasks("owner")
    owner.start(forever(), "a")
    await owner.finish(timeout=0.01)
    assert len(owner) == 1
    await owner.stop()


async def test_a_task_is_kept_alive_though_nobody_refers_to_it_or_its_owner() -> None:
    ran = asyncio.Event()
    wake: list[Callable[[], None]] = []

    async def waits() -> None:
        future = asyncio.get_running_loop().create_future()
        wake.append(lambda: future.set_result(None))
        await future
        ran.set()

    Tasks("owner").start(waits(), "a")
    await asyncio.sleep(0)
    gc.collect()
    wake[0]()
    assert await asyncio.wait_for(ran.wait(), 30)


async def test_first_gives_the_index_of_the_one_that_ended_and_cancels_the_others() -> None:
    ended: list[str] = []
    assert await first(forever(ended), asyncio.sleep(0), forever(ended)) == 1
    assert ended == ["ended", "ended"]


async def test_waiting_for_the_first_of_several_raises_what_that_one_raised() -> None:
    with pytest.raises(LookupError, match="broken"):
        await first(forever(), fail())


async def test_first_leaves_a_future_of_the_caller_alone() -> None:
    stopped: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    assert await first(stopped, asyncio.sleep(0)) == 1
    assert not stopped.done()


async def test_first_cancels_what_it_waits_for_when_it_is_cancelled() -> None:
    ended: list[str] = []
    running = asyncio.Event()

    async def second() -> None:
        running.set()
        await forever(ended)

    waiting = asyncio.create_task(first(forever(ended), second()))
    await running.wait()
    await tasks.cancel([waiting])
    assert ended == ["ended", "ended"]
