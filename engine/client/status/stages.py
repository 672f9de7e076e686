"""Stages: who runs them, how far they are, and what waits. What can be counted is counted by the server.

Sequence numbers are no measure of what waits: a stream holds other subjects too, and has holes.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import NamedTuple, TypeAlias

from typing_extensions import TypedDict

from dspex.bus import subjects
from dspex.bus.errors import BusError
from dspex.bus.message import oldest_of
from dspex.bus.port import Bus, StreamInfo
from dspex.engine.client.status.rows import EngineReport, GateRow, PartitionReport, StageReport, StageRow
from dspex.engine.graph.manifest import Manifest
from dspex.engine.graph.pauses import Pauses
from dspex.engine.log.latest import look_at_many
from dspex.engine.log.tables import Tables

_StageInput: TypeAlias = tuple[str, str, str, frozenset[str]]
"""Topology, stage, what the stage begins at ("source" or "events"), and the operators at which people decide."""
_Owned: TypeAlias = Mapping[int, tuple[str, PartitionReport]]
"""Index → owner of a partition, and what it says."""


class _Reached(NamedTuple):
    """How far a stage is. `read`: all of its partitions have taken what is theirs up to here. `calls`: open ones, by pool.

    `since`: when the oldest event with an open call was stored; 0 for none. `approvals`: what waits for a person, by operator.
    """

    read: int
    calls: Counter[str]
    approvals: Counter[str]
    since: float = 0.0
    put_off: int = 0


class UnownedLogs:
    """What the logs of partitions say that nobody owns: for who looks again and again, only new entries cost anything."""

    def __init__(self) -> None:
        self._read = dict[tuple[str, str, int, str], tuple[tuple[float, int], _Reached]]()  # with the last message there then

    async def look(self, bus: Bus, log: StreamInfo, app: str, stage: _StageInput, missing: Sequence[int]) -> list[_Reached]:
        """How far the partitions of a stage are that are `missing`. `log`: the application's stream. Raises BusError."""
        topology, id, input, approves = stage
        subject_of = {index: subjects.log(app, topology, id, index) for index in missing}
        ends = await bus.multi_last(log.name, list(subject_of.values()))
        last = {
            index: (log.created, m.sequence) for index, subject in subject_of.items() if (m := ends.get(subject)) is not None
        }
        known = {index: self._read.get((topology, id, index, input)) for index in last}
        new = [index for index, at in last.items() if (before := known[index]) is None or before[0] != at]
        tables = dict(zip(new, await look_at_many(bus, app, topology, id, new), strict=True)) if new else {}
        self._read |= {
            (topology, id, index, input): (last[index], _in_tables(its, input, approves)) for index, its in tables.items()
        }
        return [
            self._read[topology, id, index, input][1] if index in last else _Reached(0, Counter(), Counter())
            for index in missing
        ]


def _reported(p: PartitionReport) -> _Reached:
    calls, waiting = Counter(p.get("calls", {})), Counter(p.get("approvals", {}))
    return _Reached(p["source"], calls, waiting, p.get("waits_since", 0.0), p.get("put_off", 0))


def _in_tables(tables: Tables, input: str, approves: frozenset[str]) -> _Reached:
    calls = tables.calls.rows.values()
    since, pools = oldest_of(call.id for call in calls), Counter(call.pool for call in calls)
    waiting = Counter({node: n for node in approves if (n := len(tables.keyed.subs(node, "")))})
    return _Reached(tables.position(input).sequence, pools, waiting, since, tables.timers.put_off)


class _Unread(NamedTuple):
    """What waits at a source. `why`: what cannot be told, and why."""

    lag: int | None = None
    oldest: float | None = None
    why: str | None = None


class _Paused(TypedDict):
    paused: bool
    paused_until: str | None
    admits: bool | None


class _Rest(TypedDict):
    stopped: str | None
    rests_until: str | None


class Look:
    """A look at all stages of an application.

    Args:
        engines: what those that are alive report.
        stream: of the application; None where it is not there.
        pauses: by topology.
        unowned: what an earlier look has read.
    """

    def __init__(
        self,
        bus: Bus,
        app: str,
        engines: Sequence[EngineReport],
        stream: StreamInfo | None,
        pauses: Mapping[str, Pauses],
        unowned: UnownedLogs | None = None,
    ) -> None:
        self.bus, self.app, self.engines, self.stream, self.pauses = bus, app, engines, stream, pauses
        self.unowned = unowned if unowned is not None else UnownedLogs()

    async def stages(self, manifests: Mapping[str, Manifest]) -> list[StageRow]:
        """One row for each source of each topology, and for those that were dropped while something of them is left to do.

        What is missing spoils no row but its own.
        """
        letters = dict(zip(manifests, await asyncio.gather(*map(self._letters, manifests))))
        rows = [self._stage(t, m, name, letters[t]) for t, m in manifests.items() for name in _begins(m)]
        found = await asyncio.gather(*rows)
        return [row for row in found if row["open_calls"] or row["put_off"] or row["approvals"] or not row["dropped"]]

    async def _letters(self, topology: str) -> int:
        """The dead letters of a topology that are stored now."""
        if self.stream is None:
            return 0
        return await self.bus.count(self.stream.name, [subjects.dead_pattern(self.app, topology)])

    async def _stage(self, topology: str, applied: Manifest, source: str, letters: int) -> StageRow:
        """`source`: what the stage begins at; a hop where it has no source."""
        hop = source in applied.hops
        id, count = (applied.hops if hop else applied.stages)[source]
        mine = [(e, s) for e in self.engines for s in e["stages"] if (s["topology"], s["stage"]) == (topology, id)]
        owned = _owned(mine)
        missing = sorted(set(range(count)) - owned.keys())
        stream = applied.streams.get(source) or (subjects.stream(self.app) if hop and id in applied.live else None)
        subject = subjects.edge(self.app, topology, id, "*") if hop else applied.subject(source)
        try:
            reached = await self._reached((topology, id, "events" if hop else "source", _approves(applied)), missing, owned)
            unread = (
                await self._unread(stream, subject, max(reached.read, applied.starts.get(source, 0))) if stream else _Unread()
            )
        except BusError as e:  # such as a log that another version of dspex has written
            reached, unread = _Reached(0, Counter(), Counter()), _Unread(why=e.message)
        rest = self._rest(topology, applied, mine)
        return {
            "topology": topology,
            "stage": id,
            "source": source,
            "stream": stream or "",
            "lag": unread.lag,
            "oldest": max(self._age(reached.since), unread.oldest or 0.0) if reached.since else unread.oldest,
            "open_calls": sum(reached.calls.values()),
            "calls": dict(reached.calls),
            "put_off": reached.put_off,
            "approvals": dict(sorted(reached.approvals.items())),
            "full": sum(p.get("full", False) for _, p in owned.values()),
            "gate": _gate(mine, [p for _, p in owned.values()]),
            "holds": _holds(mine),
            "owners": sorted({engine for engine, _ in owned.values()}),
            "partitions": count,
            "unowned": len(missing),
            "events": sum(s["events"] for _, s in mine),
            "retries": sum(s["retries"] for _, s in mine),
            "fallbacks": sum(s.get("fallbacks", 0) for _, s in mine),
            "unsigned": sum(s.get("unsigned", 0) for _, s in mine),
            "left_out": sum(s.get("left_out", 0) for _, s in mine),
            "dead_letters": letters,
            "stopped": next((s["stopped"] for _, s in mine if s["stopped"]), None) or rest["stopped"] or unread.why,
            "rests_until": rest["rests_until"],
            **self._paused(topology, applied, id, mine),
            "dropped": stream is None,
            "rate": round(sum(rates), 2) if (rates := [s["rate"] for _, s in mine if "rate" in s]) else None,
        }

    def _paused(
        self, topology: str, applied: Manifest, stage: str, mine: Sequence[tuple[EngineReport, StageReport]]
    ) -> _Paused:
        """Whether somebody has paused it, whatever engines know of that already."""
        names = {name for name, (id, _) in {**applied.stages, **applied.hops}.items() if id == stage}
        names |= {old for old, new in applied.renamed.items() if new in names}
        now = self.stream.now if self.stream is not None else 0.0
        end = self.pauses.get(topology, Pauses()).until(names, now)
        admits = any(not s.get("paused", False) for _, s in mine) if mine else None
        until = datetime.fromtimestamp(end, UTC).isoformat() if end else None
        return {"paused": end is not None, "paused_until": until, "admits": admits}

    def _rest(self, topology: str, applied: Manifest, mine: Sequence[tuple[EngineReport, StageReport]]) -> _Rest:
        """Why its engines bring nothing more: a version goes on where they stand, or is about to be applied there."""
        found, now = self.pauses.get(topology, Pauses()).rest, self.stream.now if self.stream is not None else 0.0
        if found is None or not any(s["partitions"] and "rest" in s for _, s in mine):
            return {"stopped": None, "rests_until": None}
        if now < found.until and all(lane.boundary != found.at for lane in applied.lanes.values()):
            return {"stopped": None, "rests_until": datetime.fromtimestamp(found.until, UTC).isoformat(timespec="seconds")}
        what = f"version {applied.version} goes on where version {found.version} stopped: start its engines"
        return {"stopped": what, "rests_until": None}

    async def _reached(self, stage: _StageInput, missing: Sequence[int], owned: _Owned) -> _Reached:
        """How far a stage is, as its owners say, and for partitions that nobody owns their logs."""
        parts = [_reported(p) for _, p in owned.values()]
        if missing and self.stream is not None:
            parts += await self.unowned.look(self.bus, self.stream, self.app, stage, missing)
        since = min((part.since for part in parts if part.since > 0), default=0.0)
        calls, put_off = sum((part.calls for part in parts), Counter[str]()), sum(part.put_off for part in parts)
        waiting = sum((part.approvals for part in parts), Counter[str]())
        return _Reached(min((part.read for part in parts), default=0), calls, waiting, since, put_off)

    def _age(self, at: float) -> float:
        return round(max(0.0, self.stream.now - at), 1) if self.stream is not None else 0.0

    async def _unread(self, stream: str, source: str, after: int) -> _Unread:
        info = await self.bus.stream(stream)
        if info is None:
            return _Unread(why=f"the stream {stream} of source {source!r} is not there")
        lag = await self.bus.count(stream, [source], after=after)
        first = await self.bus.next(stream, source, after + 1) if lag else None
        return _Unread(lag, round(max(0.0, info.now - first.time), 1) if first is not None else None)


def _approves(applied: Manifest) -> frozenset[str]:
    return frozenset(node for node, op in applied.states.items() if op == "approve")


def _gate(mine: Sequence[tuple[EngineReport, StageReport]], owned: Sequence[PartitionReport]) -> GateRow | None:
    """`mine`: what each engine says that runs the stage."""
    held, calls = [p for p in owned if p.get("full")], Counter[str]()
    stream = next((e["full"] for e, _ in mine if e["full"]), "")
    sources = {source: why for _, s in mine for source, why in sorted(s.get("waits_for", {}).items())}
    if not held and not stream and not sources:
        return None
    for p in held:
        calls.update(p.get("calls", {}))
    opened, put_off = sum(p["open_calls"] for p in held), sum(p.get("put_off", 0) for p in held)
    return {"open_calls": opened, "put_off": put_off, "calls": dict(calls), "stream": stream, "sources": sources}


def _holds(mine: Sequence[tuple[EngineReport, StageReport]]) -> dict[str, float]:
    found: dict[str, float] = {}
    for _, stage in mine:
        for node, behind in sorted(stage.get("holds", {}).items()):
            found[node] = max(behind, found.get(node, 0.0))
    return found


def _begins(applied: Manifest) -> list[str]:
    """What each stage begins at: a source, or one of its hops; one that the topology still has, if there is any."""
    hops = {id: name for name, (id, _) in sorted(applied.hops.items(), key=lambda hop: hop[0] not in applied.dropped)}
    return [*applied.stages, *hops.values()]


def _owned(reports: Sequence[tuple[EngineReport, StageReport]]) -> _Owned:
    """Those of a stage. An engine that died says what it did until it counts as silent; the one
    that has taken the partition over has the newer claim."""
    found: dict[int, tuple[str, PartitionReport]] = {}
    for engine, stage in reports:
        for p in stage["partitions"]:
            if p["index"] not in found or found[p["index"]][1]["epoch"] < p["epoch"]:
                found[p["index"]] = (engine["engine"], p)
    return found
