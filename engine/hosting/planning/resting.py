"""Brings a topology to rest at a moment, so that another version can go on exactly there.

Its sources stop in front of what is stored from that moment on, in all engines; what was stored before is processed, with all
that follows. Then the new version is put in force. Engines of the one before stay where they stopped until they are started
again, and what they would have brought the new version brings.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf, nextafter
from typing import Any, Final, NamedTuple

from dspex.bus import subjects
from dspex.bus.errors import TopologyError
from dspex.bus.port import Bucket, Bus
from dspex.engine.graph import pauses
from dspex.engine.graph.boundary import is_before
from dspex.engine.graph.lanes import CODE
from dspex.engine.graph.manifest import Manifest, applied, goes_on
from dspex.engine.hosting.delete import engines_of
from dspex.engine.hosting.planning.there import There
from dspex.engine.log.latest import look_at_many
from dspex.engine.log.rows import NO_MARK
from dspex.engine.log.tables import Tables
from dspex.engine.runtime.inputs.upto import read_to
from dspex.engine.runtime.walk.state import woken_by

LOOK: Final = 0.5  # seconds between two looks, at first
SELDOM: Final = 5.0  # the same where it takes long
PATIENCE: Final = 600.0  # seconds for what is open; then it goes on as before
MOST: Final = 500  # subjects that the server is asked about at once


class Rested(NamedTuple):
    """A topology at rest, which has nothing of what was stored since `at`.

    `marks`: operator → the watermark up to which its results are known.
    """

    at: float
    marks: Mapping[str, float]


@dataclass
class Resting:
    """Attributes:
    topology, applied: its name, and the version that is applied. operators: whose watermarks are wanted → their names there.
    say: is told what is waited for, when that changes.
    """

    bus: Bus
    app: str
    topology: str
    applied: Manifest
    operators: Mapping[str, str]
    say: Callable[[str], None]
    _said: str = field(default="", init=False)
    _rest: pauses.Rest | None = field(default=None, init=False)

    async def soon(self) -> float:
        """A moment by which all engines that run it have looked what is paused."""
        alive, now = await self.bus.bucket(subjects.bucket(self.app)), await self._now()
        running = await engines_of(alive, self.topology, now)
        return now + max((3 * float(said.get("heartbeat", 1.0)) for said in running.values()), default=0.0)

    async def come(self, at: float) -> Rested:
        """Come to rest. Raises BusError; TopologyError where that takes too long, or nobody does what is left to do (DX245),
        and where something else is applied meanwhile (DX243).
        """
        alive, bucket = await self.bus.bucket(subjects.bucket(self.app)), await self._bucket()
        await self._may_move(alive, bucket)
        self._rest = pauses.Rest(at, at + PATIENCE, self.applied.version)
        try:
            await pauses.rest(bucket, self.topology, self._rest)
            return Rested(at, await self._settled(alive, at))
        except BaseException:
            await self.end()
            raise

    async def end(self) -> None:
        """Go on as before, unless a version goes on there, or the topology comes to rest for another one by now."""
        bucket, rest = await self._bucket(), self._rest
        if rest is not None and not await goes_on(bucket, self.topology, rest.version, rest.at):
            await pauses.rest_no_more(bucket, self.topology, rest)

    async def check(self) -> None:
        """Raise TopologyError (DX243) where something else was applied meanwhile, or is about to be."""
        bucket = await self._bucket()
        version = await applied(bucket, self.topology)
        if version != self.applied.version:
            raise self.overtaken(
                f"version {version} was applied meanwhile, and it was to follow version {self.applied.version}"
            )
        found = (await pauses.read(bucket)).get(self.topology)
        if found is None or found.rest != self._rest:
            raise self.overtaken("another apply has it come to rest, or has ended that")

    def overtaken(self, why: str) -> TopologyError:
        """The refusal to write a version behind another one than that which came to rest."""
        what = f"{self.topology} came to rest for a version that cannot go on there: {why}"
        return TopologyError(what, code="DX243", node=self.topology, fix="look at the new plan: dspex plan; and apply again")

    async def _may_move(self, alive: Bucket, bucket: Bucket) -> None:
        """Refuse to let engines go on, up to another moment, that stand where the version that is applied goes on."""
        found = (await pauses.read(bucket)).get(self.topology)
        rest = found.rest if found is not None else None
        if rest is None or not await goes_on(bucket, self.topology, rest.version, rest.at):
            return
        for name, said in (await engines_of(alive, self.topology, await self._now())).items():
            mine = [s for s in said["stages"] if s["topology"] == self.topology and s["partitions"]]
            version = said.get("versions", {}).get(self.topology, self.applied.version)
            if mine and version <= rest.version:
                why = f"{name} runs version {version}, and stands where version {self.applied.version} goes on"
                fix = f"start the engines that run {self.topology} with what is applied; and apply again"
                raise TopologyError(f"{self.topology}: {why}", code=CODE, node=self.topology, fix=fix)

    async def _bucket(self) -> Bucket:
        return await self.bus.bucket(subjects.applied(self.app))

    async def _now(self) -> float:
        info = await self.bus.stream(subjects.stream(self.app))
        return info.now if info is not None else 0.0

    async def _settled(self, alive: Bucket, at: float) -> Mapping[str, float]:
        """The watermarks, once all is done that was stored before `at`."""
        before, since, pause = dict[str, int](), 0.0, LOOK  # the ends of the logs, and since when they are the same
        tables: dict[tuple[str, int], Tables] = {}  # as of then
        while True:
            await self.check()
            now = await self._now()
            running = await engines_of(alive, self.topology, now)
            unseen = [name for name, said in running.items() if not self._stops(said, at)]
            if now < at or unseen:
                why = f"{unseen[0]} has not said yet that its sources stop" if unseen else "its sources are about to stop"
            elif (ends := await self._ends()) != before:
                before, since, why, tables, pause = ends, now, "something is committed", {}, LOOK
            elif any(float(said["time"]) <= since for said in running.values()):
                why = "something may be under way"  # else all have said, since then, that they live
            else:
                tables = tables or await self._tables()
                why = await self._left(alive, tables, at)
                if not why:
                    return self._marks(tables)
                if not running:
                    raise self._never(why, f"start the engines that run {self.topology}, until it is done; and apply again")
            if why != self._said:
                self._said = why
                self.say(f"{self.topology} comes to rest: {why}")
            if now > at + PATIENCE - 60:
                raise self._never(why, "see what it waits for: dspex status; and apply again")
            await asyncio.sleep(pause)
            pause = min(pause * 1.2, SELDOM)

    def _never(self, why: str, fix: str) -> TopologyError:
        what = f"{self.topology} did not come to rest, so where its results end is not known: {why}"
        return TopologyError(what, code=CODE, node=self.topology, fix=fix)

    def _stops(self, said: Any, at: float) -> bool:
        mine = [s for s in said["stages"] if s["topology"] == self.topology and s["source"] in self.applied.streams]
        return all(s.get("rest") == at for s in mine)

    @property
    def _partitions(self) -> list[tuple[str, int]]:
        counts = self.applied.partitions
        return [(stage, index) for stage in sorted(self.applied.live) for index in range(counts[stage])]

    async def _ends(self) -> dict[str, int]:
        """The last message of each log."""
        return await self._last([subjects.log(self.app, self.topology, *one) for one in self._partitions])

    async def _last(self, wanted: Sequence[str]) -> dict[str, int]:
        found: dict[str, int] = {}
        for first in range(0, len(wanted), MOST):
            lasts = await self.bus.multi_last(subjects.stream(self.app), wanted[first : first + MOST])
            found |= {subject: message.sequence for subject, message in lasts.items()}
        return found

    async def _tables(self) -> dict[tuple[str, int], Tables]:
        found: dict[tuple[str, int], Tables] = {}
        for stage in sorted(self.applied.live):
            indexes = range(self.applied.partitions[stage])
            read = await look_at_many(self.bus, self.app, self.topology, stage, indexes, self.applied.renamed)
            found |= {(stage, index): tables for index, tables in zip(indexes, read, strict=True)}
        return found

    async def _left(self, alive: Bucket, tables: Mapping[tuple[str, int], Tables], at: float) -> str:
        """What is left to do of what was stored before `at`; "" for nothing. Raises TopologyError where more was done."""
        said = [value for value, _ in (await alive.items("engine")).values()]
        for source, stream in self.applied.streams.items():
            stage, count = self.applied.stages[source]
            positions = [tables[stage, index].position("source") for index in range(count)]
            if any(position.time and not is_before(position.time, at) for position in positions):
                raise self._never(f"{source} went on", "apply again")
            heard, start = read_to(said, self.topology, stage), self.applied.starts.get(source, 0)
            read = max(start, min(max(p.sequence, heard.get(i, 0)) for i, p in enumerate(positions)))
            following = await self.bus.next(stream, self.applied.subject(source), read + 1)
            if following is not None and is_before(following.time, at):
                return f"events of {self.applied.subject(source)} are not read"
        calls, put_off = sum(len(t.calls.rows) for t in tables.values()), sum(t.timers.put_off for t in tables.values())
        if calls or put_off:
            return f"{calls} open calls, and {put_off} events that were put off"
        edges = {subjects.edge(self.app, self.topology, *one): its for one, its in tables.items()}
        last = await self._last(list(edges))
        if any(last.get(edge, 0) > its.position("events").after for edge, its in edges.items()):
            return "events that came over a hop are not read"
        return ""

    def _marks(self, tables: Mapping[tuple[str, int], Tables]) -> dict[str, float]:
        """Operator → up to which watermark its timers have fired, of those that have any; where none has, up to the first."""
        found: dict[str, float] = {}
        for name, was in self.operators.items():
            names = [was, *(old for old, new in self.applied.renamed.items() if new == was)]
            fired = max((its.position(woken_by(n)).mark for its in tables.values() for n in names), default=NO_MARK)
            timers = [t for its in tables.values() for t in its.timers.rows.values() if t.kind == "mark" and t.node in names]
            if fired > NO_MARK:
                found[name] = fired
            elif timers:
                found[name] = nextafter(min(timer.due for timer in timers), -inf)
        return found


def follow_on(bus: Bus, app: str, there: There, say: Callable[[str], None]) -> list[Resting]:
    """The topologies that have to come to rest, because results of a new lane go on where others end."""
    found: list[Resting] = []
    for topology, lane in there.following:
        graph, applied = next(g for g in there.graphs if g.name == topology), there.last(topology)
        if applied is not None:
            operators = {o: graph.renamed_from.get(o, o) for o in lane.operators}
            found.append(Resting(bus, app, topology, applied, operators, say))
    return found
