"""Where things of a run lie: the sources that events come from, and the partitions that messages are of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import inf
from typing import TypeAlias

from dspex.bus import subjects
from dspex.bus.message import Message
from dspex.engine.client.following.progress import PartitionId
from dspex.engine.graph.manifest import Manifest

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


def place(at: int | tuple[int, int]) -> tuple[int, float]:
    """The sequence of what was taken first or last, and up to which event of it."""
    return (at, inf) if isinstance(at, int) else at


def partition(m: Message) -> PartitionId:
    topology, stage, partition = m.subject.split(".")[-3:]
    return topology, stage, int(partition)


def edge(app: str, subject: str) -> PartitionId | None:
    """The partition that a frame is for; None for another message."""
    if not subjects.matches(subjects.edge(app, "*", "*", "*"), subject):
        return None
    topology, stage, partition = subject.split(".")[-3:]
    return topology, stage, int(partition)
