"""Housekeeping: removes from an application's streams what nobody needs any more and the topology's retention does not keep.

Nothing in the stream expires by itself, so that nothing that is still needed can. So the engine that owns the first
partition of a topology does this for all of it. It reads the logs, not its own memory: what a snapshot says is needed is an
answer that stays right, since positions only move on, and whoever takes over begins at that snapshot or after it.

    removed, when older than the retention            kept as long as
    ------------------------------------------------  -----------------------------------------------------------------
    log entries, snapshots                            they are not before the last snapshot but one, and not before the
                                                      last one that is older than the retention
    records, and events of hops (`engine.records`)    they are not read, or wait for their time or for an earlier call
    requests of calls (work)                          their call is open
    all these of a stage whose source was dropped     its last entry is kept, or something of it is left to do
    events in the stream of sources                   a stage has not read them, or a dead letter or a redriven event that is
                                                      not read points at them
    statements of watermarks (at once)                they are an engine's last, and it lives, or others have not said as much
    dead letters whose event was redriven             (at once: the redrive was cut off before it removed them)
    payloads, an hour after they were put             a message names them, or a saved version of a program
    what a run used of a budget                       it was used within `engine.records`
    what a tenant used of a budget                    its window goes on, and it is among the 10,000 that have used most
    sessions                                          they go on, or it has to be remembered that they have ended
    what processes of pools said of themselves        they live, or died within ten minutes
    which worker holds a key (affinity="require")     a call of that key was made within thirty days
    answers in the cache                              (at once, when no call may be given them any more)

Sinks and other dead letters are never removed: they belong to the user. Each sweep can be cut off anywhere, and done twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from dspex.bus import codecs, subjects
from dspex.bus.errors import DecodeError, DspexError
from dspex.bus.message import Message
from dspex.bus.port import Bus, StreamInfo
from dspex.bus.seldom import logger
from dspex.bus.serving import limits
from dspex.bus.serving.sessions.store import SessionStore
from dspex.engine.graph.manifest import Manifest
from dspex.engine.graph.manifest import read as manifests
from dspex.engine.log import redriven
from dspex.engine.log.dropped import is_idle
from dspex.engine.log.entries import LogAddress, bases, readable
from dspex.engine.log.latest import latest
from dspex.engine.log.positions import needed, pages, sequence_before
from dspex.engine.log.reading import named_snapshot, restored
from dspex.engine.log.rows import NO_MARK, NONE
from dspex.engine.log.tables import Tables
from dspex.engine.log.unused_payloads import UnusedPayloads

_log = logger("dspex.engine")
MOST_AHEAD = 600.0  # seconds that a watermark may be ahead of the clock
EVERY = 600.0  # seconds between two sweeps
FIRST = 60.0  # seconds until the first one: else an application whose engines end again and again would never have one


@dataclass(frozen=True)
class _Kept:
    """What one partition still needs.

    Attributes:
        log: the first entry of its log. snapshots: the first message of its snapshots.
        needed: the first sequence of each input, and of its requests ("work"); see `needed`.
    """

    address: LogAddress
    index: int
    log: int
    snapshots: int
    needed: Mapping[str, int]


async def keep(bus: Bus, app: str, mine: Callable[[], Sequence[str]], *, records: float, clock: Callable[[], float]) -> None:
    """Sweep now and then, until cancelled. `mine`: the topologies whose first partition this process owns.

    Who owns that of the first topology also removes the payloads that none needs, and sessions that are over.
    """
    unused, pause = UnusedPayloads(bus, app), min(FIRST, EVERY)
    while True:
        await asyncio.sleep(pause)
        pause = EVERY
        try:
            bucket = await bus.bucket(subjects.applied(app))
            for topology in (owned := mine()):
                await sweep(bus, app, topology, await manifests(bucket, whole=True), records=records, now=clock())
            applied = await manifests(bucket, whole=True)
            if applied and min(applied) in owned:
                await unused.remove(applied, clock())
                await limits.forget(bus, app, clock(), records)
                await SessionStore(bus, app).purge()
                await forget_answers(bus, app, clock())
                await forget_kept(bus, app, clock() - records)
                members = await bus.bucket(subjects.bucket(app))
                await members.expire(subjects.PARENTS, clock() - EVERY)
                await members.expire(subjects.HELD, clock() - subjects.HELD_FOR)
        except DspexError as e:
            _log.warning("housekeeping is put off", why=e.message)


async def forget_answers(bus: Bus, app: str, now: float) -> None:
    """Remove from the cache what is too old for every call. Raises BusError."""
    if await bus.has("bucket", name := subjects.cache(app)):
        bucket = await bus.bucket(name)
        for power in range(subjects.SHORTEST_CLASS, subjects.LONGEST_CLASS + 1):
            await bucket.expire(str(power), now - 2.0**power)


async def forget_kept(bus: Bus, app: str, before: float) -> None:
    """Remove runs that are in no log and were kept before then: first what names the pieces of each. Raises BusError."""
    if await bus.has("bucket", name := subjects.kept(app)):
        bucket = await bus.bucket(name)
        await bucket.expire(subjects.KEPT_RUN, before)
        await bucket.expire(subjects.KEPT_PART, before)


async def sweep(bus: Bus, app: str, topology: str, applied: Mapping[str, Manifest], *, records: float, now: float) -> None:
    """Remove what is over for one topology. Raises BusError.

    `applied`: all manifests. `records`: seconds that records of calls are kept, if longer than the topology's retention.
    """
    info = await bus.stream(subjects.stream(app))
    manifest = applied.get(topology)
    if info is None or manifest is None:
        return
    await redriven.finish(bus, app)
    partitions = [(stage, index) for stage, count in manifest.partitions.items() for index in range(count)]
    young = 1 + await sequence_before(bus, info, now - manifest.retention)  # the first that the retention keeps
    kept = {(stage, index): await _kept(bus, app, topology, stage, index, young) for stage, index in partitions}
    for stage, index in [one for one in partitions if one[0] not in manifest.live]:
        kept[stage, index] = await _of_dropped(bus, app, topology, stage, kept[stage, index], young)
    recorded = 1 + await sequence_before(bus, info, now - max(manifest.retention, records))
    for (stage, index), part in kept.items():
        below = min(part.log, young, part.needed["work"])  # an entry may hold the request of an open call
        await bus.purge(info.name, part.address.subject, below=below)
        await bus.purge(info.name, part.address.pieces, below=await _pieces(bus, part.address, below))
        await bus.purge(info.name, part.address.snapshots, below=part.snapshots)
        records_of, events_of = (
            subjects.record(app, "*", topology, stage, index),
            subjects.edge(app, topology, stage, index),
        )
        await bus.purge(info.name, records_of, below=min(part.needed.get("records", 0), recorded))
        await bus.purge(info.name, events_of, below=min(part.needed.get("events", 0), recorded))
        if "approve" in manifest.states.values():
            decided = subjects.decision(app, topology, stage, index)
            await bus.purge(info.name, decided, below=min(part.needed.get("events", 0), recorded))
    if "approve" not in manifest.states.values():  # nobody reads decisions here, whoever has written some
        await bus.purge(info.name, subjects.decision(app, topology, "*", "*"), below=young)
    await bus.purge(info.name, subjects.work_of(app, topology), below=min(young, *(p.needed["work"] for p in kept.values())))
    await bus.purge(info.name, subjects.interactive_record(app, "*"), below=recorded)
    await _statements(bus, app, info, topology, now)
    sources = await bus.stream(subjects.sources(app))
    if sources is not None:
        read = {manifest.subject(source) for source, stream in manifest.streams.items() if stream == sources.name}
        for source in sorted(read):
            await _source(bus, app, info, sources, source, applied, now)


async def _kept(bus: Bus, app: str, topology: str, stage: str, index: int, young: int) -> _Kept:
    """`young`: the first sequence that the retention keeps."""
    address = LogAddress.of(app, topology, stage, index)
    end = await latest(bus, address)
    if not end.at:  # never owned: no call of it can be open, and nothing was sent to it
        return _Kept(address, index, 0, 0, {"work": NONE})
    base, older = bases(end.at, end.entry)
    before = await _before(bus, address, young, base)
    named = [await named_snapshot(bus, address, sequence) for sequence in {base, older, before} if sequence]
    whole = [snapshot for snapshot in named if snapshot is not None]
    tables = Tables()
    if not before or not base or len(whole) < len(named) or not whole:
        return _Kept(address, index, 0, 0, {"work": 0})  # the log is still read from its begin, or may have to be
    oldest = min(whole, key=lambda snapshot: snapshot.at)
    if not await restored(bus, address, oldest, tables):
        _log.error("housekeeping leaves a partition whose snapshot is damaged", subject=address.subject, sequence=oldest.at)
        return _Kept(address, index, 0, 0, {"work": 0})
    first = needed(tables)  # what was read or written later lies behind the snapshot
    return _Kept(address, index, oldest.at, oldest.first, {**first, "work": min(first["work"], oldest.at)})


async def _statements(bus: Bus, app: str, info: StreamInfo, topology: str, now: float) -> None:
    """Who begins to read hears the last statement of each engine, also of one that is gone and knew more than all others."""
    last: dict[str, Message] = {}
    async for page in pages(bus, info.name, [subjects.time(app, topology, "*", "*")]):
        last |= {message.subject: message for message in page}
    engines = await (await bus.bucket(subjects.bucket(app))).items("engine") if last else {}
    said = {subject: _said(message, now) for subject, message in last.items()}
    for subject, message in sorted(last.items(), key=lambda item: item[1].sequence):
        (stage, engine), mine = subject.split(".")[-2:], said[subject]
        others = [marks for other, marks in said.items() if other != subject and other.split(".")[-2] == stage]
        gone = subjects.member_key("engine", engine) not in engines
        if gone and all(any(index in o and o[index] >= at for o in others) for index, at in mine.items()):
            said[subject] = {}
        await bus.purge(info.name, subject, below=message.sequence + (not said[subject]))


def _said(message: Message, now: float) -> dict[object, float]:
    """What a statement says of partitions; nothing for what is none, and no time that nobody can have reached."""
    try:
        said = codecs.decode(message.data, codecs.MSGPACK)
    except DecodeError:
        return {}
    marks = said if isinstance(said, dict) else {}
    return {index: at if isinstance(at, float) and at <= now + MOST_AHEAD else NO_MARK for index, at in marks.items()}


async def _pieces(bus: Bus, address: LogAddress, below: int) -> int:
    """The first message that the entries from a sequence on need: the first of them stays whole, with its pieces before it."""
    first = await bus.next(address.stream, address.subject, below) if below else None
    entry = readable(first.data) if first is not None else None
    return min(below, first.sequence - entry["covers"]) if first and entry and "covers" in entry else below


async def _of_dropped(bus: Bus, app: str, topology: str, stage: str, part: _Kept, young: int) -> _Kept:
    """What is kept of a stage whose source was dropped: at last only its log, which tells how far the source was read."""
    end = await bus.last(part.address.stream, part.address.subject)
    if end is not None and end.sequence < young and await is_idle(bus, app, topology, stage, part.index):
        return replace(part, needed=dict.fromkeys(("work", "records", "events"), NONE))
    return part


async def _before(bus: Bus, address: LogAddress, young: int, base: int) -> int:
    """The entry that names the last snapshot before what the retention keeps; 0 for none: a replay begins there."""
    while (first := await bus.next(address.stream, address.subject, young)) is not None:
        if (entry := readable(first.data)) is not None:
            return int(entry["base"])
        young = first.sequence + 1
    return base


async def _source(
    bus: Bus, app: str, own: StreamInfo, sources: StreamInfo, source: str, applied: Mapping[str, Manifest], now: float
) -> None:
    """Events in the stream of sources. All topologies that read them must be done with them."""
    below, pointing = sources.last + 1, {subjects.dead_pattern(app): 1}  # subject → where to begin
    for topology, manifest in applied.items():
        for other, stream in manifest.streams.items():
            if stream != sources.name or not subjects.overlap(source, manifest.subject(other)):
                continue
            stage, count = manifest.stages[other]
            young = 1 + await sequence_before(bus, own, now - manifest.retention)
            kept = [await _kept(bus, app, topology, stage, index, young) for index in range(count)]
            past = 1 + await sequence_before(bus, sources, now - manifest.retention)
            below = min(below, past, *(part.needed.get("source", 0) for part in kept))
            pointing |= {subjects.edge(app, topology, stage, part.index): part.needed.get("events", 0) for part in kept}
    for pattern, start in pointing.items() if below > sources.first else ():
        below = min(below, await _pointed_at(bus, own, sources, pattern, start))
    if below > sources.first:
        await bus.purge(sources.name, source, below=below)


async def _pointed_at(bus: Bus, own: StreamInfo, sources: StreamInfo, pattern: str, start: int) -> int:
    """The first event of a source that dead letters, or redriven events, refer to instead of holding it."""
    first = NONE
    async for page in pages(bus, own.name, [pattern], start=start):
        found = [at for m in page if (at := redriven.points_at(m)) is not None]
        first = min([first, *(at.sequence for at in found if at.stream == sources.name)])
    return first
