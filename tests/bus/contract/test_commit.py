"""What every bus promises (bus/port.py), tried on each: the in-memory one, and a real NATS server."""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from itertools import pairwise
from typing import Any, TypeVar

import pytest

from dspex.bus.errors import (
    BusError,
    DataError,
    DspexError,
    Fenced,
    NotStored,
    PayloadTooLarge,
    Saturated,
    StreamFull,
    SubjectTaken,
    Unreachable,
)
from dspex.bus.message import Message
from dspex.bus.port import COMMIT_LIMIT, Bus, Delivery, NewMessage, Reader, StreamConfig, StreamInfo, WorkQueue
from dspex.bus.subjects import MESSAGE_ID

T = TypeVar("T")
Buses = tuple[Bus, Bus]
Connect = Callable[[], Awaitable[Bus]]


async def soon(promise: Awaitable[T]) -> T:
    """The result, which must come within five seconds."""
    return await asyncio.wait_for(promise, 5)


async def stream(bus: Bus, name: str, subjects: Sequence[str] = (), **options: Any) -> StreamInfo:
    return await bus.ensure_stream(StreamConfig(name, subjects or [f"{name}.>"], **options))


async def put(bus: Bus, subject: str, *texts: object) -> list[int]:
    return [(await bus.publish(NewMessage(subject, str(t).encode()))).sequence for t in texts]


async def stored(bus: Bus, name: str, *filters: str) -> list[str]:
    """The data of all messages in the stream, in order."""
    return [m.data.decode() for m in await bus.scan(name, filters or [f"{name}.>"], start=1, stop=1 << 40)]


async def take(reader: Reader, count: int, limit: int = 100) -> list[Message]:
    """Exactly `count` messages from the reader."""
    got: list[Message] = []
    while len(got) < count:
        got += await soon(reader.read(min(limit, count - len(got))))
    return got


def texts(messages: Sequence[Message]) -> list[str]:
    return [m.data.decode() for m in messages]


# -- streams ---------------------------------------------------------------------------------------------------------
@pytest.mark.asyncio
async def test_a_new_stream_is_empty_and_known_by_name_and_subject(bus: Bus, unique: str) -> None:
    assert await bus.stream(unique) is None
    made = await stream(bus, unique)
    assert (made.name, made.subjects, made.first, made.last, made.messages) == (unique, (f"{unique}.>",), 0, 0, 0)
    assert made.created > 0
    assert made.own
    assert await bus.stream(unique) == made
    assert await bus.stream_of(f"{unique}.a.b") == unique
    assert await bus.stream_of(f"{unique}.*") == unique
    assert await bus.stream_of(f"{unique}x.a") is None


@pytest.mark.asyncio
async def test_ensure_stream_adds_subjects_and_removes_nothing(bus: Bus, unique: str) -> None:
    await stream(bus, unique, [f"{unique}.a"])
    await put(bus, f"{unique}.a", 1)
    info = await stream(bus, unique, [f"{unique}.b"])
    assert set(info.subjects) == {f"{unique}.a", f"{unique}.b"}
    await put(bus, f"{unique}.b", 2)
    await put(bus, f"{unique}.a", 3)
    assert await stored(bus, unique) == ["1", "2", "3"]


@pytest.mark.asyncio
async def test_ensure_stream_takes_subjects_that_the_stream_covers_or_that_cover_its_own(bus: Bus, unique: str) -> None:
    await stream(bus, unique, [f"{unique}.a.*"])
    await stream(bus, unique, [f"{unique}.a.x"])
    await stream(bus, unique, [f"{unique}.>"])
    await put(bus, f"{unique}.a.x", 1)
    await put(bus, f"{unique}.other", 2)
    assert await stored(bus, unique) == ["1", "2"]


@pytest.mark.asyncio
async def test_two_connections_may_make_the_same_stream_at_once(buses: Buses, unique: str) -> None:
    a, b = buses
    infos = await asyncio.gather(
        stream(a, unique, [f"{unique}.a"]), stream(b, unique, [f"{unique}.a"]), stream(b, unique, [f"{unique}.a"])
    )
    assert len({i.created for i in infos}) == 1


@pytest.mark.asyncio
async def test_a_subject_of_another_stream_is_refused(bus: Bus, unique: str) -> None:
    await stream(bus, unique)
    with pytest.raises(SubjectTaken):
        await stream(bus, unique + "x", [f"{unique}.a"])
    await stream(bus, unique + "y")
    with pytest.raises(SubjectTaken):
        await stream(bus, unique + "y", [f"{unique}.*.z"])
    info = await bus.stream(unique + "y")
    assert info is not None
    assert info.subjects == (f"{unique}y.>",)


# -- write -----------------------------------------------------------------------------------------------------------
@pytest.mark.asyncio
async def test_publish_gives_stream_and_sequence_and_keeps_every_byte(bus: Bus, unique: str) -> None:
    await stream(bus, unique)
    data, headers = bytes(range(256)), {"Dspex-Key": " Käse: 日本 ", "X-y": "1"}
    ack = await bus.publish(NewMessage(f"{unique}.a", data, headers))
    assert (ack.stream, ack.sequence, ack.duplicate) == (unique, 1, False)
    message = await bus.get(unique, 1)
    assert message is not None
    assert (message.subject, message.data, dict(message.headers)) == (f"{unique}.a", data, headers)
    assert message.sequence == 1
    assert message.time > 0


@pytest.mark.asyncio
async def test_a_message_id_is_stored_once(buses: Buses, unique: str) -> None:
    a, b = buses
    await stream(a, unique)
    first = await a.publish(NewMessage(f"{unique}.a", b"1", {MESSAGE_ID: "one"}))
    again = await b.publish(NewMessage(f"{unique}.b", b"2", {MESSAGE_ID: "one"}))
    assert (first.duplicate, again.duplicate, again.sequence) == (False, True, first.sequence)
    assert await stored(a, unique) == ["1"]


@pytest.mark.asyncio
async def test_publishing_where_no_stream_listens_says_so_at_once(bus: Bus, unique: str) -> None:
    with pytest.raises(NotStored):
        await asyncio.wait_for(bus.publish(NewMessage(f"{unique}.nobody", b"")), 2)


@pytest.mark.asyncio
async def test_expect_is_the_last_sequence_of_the_subject(bus: Bus, unique: str) -> None:
    await stream(bus, unique)
    first = await bus.publish(NewMessage(f"{unique}.log", b"1", expect=0))
    await put(bus, f"{unique}.other", "noise")
    second = await bus.publish(NewMessage(f"{unique}.log", b"2", expect=first.sequence))
    for wrong in (0, first.sequence, second.sequence + 1):
        with pytest.raises(Fenced):
            await bus.publish(NewMessage(f"{unique}.log", b"x", expect=wrong))
    assert await stored(bus, unique, f"{unique}.log") == ["1", "2"]


@pytest.mark.asyncio
async def test_a_wrong_expectation_is_fenced_even_for_a_known_message_id(bus: Bus, unique: str) -> None:
    await stream(bus, unique)
    draft = NewMessage(f"{unique}.log", b"1", {MESSAGE_ID: "one"}, expect=0)
    await bus.publish(draft)
    with pytest.raises(Fenced):
        await bus.publish(draft)


@pytest.mark.asyncio
async def test_a_subject_without_messages_left_expects_zero(bus: Bus, unique: str) -> None:
    await stream(bus, unique)
    (sequence,) = await put(bus, f"{unique}.a", 1)
    await bus.purge(unique, f"{unique}.a", below=sequence + 1)
    ack = await bus.publish(NewMessage(f"{unique}.a", b"2", expect=0))
    await bus.delete(unique, ack.sequence)
    assert (await bus.publish(NewMessage(f"{unique}.a", b"3", expect=0))).sequence == ack.sequence + 1


@pytest.mark.asyncio
async def test_of_two_owners_one_commits(buses: Buses, unique: str) -> None:
    a, b = buses
    await stream(a, unique)

    async def attempt(bus: Bus, n: int) -> bool:
        drafts = [NewMessage(f"{unique}.out", b"%d" % n), NewMessage(f"{unique}.log", b"", expect=0)]
        try:
            await bus.commit(drafts)
        except Fenced:
            return False
        return True

    assert sum(await asyncio.gather(*[attempt(bus, n) for n, bus in enumerate((a, b) * 5)])) == 1
    assert len(await stored(a, unique)) == 2


@pytest.mark.asyncio
async def test_a_commit_is_in_order_with_consecutive_sequences(buses: Buses, unique: str) -> None:
    a, b = buses
    await stream(a, unique)

    async def commit(bus: Bus, who: str) -> int:
        return await bus.commit([NewMessage(f"{unique}.{n % 3}", f"{who}{n}".encode(), {"N": str(n)}) for n in range(50)])

    lasts = await asyncio.gather(commit(a, "a"), commit(b, "b"))
    for last, who in zip(lasts, "ab"):
        messages = await bus_scan(a, unique, last - 49, last)
        assert texts(messages) == [f"{who}{n}" for n in range(50)]
        assert [m.sequence for m in messages] == list(range(last - 49, last + 1))
        assert [m.headers.get("N") for m in messages] == [str(n) for n in range(50)]


async def bus_scan(bus: Bus, name: str, start: int, stop: int) -> list[Message]:
    return await bus.scan(name, [f"{name}.>"], start=start, stop=stop)


@pytest.mark.asyncio
async def test_a_fenced_commit_stores_nothing(bus: Bus, unique: str) -> None:
    await stream(bus, unique)
    (last,) = await put(bus, f"{unique}.log", "claim")
    for wrong in (0, last + 5):
        with pytest.raises(Fenced):
            await bus.commit([NewMessage(f"{unique}.out", b"x"), NewMessage(f"{unique}.log", b"y", expect=wrong)])
    assert await stored(bus, unique) == ["claim"]
    assert await bus.commit([NewMessage(f"{unique}.out", b"x"), NewMessage(f"{unique}.log", b"y", expect=last)]) == last + 2


@pytest.mark.asyncio
async def test_a_commit_may_expect_on_several_subjects(bus: Bus, unique: str) -> None:
    await stream(bus, unique)
    log0, log1 = f"{unique}.log.0", f"{unique}.log.1"
    (last,) = await put(bus, log1, "claim")
    end = await bus.commit(
        [NewMessage(f"{unique}.out", b"x"), NewMessage(log0, b"a", expect=0), NewMessage(log1, b"b", expect=last)]
    )
    with pytest.raises(Fenced):  # the second of the two is wrong: the first is not stored either
        await bus.commit([NewMessage(log0, b"c", expect=end - 1), NewMessage(log1, b"d", expect=last)])
    assert await stored(bus, unique) == ["claim", "x", "a", "b"]


@pytest.mark.asyncio
async def test_a_draft_that_expects_must_be_the_first_of_its_subject(bus: Bus, unique: str) -> None:
    await stream(bus, unique)
    for first in (None, 0):
        with pytest.raises(BusError):
            await soon(bus.commit([NewMessage(f"{unique}.a", b"1", expect=first), NewMessage(f"{unique}.a", b"2", expect=0)]))
    assert await stored(bus, unique) == []
    await bus.commit([NewMessage(f"{unique}.a", b"1", expect=0), NewMessage(f"{unique}.a", b"2")])
    assert await stored(bus, unique) == ["1", "2"]


@pytest.mark.asyncio
async def test_a_commit_of_one_is_a_publish(bus: Bus, unique: str) -> None:
    await stream(bus, unique)
    assert await bus.commit([NewMessage(f"{unique}.log", b"1", expect=0)]) == 1
    with pytest.raises(Fenced):
        await bus.commit([NewMessage(f"{unique}.log", b"2", expect=0)])
    with pytest.raises(NotStored):
        await bus.commit([NewMessage(f"{unique}x.log", b"2")])


@pytest.mark.asyncio
async def test_a_commit_takes_the_limit_and_refuses_more(bus: Bus, unique: str) -> None:
    await stream(bus, unique)
    drafts = [NewMessage(f"{unique}.a", b"%d" % n) for n in range(COMMIT_LIMIT + 1)]
    for refused in (drafts, []):
        with pytest.raises(BusError):
            await bus.commit(refused)
    assert await bus.commit(drafts[:COMMIT_LIMIT]) == COMMIT_LIMIT
    assert await stored(bus, unique) == [str(n) for n in range(COMMIT_LIMIT)]


@pytest.mark.asyncio
@pytest.mark.parametrize("lost", [0, 1, 2])
async def test_a_commit_with_a_subject_that_no_stream_takes_stores_nothing(bus: Bus, unique: str, lost: int) -> None:
    await stream(bus, unique)
    drafts = [NewMessage(f"{unique}.a", b"%d" % n) for n in range(3)]
    drafts[lost] = drafts[lost]._replace(subject=f"{unique}x.nobody")
    with pytest.raises(BusError):
        await soon(bus.commit(drafts))
    assert await stored(bus, unique) == []
    await bus.commit([NewMessage(f"{unique}.a", b"after"), NewMessage(f"{unique}.a", b"wards")])
    assert await stored(bus, unique) == ["after", "wards"]


@pytest.mark.asyncio
async def test_a_commit_over_two_streams_stores_nothing(bus: Bus, unique: str) -> None:
    other = unique + "x"
    await stream(bus, unique)
    await stream(bus, other)
    with pytest.raises(BusError):
        await soon(
            bus.commit([NewMessage(f"{unique}.a", b"1"), NewMessage(f"{other}.a", b"2"), NewMessage(f"{unique}.a", b"3")])
        )
    assert await stored(bus, unique) == []
    assert await stored(bus, other) == []


@pytest.mark.asyncio
async def test_a_known_message_id_in_a_batch_refuses_all_of_it(bus: Bus, unique: str) -> None:
    await stream(bus, unique)
    await bus.publish(NewMessage(f"{unique}.a", b"0", {MESSAGE_ID: "one"}))
    for ids in (["one", "two"], ["three", "three"]):
        with pytest.raises(BusError):
            await bus.commit([NewMessage(f"{unique}.a", b"x", {MESSAGE_ID: id}) for id in ids])
    assert await stored(bus, unique) == ["0"]
    assert not (await bus.publish(NewMessage(f"{unique}.a", b"1", {MESSAGE_ID: "two"}))).duplicate


@pytest.mark.asyncio
async def test_a_full_stream_refuses_and_drops_nothing(bus: Bus, unique: str) -> None:
    await stream(bus, unique, max_messages=3)
    await put(bus, f"{unique}.a", 1, 2)
    with pytest.raises(StreamFull):
        await bus.commit([NewMessage(f"{unique}.a", b"x"), NewMessage(f"{unique}.b", b"y")])
    await put(bus, f"{unique}.a", 3)
    with pytest.raises(StreamFull):
        await bus.publish(NewMessage(f"{unique}.a", b"x"))
    assert await stored(bus, unique) == ["1", "2", "3"]
    await bus.purge(unique, f"{unique}.a", below=3)
    await bus.commit([NewMessage(f"{unique}.a", b"4"), NewMessage(f"{unique}.b", b"5")])
    assert await stored(bus, unique) == ["3", "4", "5"]


@pytest.mark.asyncio
async def test_a_stream_over_its_bytes_refuses(bus: Bus, unique: str) -> None:
    await stream(bus, unique, max_bytes=4096)
    with pytest.raises(StreamFull):
        await put(bus, f"{unique}.a", *["x" * 1000] * 5)
    info = await bus.stream(unique)
    assert info is not None
    assert info.messages in (3, 4)
    assert 3000 < info.bytes <= 4096


@pytest.mark.asyncio
async def test_too_large_a_message_is_refused_and_the_connection_lives_on(bus: Bus, unique: str) -> None:
    await stream(bus, unique)
    fits, headers = bytes(bus.max_payload), {"X": "y" * 100}  # alone it would fit
    subject = f"{unique}.a"
    bucket = await bus.bucket(unique)
    for attempt in (
        bus.publish(NewMessage(subject, fits, headers)),
        bus.commit([NewMessage(subject, b"1"), NewMessage(subject, fits, headers)]),
        bus.send(f"{unique}x", fits, headers=headers),
        bus.request(f"{unique}x", fits, headers=headers),
        bucket.put("k", bytes(bus.max_payload + 1)),
    ):
        with pytest.raises(PayloadTooLarge):
            await attempt
    assert bus.connected
    await put(bus, subject, "fine")
    assert await stored(bus, unique) == ["fine"]


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "headers", [{"X": "a\r\nY: b"}, {"X": "a\nb"}, {"X": "a\rb"}, {"X\r\nY": "a"}, {"X: Y": "a"}, {"": "a"}]
)
async def test_a_header_cannot_smuggle_in_another(bus: Bus, unique: str, headers: dict[str, str]) -> None:
    await stream(bus, unique)
    subject = f"{unique}.a"
    for attempt in (
        bus.publish(NewMessage(subject, b"", headers)),
        bus.commit([NewMessage(subject, b""), NewMessage(subject, b"", headers)]),
        bus.send(subject, b"", headers=headers),
        bus.request(f"{unique}x", b"", headers=headers),
    ):
        with pytest.raises(DataError):
            await attempt
    assert await stored(bus, unique) == []


@pytest.mark.asyncio
@pytest.mark.parametrize("bad", ["a b", "a..b", "", "a.*", "a.>", "a\r\nPUB x 0", "a."])
async def test_what_is_not_a_subject_is_refused_and_the_connection_lives_on(bus: Bus, unique: str, bad: str) -> None:
    await stream(bus, unique)
    for attempt in (bus.publish(NewMessage(bad, b"")), bus.send(bad, b""), bus.request(bad, b"")):
        with pytest.raises(DspexError):
            await soon(attempt)
    await put(bus, f"{unique}.a", "fine")


# -- read ------------------------------------------------------------------------------------------------------------
@pytest.mark.asyncio
async def test_a_reader_gives_every_message_once_in_order(buses: Buses, unique: str) -> None:
    a, b = buses
    await stream(a, unique)
    reader = await b.reader(unique, [f"{unique}.>"], after=0, name=unique, window=50)

    async def write() -> None:
        for n in range(0, 1000, 100):
            await a.commit([NewMessage(f"{unique}.{i % 7}", b"%d" % i) for i in range(n, n + 100)])

    writing = asyncio.create_task(write())
    messages = await take(reader, 1000, limit=33)
    await writing
    assert texts(messages) == [str(n) for n in range(1000)]
    assert [m.sequence for m in messages] == list(range(1, 1001))
    assert all(x.time <= y.time for x, y in pairwise(messages))


@pytest.mark.asyncio
async def test_a_reader_gives_no_more_than_asked_and_waits_for_the_first(buses: Buses, unique: str) -> None:
    a, b = buses
    await stream(a, unique)
    reader = await b.reader(unique, [f"{unique}.>"], after=0, name=unique)
    waiting = asyncio.create_task(reader.read(2))
    await put(a, f"{unique}.a", 1, 2, 3)
    got = await soon(waiting)
    assert 1 <= len(got) <= 2
    assert texts(got + await take(reader, 3 - len(got), limit=1)) == ["1", "2", "3"]


@pytest.mark.asyncio
async def test_a_reader_keeps_to_its_filters(bus: Bus, unique: str) -> None:
    await stream(bus, unique)
    reader = await bus.reader(unique, [f"{unique}.a.*", f"{unique}.b"], after=0, name=unique)
    for n, end in enumerate(("a.x", "c", "b", "a", "a.y", "b.z", "a.x.y", "b")):
        await put(bus, f"{unique}.{end}", n)
    messages = await take(reader, 4)
    assert texts(messages) == ["0", "2", "4", "7"]
    assert [m.sequence for m in messages] == [1, 3, 5, 8]


@pytest.mark.asyncio
async def test_a_reader_starts_behind_its_position(bus: Bus, unique: str) -> None:
    await stream(bus, unique)
    await put(bus, f"{unique}.a", *range(1, 6))
    past = await bus.reader(unique, [f"{unique}.>"], after=3, name=unique)
    future = await bus.reader(unique, [f"{unique}.>"], after=7, name=unique + "f")
    waiting = asyncio.create_task(take(future, 2))
    await put(bus, f"{unique}.a", *range(6, 10))
    assert texts(await take(past, 6)) == ["4", "5", "6", "7", "8", "9"]
    assert texts(await soon(waiting)) == ["8", "9"]


@pytest.mark.asyncio
async def test_a_reader_goes_over_what_was_removed(bus: Bus, unique: str) -> None:
    await stream(bus, unique)
    await put(bus, f"{unique}.a", *range(1, 7))
    await bus.purge(unique, f"{unique}.a", below=3)
    await bus.delete(unique, 5)
    reader = await bus.reader(unique, [f"{unique}.>"], after=0, name=unique)
    assert texts(await take(reader, 3)) == ["3", "4", "6"]


@pytest.mark.asyncio
async def test_a_reader_knows_when_it_has_caught_up(bus: Bus, unique: str) -> None:
    await stream(bus, unique)
    await put(bus, f"{unique}.a", 1, 2, 3)
    reader = await bus.reader(unique, [f"{unique}.a"], after=0, name=unique)
    await take(reader, 1)
    assert not reader.caught_up
    await take(reader, 2)
    assert reader.caught_up
    nothing_new = await bus.reader(unique, [f"{unique}.a"], after=3, name=unique + "n")
    assert nothing_new.caught_up


@pytest.mark.asyncio
async def test_a_closed_reader_says_so(bus: Bus, unique: str) -> None:
    await stream(bus, unique)
    reader = await bus.reader(unique, [f"{unique}.>"], after=0, name=unique)
    waiting = asyncio.create_task(reader.read(1))
    await put(bus, f"{unique}.a", 1)
    await soon(waiting)
    waiting = asyncio.create_task(reader.read(1))
    await bus.stream(unique)  # the read has begun by now
    await reader.close()
    with pytest.raises(Unreachable):
        await soon(waiting)
    with pytest.raises(Unreachable):
        await soon(reader.read(1))
    again = await bus.reader(unique, [f"{unique}.>"], after=0, name=unique)
    assert texts(await take(again, 1)) == ["1"]


@pytest.mark.asyncio
async def test_scan_reads_a_range_and_waits_for_nothing(bus: Bus, unique: str) -> None:
    await stream(bus, unique)
    for n in range(1, 11):
        await put(bus, f"{unique}.{'ab'[n % 2]}", n)
    assert texts(await bus_scan(bus, unique, 3, 5)) == ["3", "4", "5"]
    assert texts(await bus.scan(unique, [f"{unique}.a"], start=1, stop=100)) == ["2", "4", "6", "8", "10"]
    both = await bus.scan(unique, [f"{unique}.a", f"{unique}.b"], start=9, stop=10)
    assert [(m.subject, m.sequence) for m in both] == [(f"{unique}.b", 9), (f"{unique}.a", 10)]
    assert await bus_scan(bus, unique, 11, 20) == []
    assert await bus_scan(bus, unique, 5, 4) == []
    assert await bus.scan(unique, [f"{unique}.nothing"], start=1, stop=10) == []


@pytest.mark.asyncio
async def test_scan_gives_everything_however_much(bus: Bus, unique: str) -> None:
    await stream(bus, unique)
    for n in range(3):
        await bus.commit([NewMessage(f"{unique}.{i % 2}", b"%d" % (1000 * n + i)) for i in range(1000)])
    assert texts(await bus_scan(bus, unique, 1, 3000)) == [str(n) for n in range(3000)]


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
async def test_deleting_what_is_gone_is_no_error(bus: Bus, unique: str) -> None:
    await stream(bus, unique)
    await put(bus, f"{unique}.a", 1)
    await bus.delete(unique, 1)
    await bus.delete(unique, 1)
    await bus.delete(unique, 99)
    await bus.purge(unique, f"{unique}.a", below=5)


@pytest.mark.asyncio
async def test_what_concerns_a_missing_stream_says_so(bus: Bus, unique: str) -> None:
    for attempt in (
        bus.get(unique, 1),
        bus.last(unique, f"{unique}.a"),
        bus.scan(unique, [f"{unique}.a"], start=1, stop=2),
        bus.purge(unique, f"{unique}.a", below=1),
    ):
        with pytest.raises(BusError):
            await soon(attempt)


# -- work ------------------------------------------------------------------------------------------------------------
async def work(bus: Bus, name: str, *, ack_wait: float = 30.0, free: Callable[[], int] = lambda: 10) -> WorkQueue:
    return await bus.work(name, f"{name}.>", name="work-" + name, ack_wait=ack_wait, free=free)


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
    queue = await bus.work(unique, f"{unique}.gpu.>", name=unique, ack_wait=30, free=lambda: 5)
    await put(bus, f"{unique}.cpu.a", "no")
    await put(bus, f"{unique}.gpu.a", "yes")
    assert (await soon(queue.next())).message.data == b"yes"


@pytest.mark.asyncio
async def test_unsettled_work_comes_again_and_is_counted(buses: Buses, unique: str) -> None:
    a, b = buses
    await stream(a, unique)
    await put(a, f"{unique}.x", "frozen")
    one = await work(a, unique, ack_wait=0.4)
    first = await soon(one.next())
    assert first.delivered == 1
    two = await work(b, unique, ack_wait=0.4)
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


@pytest.mark.asyncio
async def test_acknowledged_work_does_not_come_again(bus: Bus, unique: str) -> None:
    await stream(bus, unique)
    await put(bus, f"{unique}.x", "done", "lost")
    queue = await work(bus, unique, ack_wait=0.4)
    done, lost = await soon(queue.next()), await soon(queue.next())
    assert (done.message.data, lost.message.data) == (b"done", b"lost")
    await done.ack()
    for n in (2, 3):  # twice the time after which `done` would have come
        again = await soon(queue.next())
        assert (again.message.data, again.delivered) == (b"lost", n)


@pytest.mark.asyncio
async def test_a_late_ack_counts(bus: Bus, unique: str) -> None:
    await stream(bus, unique)
    await put(bus, f"{unique}.x", "late", "other")
    queue = await work(bus, unique, ack_wait=0.4)
    late = await soon(queue.next())
    seen: list[tuple[bytes, int]] = []
    while (b"late", 2) not in seen:
        again = await soon(queue.next())
        seen.append((again.message.data, again.delivered))
    await late.ack()  # of the first delivery, though the second is under way
    for _ in range(2):
        assert (await soon(queue.next())).message.data == b"other"


@pytest.mark.asyncio
async def test_a_sign_of_life_keeps_work_from_coming_again(bus: Bus, unique: str) -> None:
    await stream(bus, unique)
    await put(bus, f"{unique}.x", "slow", "clock")
    queue = await work(bus, unique, ack_wait=0.6)
    slow, clock = await soon(queue.next()), await soon(queue.next())
    for n in range(2, 8):  # six times 0.25 s: over twice ack_wait
        await clock.nak(delay=0.25)
        await slow.in_progress()
        clock = await soon(queue.next())
        assert (clock.message.data, clock.delivered) == (b"clock", n)
    await clock.ack()
    again = await soon(queue.next())
    assert (again.message.data, again.delivered) == (b"slow", 2)


@pytest.mark.asyncio
async def test_refused_work_comes_again_after_its_delay(bus: Bus, unique: str) -> None:
    await stream(bus, unique)
    await put(bus, f"{unique}.x", "later", "now")
    queue = await work(bus, unique)
    later, now = await soon(queue.next()), await soon(queue.next())
    started = asyncio.get_running_loop().time()
    await later.nak(delay=0.5)
    await now.nak()
    first, second = await soon(queue.next()), await soon(queue.next())
    assert (first.message.data, first.delivered) == (b"now", 2)
    assert (second.message.data, second.delivered) == (b"later", 2)
    assert asyncio.get_running_loop().time() - started > 0.4


@pytest.mark.asyncio
async def test_no_more_work_is_taken_than_there_is_room_for(buses: Buses, unique: str) -> None:
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
    one = await work(a, unique, ack_wait=0.5, free=lambda: 1)
    assert (await soon(one.next())).message.data == b"1"
    waiting = asyncio.create_task(one.next())
    await a.stream(unique)
    await one.close()
    result = (await asyncio.gather(soon(waiting), return_exceptions=True))[0]
    assert isinstance(result, Unreachable) or result.message.data == b"2"  # it may just have come
    two = await work(b, unique, ack_wait=0.5)
    got = {(d.message.data) for d in [await soon(two.next()), await soon(two.next())]}
    assert got == {b"1", b"2"}
    with pytest.raises(Unreachable):
        await soon(one.next())


@pytest.mark.asyncio
async def test_work_of_a_closed_connection_goes_to_another(buses: Buses, unique: str) -> None:
    a, b = buses
    await stream(a, unique)
    await put(a, f"{unique}.x", 1)
    lost = await soon((await work(a, unique, ack_wait=0.5)).next())
    await a.close()
    again = await soon((await work(b, unique, ack_wait=0.5)).next())
    assert (again.message.data, again.delivered) == (b"1", 2)
    with pytest.raises(Unreachable):
        await soon(lost.ack())


@pytest.mark.asyncio
async def test_work_that_was_removed_does_not_come(bus: Bus, unique: str) -> None:
    await stream(bus, unique)
    await put(bus, f"{unique}.x", 1, 2, 3)
    await bus.delete(unique, 2)
    queue = await work(bus, unique, ack_wait=0.4)
    assert (await soon(queue.next())).message.data == b"1"
    kept = await soon(queue.next())
    assert kept.message.data == b"3"
    await bus.delete(unique, 1)
    for n in (2, 3):
        again = await soon(queue.next())
        assert (again.message.data, again.delivered) == (b"3", n)


# -- core ------------------------------------------------------------------------------------------------------------
@pytest.mark.asyncio
async def test_a_request_is_answered(buses: Buses, unique: str) -> None:
    asker, answerer = buses

    async def answer(message: Message) -> None:
        assert message.reply
        await answerer.send(message.reply, message.data + b"!", headers={"Echo": message.headers["X"]})

    await answerer.subscribe(f"{unique}.*", answer)
    replies = await soon(asyncio.gather(*[asker.request(f"{unique}.a", b"%d" % n, headers={"X": str(n)}) for n in range(20)]))
    assert [(r.data, r.headers["Echo"]) for r in replies] == [(b"%d!" % n, str(n)) for n in range(20)]


@pytest.mark.asyncio
async def test_a_request_to_nobody_is_saturated_at_once(bus: Bus, unique: str) -> None:
    with pytest.raises(Saturated):
        await asyncio.wait_for(bus.request(unique, b"", timeout=30), 3)


@pytest.mark.asyncio
async def test_a_request_without_an_answer_is_unreachable(buses: Buses, unique: str) -> None:
    async def silent(message: Message) -> None:
        return

    await buses[0].subscribe(unique, silent)
    with pytest.raises(Unreachable):
        await soon(buses[1].request(unique, b"", timeout=0.3))


@pytest.mark.asyncio
async def test_a_closed_subscription_gets_nothing(buses: Buses, unique: str) -> None:
    a, b = buses

    async def answer(message: Message) -> None:
        await a.send(message.reply, b"")

    member = await a.subscribe(unique, answer, queue="q")
    await soon(b.request(unique, b""))
    await member.close()
    with pytest.raises(Saturated):
        await soon(b.request(unique, b"", timeout=30))


@pytest.mark.asyncio
async def test_messages_are_handled_one_by_one_in_order(buses: Buses, unique: str) -> None:
    a, b = buses
    got: list[str] = []
    busy, all_here = False, asyncio.Event()

    async def handle(message: Message) -> None:
        nonlocal busy
        assert not busy
        busy = True
        await asyncio.sleep(0)
        got.append(f"{message.subject.removeprefix(unique)}{message.data.decode()}")
        busy = False
        if len(got) == 200:
            all_here.set()

    await b.subscribe(f"{unique}.>", handle)
    for n in range(200):
        await a.send(f"{unique}.{n % 3}", b":%d" % n)
    await soon(all_here.wait())
    assert got == [f".{n % 3}:{n}" for n in range(200)]


@pytest.mark.asyncio
async def test_in_a_queue_group_one_member_gets_each(buses: Buses, unique: str) -> None:
    got: dict[str, list[bytes]] = {"one": [], "two": [], "alone": [], "other": []}
    all_here = asyncio.Event()

    def collect(who: str) -> Callable[[Message], Awaitable[None]]:
        async def handle(message: Message) -> None:
            got[who].append(message.data)
            if sum(map(len, got.values())) == 300:
                all_here.set()

        return handle

    await buses[0].subscribe(unique, collect("one"), queue="q")
    await buses[1].subscribe(unique, collect("two"), queue="q")
    await buses[0].subscribe(unique, collect("alone"))
    await buses[1].subscribe(unique, collect("other"), queue="another")
    sent = [b"%d" % n for n in range(100)]
    for data in sent:
        await buses[0].send(unique, data)
    await soon(all_here.wait())
    assert Counter(got["one"] + got["two"]) == Counter(sent)
    assert len(got["one"]) > 10
    assert len(got["two"]) > 10
    assert got["alone"] == got["other"] == sent


@pytest.mark.asyncio
async def test_a_core_subscriber_sees_what_is_stored_as_it_comes(buses: Buses, unique: str) -> None:
    a, b = buses
    got: list[bytes] = []
    all_here = asyncio.Event()

    async def handle(message: Message) -> None:
        got.append(message.data)
        if len(got) == 3:
            all_here.set()

    await stream(a, unique)
    await b.subscribe(f"{unique}.a", handle)
    await put(a, f"{unique}.a", 0)
    await a.commit([NewMessage(f"{unique}.b", b"x"), NewMessage(f"{unique}.a", b"1"), NewMessage(f"{unique}.a", b"2")])
    await soon(all_here.wait())
    assert got == [b"0", b"1", b"2"]


@pytest.mark.asyncio
async def test_an_inbox_is_its_own(buses: Buses) -> None:
    a, b = buses
    inbox = a.inbox()
    assert len({inbox, a.inbox(), b.inbox()}) == 3
    got: asyncio.Queue[Message] = asyncio.Queue()
    await a.subscribe(inbox, got.put)
    await b.send(inbox, b"frame", headers={"N": "1"}, reply="back")
    frame = await soon(got.get())
    assert (frame.subject, frame.data, frame.headers["N"], frame.reply) == (inbox, b"frame", "1", "back")


# -- keys and objects ------------------------------------------------------------------------------------------------
@pytest.mark.asyncio
async def test_a_key_has_value_and_revision(buses: Buses, unique: str) -> None:
    one, two = await buses[0].bucket(unique), await buses[1].bucket(unique)
    assert await one.get("a.b") is None
    first = await one.put("a.b", b"1")
    assert await two.get("a.b") == (b"1", first)
    second = await two.put("a.b", b"2")
    assert second > first
    assert await one.get("a.b") == (b"2", second)
    assert await one.get("a") is None


@pytest.mark.asyncio
async def test_a_key_is_written_only_at_the_expected_revision(buses: Buses, unique: str) -> None:
    one, two = await buses[0].bucket(unique), await buses[1].bucket(unique)
    first = await one.put("lease", b"1", revision=0)
    with pytest.raises(Fenced):
        await two.put("lease", b"x", revision=0)
    second = await two.put("lease", b"2", revision=first)
    for wrong in (first, second + 1, 0):
        with pytest.raises(Fenced):
            await one.put("lease", b"x", revision=wrong)
    assert await one.get("lease") == (b"2", second)


@pytest.mark.asyncio
async def test_of_two_who_create_a_key_one_does(buses: Buses, unique: str) -> None:
    buckets = [await bus.bucket(unique) for bus in buses]
    results = await asyncio.gather(
        *[b.put("k", b"%d" % n, revision=0) for n, b in enumerate(buckets * 5)], return_exceptions=True
    )
    assert Counter(type(r) for r in results) == {int: 1, Fenced: 9}


@pytest.mark.asyncio
async def test_a_deleted_key_is_gone_and_may_be_made_again(bus: Bus, unique: str) -> None:
    bucket = await bus.bucket(unique)
    first = await bucket.put("k", b"1")
    await bucket.delete("k")
    await bucket.delete("never-there")
    assert await bucket.get("k") is None
    assert await bucket.items() == {}
    with pytest.raises(Fenced):
        await bucket.put("k", b"x", revision=first)
    again = await bucket.put("k", b"2", revision=0)
    assert await bucket.get("k") == (b"2", again)


@pytest.mark.asyncio
async def test_items_are_those_below_the_prefix(bus: Bus, unique: str) -> None:
    bucket = await bus.bucket(unique)
    keys = ["lease", "lease.a.0", "lease.a.1", "leases.b", "pool.x"]
    revisions = {key: await bucket.put(key, key.encode()) for key in keys}
    await bucket.put("lease.gone", b"")
    await bucket.delete("lease.gone")
    everything = {key: (key.encode(), revisions[key]) for key in keys}
    assert await bucket.items() == everything
    assert await bucket.items("lease") == {k: everything[k] for k in keys[:3]}
    assert await bucket.items("lease.a") == {k: everything[k] for k in keys[1:3]}
    assert await bucket.items("nothing") == {}


@pytest.mark.asyncio
async def test_an_object_is_named_by_its_content(buses: Buses, unique: str) -> None:
    one, two = await buses[0].objects(unique), await buses[1].objects(unique)
    large = bytes(range(256)) * (5 * 4096) + b"end"  # 5 MiB and a bit: over max_payload
    for data in (large, b"", b"small"):
        name = await one.put(data)
        assert name == hashlib.sha256(data).hexdigest()
        assert await two.put(data) == name
        assert await two.get(name) == data
    assert await one.get("0" * 64) is None


# -- the connection --------------------------------------------------------------------------------------------------
@pytest.mark.asyncio
async def test_a_closed_connection_does_nothing_more(connect: Connect, unique: str) -> None:
    bus = await connect()
    await stream(bus, unique)
    bucket = await bus.bucket(unique)
    reader = await bus.reader(unique, [f"{unique}.>"], after=0, name=unique)
    waiting = asyncio.create_task(reader.read(1))
    await bus.stream(unique)
    assert bus.connected
    await bus.close()
    await bus.close()
    assert not bus.connected
    for attempt in (
        waiting,
        bus.publish(NewMessage(f"{unique}.a", b"")),
        bus.commit([NewMessage(f"{unique}.a", b""), NewMessage(f"{unique}.a", b"")]),
        bus.stream(unique),
        bus.get(unique, 1),
        bus.request(unique, b""),
        bus.send(unique, b""),
        bucket.put("k", b""),
        bucket.get("k"),
    ):
        with pytest.raises(Unreachable):
            await soon(attempt)
    other = await connect()
    assert await stored(other, unique) == []
