"""What is not there as it was stored when a partition is replayed: it is told as that, and never as a difference."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from dspex.bus import subjects
from dspex.bus.errors import RecordingIncomplete
from dspex.bus.message import Message
from dspex.bus.port import Bus
from dspex.bus.records import NodeEvent
from dspex.bus.serving import payloads
from dspex.engine.log.entries import LogAddress, from_later, is_as_stored, is_damaged_entry, lacks_pieces, readable, was_read
from dspex.engine.log.reading import changes
from dspex.engine.replay.marks import run_of
from dspex.engine.runtime.arrival import Arrival


async def end_of(bus: Bus, log: LogAddress, end: int, until: int) -> int:
    """Up to where a log is read. Raises RecordingIncomplete where it ends because what lies behind its end is damaged; BusError
    where a later version of dspex has written it.
    """
    for m in await bus.scan(log.stream, [log.subject], start=end + 1, stop=until) if until > end else ():
        if is_damaged_entry(m.data):
            raise RecordingIncomplete(f"the log entry at {m.sequence} is damaged: it is not what was stored")
        if readable(m.data) is None and is_as_stored(m.data):
            raise from_later(m.sequence)
    return min(end, until)


def before(entry: Mapping[str, Any], claim: int, commit: int) -> RecordingIncomplete | None:
    """The error of an entry that goes on from one that is not there as it was stored; None for what is only none of the log.
    `claim`, `commit`: the last ones; 0 for none.
    """
    wanted = entry["after"] if entry["kind"] == "claim" else max(entry["after"], entry["claim"])
    if not (claim or commit) or wanted <= max(claim, commit):
        return None
    return RecordingIncomplete(f"the log entry at {wanted} is damaged, or missing, and others follow it")


async def changed_by(bus: Bus, log: LogAddress, m: Message, entry: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """See `changes`. Raises RecordingIncomplete where that cannot be read because the entry's pieces are damaged, or gone."""
    changed = await changes(bus, log, m, entry)
    if lacks_pieces(m.data, entry, changed):
        raise RecordingIncomplete(f"the log entry at {m.sequence} is damaged: its pieces are not what was stored")
    return changed


def need_unchanged(
    entry: Mapping[str, Any], taken: Sequence[Any], arrival: Arrival, stream: str, runs: Collection[str] | None
) -> None:
    """Raise RecordingIncomplete where an event of a source is not what a commit took. `taken`: the arrivals among which it was.
    `runs`: those that count; None: all.
    """
    at, event = arrival.place.sequence, arrival.what
    if taken[0] != "source" or len(taken) != 5 or not isinstance(event, NodeEvent) or was_read(entry, at, event.data):
        return
    run = run_of(arrival)
    if runs is None or run in runs:
        raise RecordingIncomplete(f"the event at {at} of {stream}, of run {run}, is damaged: it is not what was taken", run=run)


def of_record(m: Message) -> RecordingIncomplete:
    """The error for a record whose bytes are not those that were stored."""
    run = m.headers.get(subjects.RUN, "")
    fix = f"what else the run did is shown by dspex runs show {run}"
    return RecordingIncomplete(
        f"the record at {m.sequence}, of run {run}, is damaged: it is not what was stored", run=run, fix=fix
    )


async def need_body(bus: Bus, app: str, m: Message, arrival: Arrival, runs: Collection[str] | None) -> None:
    """Raise RecordingIncomplete for what was taken with its body, and has none now: damaged, or stored nowhere any more.
    `runs`: those that count; None: all.
    """
    run = run_of(arrival) or m.headers.get(subjects.RUN, "")
    if runs is not None and run and run not in runs:
        return
    _, damaged = await payloads.looked_at(bus, app, m)
    what = "is damaged: it is not what was taken" if damaged else "cannot be read any more"
    where = f"the body of {arrival.place.input} {m.sequence}{f', of run {run},' if run else ''}"
    raise RecordingIncomplete(f"{where} {what}", run=run)


def need_records(entry: int, taken: Sequence[Any], there: int, runs: Collection[str] | None) -> None:
    """Raise RecordingIncomplete where records are missing that a commit took, and certain runs are looked at."""
    if taken[0] == "records" and runs is not None:
        raise RecordingIncomplete(f"of {taken[3]:,} records that the commit at {entry} took, {taken[3] - there:,} are missing")
