"""`scan`, `get`, `last`, `purge` and `delete`: what is stored is found, and removed. On both buses."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from bus_bench import between, put, soon, stored, stream, texts

from dspex.bus.errors import BusError
from dspex.bus.port import Bus, NewMessage


@pytest.mark.asyncio
async def test_scan_reads_a_range_and_waits_for_nothing(bus: Bus, unique: str) -> None:
    await stream(bus, unique)
    for n in range(1, 11):
        await put(bus, f"{unique}.{'ab'[n % 2]}", n)
    assert texts(await between(bus, unique, 3, 5)) == ["3", "4", "5"]
    assert texts(await bus.scan(unique, [f"{unique}.a"], start=1, stop=100)) == ["2", "4", "6", "8", "10"]
    both = await bus.scan(unique, [f"{unique}.a", f"{unique}.b"], start=9, stop=10)
    assert [(m.subject, m.sequence) for m in both] == [(f"{unique}.b", 9), (f"{unique}.a", 10)]
    assert await between(bus, unique, 11, 20) == []
    assert await between(bus, unique, 5, 4) == []
    assert await bus.scan(unique, [f"{unique}.nothing"], start=1, stop=10) == []


@pytest.mark.asyncio
async def test_scan_gives_everything_however_much(bus: Bus, unique: str) -> None:
    await stream(bus, unique)
    for n in range(3):
        await bus.commit([NewMessage(f"{unique}.{i % 2}", b"%d" % (1000 * n + i)) for i in range(1000)])
    assert texts(await between(bus, unique, 1, 3000)) == [str(n) for n in range(3000)]


@pytest.mark.asyncio
async def test_a_scan_to_the_end_of_a_stream_that_grows_meanwhile_gives_all_that_was_there(bus: Bus, unique: str) -> None:
    await stream(bus, unique)
    stored, over = 0, asyncio.Event()

    async def grow() -> None:
        nonlocal stored
        while not over.is_set():
            await put(bus, f"{unique}.a", stored + 1)
            stored += 1

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(grow())
        for _ in range(100):
            before = stored
            everything = await bus.scan(unique, [f"{unique}.*", f"{unique}.more.>"], start=1, stop=1 << 40)
            page = await bus.page(unique, [f"{unique}.a"], start=before + 1, stop=1 << 40, most=3)
            assert [m.sequence for m in everything] == list(range(1, len(everything) + 1))
            assert len(everything) >= before
            assert [m.sequence for m in page] == list(range(before + 1, before + 1 + len(page)))
            assert min(3, len(everything) - before) <= len(page) <= 3
        over.set()


@pytest.mark.asyncio
async def test_pages_give_what_a_scan_gives_and_each_is_bounded_by_number_and_by_bytes(bus: Bus, unique: str) -> None:
    await stream(bus, unique)
    for n in range(40):
        await bus.publish(NewMessage(f"{unique}.{'ab'[n % 2]}", bytes(900_000), {"n": str(n)}))
    for n in range(40, 60):
        await put(bus, f"{unique}.a", n)

    async def pages(most: int, stop: int) -> list[list[int]]:
        start, found = 1, list[list[int]]()
        while page := await bus.page(unique, [f"{unique}.a"], start=start, stop=stop, most=most):
            found.append([m.sequence for m in page])
            start = page[-1].sequence + 1
        return found

    wanted = [m.sequence for m in await bus.scan(unique, [f"{unique}.a"], start=1, stop=60)]
    few, many, some = await pages(7, 60), await pages(500, 60), await pages(7, 20)
    assert [len(page) for page in few] == [7, 7, 7, 7, 7, 5]
    assert all(len(page) <= 18 or page[0] > 30 for page in many)
    assert len(many) >= 2
    assert [n for page in few for n in page] == [n for page in many for n in page] == wanted
    assert [n for page in some for n in page] == [n for n in wanted if n <= 20]
    assert await bus.page(unique, [f"{unique}.none"], start=1, stop=60) == []


@pytest.mark.asyncio
async def test_a_count_tells_how_many_messages_of_some_subjects_lie_behind_a_place(bus: Bus, unique: str) -> None:
    await stream(bus, unique)
    for n in range(1, 11):
        await put(bus, f"{unique}.{'ab'[n % 2]}", n)
    await put(bus, f"{unique}.c.d", 11)
    await bus.delete(unique, 4)
    assert await bus.count(unique, [f"{unique}.a"]) == 4
    assert await bus.count(unique, [f"{unique}.a"], after=2) == 3
    assert await bus.count(unique, [f"{unique}.a", f"{unique}.c.>"], after=9) == 2
    assert await bus.count(unique, [f"{unique}.>"]) == 10
    assert await bus.count(unique, [f"{unique}.>"], after=11) == 0
    assert await bus.count(unique, [f"{unique}.a"], after=99) == 0
    assert await bus.count(unique, [f"{unique}.nothing"]) == 0


@pytest.mark.asyncio
async def test_get_and_last_find_one_message(bus: Bus, unique: str) -> None:
    await stream(bus, unique)
    assert await bus.last(unique, f"{unique}.a") is None
    await bus.publish(NewMessage(f"{unique}.a", b"1", {"X": "y"}))
    await put(bus, f"{unique}.a", 2)
    await put(bus, f"{unique}.b", 3)
    first, last = await bus.get(unique, 1), await bus.last(unique, f"{unique}.a")
    assert first is not None
    assert (first.data, first.sequence, dict(first.headers)) == (b"1", 1, {"X": "y"})
    assert last is not None
    assert (last.data, last.sequence) == (b"2", 2)
    assert await bus.get(unique, 4) is None


@pytest.mark.asyncio
async def test_purge_removes_one_subject_below_a_sequence(bus: Bus, unique: str) -> None:
    await stream(bus, unique)
    for n in range(1, 7):
        await put(bus, f"{unique}.{'ab'[n % 2]}", n)
    await bus.purge(unique, f"{unique}.a", below=6)
    assert await stored(bus, unique) == ["1", "3", "5", "6"]
    await bus.purge(unique, f"{unique}.b", below=4)
    assert await stored(bus, unique) == ["5", "6"]
    info = await bus.stream(unique)
    assert info is not None
    assert (info.first, info.last, info.messages) == (5, 6, 2)


@pytest.mark.asyncio
async def test_an_emptied_stream_goes_on_counting(bus: Bus, unique: str) -> None:
    await stream(bus, unique)
    await put(bus, f"{unique}.a", 1, 2)
    await bus.delete(unique, 1)
    await bus.delete(unique, 2)
    assert await bus.get(unique, 2) is None
    assert await bus.last(unique, f"{unique}.a") is None
    info = await bus.stream(unique)
    assert info is not None
    assert (info.first, info.last, info.messages) == (3, 2, 0)
    assert await put(bus, f"{unique}.a", 3) == [3]


@pytest.mark.asyncio
async def test_deleting_a_message_twice_is_no_error(bus: Bus, unique: str) -> None:
    await stream(bus, unique)
    await put(bus, f"{unique}.a", 1)
    await bus.delete(unique, 1)
    await bus.delete(unique, 1)
    await bus.delete(unique, 99)
    await bus.purge(unique, f"{unique}.a", below=5)
    assert await stored(bus, unique) == []


@pytest.mark.asyncio
async def test_every_access_to_a_missing_stream_raises_an_error_that_says_so(bus: Bus, unique: str) -> None:
    attempts: list[Callable[[], Awaitable[object]]] = [
        lambda: bus.get(unique, 1),
        lambda: bus.last(unique, f"{unique}.a"),
        lambda: bus.scan(unique, [f"{unique}.a"], start=1, stop=2),
        lambda: bus.page(unique, [f"{unique}.a"], start=1, stop=2),
        lambda: bus.count(unique, [f"{unique}.a"]),
        lambda: bus.purge(unique, f"{unique}.a", below=1),
    ]
    for attempt in attempts:
        with pytest.raises(BusError):
            await soon(attempt())


@pytest.mark.asyncio
async def test_a_message_has_the_same_time_however_it_is_read(bus: Bus, unique: str) -> None:
    await stream(bus, unique)
    for n in range(1, 21):
        await put(bus, f"{unique}.a", n)
    reader = await bus.reader(unique, [f"{unique}.a"], after=0, name=f"{unique}-times")
    read: list[float] = []
    while len(read) < 20:
        read += [m.time for m in await reader.read(20)]
    await reader.close()
    assert [m.time for m in await between(bus, unique, 1, 20)] == read
    got = [await bus.get(unique, n) for n in range(1, 21)]
    assert [m.time for m in got if m is not None] == read


@pytest.mark.asyncio
async def test_the_last_messages_of_many_subjects_come_together(bus: Bus, unique: str) -> None:
    await stream(bus, unique)
    wanted = [f"{unique}.{n}" for n in range(2500)]
    for start in (0, 1000, 2000):
        some = wanted[start : start + 1000]
        await bus.commit([NewMessage(subject, b"old") for subject in some])
        await bus.commit([NewMessage(subject, subject.encode(), {"X": "y"}) for subject in some if not subject.endswith("7")])

    found = await bus.multi_last(unique, [*wanted, f"{unique}.none"])
    assert set(found) == set(wanted)
    assert all(m.data == (b"old" if s.endswith("7") else s.encode()) and m.subject == s for s, m in found.items())
    last = await bus.last(unique, wanted[5])
    assert last is not None
    assert found[wanted[5]] == last
    assert await bus.multi_last(unique, []) == {}
    assert await bus.multi_last(unique, [f"{unique}.none"]) == {}


@pytest.mark.asyncio
async def test_the_last_messages_come_however_large_they_are(bus: Bus, unique: str) -> None:
    await stream(bus, unique)
    wanted = [f"{unique}.{n}" for n in range(80)]
    for subject in wanted:
        await bus.publish(NewMessage(subject, bytes(1_000_000)))
    assert set(await bus.multi_last(unique, wanted)) == set(wanted)


@pytest.mark.asyncio
async def test_the_headers_of_a_message_do_not_say_where_it_lies(bus: Bus, unique: str) -> None:
    """The server says that in headers of the same names: believed, who may publish here could hide the messages of others."""
    await stream(bus, unique)
    mine, theirs = f"{unique}.a", f"{unique}.b"
    lies = {"Nats-Stream": "S", "Nats-Subject": mine, "Nats-Sequence": "-", "Nats-Time-Stamp": "-", "Nats-Num-Pending": "9"}
    await bus.publish(NewMessage(mine, b"mine"))
    await bus.publish(NewMessage(theirs, b"theirs", lies))
    found = await bus.multi_last(unique, [mine, theirs])
    assert [(m.subject, m.sequence, m.data, m.headers) for m in found.values()] == [
        (mine, 1, b"mine", {}),
        (theirs, 2, b"theirs", lies),
    ]
