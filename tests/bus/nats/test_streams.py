"""Streams, buckets and object stores as the server has them: nothing in them lets a writer remove what others wrote."""

from __future__ import annotations

from typing import Any

import pytest
from nats.js import JetStreamContext

from dspex.bus.errors import BusError, StreamFull
from dspex.bus.nats import NatsBus
from dspex.bus.port import NewMessage, StreamConfig

ROLLUP = {"Nats-Rollup": "sub"}


async def made(bus: NatsBus, name: str) -> None:
    """A stream, a bucket and an object store of this name."""
    await bus.ensure_stream(StreamConfig(name, [f"{name}.>"]))
    await bus.bucket(name)
    await bus.objects(name)


def names(name: str) -> dict[str, str]:
    """Their streams, each with a subject that it holds."""
    return {name: f"{name}.a", f"KV_{name}": f"$KV.{name}.a", f"OBJ_{name}": f"$O.{name}.C.a"}


@pytest.mark.asyncio
async def test_a_rollup_is_refused_by_everything_that_dspex_makes(bus: NatsBus, unique: str) -> None:
    await made(bus, unique)
    for subject in names(unique).values():
        await bus.publish(NewMessage(subject, b"1"))
        with pytest.raises(BusError, match="rollup"):
            await bus.publish(NewMessage(subject, b"2", ROLLUP))


@pytest.mark.asyncio
async def test_rollup_that_somebody_switched_on_is_switched_off(bus: NatsBus, js: JetStreamContext, unique: str) -> None:
    for stream, subject in names(unique).items():
        more = {"allow_rollup_hdrs": True, "allow_atomic": True, "allow_direct": True, "metadata": {"dspex": "stream"}}
        await js.add_stream(name=stream, subjects=[subject], **more)
    await made(bus, unique)
    for subject in names(unique).values():
        with pytest.raises(BusError, match="rollup"):
            await bus.publish(NewMessage(subject, b"2", ROLLUP))


@pytest.mark.parametrize("option", ["allow_msg_ttl", "allow_msg_schedules"])
@pytest.mark.asyncio
async def test_what_has_message_ttl_or_schedules_is_refused_with_two_ways_out(
    bus: NatsBus, js: JetStreamContext, unique: str, option: Any
) -> None:
    for stream, subject in names(unique).items():
        await js.add_stream(name=stream, subjects=[subject], **{option: True})
    for make in (bus.ensure_stream(StreamConfig(unique, [f"{unique}.>"])), bus.bucket(unique), bus.objects(unique)):
        with pytest.raises(BusError) as e:
            await make
        assert e.value.code == "DX412"
        assert "another application name" in e.value.fix
        assert "dspex delete" in e.value.fix


@pytest.mark.asyncio
async def test_an_object_that_is_put_again_is_touched_and_leaves_one_piece_of_metadata(
    bus: NatsBus, js: JetStreamContext, unique: str
) -> None:
    objects = await bus.objects(unique)
    name = await objects.put(b"data")
    before = await js.stream_info(f"OBJ_{unique}")
    assert await objects.put(b"data") == name
    after = await js.stream_info(f"OBJ_{unique}")
    assert after.state.messages == before.state.messages == 2
    assert after.state.last_seq == before.state.last_seq + 1
    assert await objects.get(name) == b"data"


@pytest.mark.parametrize("limits", [(65_536, 1_048_576), (1_048_576, 65_536)], ids=["raised", "lowered"])
@pytest.mark.asyncio
async def test_an_object_that_is_put_again_stays_readable_after_the_servers_max_payload_was_changed(
    server: Any, opened: Any, limits: tuple[int, int]
) -> None:
    data = bytes(range(256)) * 1000
    for limit in limits:
        server.more = f"max_payload: {limit}\n"
        objects = await (await opened(server.start().url)).objects("store")
        name = await objects.put(data)
        assert await objects.get(name) == data
        server.kill()


@pytest.mark.asyncio
async def test_a_stream_without_a_size_gets_most_of_what_the_server_lets_it_reserve(server: Any, opened: Any) -> None:
    free = 100 << 20
    server.jetstream = f'jetstream {{ store_dir: "{server.folder / "js"}", max_file: {free} }}'
    bus = await opened(server.start().url)
    first = await bus.ensure_stream(StreamConfig("A", ["a"], max_bytes=None))
    assert 0.6 * free < first.max_bytes <= 0.8 * free
    second = await bus.ensure_stream(StreamConfig("B", ["b"], max_bytes=None))
    assert 0 < second.max_bytes <= 0.8 * (free - first.max_bytes)


@pytest.mark.asyncio
async def test_a_stream_without_the_mark_of_dspex_is_never_altered(
    bus: NatsBus, js: JetStreamContext, unique: str
) -> None:  # N9
    subject = f"{unique}.a"
    await js.add_stream(name=unique, subjects=[subject], max_bytes=1 << 20, allow_atomic=True)
    before = (await js.stream_info(unique)).config
    await bus.ensure_stream(StreamConfig(unique, [subject]))  # it has what is needed
    for config in (StreamConfig(unique, [f"{unique}.b"]), StreamConfig(unique, [subject], once=True)):
        with pytest.raises(BusError, match="not made by dspex") as e:
            await bus.ensure_stream(config)
        assert e.value.code == "DX414"
    assert (await js.stream_info(unique)).config == before
    await js.update_stream(name=unique, subjects=[subject], metadata={"dspex": "stream"})  # the way out that the fix names
    await bus.ensure_stream(StreamConfig(unique, [f"{unique}.*"], once=True))
    await bus.publish(NewMessage(subject, b"first"))
    with pytest.raises(StreamFull):
        await bus.publish(NewMessage(subject, b"second"))
    with pytest.raises(BusError, match="message size"):
        await bus.publish(NewMessage(f"{unique}.b", b"x" * 2000))


@pytest.mark.asyncio
async def test_a_bucket_or_object_store_without_the_mark_of_dspex_is_never_altered(
    bus: NatsBus, js: JetStreamContext, unique: str
) -> None:
    theirs = {stream: subject for stream, subject in names(unique).items() if stream != unique}
    for stream, subject in theirs.items():
        await js.add_stream(name=stream, subjects=[subject], allow_rollup_hdrs=True, allow_direct=True)
    for make in (bus.bucket(unique), bus.objects(unique), bus.bucket(unique, once=True)):
        with pytest.raises(BusError, match="not made by dspex") as e:
            await make
        assert e.value.code == "DX414"
    for stream in theirs:
        before = (await js.stream_info(stream)).config
        assert before.allow_rollup_hdrs
        await js.update_stream(before.evolve(metadata={"dspex": "stream"}))  # the way out that the fix names
    await made(bus, unique)
    assert not any([(await js.stream_info(stream)).config.allow_rollup_hdrs for stream in theirs])
