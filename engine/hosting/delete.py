"""Removing what dspex made for a topology, or for a whole application."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from dspex.bus import subjects
from dspex.bus.errors import TopologyError
from dspex.bus.local.processes import is_dead
from dspex.bus.port import Bucket, Bus, Kept
from dspex.bus.serving import audit
from dspex.bus.settings.similar import did_you_mean
from dspex.bus.settings.tables import MOST_HEARTBEAT
from dspex.engine.graph import manifest

AHEAD = 60.0  # seconds by which the clock of an engine may be ahead of the server's
SILENT = 10.0  # seconds without a heartbeat, or five heartbeats if that is longer, after which an engine is not waited for


@dataclass(frozen=True)
class Deleted:
    """What was removed. `whole`: the application had no other topology, so its streams and stores are gone too.

    `messages`: how many of the topology's own were removed, where the streams stay. `kept`: public copies of its sinks, which
    are the user's. `others`: what has the name of something of the application, and dspex did not make it.
    """

    topology: str
    whole: bool
    removed: Sequence[str]
    messages: int = 0
    kept: Sequence[str] = ()
    others: Sequence[str] = ()


async def delete(bus: Bus, app: str, topology: str) -> Deleted:
    """Remove a topology: its manifests, logs, work, records and dead letters; the streams, if it is the last one.

    What it emitted to sinks stays as long as the stream does. Streams that dspex did not make are never touched, nor are public
    copies.

    Raises TopologyError where the application has no such topology, or an engine runs it.
    """
    known = await manifest.topologies(bus, app)
    if topology not in known:
        fix = did_you_mean(topology, sorted(known), "none is applied")
        raise TopologyError(f"{app} has no topology {topology!r}", code="DX235", fix=fix)
    last = (await manifest.of_application(bus, app)).get(topology)
    kept = sorted(set(last.copies.values())) if last is not None else []
    stream = subjects.stream(app)
    info = await bus.stream(stream)
    alive = await bus.bucket(subjects.bucket(app))
    if running := await engines_of(alive, topology, info.now if info is not None else 0.0):
        why = f"{topology} is run by {', '.join(running)}"
        raise TopologyError(why, code="DX240", node=topology, fix="stop these engines first (^C, or SIGTERM)")
    await audit.leave(bus, app, "delete", topology=topology)  # before: with the last topology goes the audit, too
    if len(known) == 1:
        removed, others = await _everything(bus, app)
        return Deleted(topology, True, removed, kept=kept, others=others)
    patterns, messages = subjects.of_topology(app, topology), 0
    if info is not None:
        messages = await bus.count(stream, patterns)
        for pattern in patterns:
            await bus.purge(stream, pattern, below=info.last + 1)
    for key in await _said_of(alive, topology):
        await alive.delete(key)  # of an engine that died: how far it had read would be taken for how far a new topology has
    applied = await bus.bucket(subjects.applied(app))
    keys = sorted(await applied.items(subjects.manifest_prefix(topology)))
    for key in (*keys, *await applied.items(subjects.pause_prefix(topology))):
        await applied.delete(key)
    return Deleted(topology, False, keys, messages, kept)


async def engines_of(bucket: Bucket, topology: str, now: float) -> dict[str, Any]:
    """The engines that run it, with what they say: those that are not known to be gone, and have said so a short while ago."""
    found: dict[str, Any] = {}
    for key, said in (await _said_of(bucket, topology)).items():
        try:
            heartbeat = min(float(said.get("heartbeat", 0.0)), MOST_HEARTBEAT)
            living = -AHEAD < now - float(said["time"]) < max(SILENT, 5 * heartbeat)
            if living and not is_dead(said):
                found[key.partition(".")[2]] = said
        except (TypeError, KeyError, ValueError):
            continue  # no engine wrote it
    return found


async def _said_of(bucket: Bucket, topology: str) -> dict[str, Any]:
    """The keys of engines that run a topology, or did, with what they say."""
    found: dict[str, Any] = {}
    for key, (value, _) in (await bucket.items("engine")).items():
        try:
            said = orjson.loads(value)
            if topology in said["topologies"]:
                found[key] = said
        except (TypeError, KeyError, ValueError):
            continue  # no engine wrote it
    return found


async def _everything(bus: Bus, app: str) -> tuple[list[str], list[str]]:
    """Remove it; what was removed, and what was there and is of others."""
    all_of_it: list[tuple[Kept, str]] = [
        ("stream", subjects.sources(app)),
        ("stream", subjects.requests(app)),
        ("stream", subjects.answers(app)),
        ("stream", subjects.told(app)),
        ("stream", subjects.keys(app)),
        ("stream", subjects.stream(app)),
        ("objects", subjects.objects(app)),
        *(("bucket", name) for name in subjects.buckets(app)),
    ]
    there: list[tuple[Kept, str]] = [(kind, name) for kind, name in all_of_it if await bus.has(kind, name)]
    own: list[tuple[Kept, str]] = [(kind, name) for kind, name in there if await bus.has(kind, name, own=True)]
    removed = [f"{kind} {name}" for kind, name in own if await bus.remove(kind, name)]
    return removed, [f"{kind} {name}" for kind, name in there if (kind, name) not in own]
