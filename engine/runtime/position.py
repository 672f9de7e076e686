"""Where a stage begins to read its source, and whether what it has not read yet is still there.

A stream that was trimmed or made anew shows no gap to a reader: it starts at what is left. So the position is compared with
the stream at every start.
"""

from __future__ import annotations

from collections.abc import Sequence

import structlog

from dspex.bus.errors import SourceGap, Unreachable
from dspex.bus.message import message_id
from dspex.bus.port import Bus, StreamInfo
from dspex.engine.graph.nodes import Source
from dspex.engine.runtime.partition import Partition

_log = structlog.get_logger("dspex.engine")


async def check_source(bus: Bus, stream: str, source: Source, partitions: Sequence[Partition]) -> float:
    """When the source stream was made. Raises SourceGap where events were lost behind a position (`on_gap="stop"`)."""
    info = await _info(bus, stream)
    for p in partitions:
        p.created = info.created
        gap = await _gap(bus, info, source.subject, p)
        if gap is None:
            continue
        why = f"{stream} was {gap[2]}: partition {p.index} had read up to {gap[0]}, the stream begins at {info.first}"
        if source.on_gap == "stop":
            raise SourceGap(why, node=source.subject)
        _log.error("a gap in the source, recorded and skipped", why=why, source=source.subject)
        p.batches[-1].changes.gap = (gap[0], gap[1])
        p.add([], "source", gap[1])
    return info.created


class Watched:
    """A source stream that is looked at now and then, while a stage reads it.

    Attributes:
        foreign: not made by dspex, so that it may be trimmed at any time.
        quiet_up_to: up to this sequence, all that is the source's has been read, as of the last look.
    """

    def __init__(self, bus: Bus, stream: str, source: Source) -> None:
        self.bus, self.stream, self.source = bus, stream, source
        self.foreign = False
        self.quiet_up_to = 0

    async def look(self, created: float, read: int) -> str | None:
        """What happened to the stream since it was `created`; None for nothing. `read`: what the stage has handled."""
        info = await _info(self.bus, self.stream)
        if info.created != created or info.last < read:
            return "the source stream was made anew or truncated"
        self.foreign = not info.own
        if not self.foreign:
            return None
        last = await self.bus.last(self.stream, self.source.subject)
        if last is None or last.sequence <= read:
            self.quiet_up_to = info.last
        elif info.first > read + 1:
            return "the source stream was trimmed before it was read"
        return None


async def _gap(bus: Bus, info: StreamInfo, subject: str, p: Partition) -> tuple[int, int, str] | None:
    """(read up to, go on behind, what happened), or None where nothing is missing."""
    at, id = p.state.source_sequence, p.state.source_id
    if not p.state.source_created:  # nothing was read up to there: it is only where to begin
        return None
    if at > info.last:
        return at, max(0, info.first - 1), "made anew or truncated"
    there = await bus.get(info.name, at) if id else None
    if there is not None and message_id(there, info.created) != id:
        return at, max(0, info.first - 1), "made anew"
    if there is None and info.created != p.state.source_created:
        return at, max(0, info.first - 1), "made anew"
    if not info.own and info.first > at + 1:
        last = await bus.last(info.name, subject)
        if last is not None and last.sequence > at:  # otherwise only events of other subjects were trimmed
            return at, info.first - 1, "trimmed"
    return None


async def _info(bus: Bus, stream: str) -> StreamInfo:
    info = await bus.stream(stream)
    if info is None:
        raise Unreachable(f"stream {stream} is not there", fix="create it again, or apply the topology: dspex run")
    return info
