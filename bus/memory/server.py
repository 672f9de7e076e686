"""The in-memory bus: what JetStream promises, in one process, on the loop's clock, with faults on demand.

For tests and simulations. A `MemoryServer` outlives its connections as a real server does; a connection that is closed takes
its readers, subscriptions and pulls with it, and what it held is delivered again after `ack_wait`. Every call gives other
tasks their turn first, as a trip over the wire would: an await that never yields would hide races.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from dspex.bus import subjects
from dspex.bus.errors import (
    NotStored,
    SubjectTaken,
)
from dspex.bus.memory.connection import MemoryBus
from dspex.bus.memory.faults import Faults, Luck
from dspex.bus.memory.handles import MemorySubscription
from dspex.bus.memory.store import MemoryStream
from dspex.bus.message import Message
from dspex.bus.port import Ack, BusEvents, Kept, NewMessage, StreamConfig

__all__ = ["Faults", "MemoryBus", "MemoryServer"]


class MemoryServer:
    """The server that connections share: streams, consumers, keys, objects, subscriptions.

    Args:
        seed: decides which member of a queue group gets a message, and which faults happen when.
        faults: none by default.
        epoch: seconds since 1970 at which the loop's clock was 0; the default is 2026-01-01.
        max_payload: bytes that headers and data of one message may have together.
        passing: nobody is to take it for one that keeps what is stored.
    """

    def __init__(
        self,
        *,
        seed: int = 0,
        faults: Faults | None = None,
        epoch: float = 1_767_225_600.0,
        max_payload: int = 1 << 20,
        passing: bool = False,
    ) -> None:
        self.luck = Luck(seed, faults or Faults())
        self.max_payload, self.passing = max_payload, passing
        self.streams: dict[str, MemoryStream] = {}
        self._made: dict[str, MemoryStream] = {}  # the last one of each name, also where it was removed
        self.buckets: dict[str, dict[str, tuple[bytes, int]]] = {}
        self.put_at: dict[tuple[str, str], float] = {}  # bucket and key → when its value was put
        self.last_put: dict[str, int] = {}  # bucket → the revision of what was put last
        self.once: set[str] = set()  # buckets whose keys take one value each
        self.objects: dict[str, dict[str, tuple[bytes, float]]] = {}  # bytes, and when they were put last
        self.subscriptions: list[MemorySubscription] = []
        self.inboxes: dict[str, Callable[[Message], None]] = {}  # inbox → who takes what comes there
        self.led_since = 0.0  # when its server of today became the leader; tests set it
        self._epoch = epoch
        self._numbers = 0

    def connect(self, *, events: BusEvents | None = None) -> MemoryBus:
        """A new connection."""
        return MemoryBus(self, events or BusEvents())

    @property
    def now(self) -> float:
        """Seconds since 1970, by the loop's clock."""
        return self._epoch + asyncio.get_running_loop().time()

    def number(self) -> int:
        """A number that was not given before: for inboxes and revisions."""
        self._numbers += 1
        return self._numbers

    def stream_of(self, subject: str) -> MemoryStream | None:
        return next((s for s in self.streams.values() if any(subjects.overlap(p, subject) for p in s.subjects)), None)

    def ensure_stream(self, config: StreamConfig) -> MemoryStream:
        stream = self.streams.get(config.name)
        own = stream.subjects if stream else []
        new = [s for s in config.subjects if not any(subjects.includes(p, s) for p in own)]
        kept = [p for p in own if not any(subjects.includes(s, p) for s in new)]
        for subject in new:
            other = self.stream_of(subject)
            if other not in (None, stream) or any(subjects.overlap(subject, p) for p in kept):
                whose = other.config.name if other else config.name
                raise SubjectTaken(f"{subject!r} overlaps with what stream {whose} captures")
        if stream is None:
            stream = self.streams[config.name] = MemoryStream(config, self.now)
            if config.name in self._made:
                self._made[config.name].wake()  # its readers: it is another stream now
            self._made[config.name] = stream
            stream.copied_to += [s for s in self.streams.values() if config.name in s.copies]
        if config.max_bytes is not None:
            stream.config = replace(stream.config, max_bytes=config.max_bytes)
        stream.subjects = kept + new
        for name, patterns in config.copies.items():
            stream.copy(name, patterns, self.streams.get(name))
        if config.note and stream.note == config.instead_of:
            stream.note = config.note
        return stream

    def remove(self, kind: Kept, name: str) -> bool:
        """Delete what is kept under a name; whether it was there."""
        if kind == "bucket":
            self.once.discard(name)
        return self.kept(kind).pop(name, None) is not None

    def kept(self, kind: Kept) -> dict[str, Any]:
        """What is kept, by name."""
        all_of_it: Mapping[Kept, dict[str, Any]] = {"stream": self.streams, "bucket": self.buckets, "objects": self.objects}
        return all_of_it[kind]

    def publish(self, draft: NewMessage) -> Ack:
        stream = self.stream_of(draft.subject)
        if stream is None:
            raise NotStored(f"nothing stores {draft.subject!r}, so the event would be lost")
        self._show([draft])
        return stream.publish(draft, self.now)

    def commit(self, drafts: Sequence[NewMessage]) -> int:
        if len(drafts) == 1:
            return self.publish(drafts[0]).sequence
        streams = {s.config.name if (s := self.stream_of(d.subject)) else None for d in drafts}
        name = streams.pop()
        if name is None or streams:
            raise NotStored("a commit needs one stream that stores all of its subjects")
        self._show(drafts)
        return self.streams[name].commit(drafts, self.now)

    def _show(self, drafts: Sequence[NewMessage]) -> None:
        # Before it is stored, as NATS does: a core subscriber sees what is then refused, and a repeat again.
        for draft in drafts:
            self.route(Message(draft.subject, draft.data, draft.headers or {}))

    def route(self, message: Message) -> int:
        """Give a message to all who listen, and to one of each queue group; how many got it."""
        groups: dict[str, list[MemorySubscription]] = {}
        got = [s for s in self.subscriptions if not s.queue and subjects.matches(s.pattern, message.subject)]
        for member in self.subscriptions:
            if member.queue and subjects.matches(member.pattern, message.subject):
                groups.setdefault(member.queue, []).append(member)
        got += [self.luck.random.choice(members) for members in groups.values()]
        for subscription in got:
            subscription.inbox.put_nowait(message)
        if (take := self.inboxes.get(message.subject)) is not None:
            take(message)
            return len(got) + 1
        return len(got)
