"""Where things of a run lie: the sources that events come from, and the partitions that messages are of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from math import inf
from typing import Final, TypeAlias

from dspex.bus import subjects
from dspex.bus.errors import RunNotFound
from dspex.bus.message import PLACED, Message, run_of
from dspex.bus.port import Bus, StreamInfo
from dspex.bus.serving.payloads import MOST_DIGITS, RECORD_WORDS
from dspex.engine.client.following.progress import PartitionId
from dspex.engine.graph.manifest import Manifest
from dspex.engine.log.positions import pages, sequence_before

_AFTER: Final = 0.01  # seconds behind the time in an id, at which its event is stored at the latest: the id has milliseconds

Reads: TypeAlias = tuple[str, tuple[str, int]]
"""Who reads a source: topology, stage and how many partitions that has."""
SourceOf: TypeAlias = tuple[str, str, list[Reads]]
"""A source: stream, subject, and who reads it."""


def sources(manifests: Mapping[str, Manifest]) -> Iterator[SourceOf]:
    """The sources of all topologies."""
    found: dict[tuple[str, str], list[tuple[str, tuple[str, int]]]] = {}
    for topology, applied in manifests.items():
        for source, stream in applied.streams.items():
            found.setdefault((stream, applied.subject(source)), []).append((topology, applied.stages[source]))
    return ((*where, readers) for where, readers in found.items())


async def source_event(bus: Bus, run: str, of: Sequence[SourceOf], began: float) -> tuple[StreamInfo, Message]:
    """The source event of a run, and its stream: at the place that its id names; else at its time. Raises RunNotFound."""
    there = {stream: info for stream, _, _ in of if (info := await bus.stream(stream)) is not None}
    for stream, info in there.items():
        at = int(run[-PLACED:], 16)
        message = await bus.get(stream, at) if info.first <= at <= info.last else None
        if message is None or run_of(stream, info.created, message) != run:
            continue
        if any(name == stream and subjects.matches(subject, message.subject) for name, subject, _ in of):
            return info, message
    for stream, subject, _ in of:
        if (info := there.get(stream)) is not None and (found := await _near(bus, run, info, subject, began)) is not None:
            return info, found
    fix = "its stream does not keep it any more; dspex runs ls shows those there are"
    raise RunNotFound(f"no source holds the event {run}", run=run, fix=fix)


async def _near(bus: Bus, run: str, info: StreamInfo, subject: str, began: float) -> Message | None:
    """The event of a subject that was stored when the run began: whoever published it has named the run."""
    async for page in pages(bus, info.name, [subject], start=await sequence_before(bus, info, began) + 1):
        for message in page:
            if run_of(info.name, info.created, message) == run:
                return message
            if message.time > began + _AFTER:
                return None
    return None


def place(at: int | tuple[int, int]) -> tuple[int, float]:
    """The sequence of what was taken first or last, and up to which event of it."""
    return (at, inf) if isinstance(at, int) else at


def partition(m: Message) -> PartitionId:
    topology, stage, partition = m.subject.split(".")[-3:]
    return topology, stage, int(partition)


def number(record: Message) -> int | None:
    """Of the call that a record is of, as its id says; None where that is none of an engine's."""
    words = record.headers.get(subjects.MESSAGE_ID, "").split(".", RECORD_WORDS)[3:5]
    return int(words[0]) if len(words) == 2 and words[0].isdecimal() and len(words[0]) < MOST_DIGITS else None


@lru_cache(1024)  # many runs look at the messages of one commit
def edge(app: str, subject: str) -> PartitionId | None:
    """The partition that a frame is for; None for another message."""
    if not subjects.matches(subjects.edge(app, "*", "*", "*"), subject):
        return None
    topology, stage, partition = subject.split(".")[-3:]
    return topology, stage, int(partition)
