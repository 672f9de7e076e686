"""Applying on a real server: what it has of streams that others made, and what dspex makes there."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import nats
import pytest
import pytest_asyncio
from nats.js import JetStreamContext

from dspex.bus import subjects
from dspex.bus.errors import TopologyError
from dspex.bus.nats import NatsBus, connect
from dspex.engine.hosting.apply import apply
from dspex.operators.topology import Topology


@pytest_asyncio.fixture
async def bus(nats_url: str) -> AsyncIterator[NatsBus]:
    opened = await connect(nats_url)
    yield opened
    await opened.close()


@pytest_asyncio.fixture
async def js(nats_url: str) -> AsyncIterator[JetStreamContext]:
    client = await nats.connect(nats_url)
    yield client.jetstream()
    await client.close()


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
    infos = {i.config.name: i.config for i in await js.streams_info() if i.config.name and unique in i.config.name}
    app = subjects.stream(unique)
    kinds = [app, f"{app}_sources", f"{app}_requests", f"OBJ_{app}_payloads"]
    kinds += [f"KV_{app}{kind}" for kind in ("", "_sessions", "_limits", "_cache")]
    assert set(infos) == set(kinds)
    assert not any(c.allow_rollup_hdrs or c.allow_msg_ttl or c.allow_msg_schedules for c in infos.values())
    assert (infos[app].max_consumers, infos[app].max_bytes) == (4000, 1 << 20)
    assert infos[f"{app}_sources"].max_bytes == (1 << 20) // 5
    assert infos[f"{app}_requests"].max_age == 86400.0
