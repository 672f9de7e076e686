"""The commit log of one stage partition: who owns it, and the one way to begin.

Start, take-over and a write whose answer never came are the same case: drop what is in memory, append a claim, read the log
back up to the claim, go on from there. Reading alone would not do: a commit can land after a read that did not show it
(measured: 17 of 68 timed-out commits landed), but not after a claim, because the claim moved the sequence that it expects.

A snapshot is in the entry that it belongs to, or in messages of the same commit where one cannot hold it. Each entry names
the last two (`base`, `older`), and a damaged one is passed over for the one before.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple, cast

import msgpack
import structlog

from dspex.bus import subjects
from dspex.bus.errors import BusError, Fenced, TopologyError, Unsettled
from dspex.bus.message import new_id
from dspex.bus.port import Bus, NewMessage
from dspex.engine.log.state import Changes, State

_log = structlog.get_logger("dspex.engine")
SNAPSHOT_EVERY = 256  # entries, and more with many open calls: recovery reads at most this many
INLINE = 64 << 10  # bytes of the largest snapshot that is stored in the entry itself


class LogAddress(NamedTuple):
    """The log of one partition: stream, subject, and the subject of its snapshots' pieces."""

    stream: str
    subject: str
    pieces: str

    @classmethod
    def of(cls, app: str, topology: str, stage: str, partition: int) -> LogAddress:
        subject = subjects.log(app, topology, stage, partition)
        return cls(subjects.stream(app), subject, subjects.snapshot(app, topology, stage, partition))


class Entry(NamedTuple):
    """A log entry to be written, with the pieces of its snapshot, which go first in the commit."""

    draft: NewMessage
    pieces: list[NewMessage]
    snapshot: bool


class CommitLog:
    """The log as its owner sees it. `sequence` is the version that the next commit must follow."""

    def __init__(self, bus: Bus, app: str, topology: str, stage: str, partition: int, owner: str, manifest: int) -> None:
        self.bus = bus
        self.place = LogAddress.of(app, topology, stage, partition)
        self.owner = owner
        self.manifest = manifest
        self.epoch = 0
        self.sequence = 0
        self.base = 0  # the entry with the latest snapshot
        self.older = 0  # the entry with the snapshot before that
        self.since = 0  # entries after the latest

    async def claim(self, state: State, *, at: float, repair: Callable[[int, int], Awaitable[None]]) -> State:
        """Become the owner, and bring `state`, which is new, up to date.

        `repair(claim, entry)` removes what a torn commit left between the two (torn_commits.py).

        Raises Unreachable; TopologyError where a newer manifest claimed it; BusError where the log cannot be read.
        """
        stream, subject, _ = self.place
        while True:
            last = await self.bus.last(stream, subject)
            before = unpack(last.data) if last else {}
            if before.get("manifest", 0) > self.manifest:
                raise TopologyError(
                    f"{subject} was claimed by an engine with a newer version of the topology "
                    f"({before['manifest']}, this one has {self.manifest})",
                    code="DX233",
                    fix="start this engine with the topology as it is applied now",
                )
            self.base, self.older = bases(last.sequence, before) if last else (0, 0)
            self.epoch = before.get("epoch", 0) + 1
            after = before.get("after", last.sequence) if last else 0  # the last commit: others may have claimed and died
            claim = {"kind": "claim", "id": new_id(at), "after": after, **self._frame(at)}
            draft = NewMessage(subject, _packed(claim), expect=last.sequence if last else 0)
            try:
                self.sequence = await self.bus.commit([draft])
            except (Fenced, Unsettled):
                continue  # someone wrote in between, perhaps this very claim: look again
            await repair(self.sequence, after)
            self.since, good = await read_back(self.bus, self.place, self.base, self.older, self.sequence, state)
            if good != self.base:  # an intact earlier snapshot must stay to fall back to
                self.base, self.older = good, 0
            return state

    def _frame(self, at: float) -> dict[str, object]:
        return {
            "v": 1,
            "owner": self.owner,
            "manifest": self.manifest,
            "time": at,
            "epoch": self.epoch,
            "base": self.base,
            "older": self.older,
        }

    def entry(self, changes: Changes, state: State | None, *, covers: int, at: float, room: int = 0) -> Entry:
        """The entry that makes `changes` durable. `covers`: messages of the commit before it.

        `state`: with changes applied and nothing more, for a snapshot; None where there is no such state now.
        `room`: messages that a snapshot may add to the commit.
        """
        body: dict[str, Any] = {**self._frame(at), "kind": "commit", "covers": covers, **changes.as_dict()}
        if state is None or not self._is_time(state):
            return Entry(NewMessage(self.place.subject, _packed(body), expect=self.sequence), [], False)
        whole = _packed(state.snapshot())
        pieces = [] if len(whole) <= INLINE else self._pieces(whole)
        if len(pieces) > room:
            return self.entry(changes, None, covers=covers, at=at)
        body["covers"] += len(pieces)
        digest = hashlib.sha256(whole).digest()
        body["snapshot"] = {"sha256": digest, "pieces": len(pieces), "data": None if pieces else whole}
        return Entry(NewMessage(self.place.subject, _packed(body), expect=self.sequence), pieces, True)

    def _is_time(self, state: State) -> bool:
        return self.base == 0 or self.since >= SNAPSHOT_EVERY + len(state.calls) // 16

    def _pieces(self, whole: bytes) -> list[NewMessage]:
        size = self.bus.max_payload // 2
        return [NewMessage(self.place.pieces, whole[i : i + size]) for i in range(0, len(whole), size)]

    def landed(self, entry: Entry, sequence: int) -> None:
        """The commit with `entry` is stored, and the entry has `sequence`."""
        self.sequence = sequence
        self.since += 1
        if entry.snapshot:
            self.base, self.older, self.since = sequence, self.base, 0


def _packed(entry: Mapping[str, object]) -> bytes:
    return cast("bytes", msgpack.packb(entry))


def unpack(data: bytes) -> Mapping[str, Any]:
    """A log entry as plain data. Raises BusError."""
    try:
        entry: Mapping[str, Any] = msgpack.unpackb(data, strict_map_key=False)
    except ValueError as e:
        raise BusError(f"a log entry is damaged: {e}", code="DX411", fix="restore the stream from a backup") from e
    return entry


def bases(sequence: int, entry: Mapping[str, Any]) -> tuple[int, int]:
    """The entries with the latest snapshot and the one before, as of an entry; 0 for none."""
    base: int = entry.get("base", 0)
    return (sequence, base) if "snapshot" in entry else (base, entry.get("older", 0))


async def read_back(bus: Bus, place: LogAddress, base: int, older: int, stop: int, state: State) -> tuple[int, int]:
    """Bring `state`, which is new, to the entry at `stop`. Raises BusError.

    How many entries were read, and the one whose snapshot was taken.
    """
    start = base
    if base and not await _restore(bus, place, base, state):
        _log.error("a snapshot is damaged, the one before it is taken", subject=place.subject, sequence=base)
        start = older
        if older and not await _restore(bus, place, older, state):
            raise BusError(
                f"both snapshots of {place.subject} are damaged ({base} and {older})",
                code="DX411",
                fix="restore the stream from a backup",
            )
    entries = await bus.scan(place.stream, [place.subject], start=max(1, start), stop=stop)
    for message in entries:
        state.apply(unpack(message.data), message.sequence)
    return len(entries), start


async def _restore(bus: Bus, place: LogAddress, sequence: int, state: State) -> bool:
    """Take over the snapshot of an entry. False, and nothing is changed, where it is damaged or gone."""
    message = await bus.get(place.stream, sequence)
    entry = unpack(message.data) if message else {}
    snapshot = entry.get("snapshot")
    if snapshot is None:
        return False
    whole = snapshot["data"]
    if whole is None:
        first = sequence - entry["covers"]
        pieces = await bus.scan(place.stream, [place.pieces], start=first, stop=first + snapshot["pieces"] - 1)
        whole = b"".join(m.data for m in pieces)
    if hashlib.sha256(whole).digest() != snapshot["sha256"]:
        return False
    state.restore(msgpack.unpackb(whole, strict_map_key=False))
    return True


async def restored(bus: Bus, place: LogAddress, sequence: int) -> State | None:
    """The state right after the entry at `sequence`, which holds a snapshot; None where that is damaged or gone."""
    state = State()
    if not await _restore(bus, place, sequence, state):
        return None
    message = await bus.get(place.stream, sequence)
    if message is None:
        return None
    state.apply(unpack(message.data), sequence)
    return state


async def look(bus: Bus, app: str, topology: str, stage: str, partition: int) -> State:
    """The state of a partition as its log says now, without a claim: its owner may change it at once."""
    place, state = LogAddress.of(app, topology, stage, partition), State()
    last = await bus.last(place.stream, place.subject)
    if last is not None:
        await read_back(bus, place, *bases(last.sequence, unpack(last.data)), last.sequence, state)
    return state
