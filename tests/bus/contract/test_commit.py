"""`commit`: all messages of a batch are stored, in order, or none is. On both buses."""

from __future__ import annotations

import asyncio

import pytest
from bus_bench import Buses, between, put, soon, stored, stream, texts

from dspex.bus.errors import BusError, Fenced, NotStored
from dspex.bus.port import COMMIT_LIMIT, Bus, NewMessage
from dspex.bus.subjects import MESSAGE_ID


@pytest.mark.asyncio
async def test_of_two_owners_that_commit_at_once_one_is_fenced(buses: Buses, unique: str) -> None:
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
async def test_messages_of_a_commit_are_stored_in_order_with_consecutive_sequences(buses: Buses, unique: str) -> None:  # N14
    a, b = buses
    await stream(a, unique)

    async def commit(bus: Bus, who: str) -> int:
        return await bus.commit([NewMessage(f"{unique}.{n % 3}", f"{who}{n}".encode(), {"N": str(n)}) for n in range(50)])

    lasts = await asyncio.gather(commit(a, "a"), commit(b, "b"))
    for last, who in zip(lasts, "ab"):
        messages = await between(a, unique, last - 49, last)
        assert texts(messages) == [f"{who}{n}" for n in range(50)]
        assert [m.sequence for m in messages] == list(range(last - 49, last + 1))
        assert [m.headers.get("N") for m in messages] == [str(n) for n in range(50)]


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
async def test_a_message_that_expects_a_sequence_must_be_the_first_of_its_subject_in_a_commit(bus: Bus, unique: str) -> None:
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
async def test_a_commit_takes_as_many_messages_as_its_limit_and_refuses_more(bus: Bus, unique: str) -> None:
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
async def test_a_scan_tells_what_was_stored_in_a_commit_with_others_from_copies_of_it(bus: Bus, unique: str) -> None:
    await stream(bus, unique)
    await bus.commit([NewMessage(f"{unique}.a", b"together", {"n": "1"}), NewMessage(f"{unique}.b", b"with it")])
    await bus.commit([NewMessage(f"{unique}.a", b"alone", {"n": "2"})])
    found = await bus.scan(unique, [f"{unique}.>"], start=1, stop=9)
    assert [m.in_batch for m in found] == [True, True, False]
    for message in found:
        await bus.publish(NewMessage(message.subject, message.data, message.headers))
    copies = await bus.page(unique, [f"{unique}.>"], start=4, stop=9)
    assert [(m.data, m.in_batch) for m in copies] == [(b"together", False), (b"with it", False), (b"alone", False)]
    assert [m.in_batch for m in await bus.page(unique, [f"{unique}.>"], start=1, stop=3)] == [True, True, False]
