"""Stages whose source, or hops, the topology has dropped: they run until nothing of them is left to do, and then cost nothing.

What is left: calls that are open, events that were put off, and redriven events that nobody has read. Whether there is any
is read from the logs. A log that no engine has claimed since the source was dropped is not trusted: somebody who still runs
the version before could go on with it, until a claim of the newer version ends that for good.
"""

from __future__ import annotations

import asyncio
from typing import NamedTuple

from dspex.bus import subjects
from dspex.bus.port import Bus
from dspex.engine.graph import manifest
from dspex.engine.log.entries import LogAddress
from dspex.engine.log.latest import latest, look


class Dropped(NamedTuple):
    """A stage whose source was dropped, or all of its hops.

    Attributes:
        source: what it began at. stream: where the source was read; "" for hops.
        stage: its id. partitions: how many it has.
        version: the last one of the topology that had it.
    """

    topology: str
    source: str
    stage: str
    partitions: int
    stream: str
    version: int


async def dropped(bus: Bus, app: str, topology: str, applied: manifest.Manifest) -> list[Dropped]:
    """The stages that the version that is applied has no more. Raises BusError, TopologyError."""
    known = {**applied.stages, **applied.hops}
    names = {name for name, (id, _) in known.items() if id not in applied.live}
    if not names:
        return []
    bucket = await bus.bucket(subjects.applied(app))
    versions = await manifest.history(bucket, topology, whole=True, before=applied.version)
    ids = {known[name][0]: name for name in sorted(names)}
    last = {id: (name, m) for m in versions.get(topology, ()) for id, name in ids.items() if id in m.live}
    return [
        Dropped(topology, name, *known[name], m.streams.get(name, ""), m.version)
        for name, m in sorted(last.values(), key=lambda found: found[0])
    ]


async def has_ended(bus: Bus, app: str, stage: Dropped) -> bool:
    """Whether nothing of a stage is left to do. Raises BusError."""
    return all(await asyncio.gather(*[_has_ended(bus, app, stage, index) for index in range(stage.partitions)]))


async def _has_ended(bus: Bus, app: str, stage: Dropped, index: int) -> bool:
    end = await latest(bus, LogAddress.of(app, stage.topology, stage.stage, index))
    if end.at and end.facts.manifest <= stage.version:
        return False
    return await is_idle(bus, app, stage.topology, stage.stage, index)


async def is_idle(bus: Bus, app: str, topology: str, stage: str, index: int) -> bool:
    """Whether nothing is left to do in a partition but what its source brings. Raises BusError."""
    tables = await look(bus, app, topology, stage, index)
    if tables.calls.rows or tables.timers.rows:
        return False
    event = await bus.last(subjects.stream(app), subjects.edge(app, topology, stage, index))
    return event is None or event.sequence <= tables.position("events").after
