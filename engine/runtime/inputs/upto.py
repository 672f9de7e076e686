"""Up to when a source brings what is stored, where it may not go further yet: nothing that was stored at that time or later.

Engines of a version that another one follows stop where that one goes on (`Rest` in engine/graph/pauses.py).

Sources of one lane stop at its boundary until all of them are there: what lies behind it on one side would otherwise meet, or
pass, what lies before it on the other. How far each is read the heartbeats of all engines say.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import orjson

from dspex.bus.errors import BusError
from dspex.bus.message import Message
from dspex.bus.port import Bucket, Bus
from dspex.bus.seldom import logger
from dspex.engine.graph.boundary import is_before
from dspex.engine.graph.graph import Graph

if TYPE_CHECKING:
    from dspex.engine.runtime.stage import StageRunner

BOUNDARY: Final = "boundary"
REST: Final = "rest"
_log = logger("dspex.engine")


class UpTo:
    """For one source: reasons not to go on, each with its time, in seconds since the epoch. The earliest counts.

    `ends`: the times, by reason.
    """

    def __init__(self) -> None:
        self.ends: dict[str, float] = {}
        self._moved = asyncio.Event()

    def set(self, why: str, end: float | None) -> None:
        """Stop there, for a reason, or no more for that one."""
        before = self.end
        if end is None:
            self.ends.pop(why, None)
        else:
            self.ends[why] = end
        if self.end != before:
            self._moved.set()

    @property
    def end(self) -> float | None:
        """Where it stops; None: nowhere."""
        return min(self.ends.values(), default=None)

    def of(self, why: str) -> float | None:
        """Where it stops for one reason."""
        return self.ends.get(why)

    async def part(self, messages: Sequence[Message]) -> int:
        """How many of these messages may go on, of some that were stored one after another: at least one, once that is so."""
        while (end := self.end) is not None:
            count = next((i for i, m in enumerate(messages) if not is_before(m.time, end)), len(messages))
            if count:
                return count
            self._moved.clear()
            await self._moved.wait()
        return len(messages)


class Meeting(NamedTuple):
    """The other sources of a lane that one meets at its boundary; None where it meets nobody."""

    boundary: float | None
    others: Collection[str]


def meeting(graph: Graph, source: str) -> Meeting:
    """Whom a source meets. A table is read first, and to its end, and so meets nobody."""
    for lane in graph.lanes.values():
        begin = {n.name for n in graph.sources if n.name in lane.sources and n.source.start == lane.since}
        if source in begin and len(begin) > 1:
            return Meeting(lane.boundary, begin - {source})
    return Meeting(None, ())


def read_to(said: Sequence[bytes], topology: str, stage: str) -> Mapping[int, int]:
    """Partition → how far it is read, as heartbeats say."""
    found: dict[int, int] = {}
    for value in said:
        try:
            stages: Sequence[Mapping[str, Any]] = orjson.loads(value)["stages"]
            for p in [p for s in stages if (s["topology"], s["stage"]) == (topology, stage) for p in s["partitions"]]:
                found[int(p["index"])] = max(int(p["source"]), found.get(int(p["index"]), 0))
        except (ValueError, TypeError, KeyError):  # what no engine has written
            continue
    return found


async def meet(bus: Bus, members: Bucket, runners: Sequence[StageRunner], every: float) -> None:
    """Let the sources of lanes go on behind the boundary as soon as the others are there, until all have.

    `members`: the bucket of heartbeats. `every`: seconds between two looks.
    """
    while waiting := [r for r in runners if r.source is not None and r.source.upto.of(BOUNDARY) is not None]:
        try:
            said = [value for value, _ in (await members.items("engine")).values()]
            for runner in waiting:
                await _look(bus, said, runner, runners)
        except BusError as e:
            _log.debug("cannot look now how far the sources of a lane are read, trying again", why=e.message)
        await asyncio.sleep(every)


async def _look(bus: Bus, said: Sequence[bytes], runner: StageRunner, runners: Sequence[StageRunner]) -> None:
    boundary, names = meeting(runner.stage.graph, runner.stage.name)
    others = [r for r in runners if r.topology == runner.topology and r.stage.name in names]
    if all([await _is_there(bus, said, other, boundary or 0.0) for other in others]) and runner.source is not None:
        runner.source.upto.set(BOUNDARY, None)


async def _is_there(bus: Bus, said: Sequence[bytes], runner: StageRunner, boundary: float) -> bool:
    """Whether all that was stored for a source before the boundary is read, and stored too."""
    read = read_to(said, runner.topology, runner.stage.id)
    if len(read) < runner.count or runner.source is None:
        return False
    following = await bus.next(runner.source_stream, runner.source.settings.subject, min(read.values()) + 1)
    return following is None or not is_before(following.time, boundary)
