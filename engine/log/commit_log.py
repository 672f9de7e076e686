"""The commit log of one stage partition: who owns it, and the one way to begin.

Start, take-over and a write whose answer never came are the same case: drop what is in memory, append a claim, read the log
back up to the claim, go on from there. Reading alone would not do: a commit can land after a read that did not show it
(measured: 17 of 68 timed-out commits landed), but not after a claim, because the claim moved the sequence that it expects.

A snapshot is written in the background, outside commits, and a later entry names it with its hash. Each entry says which
entries named the last two (`base`, `older`), and a damaged snapshot is passed over for the one before.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple, cast

import msgpack
import structlog

from dspex.bus import subjects
from dspex.bus.errors import BusError, Fenced, TopologyError, Unsettled
from dspex.bus.message import Message, new_id
from dspex.bus.port import Bus, NewMessage
from dspex.engine.log.tables import Tables

_log = structlog.get_logger("dspex.engine")
LEAST = 64 << 10  # bytes of entries since the last snapshot below which none is due
VERSION = 2


class LogAddress(NamedTuple):
    """The log of one partition: stream, subject, the subject of what one entry cannot hold, and that of its snapshots."""

    stream: str
    subject: str
    pieces: str
    snapshots: str

    @classmethod
    def of(cls, app: str, topology: str, stage: str, partition: int) -> LogAddress:
        subject = subjects.log(app, topology, stage, partition)
        pieces, snapshots = subjects.pieces(app, topology, stage, partition), subjects.snapshot(app, topology, stage, partition)
        return cls(subjects.stream(app), subject, pieces, snapshots)


class Snapshot(NamedTuple):
    """A snapshot that is stored: of the tables as of entry `at`, in the messages from `first` to `last`."""

    at: int
    first: int
    last: int
    sha256: bytes
    size: int


class CommitLog:
    """The log as its owner sees it. `sequence` is the version that the next commit must follow.

    Attributes:
        claimed: sequence of the claim. epoch: counts claims. nonce: drawn by the claim, for ids of records.
        base, older: the entries that name the latest snapshot, and the one before; 0 for none.
        since: bytes of the entries behind the latest snapshot. size: of that snapshot.
    """

    def __init__(self, bus: Bus, address: LogAddress, owner: str, manifest: int) -> None:
        self.bus = bus
        self.address = address
        self.owner = owner
        self.manifest = manifest
        self.epoch = self.sequence = self.claimed = 0
        self.nonce = ""
        self.base = self.older = 0
        self.since = self.size = 0

    async def claim(self, tables: Tables, *, at: float, repair: Callable[[int, int], Awaitable[None]]) -> None:
        """Become the owner, and bring `tables`, which are new, up to date.

        `repair(claim, entry)` removes what a torn commit left between the two (torn_commits.py).

        Raises Unreachable; TopologyError where a newer manifest claimed it; BusError where the log cannot be read.
        """
        stream, subject, *_ = self.address
        while True:
            last = await self.bus.last(stream, subject)
            before = unpack(last.data) if last else {}
            self._check(before)
            self.base, self.older = bases(last.sequence, before) if last else (0, 0)
            self.epoch = before.get("epoch", 0) + 1
            self.nonce = secrets.token_hex(8)
            after = before.get("after", last.sequence) if last else 0  # the last commit: others may have claimed and died
            claim = {"kind": "claim", "id": new_id(at), "after": after, "nonce": self.nonce, **self._frame(at)}
            draft = NewMessage(subject, packed(claim), expect=last.sequence if last else 0)
            try:
                self.claimed = self.sequence = await self.bus.commit([draft])
            except (Fenced, Unsettled):
                continue  # someone wrote in between, perhaps this very claim: look again
            await repair(self.sequence, after)
            read = await read_back(self.bus, self.address, self.base, self.older, self.sequence, tables)
            self.since, self.size = read.bytes, read.size
            if read.base != self.base:  # an intact earlier snapshot must stay to fall back to
                self.base, self.older = read.base, 0
            return

    def _check(self, before: Mapping[str, Any]) -> None:
        if before.get("manifest", 0) > self.manifest:
            raise TopologyError(
                f"{self.address.subject} was claimed by an engine with a newer version of the topology "
                f"({before['manifest']}, this one has {self.manifest})",
                code="DX233",
                fix="start this engine with the topology as it is applied now",
            )

    def _frame(self, at: float) -> dict[str, object]:
        frame = {"v": VERSION, "time": at, "epoch": self.epoch, "base": self.base, "older": self.older}
        return {**frame, "owner": self.owner, "manifest": self.manifest}

    def entry(self, body: dict[str, Any], tables: Mapping[str, Any], *, covers: int, at: float) -> list[NewMessage]:
        """The entry of a commit, and before it pieces of what it cannot hold. `covers`: messages of the commit before it."""
        changed = packed(tables)
        size = self.bus.max_payload // 2
        pieces = [changed[i : i + size] for i in range(0, len(changed), size)] if len(changed) > size else []
        what = {"pieces": len(pieces)} if pieces else {"tables": tables}
        whole = {"kind": "commit", "claim": self.claimed, **self._frame(at), **body, **what, "covers": covers + len(pieces)}
        entry = NewMessage(self.address.subject, packed(whole), expect=self.sequence)
        return [*(NewMessage(self.address.pieces, piece) for piece in pieces), entry]

    @property
    def snapshot_due(self) -> bool:
        """Whether so much was written since the last snapshot that another one pays."""
        return self.since > max(LEAST, self.size)

    def landed(self, sequence: int, size: int, snapshot: Snapshot | None) -> None:
        """An entry of `size` bytes is stored at `sequence`. `snapshot`: the one that it names."""
        self.sequence = sequence
        self.since += size
        if snapshot is not None:
            self.base, self.older, self.since, self.size = sequence, self.base, 0, snapshot.size

    async def write_snapshot(self, at: int, tables: Mapping[str, Any]) -> Snapshot:
        """Store the tables as of the entry at `at`. A commit may land in between: nothing here is part of one."""
        whole = packed(tables)
        size = self.bus.max_payload // 2
        sequences: list[int] = []
        for i in range(0, max(1, len(whole)), size):
            ack = await self.bus.publish(NewMessage(self.address.snapshots, whole[i : i + size]))
            sequences.append(ack.sequence)
        return Snapshot(at, sequences[0], sequences[-1], hashlib.sha256(whole).digest(), len(whole))


def packed(plain: object) -> bytes:
    """Plain data as MessagePack."""
    return cast("bytes", msgpack.packb(plain))


def unpack(data: bytes) -> Mapping[str, Any]:
    """A log entry as plain data; sequences are tuples. Raises BusError."""
    try:
        entry = msgpack.unpackb(data, strict_map_key=False, use_list=False)
    except ValueError as e:
        raise BusError(f"a log entry is damaged: {e}", code="DX411", fix="restore the stream from a backup") from e
    if not isinstance(entry, dict) or entry.get("v") != VERSION:
        raise BusError("a log entry is of another version of dspex", code="DX411", fix="use another application name")
    return cast("Mapping[str, Any]", entry)


def bases(sequence: int, entry: Mapping[str, Any]) -> tuple[int, int]:
    """The entries that name the latest snapshot and the one before, as of an entry; 0 for none."""
    base: int = entry.get("base", 0)
    return (sequence, base) if "snapshot" in entry else (base, entry.get("older", 0))


class Read(NamedTuple):
    """What was read back: bytes of entries, and the entry whose snapshot was taken, with its size."""

    bytes: int
    base: int
    size: int


async def read_back(bus: Bus, address: LogAddress, base: int, older: int, stop: int, tables: Tables) -> Read:
    """Bring `tables`, which are new, to the entry at `stop`. Raises BusError."""
    snapshot = None
    for named in (base, older):
        if named and (snapshot := await restored(bus, address, named, tables)):
            base = named
            break
        if named:
            _log.error("a snapshot is damaged, the one before it is taken", subject=address.subject, sequence=named)
    start, size = snapshot.at + 1 if snapshot else 1, 0
    found = await bus.scan(address.stream, [address.subject], start=start, stop=stop)
    if base and snapshot is None and not _is_first(unpack(found[0].data)):
        raise BusError(f"the snapshot of {address.subject} is damaged", code="DX411", fix="restore the stream from a backup")
    for message in found:
        size += len(message.data)
        await apply(bus, address, message, tables)
    return Read(size, base if snapshot else 0, snapshot.size if snapshot else 0)


def _is_first(entry: Mapping[str, Any]) -> bool:
    """Whether an entry is the one that every log begins with."""
    return bool(entry["kind"] == "claim" and entry["epoch"] == 1)


async def apply(bus: Bus, address: LogAddress, message: Message, tables: Tables) -> Mapping[str, Any]:
    """Take over what an entry changed; the entry."""
    entry = unpack(message.data)
    if "pieces" in entry:
        first = message.sequence - entry["covers"]
        found = await bus.scan(address.stream, [address.pieces], start=first, stop=first + entry["pieces"] - 1)
        tables.apply(msgpack.unpackb(b"".join(m.data for m in found), strict_map_key=False, use_list=False), message.sequence)
    elif "tables" in entry:
        tables.apply(entry["tables"], message.sequence)
    return entry


async def named_snapshot(bus: Bus, address: LogAddress, sequence: int) -> Snapshot | None:
    """The snapshot that an entry names; None for none."""
    message = await bus.get(address.stream, sequence)
    named = unpack(message.data).get("snapshot") if message else None
    return None if named is None else Snapshot(*named)


async def restored(bus: Bus, address: LogAddress, sequence: int, tables: Tables) -> Snapshot | None:
    """Take over the snapshot that an entry names. None, and nothing is changed, where it is damaged or gone."""
    snapshot = await named_snapshot(bus, address, sequence)
    if snapshot is None:
        return None
    found = await bus.scan(address.stream, [address.snapshots], start=snapshot.first, stop=snapshot.last)
    whole = b"".join(m.data for m in found)
    if hashlib.sha256(whole).digest() != snapshot.sha256:
        return None
    tables.restore(msgpack.unpackb(whole, strict_map_key=False, use_list=False))
    return snapshot


async def look(bus: Bus, app: str, topology: str, stage: str, partition: int) -> Tables:
    """The tables of a partition as its log says now, without a claim: its owner may change them at once."""
    address, tables = LogAddress.of(app, topology, stage, partition), Tables()
    last = await bus.last(address.stream, address.subject)
    if last is not None:
        await read_back(bus, address, *bases(last.sequence, unpack(last.data)), last.sequence, tables)
    return tables
