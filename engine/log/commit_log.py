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
from collections.abc import Mapping
from typing import Any

from dspex.bus import telemetry
from dspex.bus.errors import TopologyError
from dspex.bus.port import Bus, NewMessage
from dspex.bus.seldom import logger
from dspex.engine.log.entries import VERSION, ClaimFacts, LogAddress, Snapshot, bases, damaged, packed, sum_of_pieces, summed
from dspex.engine.log.latest import Latest, Newest
from dspex.engine.log.reading import read_back
from dspex.engine.log.rows import tell_what_is_kept
from dspex.engine.log.tables import Tables

_log = logger("dspex.engine")
LEAST = 64 << 10  # bytes of entries since the last snapshot below which none is due


class CommitLog:
    """The log as its owner sees it. `sequence` is the version that the next commit must follow.

    Attributes:
        claimed: sequence of the claim. expected: of the last message before it. followed: of the last entry before it.
        after: of the last commit before it.
        epoch: counts claims. nonce: drawn by the claim, for ids of records.
        passed: messages on the log's subject that are no entries.
        base, older: the entries that name the latest snapshot, and the one before; 0 for none.
        since: bytes of the entries behind the latest snapshot. size: of that snapshot.
        asks: of what was read back; see `Read`.
    """

    def __init__(
        self,
        bus: Bus,
        address: LogAddress,
        owner: str,
        manifest: int,
        build: Mapping[str, str] | None = None,
        newest: Newest | None = None,
    ) -> None:
        self.bus = bus
        self.address = address
        self.owner, self.manifest, self.build = owner, manifest, build or {}
        self.newest = newest
        self.passed = 0
        self.epoch = self.sequence = self.claimed = 0
        self.expected = self.followed = self.after = 0
        self.nonce = ""
        self.base = self.older = 0
        self.since = self.size = 0
        self.asks: Mapping[int, NewMessage] = {}

    def draft(self, end: Latest, at: float) -> NewMessage:
        """A claim of the log that ends so. Raises TopologyError where a newer manifest claimed it."""
        self._check(end.facts)
        self.base, self.older = bases(end.at, end.entry) if end.at else (0, 0)
        self.epoch = end.facts.epoch + 1
        self.nonce = secrets.token_hex(8)
        self.expected, self.followed = end.last, end.at
        # others may have claimed and died
        self.after = end.entry["after"] if end.entry.get("kind") == "claim" else end.at
        claim = {"kind": "claim", "after": self.after, "nonce": self.nonce, **self._facts(), **self._frame(at)}
        return NewMessage(self.address.subject, summed(claim), expect=end.last)

    def landed_claim(self, sequence: int) -> None:
        """The claim that was drafted last is stored at `sequence`."""
        self.claimed = self.sequence = sequence

    def holds(self, end: Latest) -> bool:
        """Whether the log that ends so ends with its claim: it need not be made again."""
        return 0 < self.claimed == end.last == end.at and end.entry.get("nonce") == self.nonce

    async def recover(self, tables: Tables) -> None:
        """Bring `tables`, which are new, to the claim. What a torn commit left before it must have been removed.

        Raises Unreachable; BusError where the log cannot be read.
        """
        if not self.expected:
            return  # nothing was there before the claim
        read = await read_back(self.bus, self.address, self.base, self.older, self.claimed, tables)
        if read.commit != self.after:  # what the claim goes on from was there a moment ago
            raise damaged(f"{self.address.subject}")
        self.since, self.size, self.passed, self.asks = read.bytes, read.size, read.passed, read.asks
        if read.base != self.base:  # an intact earlier snapshot must stay to fall back to
            self.base, self.older = read.base, 0

    def is_rolled_back(self, landed: int, where: Mapping[str, Any]) -> bool:
        """Whether the log ends before an entry that this engine knows to be stored: the server has an older copy of the stream.

        Nobody else can notice, so it says so. What was committed since is done again, under the same ids.
        `where`: for telemetry.
        """
        if self.followed >= landed:
            return False
        telemetry.emit("rolled_back", **where, sequence=self.followed, landed=landed)
        what = "the application's stream was rolled back to an older copy: what was committed since is done again"
        _log.error(what, **where, last=self.followed, landed=landed)
        return True

    def _check(self, before: ClaimFacts) -> None:
        if before.manifest > self.manifest:
            raise TopologyError(
                f"{self.address.subject} was claimed by an engine with a newer version of the topology "
                f"({before.manifest}, this one has {self.manifest})",
                code="DX233",
                fix="start this engine with the topology as it is applied now",
            )

    def _facts(self) -> dict[str, object]:
        return ClaimFacts(self.epoch, self.owner, self.manifest, dict(self.build))._asdict()

    def _frame(self, at: float) -> dict[str, object]:
        return {"v": VERSION, "time": at, "base": self.base, "older": self.older}

    def entry(
        self, body: Mapping[str, Any], tables: Mapping[str, Any], *, covers: int, at: float, snapshot: Snapshot | None = None
    ) -> list[NewMessage]:
        """The entry of a commit, and before it pieces of what it cannot hold, or may not: pieces can be sealed.

        `covers`: messages of the commit before it. `snapshot`: the one that it names.
        """
        changed, size = packed(tables), self.piece
        apart = len(changed) > size or (self.bus.sealing is not None and tell_what_is_kept(tables))
        pieces = [changed[i : i + size] for i in range(0, len(changed), size)] if apart else []
        what: dict[str, object] = {"pieces": len(pieces)} if pieces else {"tables": tables}
        if pieces and self.bus.sealing is None:  # sealed ones open only as they were, and no sum must tell of their text
            what["whole"] = sum_of_pieces(changed)
        if snapshot is not None:  # the claim may be removed before this entry is: what it says is said again
            what = {**what, "snapshot": snapshot, **self._facts()}
        whole = {"kind": "commit", "claim": self.claimed, "after": self.sequence, **self._frame(at), **body, **what}
        whole["covers"] = covers + len(pieces)
        entry = NewMessage(self.address.subject, summed(whole), expect=self.sequence)
        return [*(NewMessage(self.address.pieces, piece) for piece in pieces), entry]

    @property
    def piece(self) -> int:
        """Bytes of one piece, at most."""
        return self.bus.max_payload // 2

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
        whole, size = packed(tables), self.piece
        sequences: list[int] = []
        for i in range(0, max(1, len(whole)), size):
            message = NewMessage(self.address.snapshots, whole[i : i + size])
            if self.bus.sealing is not None and tell_what_is_kept(tables):
                message = await self.bus.sealing.sealed(message)
            ack = await self.bus.publish(message)
            sequences.append(ack.sequence)
        return Snapshot(at, sequences[0], sequences[-1], hashlib.sha256(whole).digest(), len(whole))
