"""What operators with state kept when a run began, and what people decided in it: it is done again with that.

It is read from the commit logs: of each partition as of its last entry before the first one that took something of the run; of
those that the run did not come to, as of when it began. What belongs to single events of other runs is left out: what waits
for a person or for its other branches, and calls that were open.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple

from dspex.bus import subjects
from dspex.bus.codecs.checking import checked
from dspex.bus.errors import DecodeError, RecordingIncomplete
from dspex.bus.port import Bus
from dspex.engine.client.following.progress import PartitionId
from dspex.engine.client.runs.history import History
from dspex.engine.client.runs.places import place
from dspex.engine.client.runs.then.decisions import DecisionThen, decisions_of, read_decision
from dspex.engine.client.runs.then.taken import Taken
from dspex.engine.client.runs.then.times import look_at_times
from dspex.engine.client.runs.then.woken import WokenNode, woken_in
from dspex.engine.client.status.state import kept_by
from dspex.engine.graph.manifest import Manifest
from dspex.engine.log.entries import LogAddress, packed, plain
from dspex.engine.log.latest import look
from dspex.engine.log.reading import entry_at
from dspex.engine.log.rows import NO_MARK, Position, are_changes
from dspex.engine.log.tables import Tables

OF_ONE_EVENT: Final = ("approve", "gather", "cron")
"""The forms of rows that are those of single events, or of a schedule."""
_AT_ONCE: Final = 8  # partitions that are read at once
_MOST: Final = 16 << 20  # bytes that the file of a run has of it
_WOKEN: Final = ("wake", "mark")
_TABLES: Final = ("keyed", "timers", "positions")


class PartitionState(NamedTuple):
    """What the operators of one partition kept.

    Attributes:
        topology, partition: which one; `partitions`: of how many. begins: the sources or hops that its stage begins at.
        own: the run came to it. together: so many arrivals were committed with its first one and before it, at least: what they
            changed is not in the tables. forms: of its operators, what their rows look like.
        tables: rows and timers of these operators, and watermarks, as a log entry has them.
    """

    topology: str
    begins: tuple[str, ...]
    partition: int
    partitions: int
    own: bool
    together: int
    forms: dict[str, str]
    tables: dict[str, Any]

    @property
    def keeps(self) -> bool:
        """Whether there is anything that a run may depend on: rows, timers; of those that it came to, watermarks."""
        return self.together > 0 or any(self.tables.get(name) for name in (_TABLES if self.own else _TABLES[:2]))

    @property
    def size(self) -> int:
        """Bytes of its rows."""
        return sum(len(row) for _, row in self.tables.get("keyed", ()))

    def of_keys(self, keys: Collection[str]) -> PartitionState:
        """Only what is of these keys; and of none, where the run came to it."""
        wanted = {*keys, ""} if self.own else {*keys} - {""}
        kept = {"keyed": tuple((at, row) for at, row in self.tables.get("keyed", ()) if at[1] in wanted)}
        kept |= {"timers": tuple((number, row) for number, row in self.tables.get("timers", ()) if row[7] in wanted)}
        return self._replace(tables={**self.tables, **kept})


@dataclass(frozen=True)
class StateThen:
    """What operators kept before a run. `unknown`: why it is not known; "" where it is, or no operator keeps anything.

    `decisions`: what people decided in it. `woken`: what woke operators for it.
    """

    partitions: tuple[PartitionState, ...] = ()
    unknown: str = ""
    decisions: tuple[DecisionThen, ...] = ()
    woken: tuple[WokenNode, ...] = ()

    @property
    def lacks(self) -> str:
        """What of it is not known; "" for nothing."""
        together = sum(part.together for part in self.partitions)
        more = f"what {together:,} or more arrivals changed that were committed with its own is not known" if together else ""
        return self.unknown or more

    def of_keys(self, keys: Collection[str]) -> StateThen:
        """Only what is of these keys, as the file of a run has it: of too much, that it was."""
        found = [part.of_keys(keys) for part in self.partitions]
        if (size := sum(part.size for part in found)) > _MOST:
            why = f"operators kept {size:,} bytes of its keys, and a file has {_MOST:,} at most"
            return replace(self, partitions=(), unknown=why)
        return replace(self, partitions=tuple(part for part in found if part.keeps))

    def hidden(self) -> StateThen:
        """Of a run that has secret fields: values of them may be in what operators kept."""
        decisions = tuple(one for one in self.decisions if not one.edit)
        return StateThen((), "its run has secret fields, and state may hold their values", decisions, self.woken)

    def __add__(self, other: StateThen) -> StateThen:
        more = ((*self.decisions, *other.decisions), (*self.woken, *other.woken))
        return StateThen((*self.partitions, *other.partitions), self.unknown or other.unknown, *more)

    def rows(self) -> Iterator[dict[str, Any]]:
        """As lines of a file."""
        if self.unknown:
            yield {"kind": KIND, "unknown": self.unknown}
        for part in self.partitions:
            yield {"kind": KIND, **part._asdict(), "tables": base64.b64encode(packed(part.tables)).decode()}
        for decision in self.decisions:
            yield {"kind": DECISION, **decision._asdict()}


KIND, DECISION = "state", "decision"
KINDS: Final = (KIND, DECISION)
"""Of lines of a file."""
NOT_THERE: Final = StateThen((), "its file has none: it was written before files had it")
NOT_READ: Final = StateThen((), "nobody asked for it")


def read_row(row: Mapping[str, Any]) -> StateThen:
    """What a line says. Raises DecodeError, KeyError, ValueError where it is none."""
    if row["kind"] == DECISION:
        return StateThen(decisions=(read_decision(row),))
    if "unknown" in row:
        return StateThen((), checked(str, "why there is no state", row["unknown"]))
    tables = plain(base64.b64decode(checked(str, "tables", row["tables"])))
    if not are_changes(tables):
        raise DecodeError("its state is none that a log has")
    given = {name: row[name] for name in PartitionState._fields} | {"begins": tuple(row["begins"]), "tables": {}}
    return StateThen((checked(PartitionState, "what operators kept", given)._replace(tables=tables),))


async def state_before(bus: Bus, app: str, past: History, applied: Mapping[str, Manifest]) -> StateThen:
    """What operators kept when a run began, and what people decided. Raises BusError."""
    if not past.taken:
        return StateThen()
    first = {taken.partition: taken for taken in reversed(past.taken)}
    found, more = list[PartitionState](), (await decisions_of(bus, app, past, applied), woken_in(past, applied))
    for topology in past.topologies:
        if (known := applied.get(topology)) is None:
            continue
        try:
            found += await _of_topology(bus, app, topology, known, first)
        except RecordingIncomplete as error:
            return StateThen((), error.message, *more)
    return StateThen(tuple(found), "", *more)


async def states_before(
    bus: Bus, app: str, pasts: Collection[History], applied: Mapping[str, Manifest], keys: Mapping[str, Collection[str]]
) -> dict[str, StateThen]:
    """The same of many runs, each with what is of its keys alone, by their ids: each log is read once. Raises BusError."""
    wanted, found, lacks = dict[PartitionId, list[_Wanted]](), dict[str, StateThen](), dict[str, str]()
    layouts = {name: _Layout.of(name, applied[name]) for past in pasts for name in past.topologies if name in applied}
    there = {name: await layout.there(bus, app) for name, layout in layouts.items()}
    for past in pasts:
        decisions = await decisions_of(bus, app, past, applied) if past.taken else ()
        found[past.run] = StateThen(decisions=decisions, woken=woken_in(past, applied))
        first = {taken.partition: taken for taken in reversed(past.taken)}
        for where in (where for name in past.topologies if first for where in there.get(name, ())):
            own, start = first.get(where), min(taken.sequence for taken in first.values())
            wanted.setdefault(where, []).append(_Wanted(past.run, (own.sequence if own is not None else start) - 1, own))
    for where, runs in wanted.items():
        layout = layouts[where[0]]
        async for at, tables in look_at_times(bus, app, *where, layout.known.renamed, [one.at for one in runs]):
            for one in (one for one in runs if one.at == at):
                if tables is None:
                    lacks[one.run] = f"what {subjects.log(app, *where)} said then is not kept any more"
                    continue
                part = await layout.part(bus, app, where, one.own, tables, keys[one.run])
                found[one.run] += StateThen((part,) if part.keeps else ())
    return found | {run: replace(found[run], partitions=(), unknown=why) for run, why in lacks.items()}


class _Wanted(NamedTuple):
    """What a run wants of a partition: its tables as of a sequence. `own`: what was first taken of the run there."""

    run: str
    at: int
    own: Taken | None


class _Layout(NamedTuple):
    """Where operators of a topology keep things. `stages`: with their partitions. `nodes`: by stage, their forms by name."""

    topology: str
    known: Manifest
    stages: dict[str, int]
    nodes: dict[str, dict[str, str]]

    @classmethod
    def of(cls, topology: str, known: Manifest) -> _Layout:
        """Without what belongs to single events."""
        stages, nodes = dict[str, int](), dict[str, dict[str, str]]()
        for node, form in known.states.items():
            for stage, count in kept_by(topology, node, known).stages if form not in OF_ONE_EVENT else ():
                stages[stage] = count
                nodes.setdefault(stage, {})[node] = form
        return cls(topology, known, stages, nodes)

    async def there(self, bus: Bus, app: str) -> list[PartitionId]:
        """The partitions that have a log."""
        logs = {
            subjects.log(app, self.topology, stage, i): (self.topology, stage, i)
            for stage, count in self.stages.items()
            for i in range(count)
        }
        return [logs[log] for log in sorted(await bus.multi_last(subjects.stream(app), list(logs)))] if logs else []

    async def part(
        self, bus: Bus, app: str, where: PartitionId, own: Taken | None, tables: Tables, keys: Collection[str] | None = None
    ) -> PartitionState:
        """What a partition kept, as its tables say. `keys`: of these alone; None: of all."""
        _, stage, index = where
        together = await _before(bus, app, own) if own is not None else 0
        begins = tuple(sorted(name for name, (id, _) in {**self.known.stages, **self.known.hops}.items() if id == stage))
        wanted = keys if keys is None else {*keys, ""} if own is not None else {*keys} - {""}
        rows, forms = kept(tables, self.nodes[stage], wanted), self.nodes[stage]
        return PartitionState(self.topology, begins, index, self.stages[stage], own is not None, together, forms, rows)


async def _of_topology(
    bus: Bus, app: str, topology: str, known: Manifest, first: Mapping[PartitionId, Taken]
) -> list[PartitionState]:
    layout, room, start = _Layout.of(topology, known), asyncio.Semaphore(_AT_ONCE), min(t.sequence for t in first.values())

    async def one(where: PartitionId) -> PartitionState:
        own = first.get(where)
        async with room:
            tables = await look(bus, app, *where, known.renamed, at=(own.sequence if own is not None else start) - 1)
            return await layout.part(bus, app, where, own, tables)

    found = await asyncio.gather(*(one(where) for where in await layout.there(bus, app)))
    return [part for part in found if part.keeps]


async def _before(bus: Bus, app: str, first: Taken) -> int:
    """How many arrivals a commit took before the first one of a run, at least."""
    entry = await entry_at(bus, LogAddress.of(app, *first.partition), first.sequence) or {"taken": ()}
    before = 0
    for input, begin, end, count, *_ in entry["taken"]:
        start, stop = place(begin)[0], place(end)[0]
        if mine := [at for of, at in first.inputs if of == input and start <= at <= stop]:
            return before + (min(mine) > start or (input == "events" and count > 1))  # a frame has several
        before += count
    return 0


def kept(tables: Tables, forms: Collection[str], keys: Collection[str] | None = None) -> dict[str, Any]:
    """What is needed of tables, as plain data. Of positions the watermarks alone: what was read before is not there again.

    `keys`: rows and timers of these alone; None: of all.
    """
    rows = [(at, row) for at, row in tables.keyed.snapshot() if at[0] in forms and (keys is None or at[1] in keys)]
    timers = [(number, row) for number, row in tables.timers.snapshot() if row.kind in _WOKEN and row.node in forms]
    timers = timers if keys is None else [(number, row) for number, row in timers if row.key in keys]
    marks = [(name, Position(mark=at.mark)) for name, at in tables.positions.snapshot() if at.mark > NO_MARK]
    found: dict[str, Any] = plain(packed({"keyed": rows, "timers": timers, "positions": marks, "number": tables.number}))
    return found
