"""Which runs are not done: those that tables have a row of, and those of events that no position is past.

The tables of all partitions are read for that, most of them from snapshots; and of what is not taken yet, the latest first, as
much as is asked for. Runs that are done cost nothing, however many there are.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import TypeAlias

from dspex.bus import subjects
from dspex.bus.errors import DecodeError
from dspex.bus.message import Message, id_time, partition_of, run_of, spread_of
from dspex.bus.port import Bus
from dspex.bus.records import unpack_frame
from dspex.bus.serving import payloads
from dspex.engine.client.following.backwards import backwards, by_begin
from dspex.engine.client.following.progress import PartitionId
from dspex.engine.client.runs import places
from dspex.engine.graph.manifest import Manifest
from dspex.engine.log.latest import look_at_many
from dspex.engine.log.rows import Position
from dspex.engine.log.tables import Tables

_Runs: TypeAlias = AsyncIterator[tuple[float, str]]
"""Runs, each with a time at which it had begun; the latest time first."""


async def tables_now(bus: Bus, app: str, manifests: Mapping[str, Manifest]) -> dict[PartitionId, Tables]:
    """The tables of all partitions as of just now."""
    tables = dict[PartitionId, Tables]()
    for topology, applied in manifests.items():
        for stage, count in applied.partitions.items():
            found = await look_at_many(bus, app, topology, stage, range(count))
            tables |= {(topology, stage, index): one for index, one in enumerate(found)}
    return tables


async def open_runs(
    bus: Bus, app: str, manifests: Mapping[str, Manifest], since: float, tables: Mapping[PartitionId, Tables]
) -> AsyncIterator[str]:
    """The ids of runs of which anything is open in tables, the latest first. `since`: of those that began then or later."""
    rows = {row.run for one in tables.values() for row in one.calls.rows.values()}
    rows |= {row.run for one in tables.values() for row in one.timers.rows.values() if not row.forgets}
    ways = [_in_order(rows, since)]
    for stream, subject, readers in places.sources(manifests):
        taken = [_taken(tables, manifests[topology], topology, *reads) for topology, reads in readers]
        ways.append(_unread_events(bus, stream, subject, taken, since))
    for topology, applied in manifests.items():
        for stage, count in applied.partitions.items():
            read = {index: tables[topology, stage, index].position("events") for index in range(count)}
            ways.append(_unread_frames(bus, app, (topology, stage), read, since))
    async for run in by_begin(ways, since):
        yield run


def _taken(tables: Mapping[PartitionId, Tables], applied: Manifest, topology: str, stage: str, count: int) -> list[int]:
    """Behind which sequence of a source each partition of a stage has something to read."""
    start = max((at for source, at in applied.starts.items() if applied.stages[source][0] == stage), default=0)
    return [max(tables[topology, stage, index].position("source").after, start) for index in range(count)]


async def _in_order(runs: set[str], since: float) -> _Runs:
    began = {run: at.timestamp() for run in runs if (at := id_time(run)) is not None}
    for run in sorted(began, key=lambda run: (began[run], run), reverse=True):
        if began[run] >= since:
            yield began[run], run


async def _unread_events(bus: Bus, stream: str, subject: str, taken: Sequence[Sequence[int]], since: float) -> _Runs:
    """Of the events of a source those that a stage has not taken."""
    first = await bus.next(stream, subject, 1 + min(at for stage in taken for at in stage))
    last, info = await bus.last(stream, subject), await bus.stream(stream)
    if first is None or last is None or info is None:
        return
    async for message in backwards(bus, info, subject, since=since, first=first.sequence, last=last.sequence):
        places_of = ((stage, partition_of(spread_of(message), len(stage)) if len(stage) > 1 else 0) for stage in taken)
        if any(message.sequence > stage[index] for stage, index in places_of):
            yield message.time, run_of(stream, info.created, message)


async def _unread_frames(bus: Bus, app: str, stage: tuple[str, str], taken: Mapping[int, Position], since: float) -> _Runs:
    """Of the events over a hop, or redriven, those that a partition has not taken."""
    info = await bus.stream(subjects.stream(app))
    if info is None:
        return
    subject_of = {subjects.edge(app, *stage, index): index for index in taken}
    ends = await bus.multi_last(info.name, list(subject_of))
    behind = {subject: at for subject, m in ends.items() if m.sequence > (at := taken[subject_of[subject]].after)}
    begins = [m.sequence for subject, at in behind.items() if (m := await bus.next(info.name, subject, at + 1)) is not None]
    if not begins:
        return
    span = (min(begins), max(ends[subject].sequence for subject in behind))
    async for message in backwards(bus, info, subjects.edge(app, *stage, "*"), since=since, first=span[0], last=span[1]):
        if message.subject in behind:
            for run in await _runs_in(bus, app, message, taken[subject_of[message.subject]]):
                yield message.time, run


async def _runs_in(bus: Bus, app: str, message: Message, taken: Position) -> list[str]:
    """The runs of the events of a frame that are not taken."""
    if message.sequence <= taken.after:
        return []
    whole = await payloads.checked_out(bus, app, message)
    try:
        events = unpack_frame(whole.data) if whole is not None else []
    except DecodeError:
        return []  # no engine wrote it
    begin = taken.item + 1 if message.sequence == taken.sequence else 0
    return [event.origin.run for event in events[begin:]]
