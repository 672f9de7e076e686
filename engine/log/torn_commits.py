"""Removes what a torn commit has left behind.

A commit is all or nothing, but for two cases: a server that loses power before it has synced, and one that reaches its limit
in the middle of a batch (seen with 2.15.1: what comes before the limit is stored, and nobody gets an answer). The log entry
is the last message of its commit, and says how many before it belong to it. So once a claim has a sequence, every message of
ours below it that no entry covers is a remainder: it is removed, and the new owner emits the same again, under the same ids.
A reader that has it already sees a repeat under the same id.
"""

from __future__ import annotations

from collections.abc import Sequence

import structlog

from dspex.bus import subjects
from dspex.bus.message import Message
from dspex.bus.port import Bus
from dspex.engine.graph.graph import Graph
from dspex.engine.log.commit_log import unpack

_log = structlog.get_logger("dspex.engine")
MOST = 10_000  # messages read back from a claim: a torn commit was the stream's end when its writer failed


class TornCommits:
    """Looks at what lies before the claims of one process. Each message is looked at once, however many partitions claim."""

    def __init__(self, bus: Bus, app: str, graphs: Sequence[Graph]) -> None:
        self.bus = bus
        self.stream = subjects.stream(app)
        self._looked = 0  # up to here
        self._logs = subjects.log(app, "*", "*", "*")
        self._written = [p for g in graphs for p in (subjects.work_of(app, g.name), subjects.pieces(app, g.name, "*", "*"))]
        self._marked = [subjects.dead_pattern(app, g.name) for g in graphs]
        self._marked += [n.sink.pattern for g in graphs for n in g.sinks]

    async def before(self, claim: int, entry: int) -> None:
        """Remove what is torn between the last `entry` of a log and the `claim` that follows it. Raises BusError."""
        start = max(entry + 1, self._looked + 1, claim - MOST)
        found = await self.bus.scan(self.stream, [">"], start=start, stop=claim - 1)
        covered: set[int] = set()
        for m in found:
            if subjects.matches(self._logs, m.subject):
                covered.update(range(m.sequence - unpack(m.data).get("covers", 0), m.sequence))
        torn = [m.sequence for m in found if m.sequence not in covered and self._is_ours(m)]
        if torn:
            _log.error("removes what a torn commit left", stream=self.stream, messages=len(torn), first=torn[0], last=torn[-1])
        for sequence in torn:
            await self.bus.delete(self.stream, sequence)
        self._looked = max(self._looked, claim - 1)

    def _is_ours(self, m: Message) -> bool:
        """Whether only a commit writes such messages."""
        if any(subjects.matches(p, m.subject) for p in self._marked):
            return subjects.EVENT_ID in m.headers
        return any(subjects.matches(p, m.subject) for p in self._written)
