"""Deleting a topology on a real server, beside what a stranger wrote into the application's bucket."""

from __future__ import annotations

import json

import pytest

from dspex.bus import subjects
from dspex.bus.errors import StreamFull, TopologyError
from dspex.bus.nats import NatsBus
from dspex.engine.hosting.apply import apply
from dspex.engine.hosting.delete import delete
from dspex.operators.topology import Topology


async def applied(bus: NatsBus, app: str, *names: str) -> None:
    made = []
    for name in names:
        topology = Topology(name)
        topology.source(f"{app}.in.{name}").sink(f"{app}.out.{name}")
        made.append(topology.graph)
    await apply(bus, app, made)


@pytest.mark.parametrize("garbage", [b"\xffgarbage", b"", b"null", b"{}"])
@pytest.mark.asyncio
async def test_deleting_one_topology_leaves_another_whose_manifest_somebody_spoiled(
    bus: NatsBus, unique: str, garbage: bytes
) -> None:
    await applied(bus, unique, "kept", "deleted")
    bucket = await bus.bucket(subjects.applied(unique))
    with pytest.raises(StreamFull):
        await bucket.put(subjects.manifest_key("kept", 1), garbage)
    await bucket.put(subjects.manifest_key("kept", 2), garbage)
    gone = await delete(bus, unique, "deleted")
    assert not gone.whole
    assert await bus.stream(subjects.stream(unique)) is not None
    assert list(await bucket.items(subjects.manifest_prefix())) == [subjects.manifest_key("kept", n) for n in (1, 2)]


@pytest.mark.asyncio
async def test_a_topology_whose_manifest_somebody_spoiled_can_be_deleted(bus: NatsBus, unique: str) -> None:
    await applied(bus, unique, "spoiled")
    bucket = await bus.bucket(subjects.applied(unique))
    await bucket.put(subjects.manifest_key("spoiled", 2), b"\xffgarbage")
    assert (await delete(bus, unique, "spoiled")).whole


@pytest.mark.parametrize(("said_at", "heartbeat"), [(1e9, 1.0), (1e300, 1.0), (-160.0, 1e18)])
@pytest.mark.asyncio
async def test_no_forged_heartbeat_keeps_a_topology_from_being_deleted(
    bus: NatsBus, unique: str, said_at: float, heartbeat: float
) -> None:
    """`said_at`: seconds from now. What lies ahead, or is minutes old, is no sign of life, whatever it says of itself."""
    await applied(bus, unique, "one")
    info = await bus.stream(subjects.stream(unique))
    assert info is not None
    bucket = await bus.bucket(subjects.bucket(unique))
    key, said = subjects.member_key("engine", "x"), {"engine": "x", "topologies": ["one"], "time": info.now, "heartbeat": 1.0}
    await bucket.put(key, json.dumps(said).encode())
    with pytest.raises(TopologyError, match="is run by x"):
        await delete(bus, unique, "one")
    await bucket.put(key, json.dumps({**said, "time": info.now + said_at, "heartbeat": heartbeat}).encode())
    assert (await delete(bus, unique, "one")).whole
