"""Streams on a real server: what dspex makes there, and sources in streams of others that are not what they were."""

from __future__ import annotations

import json
from typing import Any

import pytest
from nats.js import JetStreamContext
from waiting import until

from dspex.bus import subjects
from dspex.bus.errors import TopologyError
from dspex.bus.nats import NatsBus
from dspex.bus.port import NewMessage
from dspex.engine.hosting.apply import apply
from dspex.engine.hosting.host import Host
from dspex.operators.topology import Topology


def reading(source: str, sink: str) -> Topology:
    topology = Topology("reading")
    topology.source(source).sink(sink)
    return topology


@pytest.mark.parametrize("retention", ["workqueue", "interest"])
@pytest.mark.asyncio
async def test_a_source_whose_stream_removes_what_was_read_is_refused_with_the_reason(
    bus: NatsBus, js: JetStreamContext, unique: str, retention: Any
) -> None:
    await js.add_stream(name=unique, subjects=[f"{unique}.in"], retention=retention)
    with pytest.raises(TopologyError) as e:
        await apply(bus, unique, [reading(f"{unique}.in", f"{unique}.out").graph])
    assert e.value.code == "DX239"
    assert retention in e.value.message
    assert "limits" in e.value.fix


@pytest.mark.asyncio
async def test_a_subject_is_not_captured_whose_stream_of_others_was_deleted(
    bus: NatsBus, js: JetStreamContext, unique: str
) -> None:
    graph = reading(f"{unique}.in", f"{unique}.out").graph
    await js.add_stream(name=unique, subjects=[f"{unique}.in"])
    await apply(bus, unique, [graph])
    await js.delete_stream(unique)
    await apply(bus, unique, [graph])
    assert await bus.stream_of(f"{unique}.in") is None


@pytest.mark.asyncio
async def test_everything_of_an_application_is_made_at_once_and_nothing_of_it_can_be_rolled_up(
    bus: NatsBus, js: JetStreamContext, unique: str
) -> None:
    await apply(bus, unique, [reading(f"{unique}.in", f"{unique}.out").graph], max_bytes=1 << 20)
    there = list(await js.streams_info())
    while page := await js.streams_info(offset=len(there)):  # a server tells of 256 at a time, and other tests have some, too
        there += page
    infos = {i.config.name: i.config for i in there if i.config.name and unique in i.config.name}
    app = subjects.stream(unique)
    kinds = [app, f"{app}_sources", f"{app}_requests", f"{app}_told", f"OBJ_{app}_payloads"]
    kinds += [f"KV_{app}{kind}" for kind in ("", "_sessions", "_limits", "_cache")]
    assert set(infos) == set(kinds)
    assert not any(c.allow_rollup_hdrs or c.allow_msg_ttl or c.allow_msg_schedules for c in infos.values())
    assert (infos[app].max_consumers, infos[app].max_bytes) == (4000, 1 << 20)
    assert infos[f"{app}_sources"].max_bytes == (1 << 20) // 5
    assert infos[f"{app}_told"].max_bytes == (1 << 20) // 100
    assert infos[f"{app}_requests"].max_age == 86400.0


# -- sources that are not what they were
async def somebodys_stream(bus: NatsBus, name: str) -> None:
    config = {"name": name, "subjects": [f"{name}.in"], "storage": "file"}
    await bus.request(f"$JS.API.STREAM.CREATE.{name}", json.dumps(config).encode())


async def engine(bus: NatsBus, name: str, policy: Any) -> Host:
    topology = Topology("reading")
    topology.source(f"{name}.in", on_gap=policy).map(lambda d: d, name="same").sink(f"{name}.out")
    host = Host(bus, name, [topology.graph], engine="a")
    await host.start()
    return host


async def publish(bus: NatsBus, name: str, *numbers: int) -> None:
    for n in numbers:
        await bus.publish(NewMessage(f"{name}.in", json.dumps({"n": n}).encode()))


async def outputs(bus: NatsBus, name: str) -> list[int]:
    info = await bus.stream(subjects.stream(name))
    assert info is not None
    return [json.loads(m.data)["n"] for m in await bus.scan(info.name, [f"{name}.out"], start=1, stop=info.last)]


@pytest.mark.asyncio
@pytest.mark.parametrize("policy", ["stop", "skip"])
async def test_a_stream_that_is_deleted_made_again_and_refilled_at_once_under_a_live_engine_loses_no_event(
    bus: NatsBus, unique: str, policy: Any
) -> None:
    await somebodys_stream(bus, unique)
    await publish(bus, unique, 1, 2, 3)
    host = await engine(bus, unique, policy)

    async def are(*numbers: int) -> bool:
        return await outputs(bus, unique) == list(numbers)

    try:
        await until(lambda: are(1, 2, 3))
        await bus.request(f"$JS.API.STREAM.DELETE.{unique}", b"")
        await somebodys_stream(bus, unique)
        await publish(bus, unique, *range(4, 10))
        if policy == "skip":
            await until(lambda: are(*range(1, 10)))
            await publish(bus, unique, 10)
            await until(lambda: are(*range(1, 11)))
        else:
            await until(lambda: "made anew" in (host.runners[0].stopped or ""))
            assert await outputs(bus, unique) == [1, 2, 3]
    finally:
        await host.kill()


@pytest.mark.asyncio
@pytest.mark.parametrize("policy", ["stop", "skip"])
async def test_a_stream_whose_unread_events_were_all_purged_while_no_engine_ran_is_a_gap(
    bus: NatsBus, unique: str, policy: Any
) -> None:
    await somebodys_stream(bus, unique)
    await publish(bus, unique, 1, 2, 3)
    host = await engine(bus, unique, policy)

    async def are(*numbers: int) -> bool:
        return await outputs(bus, unique) == list(numbers)

    await until(lambda: are(1, 2, 3))
    await host.drain()
    await publish(bus, unique, *range(4, 10))
    await bus.request(f"$JS.API.STREAM.PURGE.{unique}", b"")
    host = await engine(bus, unique, policy)
    try:
        if policy == "skip":
            await publish(bus, unique, 10)
            await until(lambda: are(1, 2, 3, 10))
        else:
            await until(lambda: "trimmed" in (host.runners[0].stopped or ""))
    finally:
        await host.kill()
