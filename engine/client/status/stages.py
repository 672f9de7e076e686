"""Stages: who runs them, how far they are, and what waits. What can be counted is counted by the server.

Sequence numbers are no measure of what waits: a stream holds other subjects too, and has holes.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from typing_extensions import TypedDict

from dspex.bus import subjects
from dspex.bus.errors import BusError
from dspex.bus.message import oldest_of
from dspex.bus.port import Bus, StreamInfo
from dspex.engine.client.status.rows import EngineReport, GateRow, PartitionReport, StageReport, StageRow
from dspex.engine.graph.manifest import Manifest
from dspex.engine.graph.pauses import Pauses
from dspex.engine.log.latest import look_at_many


class _Reached(NamedTuple):
    """How far a stage is. `read`: all of its partitions have taken what is theirs up to here. `calls`: open ones, by pool.

    `since`: when the oldest event with an open call was stored; 0 for none.
    """

    read: int
    calls: Counter[str]
    since: float = 0.0
    put_off: int = 0


class _Unread(NamedTuple):
    """What waits at a source. `why`: what cannot be told, and why."""

    lag: int | None = None
    oldest: float | None = None
    why: str | None = None


class _Paused(TypedDict):
    paused: bool
    paused_until: str | None


class _Rest(TypedDict):
    stopped: str | None
    rests_until: str | None


class Look:
    """A look at all stages of an application.

    Args:
        engines: what those that are alive report.
        stream: of the application; None where it is not there.
        pauses: by topology.
    """

    def __init__(
        self,
        bus: Bus,
        app: str,
        engines: Sequence[EngineReport],
        stream: StreamInfo | None,
        pauses: Mapping[str, Pauses],
    ) -> None:
        self.bus, self.app, self.engines, self.stream, self.pauses = bus, app, engines, stream, pauses

    async def stages(self, manifests: Mapping[str, Manifest]) -> list[StageRow]:
        """One row for each source of each topology, and for those that were dropped while something of them is left to do.

        What is missing spoils no row but its own.
        """
        letters = dict(zip(manifests, await asyncio.gather(*map(self._letters, manifests))))
        rows = [self._stage(t, m, name, letters[t]) for t, m in manifests.items() for name in _begins(m)]
        found = await asyncio.gather(*rows)
        return [row for row in found if row["open_calls"] or row["put_off"] or not row["dropped"]]

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
            reached = await self._reached(topology, id, missing, [p for _, p in owned.values()], "events" if hop else "source")
            unread = (
                await self._unread(stream, subject, max(reached.read, applied.starts.get(source, 0))) if stream else _Unread()
            )
        except BusError as e:  # such as a log that another version of dspex has written
            reached, unread = _Reached(0, Counter()), _Unread(why=e.message)
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
            **self._paused(topology, applied, id),
            "admits": any(not s.get("paused", False) for _, s in mine) if mine else None,
            "dropped": stream is None,
            "rate": round(sum(rates), 2) if (rates := [s["rate"] for _, s in mine if "rate" in s]) else None,
        }

    def _paused(self, topology: str, applied: Manifest, stage: str) -> _Paused:
        """Whether somebody has paused it, whatever engines know of that already."""
        names = {name for name, (id, _) in {**applied.stages, **applied.hops}.items() if id == stage}
        names |= {old for old, new in applied.renamed.items() if new in names}
        now = self.stream.now if self.stream is not None else 0.0
        end = self.pauses.get(topology, Pauses()).until(names, now)
        return {"paused": end is not None, "paused_until": datetime.fromtimestamp(end, UTC).isoformat() if end else None}

    def _rest(self, topology: str, applied: Manifest, mine: Sequence[tuple[EngineReport, StageReport]]) -> _Rest:
        """Why its engines bring nothing more: a version goes on where they stand, or is about to be applied there."""
        found, now = self.pauses.get(topology, Pauses()).rest, self.stream.now if self.stream is not None else 0.0
        if found is None or not any(s["partitions"] and "rest" in s for _, s in mine):
            return {"stopped": None, "rests_until": None}
        if now < found.until and all(lane.boundary != found.at for lane in applied.lanes.values()):
            return {"stopped": None, "rests_until": datetime.fromtimestamp(found.until, UTC).isoformat(timespec="seconds")}
        what = f"version {applied.version} goes on where version {found.version} stopped: start its engines"
        return {"stopped": what, "rests_until": None}

    async def _reached(
        self, topology: str, stage: str, missing: Sequence[int], owned: Sequence[PartitionReport], input: str
    ) -> _Reached:
        """How far a stage is, as its owners say, and for partitions that nobody owns their logs. `input`: what it reads."""
        read, calls = [p["source"] for p in owned], Counter[str]()
        since, put_off = [p.get("waits_since", 0.0) for p in owned], sum(p.get("put_off", 0) for p in owned)
        for p in owned:
            calls.update(p.get("calls", {}))
        if missing and self.stream is not None:
            found = await look_at_many(self.bus, self.app, topology, stage, missing)
            read += [tables.position(input).sequence for tables in found]
            calls.update(call.pool for tables in found for call in tables.calls.rows.values())
            put_off += sum(tables.timers.put_off for tables in found)
            since += [oldest_of(call.id for call in tables.calls.rows.values()) for tables in found]
        return _Reached(min(read, default=0), calls, min((at for at in since if at > 0), default=0.0), put_off)

    def _age(self, at: float) -> float:
        return round(max(0.0, self.stream.now - at), 1) if self.stream is not None else 0.0

    async def _unread(self, stream: str, source: str, after: int) -> _Unread:
        info = await self.bus.stream(stream)
        if info is None:
            return _Unread(why=f"the stream {stream} of source {source!r} is not there")
        lag = await self.bus.count(stream, [source], after=after)
        first = await self.bus.next(stream, source, after + 1) if lag else None
        return _Unread(lag, round(max(0.0, info.now - first.time), 1) if first is not None else None)


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


def _owned(reports: Sequence[tuple[EngineReport, StageReport]]) -> dict[int, tuple[str, PartitionReport]]:
    """Index → owner of a partition, and what it says. An engine that died says what it did until it counts as silent; the one
    that has taken the partition over has the newer claim."""
    found: dict[int, tuple[str, PartitionReport]] = {}
    for engine, stage in reports:
        for p in stage["partitions"]:
            if p["index"] not in found or found[p["index"]][1]["epoch"] < p["epoch"]:
                found[p["index"]] = (engine["engine"], p)
    return found
