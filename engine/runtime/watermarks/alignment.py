"""Lets sources wait for one of their topology that is far behind in event time.

What is ahead would fill the state of joins and windows until nothing more fits, only because it is read faster. So a source
that is more than `engine.align` ahead of another is not read on, for as long as there is something to read in that one. Only
sources wait: to hold back what comes over a hop would hold back both sides of whatever meets there.

How far each is read the heartbeats of all engines say. It is a soft limit: what was read before the next look goes on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import orjson

from dspex.bus.errors import BusError
from dspex.bus.port import Bucket, Bus
from dspex.bus.seldom import logger
from dspex.engine.log.rows import NO_MARK
from dspex.engine.runtime.stage import StageRunner

_log = logger("dspex.engine")


class SourceRead(NamedTuple):
    """How far a source is read in all of its partitions: event time, and sequence."""

    mark: float
    sequence: int


@dataclass(frozen=True)
class Alignment:
    """Attributes:
    members: the bucket of heartbeats. every: seconds between two looks. most: seconds that a source may be ahead.
    """

    bus: Bus
    members: Bucket
    runners: Sequence[StageRunner]
    every: float
    most: float

    async def run(self) -> None:
        """Look again and again, until cancelled."""
        topologies: dict[tuple[str, str], list[StageRunner]] = {}  # those of a lane are apart: history holds nothing else up
        for runner in self.runners:
            if runner.source is not None and runner.stage.graph.timed and not runner.stage.dropped:
                lanes = runner.stage.graph.lanes.items()
                lane = next((name for name, of in lanes if runner.stage.name in of.sources), "")
                topologies.setdefault((runner.topology, lane), []).append(runner)
        several = [runners for runners in topologies.values() if len(runners) > 1]
        while several:
            await asyncio.sleep(self.every)
            try:
                said = [value for value, _ in (await self.members.items("engine")).values()]
                for runners in several:
                    await self._look(runners, said)
            except BusError as e:
                _log.debug("cannot look now how far sources are read, trying again", why=e.message)

    async def _look(self, runners: Sequence[StageRunner], said: Sequence[bytes]) -> None:
        far = {r.stage.id: found for r in runners if (found := read_of(said, r.topology, r.stage.id)) is not None}
        for runner in runners:
            assert runner.source is not None
            ahead = runner.source.highest - self.most
            behind = [o for o in runners if o is not runner and o.stage.id in far and far[o.stage.id].mark < ahead]
            names = [o.stage.name for o in behind if await self._has_more(o, far[o.stage.id])]
            if runner.source.hold_back("behind", names):
                where = {"topology": runner.topology, "source": runner.stage.name}
                _log.info("waits for a source that is far behind", **where, for_=names)

    async def _has_more(self, runner: StageRunner, far: SourceRead) -> bool:
        """Whether there is something to read in a source that is behind: else it is not the one to wait for."""
        assert runner.source is not None
        last = await self.bus.last(runner.source_stream, runner.source.settings.subject)
        return last is not None and last.sequence > far.sequence


def read_of(said: Iterable[bytes], topology: str, stage: str) -> SourceRead | None:
    """How far the slowest partition of a source is read, as heartbeats say.

    None where none has read anything, or where its stage is stopped or paused.
    """
    found: dict[int, SourceRead] = {}
    for value in said:
        try:
            stages: Sequence[Mapping[str, Any]] = orjson.loads(value)["stages"]
            for s in stages:
                if (s["topology"], s["stage"]) != (topology, stage):
                    continue
                if s["stopped"] or s["paused"]:
                    return None
                if s["mark"] is None:
                    continue
                for p in s["partitions"]:
                    one, before = SourceRead(float(s["mark"]), int(p["source"])), found.get(int(p["index"]))
                    if before is None or one.sequence > before.sequence:  # else of an engine that had it before
                        found[int(p["index"])] = one
        except (ValueError, TypeError, KeyError):  # what no engine of this version has written
            continue
    if not found:
        return None
    mark, sequence = min(p.mark for p in found.values()), min(p.sequence for p in found.values())
    return SourceRead(mark, sequence) if mark > NO_MARK else None
