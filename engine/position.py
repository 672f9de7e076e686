"""Where a stage begins to read its source, and whether what it has not read yet is still there.

A stream that was trimmed or made anew shows no gap to a reader: it starts at what is left. So the position is compared with
the stream at every start.
"""

from __future__ import annotations

from collections.abc import Sequence

import structlog

from dspex.bus.errors import SourceGap, Unreachable
from dspex.bus.event import message_id
from dspex.bus.port import Bus, StreamInfo
from dspex.engine.graph import Source
from dspex.engine.partition import Partition

_log = structlog.get_logger("dspex.engine")


async def first_position(bus: Bus, stream: str, source: Source) -> int:
    """The sequence behind which a stage starts when it runs for the first time."""
    info = await _info(bus, stream)
    if source.start == "all":
        return 0
    if source.start == "new":
        return info.last
    if isinstance(source.start, int):
        return max(0, source.start - 1)
    return await sequence_before(bus, info, source.start)


async def sequence_before(bus: Bus, info: StreamInfo, at: float) -> int:
    """The last sequence stored before `at` (seconds since the epoch), found by halving."""
    low, high = info.first, info.last + 1
    while low < high:
        middle = (low + high) // 2
        found = middle
        message = await bus.get(info.name, found)
        while message is None and found + 1 < high:  # deleted: the next one that is there
            found += 1
            message = await bus.get(info.name, found)
        if message is not None and message.time < at:
            low = found + 1
        else:
            high = middle
    return low - 1


async def check_source(bus: Bus, stream: str, source: Source, partitions: Sequence[Partition]) -> float:
    """When the source stream was made. Raises SourceGap where events were lost behind a position (`on_gap="stop"`)."""
    info = await _info(bus, stream)
    for p in partitions:
        hole = await _hole(bus, info, p)
        if hole is None:
            continue
        why = f"{stream} was {hole[2]}: partition {p.index} had read up to {hole[0]}, the stream begins at {info.first}"
        if source.on_gap == "stop":
            raise SourceGap(why, node=source.subject)
        _log.error("a hole in the source, recorded and skipped", why=why, source=source.subject)
        p.batches[-1].delta.hole = (hole[0], hole[1])
        p.add([], "source", hole[1])
    return info.created


async def _hole(bus: Bus, info: StreamInfo, p: Partition) -> tuple[int, int, str] | None:
    """(read up to, go on behind, what happened), or None where nothing is missing."""
    at, id = p.state.source_sequence, p.state.source_id
    if at == 0:
        return None
    if at > info.last:
        return at, max(0, info.first - 1), "made anew or truncated"
    if not info.own and info.first > at + 1:
        return at, info.first - 1, "trimmed"
    if id:
        there = await bus.get(info.name, at)
        if there is not None and message_id(there, info.created) != id:
            return at, max(0, info.first - 1), "made anew"
    return None


async def _info(bus: Bus, stream: str) -> StreamInfo:
    info = await bus.stream(stream)
    if info is None:
        raise Unreachable(f"stream {stream} is not there", fix="create it again, or apply the topology: dspex run")
    return info
