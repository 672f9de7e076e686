"""What the checks look at."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, cast

import msgpack
from workload import SINKS, Given

from dspex.bus import subjects
from dspex.bus.message import Message
from dspex.bus.records import CallRecord
from dspex.engine.log.entries import unpack


@dataclass
class Facts:
    """What somebody beside the engines knows of a run.

    Attributes:
        partitions: of the topology's stage.
        published: event → when it was stored in its source, seconds since the epoch.
        away: spans of time in which no majority of the servers ran or had room.
        unread: events of which nothing had come when their source stream was lost: an engine may not have read them.
        again: event → how often the source stream was rolled back to a copy that holds it, so that it is read again.
        slow: a model answers a few calls a minute. The partitions share it, so it is enough if one of them makes progress.
    """

    partitions: int = 0
    published: Mapping[str, float] = field(default_factory=dict)
    away: Sequence[tuple[float, float]] = ()
    unread: Collection[str] = ()
    again: Counter[str] = field(default_factory=Counter)
    slow: bool = False


@dataclass
class Case:
    """Everything a check may look at.

    Attributes:
        stored: all messages of the application stream, in order.
        heard: messages of the sinks that a core subscriber saw, in order.
    """

    app: str
    events: Sequence[Given]
    stored: Sequence[Message]
    heard: Sequence[Message] = ()
    facts: Facts = field(default_factory=Facts)

    @cached_property
    def outputs(self) -> list[Message]:
        return [m for m in self.stored if m.subject in SINKS]

    @cached_property
    def dead(self) -> list[Message]:
        return self.of(subjects.dead_pattern(self.app))

    @cached_property
    def records(self) -> list[tuple[Message, CallRecord]]:
        """Records of calls."""
        return [(m, CallRecord.unpack(m.data)) for m in self.of(subjects.record(self.app, "*", "*", "*", "*"))]

    @cached_property
    def logs(self) -> dict[str, list[tuple[Message, Mapping[str, Any]]]]:
        """The entries of each commit log."""
        found: dict[str, list[tuple[Message, Mapping[str, Any]]]] = defaultdict(list)
        for m in self.of(subjects.log(self.app, "*", "*", "*")):
            found[m.subject].append((m, unpack(m.data)))
        return found

    def changes(self, m: Message, entry: Mapping[str, Any]) -> Mapping[str, Any]:
        """What an entry changed in the tables: rows by table."""
        if "pieces" not in entry:
            return cast("Mapping[str, Any]", entry.get("tables", {}))
        first = m.sequence - entry["covers"]
        pieces = [self._by_sequence[s].data for s in range(first, first + entry["pieces"])]
        return cast("Mapping[str, Any]", msgpack.unpackb(b"".join(pieces), strict_map_key=False, use_list=False))

    @cached_property
    def _by_sequence(self) -> dict[int, Message]:
        return {m.sequence: m for m in self.stored}

    def of(self, pattern: str) -> list[Message]:
        return [m for m in self.stored if subjects.matches(pattern, m.subject)]
