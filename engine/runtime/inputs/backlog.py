"""Lets sources wait while too much lies unread behind their hops.

A stage that is slower than the source before it, because it waits for models, or because somebody has paused it, would have the
stream filled with frames. Then nothing could be committed any more, not even what would free it. Sources alone wait: what holds
back a stage in the middle holds back what has come so far.

How far the stages are the heartbeats of all engines say. It is a soft limit: what was read before the next look goes on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import orjson

from dspex.bus import subjects
from dspex.bus.errors import BusError
from dspex.bus.port import Bucket, Bus
from dspex.bus.seldom import logger
from dspex.engine.runtime.stage import StageRunner

_log = logger("dspex.engine")
MOST = 10_000  # frames of one stage


@dataclass(frozen=True)
class Backlog:
    """Attributes:
    app: name of the application. members: the bucket of heartbeats. every: seconds between two looks.
    """

    bus: Bus
    app: str
    members: Bucket
    runners: Sequence[StageRunner]
    every: float
    _seen: dict[StageRunner, int] = field(default_factory=dict)  # events of a source, when it was looked at last

    async def run(self) -> None:
        """Look again and again, until cancelled."""
        behind = {r: found for r in self.runners if r.source is not None and (found := list(self._behind(r)))}
        while behind:
            await asyncio.sleep(self.every)
            moves = {r: stages for r, stages in behind.items() if self._moves(r)}
            try:
                if moves:
                    await self._look(moves)
            except BusError as e:
                _log.debug("cannot look now how much is unread, trying again", why=e.message)

    def _behind(self, r: StageRunner) -> Iterator[StageRunner]:
        """The stages that events of a source come to."""
        todo, found = [r], {r}
        while todo:
            exits = set(todo.pop().stage.exits)
            for other in self.runners:
                if other not in found and other.topology == r.topology and exits.intersection(other.stage.hops):
                    found.add(other)
                    todo.append(other)
                    yield other

    def _moves(self, r: StageRunner) -> bool:
        """Whether a source has brought anything since the last look, or waits: while it rests, nobody is asked."""
        before, self._seen[r] = self._seen.get(r, 0), r.counters["event"]
        return r.counters["event"] != before or "unread" in r.source.waits_for.values() if r.source is not None else False

    async def _look(self, moves: Mapping[StageRunner, Sequence[StageRunner]]) -> None:
        said = [value for value, _ in (await self.members.items("engine")).values()]
        info = await self.bus.stream(subjects.stream(self.app))
        stages = {stage for found in moves.values() for stage in found}
        reached = reached_of(said, {(stage.topology, stage.stage.id) for stage in stages})
        last = info.last if info is not None else 0
        counts = {s: await self._unread(s, reached.get((s.topology, s.stage.id), {}), last) for s in stages}
        for runner, found in moves.items():
            names = [stage.stage.name for stage in found if counts[stage] > MOST]
            if runner.source is not None and runner.source.hold_back("unread", names):
                where = {"topology": runner.topology, "source": runner.stage.name}
                _log.info("waits until what lies behind its hops is read", **where, behind=names)

    async def _unread(self, stage: StageRunner, reached: Mapping[int, int], last: int) -> int:
        """Frames of a stage that its partitions have not taken; not counted where they cannot be too many. Raises BusError."""
        if not reached or last - min(reached.values()) <= MOST:
            return 0
        stream, edges = subjects.stream(self.app), dict[int, list[str]]()
        for index, at in reached.items():  # most have come as far as the reader that they share
            edges.setdefault(at, []).append(subjects.edge(self.app, stage.topology, stage.stage.id, index))
        return sum(await asyncio.gather(*[self.bus.count(stream, filters, after=at) for at, filters in edges.items()]))


def reached_of(said: Iterable[bytes], stages: Iterable[tuple[str, str]]) -> dict[tuple[str, str], dict[int, int]]:
    """Up to which sequence each partition of these stages has taken what is its own, as heartbeats say."""
    found: dict[tuple[str, str], dict[int, int]] = {stage: {} for stage in stages}
    for value in said:
        try:
            for s in orjson.loads(value)["stages"]:
                if (at := found.get((s["topology"], s["stage"]))) is not None:
                    for p in s["partitions"]:
                        at[int(p["index"])] = max(int(p["source"]), at.get(int(p["index"]), 0))
        except (ValueError, TypeError, KeyError):  # what no engine of this version has written
            continue
    return found
