"""`publish`: a message is stored once, where it belongs, or refused with the reason. On both buses."""

from __future__ import annotations

import pytest
from bus_bench import PATIENCE, Buses, put, soon, stored, stream

from dspex.bus.errors import DataError, DspexError, Fenced, NotStored, PayloadTooLarge, StreamFull
from dspex.bus.port import WINDOW, Ack, Bus, NewMessage
from dspex.bus.subjects import MESSAGE_ID


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
        await soon(bus.publish(NewMessage(f"{unique}.nobody", b""), timeout=2 * PATIENCE))


@pytest.mark.asyncio
async def test_a_publish_may_expect_the_last_sequence_of_its_subject(bus: Bus, unique: str) -> None:
    await stream(bus, unique)
    first = await bus.publish(NewMessage(f"{unique}.log", b"1", expect=0))
    await put(bus, f"{unique}.other", "noise")
    second = await bus.publish(NewMessage(f"{unique}.log", b"2", expect=first.sequence))
    for wrong in (0, first.sequence, second.sequence + 1):
        with pytest.raises(Fenced):
            await bus.publish(NewMessage(f"{unique}.log", b"x", expect=wrong))
    assert await stored(bus, unique, f"{unique}.log") == ["1", "2"]


@pytest.mark.asyncio
async def test_a_publish_may_expect_the_last_sequence_of_another_subject(bus: Bus, unique: str) -> None:
    await stream(bus, unique)
    (claim,) = await put(bus, f"{unique}.log", "claim")
    draft = NewMessage(f"{unique}.work", b"1", {"N": "1"}, expect=claim, of=f"{unique}.log")
    outcomes = await bus.publish_all([draft, draft._replace(data=b"2"), draft._replace(data=b"x", expect=claim + 1)])
    assert [type(outcome).__name__ for outcome in outcomes] == ["Ack", "Ack", "Fenced"]
    await put(bus, f"{unique}.log", "another claim")
    with pytest.raises(Fenced):
        await bus.publish(draft)
    found = await bus.scan(unique, [f"{unique}.work"], start=1, stop=99)
    assert [(m.data, m.headers) for m in found] == [(b"1", {"N": "1"}), (b"2", {"N": "1"})]


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
async def test_a_full_stream_refuses_and_drops_nothing(bus: Bus, unique: str) -> None:  # N6
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
async def test_a_stream_that_is_full_by_its_bytes_refuses_more(bus: Bus, unique: str) -> None:
    await stream(bus, unique, max_bytes=4096)
    with pytest.raises(StreamFull):
        await put(bus, f"{unique}.a", *["x" * 1000] * 5)
    info = await bus.stream(unique)
    assert info is not None
    assert info.messages in (3, 4)
    assert 3000 < info.bytes <= 4096


@pytest.mark.asyncio
async def test_a_message_over_the_limit_is_refused_and_the_connection_still_works(bus: Bus, unique: str) -> None:
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
async def test_an_invalid_subject_is_refused_and_the_connection_lives_on(bus: Bus, unique: str, bad: str) -> None:
    await stream(bus, unique)
    for attempt in (bus.publish(NewMessage(bad, b"")), bus.send(bad, b""), bus.request(bad, b"")):
        with pytest.raises(DspexError):
            await soon(attempt)
    await put(bus, f"{unique}.a", "fine")


@pytest.mark.asyncio
async def test_many_messages_in_flight_are_stored_in_their_order_and_each_says_where(bus: Bus, unique: str) -> None:
    await stream(bus, unique)
    drafts = [NewMessage(f"{unique}.a", str(i).encode(), {MESSAGE_ID: f"id{i}"}) for i in range(WINDOW)]
    outcomes = await soon(bus.publish_all(drafts))
    assert outcomes == [Ack(unique, i + 1) for i in range(WINDOW)]
    assert await stored(bus, unique) == [str(i) for i in range(WINDOW)]
    assert await bus.publish_all([]) == []


@pytest.mark.asyncio
async def test_of_many_messages_each_is_stored_or_refused_by_itself(bus: Bus, unique: str) -> None:
    """An atomic batch with one duplicate in it is refused whole."""
    await stream(bus, unique, max_messages=4)
    await bus.publish(NewMessage(f"{unique}.a", b"0", {MESSAGE_ID: "known"}))
    drafts = [
        NewMessage(f"{unique}.a", b"1", {MESSAGE_ID: "new"}),
        NewMessage(f"{unique}.a", b"2", {MESSAGE_ID: "known"}),
        NewMessage(f"{unique}.b", b"3", expect=7),
        NewMessage(f"{unique}.nobody.hears", b"4"),
        *(NewMessage(f"{unique}.a", b"%d" % i) for i in range(5, 8)),
    ]
    outcomes = await soon(bus.publish_all(drafts))
    assert outcomes[:2] == [Ack(unique, 2), Ack(unique, 1, duplicate=True)]
    assert isinstance(outcomes[2], Fenced)
    assert outcomes[3:5] == [Ack(unique, 3), Ack(unique, 4)]
    assert [type(e) for e in outcomes[5:]] == [StreamFull, StreamFull]
    assert await stored(bus, unique) == ["0", "1", "4", "5"]


@pytest.mark.asyncio
async def test_of_many_messages_that_no_stream_takes_each_says_so(bus: Bus, unique: str) -> None:
    outcomes = await soon(bus.publish_all([NewMessage(f"{unique}.nobody", b"")] * 3))
    assert [type(e) for e in outcomes] == [NotStored] * 3


@pytest.mark.asyncio
async def test_nothing_is_sent_of_many_messages_where_one_is_too_large(bus: Bus, unique: str) -> None:
    await stream(bus, unique)
    with pytest.raises(PayloadTooLarge):
        await bus.publish_all([NewMessage(f"{unique}.a", b"x"), NewMessage(f"{unique}.a", bytes(bus.max_payload + 1))])
    assert await stored(bus, unique) == []
