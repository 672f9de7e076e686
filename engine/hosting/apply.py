"""Applying: makes what topologies need on the server, and writes their manifests. Removes nothing.

    stream DSPEX_<app>            everything that commits write: logs, work, records, dead letters, and the sinks
    stream DSPEX_<app>_sources    sources that no other stream captures and that are nobody's sink (ADR-0008)
    stream DSPEX_<app>_requests   what calls journal while they run
    stream DSPEX_<app>_answers    the answers to submitted calls, for who submitted them, where calls may be submitted
    stream DSPEX_<app>_told       what publishers and callers say that they did, for the audit
    stream DSPEX_<app>_keys       the keys that seal payloads, where the settings name one (ADR-0010)
    buckets, object store         see bus/subjects.py
    streams of sink(stream=…)     public copies of sinks: see copies.py

Whoever publishes to a source can fill its stream. That must not stop the commits, so sources have a stream of their own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from dspex.bus import subjects
from dspex.bus.errors import Fenced, TopologyError
from dspex.bus.port import Bus, StreamConfig, StreamInfo
from dspex.bus.seldom import logger
from dspex.bus.serving.keys import clear_text
from dspex.bus.serving.keys.secret_fields import need_key
from dspex.bus.serving.work_consumers import WorkConsumers
from dspex.engine.graph.graph import Graph, Lane
from dspex.engine.graph.lanes import Backfill
from dspex.engine.graph.manifest import Manifest
from dspex.engine.graph.versions import store
from dspex.engine.hosting.planning import copies
from dspex.engine.hosting.planning.history import ToRead
from dspex.engine.hosting.planning.lines import lines_of
from dspex.engine.hosting.planning.plan import ApplyPlan, plan
from dspex.engine.hosting.planning.resting import Rested, Resting, follow_on
from dspex.engine.hosting.planning.there import There, look, used_by
from dspex.engine.log.positions import first_position

_log = logger("dspex.engine")
CONSUMERS = 4000  # of the application stream: the server's own default is 1000
DAY = 86400.0
KEPT = 30 * DAY  # of answers to submitted calls


@dataclass(frozen=True)
class Applied:
    """What was applied.

    Attributes:
        manifests: of each topology, as written.
        changes: of each topology: "created", "changed" or "unchanged". stream: the same of the application's stream.
        graphs: as they run, with their lanes. lanes: new ones; see There.
    """

    graphs: Sequence[Graph]
    lanes: Mapping[tuple[str, str], tuple[Lane, Mapping[str, ToRead]]]
    manifests: Mapping[str, Manifest]
    changes: Mapping[str, str]
    stream: str


async def apply(
    bus: Bus,
    app: str,
    graphs: Sequence[Graph],
    *,
    replicas: int = 1,
    max_bytes: int | None = -1,
    again: bool = False,
    reset: Collection[str] = (),
    backfill: Backfill | None = None,
    agreed: ApplyPlan | None = None,
    only_additive: bool = False,
    say: Callable[[str], None] = _log.info,
) -> Applied:
    """Make what the graphs need: what the plan says that is made of what is there.

    Where results of what is built from history go on where others ended, the topology comes to rest first; see resting.py.

    Args:
        replicas: of all streams and buckets. max_bytes: of the application stream, see StreamConfig.
        again, reset: see `plan`. backfill: see `look`.
        agreed: the plan that somebody has seen; nothing is done where another one would be carried out.
        only_additive: nothing is done where something that is held would be lost.
        say: is told what takes a while.

    Raises: SubjectTaken, TopologyError, BusError; ConfigError where payloads are sealed with another key, or with one; DX127
    where a call has secret fields, and they are not.
    """
    for graph in graphs:
        for node in graph.calls:
            need_key(bus, node.call.spec, "what a topology asks", f"{graph.name}/{node.name}")
    await _seal(bus, app, replicas)
    resting: list[tuple[Resting, Rested]] = []
    try:
        while True:
            history = backfill and _behind(backfill, resting)
            there = await look(bus, app, graphs, reset, backfill=history)
            for one, _ in resting:
                await one.check()  # else this would be a plan behind a version that did not come to rest
            planned = plan(app, there.graphs, there, again=again, reset=reset)
            await _may_be_done(bus, app, graphs, planned, agreed, only_additive)
            if (todo := follow_on(bus, app, there, say)) and not resting:
                at = max([await one.soon() for one in todo])
                for one in todo:
                    resting.append((one, await one.come(at)))
                continue  # with what is there now
            try:
                done = await _carry_out(bus, app, there.graphs, there, planned, replicas, max_bytes)
                resting = []
                return done
            except Fenced as e:  # another engine applied at the same moment
                if resting:
                    raise resting[0][0].overtaken("another version was applied at the same moment") from e
                # else look at what it wrote
    finally:
        await _go_on(resting)


async def _go_on(resting: Sequence[tuple[Resting, Rested]]) -> None:
    for one, _ in resting:
        await one.end()


def _behind(backfill: Backfill, resting: Sequence[tuple[Resting, Rested]]) -> Backfill:
    """The history before the topologies came to rest."""
    marks = {name: mark for _, rested in resting for name, mark in rested.marks.items()}
    return backfill._replace(at=max([rested.at for _, rested in resting], default=backfill.at), marks=marks)


async def _may_be_done(
    bus: Bus, app: str, graphs: Sequence[Graph], planned: ApplyPlan, agreed: ApplyPlan | None, only_additive: bool
) -> None:
    """Raise why a plan is not to be carried out."""
    if planned.refused is not None:
        raise planned.refused
    await copies.check(bus, app, graphs)
    if agreed is not None and not planned.is_within(agreed):
        what = "what is on the server has changed since the plan was made, and another one would be carried out"
        raise TopologyError(what, code="DX243", fix="look at the new plan: dspex plan; and apply again")
    if only_additive and planned.lossy:
        raise _loses(planned)


def _loses(planned: ApplyPlan) -> TopologyError:
    """The refusal of an engine on a server of others to give up what is held."""
    lines = "\n".join(f"  {line}" for line in lines_of(planned))
    names = " ".join(f"--reset {c.name.partition('/')[2]}" for c in planned.lossy if c.op == "reset")
    return TopologyError(
        f"this version gives up what the applied one holds, and an engine on a server of others does not do that:\n{lines}",
        code="DX242",
        fix=f"do it on purpose, and start the engine again: dspex apply {names + ' ' if names else ''}--yes",
    )


async def _carry_out(
    bus: Bus, app: str, graphs: Sequence[Graph], there: There, planned: ApplyPlan, replicas: int, max_bytes: int | None
) -> Applied:
    """Do what was planned. Raises Fenced where another engine has applied a version since `there` was looked at."""
    own, known = subjects.stream(app), {name: m for name in there.manifests if (m := there.last(name)) is not None}
    bucket = await bus.bucket(subjects.applied(app), replicas=replicas, once=True)
    after = await _make_streams(bus, app, graphs, planned, replicas, max_bytes)
    await copies.make(bus, app, graphs, replicas)
    await _make_stores(bus, app, replicas)
    written: dict[str, Manifest] = {}
    for graph in graphs:
        first, version = known.get(graph.name), planned.manifests[graph.name]
        if version != first:
            ids = first.partitions if first is not None else {}
            new = {n.name: n.source for n in graph.sources if version.stages[n.name][0] not in ids}
            starts = {name: await first_position(bus, planned.streams[s.subject], s) for name, s in new.items()}
            version = replace(version, starts={**version.starts, **starts})
            await store(bucket, graph.name, version)
        written[graph.name] = version
    # Last, so that what can be published is read, and a client finds out by whom.
    await _make_streams_of_others(bus, app, planned, after)
    if any(c.kind == "consumer" for c in planned.changes):
        await WorkConsumers(bus, app, used_by(graphs)).look()
    changes = {name: _change(known.get(name), new) for name, new in written.items()}
    before = there.streams.get(own)
    return Applied(graphs, there.lanes, written, changes, _change(before and set(before.subjects), set(after.subjects)))


async def _seal(bus: Bus, app: str, replicas: int) -> None:
    """Make the stream of keys, where the bus seals. Raises ConfigError for a key that is not the one, or where there is none
    though the application's payloads are sealed: what was sealed could not be read, and the rest would be stored in clear text.
    """
    if bus.sealing is not None:
        await bus.sealing.establish(replicas)
    else:
        await clear_text.need_none(bus, app)


async def _make_streams(
    bus: Bus, app: str, graphs: Sequence[Graph], planned: ApplyPlan, replicas: int, max_bytes: int | None
) -> StreamInfo:
    """Make the streams that engines and workers alone write to; that of the application as it is now."""
    own, requests = subjects.stream(app), subjects.requests(app)
    config = StreamConfig(own, planned.subjects[own], replicas, max_bytes=max_bytes, max_consumers=CONSUMERS)
    longest = max((n.call.deadline for g in graphs for n in g.calls), default=0.0)
    await bus.ensure_stream(StreamConfig(requests, planned.subjects[requests], replicas, max_age=longest + DAY))
    return await bus.ensure_stream(config)


async def _make_streams_of_others(bus: Bus, app: str, planned: ApplyPlan, own: StreamInfo) -> None:
    """Make the streams that publishers and callers fill. Of what the application's stream leaves they have their parts.

    It leaves a quarter of itself where it has most of what is free: together they must not be more.
    """
    part = (lambda of: own.max_bytes // of) if own.max_bytes > 0 else lambda of: -1
    for name, share, age in (
        (subjects.told(app), 100, 0.0),
        (subjects.sources(app), 5, 0.0),
        (subjects.answers(app), 30, KEPT),
    ):
        if name in planned.subjects:
            config = StreamConfig(name, planned.subjects[name], own.replicas, max_bytes=part(share), max_age=age)
            await bus.ensure_stream(config)


async def _make_stores(bus: Bus, app: str, replicas: int) -> None:
    buckets = [bus.bucket(name, replicas=replicas) for name in subjects.buckets(app)]
    await asyncio.gather(*buckets, bus.objects(subjects.objects(app), replicas=replicas))


def _change(before: object, after: object) -> str:
    return "created" if before is None else "unchanged" if before == after else "changed"
