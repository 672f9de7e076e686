"""Streams: made, widened, refused. On both buses."""

from __future__ import annotations

import asyncio

import pytest
from bus_bench import Buses, put, stored, stream
from waiting import until

from dspex.bus.errors import Fenced, StreamFull, SubjectTaken
from dspex.bus.port import Bus, Kept, NewMessage, StreamConfig

KINDS: tuple[Kept, ...] = ("stream", "bucket", "objects")


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
async def test_ensure_stream_adds_subjects_and_removes_nothing(bus: Bus, unique: str) -> None:  # N9
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


@pytest.mark.asyncio
async def test_a_stream_tells_the_time_that_what_is_stored_now_gets(bus: Bus, unique: str) -> None:
    before = await stream(bus, unique)
    await put(bus, f"{unique}.a", 1)
    message, after = await bus.last(unique, f"{unique}.a"), await bus.stream(unique)
    assert message is not None
    assert after is not None
    assert before.now <= message.time <= after.now


@pytest.mark.asyncio
async def test_the_size_of_a_stream_can_be_changed_and_is_kept_where_nothing_is_said(bus: Bus, unique: str) -> None:
    assert (await stream(bus, unique, max_bytes=1 << 20)).max_bytes == 1 << 20
    assert (await stream(bus, unique, max_bytes=2 << 20)).max_bytes == 2 << 20
    assert (await stream(bus, unique, max_bytes=None)).max_bytes == 2 << 20


@pytest.mark.asyncio
async def test_what_is_removed_is_gone_with_all_that_was_in_it(bus: Bus, unique: str) -> None:
    await stream(bus, unique)
    await put(bus, f"{unique}.a", 1)
    await (await bus.bucket(unique)).put("k", b"v")
    name = await (await bus.objects(unique)).put(b"data")
    for kind in KINDS:
        assert await bus.has(kind, unique)
        assert await bus.remove(kind, unique)
        assert not await bus.has(kind, unique)
        assert not await bus.remove(kind, unique)
    assert await bus.stream(unique) is None
    assert await (await bus.bucket(unique)).get("k") is None
    assert await (await bus.objects(unique)).get(name) is None


@pytest.mark.asyncio
async def test_messages_of_a_stream_with_an_age_expire(bus: Bus, unique: str) -> None:
    await stream(bus, unique, max_age=0.2, duplicate_window=0.1)
    await put(bus, f"{unique}.a", 1)

    async def gone() -> bool:
        return await bus.get(unique, 1) is None

    await until(gone)
    assert await bus.stream(unique) is not None


@pytest.mark.asyncio
async def test_a_subject_of_a_stream_that_takes_each_once_gets_another_message_only_when_the_first_is_deleted(
    bus: Bus, unique: str
) -> None:
    await stream(bus, unique, once=True)
    (first,) = await put(bus, f"{unique}.a", 1)
    await put(bus, f"{unique}.b", 2)
    with pytest.raises(StreamFull):
        await put(bus, f"{unique}.a", 3)
    with pytest.raises(Fenced):
        await bus.publish(NewMessage(f"{unique}.a", b"4", expect=0))
    assert await stored(bus, unique) == ["1", "2"]
    await bus.delete(unique, first, erase=True)
    await bus.publish(NewMessage(f"{unique}.a", b"5", expect=0))
    assert await stored(bus, unique) == ["2", "5"]


@pytest.mark.asyncio
async def test_a_note_of_a_stream_gives_way_only_to_one_that_knows_it(bus: Bus, unique: str) -> None:
    def noted(note: str, instead_of: str = "") -> StreamConfig:
        return StreamConfig(unique, [f"{unique}.a"], note=note, instead_of=instead_of)

    told = [await bus.ensure_stream(config) for config in (noted(""), noted("a"), noted("b"), noted("c", "x"), noted("d", "a"))]
    assert [info.note for info in told] == ["", "a", "a", "a", "d"]
    found = await bus.stream(unique)
    assert found is not None
    assert (found.note, found.own) == ("d", True)


@pytest.mark.asyncio
async def test_a_copy_has_what_was_and_what_will_be_on_its_subjects_in_order(bus: Bus, unique: str) -> None:
    name = f"{unique}_copy"
    await stream(bus, unique)
    await put(bus, f"{unique}.a", 1)
    made = await bus.ensure_stream(StreamConfig(name, (), copies={unique: [f"{unique}.a"]}))
    assert (made.subjects, dict(made.copies), made.own) == ((), {unique: [f"{unique}.a"]}, True)
    assert await bus.stream_of(f"{unique}.a") == unique
    await bus.commit([NewMessage(f"{unique}.{word}", word.encode(), {"x-own": word}) for word in "abac"])
    await until(lambda: _holds(bus, name, 3))
    assert await stored(bus, name, ">") == ["1", "a", "a"]
    last = await bus.get(name, 3)
    assert last is not None
    assert (last.subject, last.headers["x-own"]) == (f"{unique}.a", "a")
    more = await bus.ensure_stream(StreamConfig(name, (), copies={unique: [f"{unique}.b", f"{unique}.a"]}))
    assert dict(more.copies) == {unique: [f"{unique}.a", f"{unique}.b"]}
    await until(lambda: _holds(bus, name, 4))
    assert await bus.remove("stream", unique)
    assert await stored(bus, name, ">") == ["1", "a", "a", "b"]


async def _holds(bus: Bus, name: str, count: int) -> bool:
    info = await bus.stream(name)
    return info is not None and info.messages == count
