"""What an in-memory server stores: streams, and the durable consumers on them, with the semantics of JetStream.

Nothing here awaits. All time comes from the running loop, so that on a virtual loop every run is the same.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from dspex.bus.errors import BusError, Fenced, NotStored, StreamFull
from dspex.bus.memory.faults import Luck
from dspex.bus.memory.matched import Filters, is_wild, taken
from dspex.bus.message import Message
from dspex.bus.port import Ack, NewMessage, StreamConfig, StreamInfo
from dspex.bus.subjects import MESSAGE_ID, matches


def size(draft: NewMessage) -> int:
    """Bytes of headers and data as NATS sends them."""
    lines = [len(f"{name}: {value}\r\n".encode()) for name, value in (draft.headers or {}).items()]
    return len(draft.data) + (len("NATS/1.0\r\n\r\n") + sum(lines) if lines else 0)


class MemoryStream:
    """One stream: messages by sequence, and who waits for more."""

    def __init__(self, config: StreamConfig, created: float) -> None:
        self.config = config
        self.subjects, self.note, self.created = list(config.subjects), config.note, created
        self.copies: dict[str, list[str]] = {}  # other streams, and the subjects that are copied from them
        self.copied_to: list[MemoryStream] = []
        self.first, self.last, self.bytes = 0, 0, 0
        self.messages: dict[int, Message] = {}
        self.consumers: dict[str, MemoryConsumer] = {}
        self._sizes: dict[int, int] = {}
        self._filters = Filters()
        self._of_subject: dict[str, list[int]] = {}  # sequences in order
        self._ids: dict[str, tuple[int, float]] = {}  # message id → sequence, stored at
        self._waiting: list[asyncio.Future[None]] = []

    def begin_at(self, sequence: int, created: float) -> None:
        """Have its first message get this sequence, as in another stream, which was made then: ids are made of it."""
        self.first, self.last, self.created = sequence, sequence - 1, created

    def info(self, now: float) -> StreamInfo:
        return StreamInfo(
            name=self.config.name,
            subjects=tuple(self.subjects),
            created=self.created,
            first=self.first,
            last=self.last,
            messages=len(self.messages),
            bytes=self.bytes,
            replicas=self.config.replicas,
            now=now,
            max_bytes=-1 if self.config.max_bytes is None else self.config.max_bytes,
            max_messages=self.config.max_messages,
            max_age=self.config.max_age,
            note=self.note,
            copies={name: list(patterns) for name, patterns in self.copies.items()},
        )

    def copy(self, name: str, patterns: Sequence[str], other: MemoryStream | None) -> None:
        """Have a copy of all that is on these subjects of another stream, and of what will be."""
        mine = self.copies.setdefault(name, [])
        lacking = [pattern for pattern in patterns if pattern not in mine]
        mine += lacking
        if other is not None:
            other.copied_to += [self] if self not in other.copied_to else []
            for message in [m for m in other.messages.values() if any(matches(p, m.subject) for p in lacking)]:
                self._copied(message)

    def _copied(self, message: Message) -> None:
        self._store(NewMessage(message.subject, message.data, message.headers), message.time)
        self.wake()

    # -- write
    def publish(self, draft: NewMessage, now: float) -> Ack:
        """Store one message. The expectation is checked before the id, as JetStream does."""
        self._check_expected([draft])
        if (known := self._known_ids(now).get(draft.headers.get(MESSAGE_ID, "") if draft.headers else "")) is not None:
            return Ack(self.config.name, known[0], duplicate=True)
        self._check_room([draft])
        self._store(draft, now)
        self.wake()
        return Ack(self.config.name, self.last)

    def commit(self, drafts: Sequence[NewMessage], now: float) -> int:
        """Store all or none; the sequence of the last."""
        subjects: set[str] = set()
        for draft in drafts:
            if draft.expect is not None and draft.subject in subjects:
                raise BusError(f"{draft.subject}: what expects must be the first draft of its subject in a commit")
            subjects.add(draft.subject)
        ids = [draft.headers[MESSAGE_ID] for draft in drafts if draft.headers and MESSAGE_ID in draft.headers]
        if len(set(ids)) < len(ids) or not self._known_ids(now).keys().isdisjoint(ids):
            raise BusError("a message id of this commit is stored already, so all of it is refused")
        self._check_expected(drafts)
        self._check_room(drafts)
        for draft in drafts:
            self._store(draft, now, in_batch=True)
        self.wake()
        return self.last

    def _known_ids(self, now: float) -> dict[str, tuple[int, float]]:
        oldest = now - self.config.duplicate_window
        while self._ids and (id := next(iter(self._ids))) and self._ids[id][1] < oldest:
            del self._ids[id]
        return self._ids

    def _check_expected(self, drafts: Sequence[NewMessage]) -> None:
        for draft in drafts:
            subject = draft.of or draft.subject
            if draft.expect is not None and draft.expect != (last := self.last_of(subject)):
                raise Fenced(f"the last of {subject} is {last}, not {draft.expect}")

    def _check_room(self, drafts: Sequence[NewMessage]) -> None:
        most, room = self.config.max_messages, -1 if self.config.max_bytes is None else self.config.max_bytes
        if 0 <= most < len(self.messages) + len(drafts):
            raise StreamFull(f"stream {self.config.name} holds {most} messages at most")
        if 0 <= room < self.bytes + sum(len(d.subject) + size(d) for d in drafts):
            raise StreamFull(f"stream {self.config.name} holds {room} bytes at most")
        if self.config.once and any(self.last_of(d.subject) for d in drafts):
            raise StreamFull(f"stream {self.config.name} holds one message of each subject")

    def _store(self, draft: NewMessage, now: float, in_batch: bool = False) -> None:
        self.last += 1
        headers = dict(draft.headers or {})
        self.messages[self.last] = Message(draft.subject, draft.data, headers, self.last, now, in_batch=in_batch)
        for other in self.copied_to:
            if any(matches(pattern, draft.subject) for pattern in other.copies[self.config.name]):
                other._copied(self.messages[self.last])
        self._of_subject.setdefault(draft.subject, []).append(self.last)
        self._filters.stored(draft.subject, self.last)
        self._sizes[self.last] = len(draft.subject) + size(draft)
        self.bytes += self._sizes[self.last]
        self.first = self.first or 1
        if self.config.max_age:
            asyncio.get_running_loop().call_later(self.config.max_age, self.remove, self.last)
        if id := headers.get(MESSAGE_ID):
            self._ids[id] = (self.last, now)

    # -- read
    def last_of(self, subject: str) -> int:
        """The last sequence of a subject (or pattern); 0 where it has none."""
        if is_wild(subject):
            return max((mine[-1] for name in taken(subject, self._of_subject) if (mine := self._of_subject[name])), default=0)
        return (self._of_subject.get(subject) or [0])[-1]

    def find(self, filters: Sequence[str], start: int, stop: int) -> int:
        """The first sequence from `start` to `stop` that matches a filter; `stop` + 1 where there is none."""
        if len(filters) == 1 and filters[0] in self._of_subject:
            mine = self._of_subject[filters[0]]
            at = bisect_left(mine, start)
            return min(mine[at], stop + 1) if at < len(mine) else stop + 1
        return self._filters.matched(filters, self._of_subject).first(self.messages, start, stop)

    def matching(self, filters: Sequence[str], start: int, stop: int) -> Iterator[Message]:
        """The messages that match a filter, from `start` to `stop`."""
        stop = min(stop, self.last)
        while (start := self.find(filters, start, stop)) <= stop:
            yield self.messages[start]
            start += 1

    def count(self, filters: Sequence[str], after: int) -> int:
        """How many messages behind `after` match a filter."""
        return sum(1 for _ in self.matching(filters, after + 1, self.last))

    def more(self) -> asyncio.Future[None]:
        """Is done when something is stored."""
        self._waiting.append(future := asyncio.get_running_loop().create_future())
        return future

    def wake(self) -> None:
        """Let go whoever waits for more."""
        for future in self._waiting:
            if not future.done():
                future.set_result(None)
        self._waiting.clear()
        for consumer in self.consumers.values():
            asyncio.get_running_loop().call_soon(consumer.pump)

    # -- remove
    def forget(self, name: str) -> None:
        """Delete a consumer, as somebody with the right to can: who waits for work of it hears so."""
        for pull in self.consumers.pop(name).pulls:
            pull.future.set_exception(NotStored(f"the consumer {name} of the work is gone"))

    def remove(self, sequence: int) -> None:
        message = self.messages.pop(sequence, None)
        if message is None:
            return
        self.bytes -= self._sizes.pop(sequence)
        mine = self._of_subject[message.subject]
        del mine[bisect_left(mine, sequence)]
        while self.first <= self.last and self.first not in self.messages:
            self.first += 1

    def purge(self, subject: str, below: int) -> None:
        names = taken(subject, self._of_subject) if below > self.first else []  # most purges find nothing
        for sequence in [s for name in names for s in self._of_subject[name] if s < below]:
            self.remove(sequence)


@dataclass(eq=False)
class Pull:
    """One `next()` that waits. `free`: whether its process has room for one more."""

    future: asyncio.Future[tuple[Message, int]]
    free: Callable[[], bool]


class MemoryConsumer:
    """A durable consumer: explicit ack, delivered again for ever, shared by all who pull."""

    LOOK_AGAIN = 0.05  # seconds until a process without room is asked again

    def __init__(self, stream: MemoryStream, pattern: str, ack_wait: float, luck: Luck, after: int = 0) -> None:
        self.ack_wait, self.after = ack_wait, after
        self.pulls: list[Pull] = []
        self._stream, self._pattern, self._luck = stream, pattern, luck
        self._next = after + 1
        self._delivered: Counter[int] = Counter()
        self._timers: dict[int, asyncio.TimerHandle] = {}  # redelivery of work that is held, or was returned with a delay
        self._again: deque[int] = deque()
        self._looking: asyncio.TimerHandle | None = None

    def pump(self) -> None:
        """Hand out what there is to those who wait and have room, the longest waiting first."""
        while self.pulls and (sequence := self.ready()):
            pull = next((p for p in self.pulls if p.free()), None)
            if pull is None:
                if self._looking is None:  # room can be made without a word to us, so the only way is to ask again
                    self._looking = asyncio.get_running_loop().call_later(self.LOOK_AGAIN, self._look)
                return
            self.pulls.remove(pull)
            self._hand_out(sequence, pull)

    def _look(self) -> None:
        self._looking = None
        self.pump()

    def ready(self) -> int:
        """The sequence that is delivered next; 0 for none."""
        while self._again and self._again[0] not in self._stream.messages:
            del self._delivered[self._again.popleft()]
        if self._again:
            return self._again[0]
        self._next = self._stream.find([self._pattern], self._next, self._stream.last)
        return self._next if self._next <= self._stream.last else 0

    @property
    def waiting(self) -> int:
        return self._stream.count([self._pattern], self._next - 1)

    def _hand_out(self, sequence: int, pull: Pull) -> None:
        if self._again:
            self._again.popleft()
        else:
            self._next = sequence + 1
        self._delivered[sequence] += 1
        self._put_off(sequence, self.ack_wait)
        if self._luck.hits(self._luck.faults.duplicate):
            delay = self._luck.random.uniform(0, self.ack_wait)
            asyncio.get_running_loop().call_later(delay, self._deliver_again, sequence)
        pull.future.set_result((self._stream.messages[sequence], self._delivered[sequence]))

    def _put_off(self, sequence: int, seconds: float) -> None:
        """Deliver it (again) after so many seconds, unless it is settled before."""
        if timer := self._timers.get(sequence):
            timer.cancel()
        self._timers[sequence] = asyncio.get_running_loop().call_later(seconds, self._deliver_again, sequence)

    def _deliver_again(self, sequence: int) -> None:
        if timer := self._timers.pop(sequence, None):
            timer.cancel()
        if sequence not in self._again:
            self._again.append(sequence)
        self.pump()

    def ack(self, sequence: int) -> None:
        """Settle it, whichever of its deliveries this answers."""
        if timer := self._timers.pop(sequence, None):
            timer.cancel()
        if sequence in self._again:
            self._again.remove(sequence)
        del self._delivered[sequence]
        self.pump()

    def nak(self, sequence: int, delay: float) -> None:
        if sequence in self._timers:
            self._put_off(sequence, delay)

    def in_progress(self, sequence: int) -> None:
        if sequence in self._timers:
            self._put_off(sequence, self.ack_wait)
