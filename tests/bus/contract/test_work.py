"""`work`: each piece goes to one worker, and comes again until it is settled. On both buses."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable

import pytest
from bus_bench import Buses, put, soon, stream

from dspex.bus.errors import DecodeError, Unreachable
from dspex.bus.port import Bus, Delivery, NewMessage, WorkQueue

SHORT = 0.3  # seconds until unsettled work comes again, in tests that count how often it came
SHORTER = 0.15  # the same, in tests that do not mind


async def work(bus: Bus, name: str, *, ack_wait: float = 30.0, free: Callable[[], int] = lambda: 10) -> WorkQueue:
    await bus.add_consumer(name, f"{name}.>", name="work-" + name, ack_wait=ack_wait)
    queue = await bus.work(name, name="work-" + name, free=free)
    assert queue is not None
    return queue


@pytest.mark.asyncio
async def test_work_is_shared_and_each_piece_goes_to_one(buses: Buses, unique: str) -> None:
    await stream(buses[0], unique)
    await put(buses[0], f"{unique}.a", *range(10))  # before anyone listens
    got: list[str] = []
    done = asyncio.Event()

    async def worker(bus: Bus) -> None:
        queue = await work(bus, unique)
        while True:
            delivery = await queue.next()
            assert delivery.delivered == 1
            got.append(delivery.message.data.decode())
            await delivery.ack()
            if len(got) == 40:
                done.set()

    workers = [asyncio.create_task(worker(bus)) for bus in buses]
    await put(buses[1], f"{unique}.b", *range(10, 40))
    await soon(done.wait())
    for task in workers:
        task.cancel()
    await asyncio.gather(*workers, return_exceptions=True)
    assert Counter(got) == Counter(str(n) for n in range(40))


@pytest.mark.asyncio
async def test_work_carries_subject_headers_and_position(bus: Bus, unique: str) -> None:
    await stream(bus, unique)
    queue = await work(bus, unique)
    await bus.publish(NewMessage(f"{unique}.a.b", b"\x00data", {"X": "y"}))
    message = (await soon(queue.next())).message
    assert (message.subject, message.data, message.sequence) == (f"{unique}.a.b", b"\x00data", 1)
    assert dict(message.headers) == {"X": "y"}
    assert message.time > 0


@pytest.mark.asyncio
async def test_work_takes_only_its_pattern(bus: Bus, unique: str) -> None:
    await stream(bus, unique)
    await bus.add_consumer(unique, f"{unique}.gpu.>", name=unique, ack_wait=30)
    queue = await bus.work(unique, name=unique, free=lambda: 5)
    assert queue is not None
    await put(bus, f"{unique}.cpu.a", "no")
    await put(bus, f"{unique}.gpu.a", "yes")
    assert (await soon(queue.next())).message.data == b"yes"


@pytest.mark.asyncio
async def test_unsettled_work_comes_again_and_is_counted(buses: Buses, unique: str) -> None:  # P2
    a, b = buses
    await stream(a, unique)
    await put(a, f"{unique}.x", "frozen")
    one = await work(a, unique, ack_wait=SHORT)
    first = await soon(one.next())
    assert first.delivered == 1
    two = await work(b, unique, ack_wait=SHORT)
    again = await soon(next_of(one, two))
    assert (again.message.data, again.delivered) == (b"frozen", 2)
    third = await soon(next_of(one, two))
    assert third.delivered == 3


async def next_of(*queues: WorkQueue) -> Delivery:
    """The next delivery of any of them. Only for the last delivery that a test waits for on the losing queues."""
    tasks = [asyncio.create_task(queue.next()) for queue in queues]
    done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in pending:
        task.cancel()
    await asyncio.gather(*pending, return_exceptions=True)
    assert len(done) == 1
    return done.pop().result()


async def expect_only(queue: WorkQueue, data: bytes, times: int = 3) -> None:
    """Return when `data` has come so many times in a row; what was on its way before may come first."""
    seen = 0
    while seen < times:
        seen = seen + 1 if (await soon(queue.next())).message.data == data else 0


@pytest.mark.asyncio
async def test_acknowledged_work_does_not_come_again(bus: Bus, unique: str) -> None:
    await stream(bus, unique)
    await put(bus, f"{unique}.x", "done", "lost")
    queue = await work(bus, unique, ack_wait=SHORTER)
    done, lost = await soon(queue.next()), await soon(queue.next())
    assert (done.message.data, lost.message.data) == (b"done", b"lost")
    await done.ack()
    await expect_only(queue, b"lost")


@pytest.mark.asyncio
async def test_an_ack_of_the_first_delivery_settles_work_that_was_delivered_again(bus: Bus, unique: str) -> None:  # N15
    await stream(bus, unique)
    await put(bus, f"{unique}.x", "late", "other")
    queue = await work(bus, unique, ack_wait=SHORTER)
    late = await soon(queue.next())
    seen: list[tuple[bytes, int]] = []
    while (b"late", 2) not in seen:
        again = await soon(queue.next())
        seen.append((again.message.data, again.delivered))
    await late.ack()  # of the first delivery, though the second is under way
    await expect_only(queue, b"other")


@pytest.mark.asyncio
async def test_a_sign_of_life_keeps_work_from_coming_again(bus: Bus, unique: str) -> None:  # N5
    """Two pieces are taken, and one gives signs of life: the other comes again and again, at each ack_wait, and it does not.
    A machine that is too busy to give signs in time has shown nothing, and is tried again."""
    ack_wait = 0.4
    await stream(bus, unique)
    await put(bus, f"{unique}.x", "alive", "silent")
    queue = await work(bus, unique, ack_wait=ack_wait)
    alive = await soon(queue.next())
    again = asyncio.create_task(queue.next())
    silent, last, longest = 0, time.monotonic(), 0.0
    while silent < 3:  # the first delivery, and twice the time after which the other would have come
        await asyncio.wait([again], timeout=ack_wait / 50)
        await alive.in_progress()
        longest, last = max(longest, time.monotonic() - last), time.monotonic()
        if again.done():
            came, again = again.result(), asyncio.create_task(queue.next())
            if came.message.data == b"silent":
                silent += 1
            else:
                assert longest > ack_wait / 2, "it came again between two signs of life"
                alive, silent, longest = came, 1, 0.0
    while (came := await soon(again)).message.data != b"alive":  # without signs it comes
        again = asyncio.create_task(queue.next())
    assert came.delivered == alive.delivered + 1


@pytest.mark.asyncio
async def test_work_that_one_process_gives_to_another_is_that_ones_to_settle(buses: Buses, unique: str) -> None:
    first, second = buses
    await stream(first, unique)
    queue, name = await work(first, unique, ack_wait=SHORT), "work-" + unique
    await put(first, f"{unique}.a", "a")
    had = await soon(queue.next())
    given = second.held(unique, name, had.token, had.message._replace(sequence=0, time=0.0))
    assert (given.delivered, given.message.sequence, given.message.time) == (1, had.message.sequence, had.message.time)
    await given.in_progress()
    await given.ack()
    await put(first, f"{unique}.a", "b")
    assert (await soon(queue.next())).message.data == b"b", "what was settled does not come again"
    for token in ("", "x", f"{name}.1", "$JS.ACK.other.name.1.1.1.1.1", "$JS.ACK a", "7.x"):
        with pytest.raises(DecodeError):
            second.held(unique, name, token, had.message)


@pytest.mark.asyncio
async def test_refused_work_comes_again_after_its_delay(bus: Bus, unique: str) -> None:  # N4
    await stream(bus, unique)
    await put(bus, f"{unique}.x", "later", "now")
    queue = await work(bus, unique)
    later, now = await soon(queue.next()), await soon(queue.next())
    started = time.monotonic()
    await now.nak()
    await later.nak(delay=0.2)
    first, second = await soon(queue.next()), await soon(queue.next())
    assert (first.message.data, first.delivered) == (b"now", 2)
    assert (second.message.data, second.delivered) == (b"later", 2)
    assert time.monotonic() - started > 0.15


@pytest.mark.asyncio
async def test_no_more_work_is_taken_than_there_is_room_for(buses: Buses, unique: str) -> None:  # N2
    a, b = buses
    await stream(a, unique)
    await put(a, f"{unique}.x", *range(6))
    held: list[Delivery] = []
    small = await work(a, unique, free=lambda: 2 - len(held))
    for _ in range(2):
        held.append(await soon(small.next()))
    waiting = asyncio.create_task(small.next())
    large = await work(b, unique)
    others = [await soon(large.next()) for _ in range(4)]  # all the rest: none waits in the full process
    assert {d.message.data for d in [*held, *others]} == {b"%d" % n for n in range(6)}
    assert not waiting.done()
    done = held.pop()
    await done.ack()
    await others[0].nak()
    await large.close()
    assert (await soon(waiting)).message.data == others[0].message.data


@pytest.mark.asyncio
async def test_all_room_is_used_at_once(bus: Bus, unique: str) -> None:
    await stream(bus, unique)
    held: list[Delivery] = []
    queue, took = await work(bus, unique, free=lambda: 5 - len(held)), list[float]()
    for _ in range(4):  # a queue that asks for less than there is room for finds out by its heartbeat, after 2 s
        await put(bus, f"{unique}.x", *range(5))
        began = time.monotonic()
        held += [await soon(queue.next()) for _ in range(5)]
        took.append(time.monotonic() - began)
        while held:
            await held.pop().ack()
    assert min(took[1:]) < 1.0


@pytest.mark.asyncio
async def test_room_that_is_made_without_an_ack_is_noticed(bus: Bus, unique: str) -> None:
    await stream(bus, unique)
    room, asked = 0, asyncio.Event()

    def free() -> int:
        asked.set()
        return room

    queue = await work(bus, unique, free=free)
    await put(bus, f"{unique}.x", 1)
    waiting = asyncio.create_task(queue.next())
    await bus.stream(unique)
    asked.clear()
    await soon(asked.wait())
    assert not waiting.done()
    room = 1
    assert (await soon(waiting)).message.data == b"1"


@pytest.mark.asyncio
async def test_work_of_a_closed_queue_goes_to_another(buses: Buses, unique: str) -> None:
    a, b = buses
    await stream(a, unique)
    await put(a, f"{unique}.x", 1, 2)
    one = await work(a, unique, ack_wait=SHORT, free=lambda: 1)
    assert (await soon(one.next())).message.data == b"1"
    waiting = asyncio.create_task(one.next())
    await a.stream(unique)
    await one.close()
    result = (await asyncio.gather(soon(waiting), return_exceptions=True))[0]
    assert isinstance(result, Unreachable) or result.message.data == b"2"  # it may just have come
    two = await work(b, unique, ack_wait=SHORT)
    got = {(d.message.data) for d in [await soon(two.next()), await soon(two.next())]}
    assert got == {b"1", b"2"}
    with pytest.raises(Unreachable):
        await soon(one.next())


@pytest.mark.asyncio
async def test_work_of_a_closed_connection_goes_to_another(buses: Buses, unique: str) -> None:
    a, b = buses
    await stream(a, unique)
    await put(a, f"{unique}.x", 1)
    lost = await soon((await work(a, unique, ack_wait=SHORT)).next())
    await a.close()
    again = await soon((await work(b, unique, ack_wait=SHORT)).next())
    assert (again.message.data, again.delivered) == (b"1", 2)
    with pytest.raises(Unreachable):
        await soon(lost.ack())


@pytest.mark.asyncio
async def test_work_that_was_removed_does_not_come(bus: Bus, unique: str) -> None:
    await stream(bus, unique)
    await put(bus, f"{unique}.x", 1, 2, 3)
    await bus.delete(unique, 2)
    queue = await work(bus, unique, ack_wait=SHORT)
    assert (await soon(queue.next())).message.data == b"1"
    kept = await soon(queue.next())
    assert kept.message.data == b"3"
    await bus.delete(unique, 1)
    for n in (2, 3):
        again = await soon(queue.next())
        assert (again.message.data, again.delivered) == (b"3", n)


@pytest.mark.asyncio
async def test_there_is_no_work_to_take_before_somebody_has_made_its_consumer(bus: Bus, unique: str) -> None:
    await stream(bus, unique)
    assert await bus.begin_of_consumer(unique, "w") is None
    assert await bus.work(unique, name="w", free=lambda: 1) is None
    assert await bus.begin_of_consumer(unique, "w") is None  # to ask for work makes none
    await bus.add_consumer(unique, f"{unique}.>", name="w", ack_wait=30)
    assert await bus.begin_of_consumer(unique, "w") == 0


@pytest.mark.asyncio
async def test_the_backlog_is_what_nobody_has_been_given_yet(bus: Bus, unique: str) -> None:
    await stream(bus, unique)
    assert await bus.backlog(unique, "w") is None
    await put(bus, f"{unique}.x", 1, 2, 3)
    await bus.add_consumer(unique, f"{unique}.>", name="w", ack_wait=30, after=1)
    assert await bus.backlog(unique, "w") == 2
    queue = await bus.work(unique, name="w", free=lambda: 1)
    assert queue is not None
    await soon(queue.next())
    assert await bus.backlog(unique, "w") == 1


@pytest.mark.asyncio
async def test_a_consumer_that_begins_behind_a_message_delivers_what_comes_later(bus: Bus, unique: str) -> None:
    await stream(bus, unique)
    await put(bus, f"{unique}.x", 1, 2)
    await bus.add_consumer(unique, f"{unique}.>", name="w", ack_wait=30, after=2)
    assert await bus.begin_of_consumer(unique, "w") == 2
    queue = await bus.work(unique, name="w", free=lambda: 5)
    assert queue is not None
    await put(bus, f"{unique}.x", 3)
    assert (await soon(queue.next())).message.data == b"3"


@pytest.mark.asyncio
async def test_a_queue_is_dry_when_nothing_waits_in_it(bus: Bus, unique: str) -> None:
    await stream(bus, unique)
    await put(bus, f"{unique}.x", 1, 2)
    queue = await work(bus, unique, free=lambda: 1)
    assert not queue.dry
    await (await soon(queue.next())).ack()
    assert not queue.dry
    await (await soon(queue.next())).ack()
    assert queue.dry
