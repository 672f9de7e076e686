"""The commit log of one stage partition: who owns it, and the one way to begin.

Start, take-over and a write whose answer never came are the same case: drop what is in memory, append a claim, read the log
back up to the claim, go on from there. Reading alone would not do: a commit can land after a read that did not show it
(reference: 17 of 68 timed-out commits landed), but not after a claim, because the claim moved the sequence that it expects.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import msgpack

from dspex.bus import subjects
from dspex.bus.errors import Fenced, TopologyError, Unsettled
from dspex.bus.event import new_id
from dspex.bus.port import Bus, Draft
from dspex.engine.state import Delta, State

SNAPSHOT_EVERY = 256  # entries: recovery reads at most this many, or twice when a snapshot was too large


class CommitLog:
    """The log as its owner sees it. `sequence` is the version that the next commit must follow."""

    def __init__(self, bus: Bus, app: str, topology: str, stage: str, partition: int, owner: str, manifest: int) -> None:
        self.bus = bus
        self.stream = subjects.stream(app)
        self.subject = subjects.log(app, topology, stage, partition)
        self.owner = owner
        self.manifest = manifest
        self.epoch = 0
        self.sequence = 0
        self.base = 0  # the entry with the latest snapshot
        self.since = 0  # entries after it

    async def claim(self, ordered: frozenset[str], *, at: float) -> State:
        """Become the owner and know the state. Raises Unreachable, and TopologyError if a newer manifest claimed it."""
        while True:
            last = await self.bus.last(self.stream, self.subject)
            before = unpack(last.data) if last else {}
            if before.get("manifest", 0) > self.manifest:
                raise TopologyError(
                    f"{self.subject} was claimed by an engine with a newer version of the topology "
                    f"({before['manifest']}, this one has {self.manifest})",
                    code="DX233",
                    fix="start this engine with the topology as it is applied now",
                )
            base = last.sequence if last and "snapshot" in before else before.get("base", 0)
            claim = {"kind": "claim", "id": new_id(at), "base": base, "epoch": before.get("epoch", 0) + 1}
            body = msgpack.packb({**self._frame(at), **claim})
            try:
                self.sequence = await self.bus.commit([Draft(self.subject, body, expect=last.sequence if last else 0)])
            except (Fenced, Unsettled):
                continue  # someone wrote in between, perhaps this very claim: look again
            self.epoch = claim["epoch"]
            self.base = claim["base"]
            return await self._read_back(ordered)

    async def _read_back(self, ordered: frozenset[str]) -> State:
        state = State()
        entries = await self.bus.scan(self.stream, [self.subject], start=max(1, self.base), stop=self.sequence)
        for message in entries:
            state.apply(unpack(message.data), message.sequence, ordered)
        self.since = len(entries)
        return state

    def _frame(self, at: float) -> dict[str, Any]:
        return {"v": 1, "owner": self.owner, "manifest": self.manifest, "time": at}

    def entry(self, delta: Delta, state: State | None, *, covers: int, at: float) -> Entry:
        """The entry that makes `delta` durable. `covers`: messages of the commit before it.

        `state`: with delta applied and nothing more, for a snapshot; None where that is not to be had now.
        """
        body = {
            **self._frame(at),
            "kind": "commit",
            "epoch": self.epoch,
            "base": self.base,
            "covers": covers,
            **delta.as_dict(),
        }
        packed: bytes = msgpack.packb(body)
        if state is not None and (self.since >= SNAPSHOT_EVERY or self.base == 0):
            whole: bytes = msgpack.packb({**body, "snapshot": state.snapshot()})
            if len(whole) + 4096 < self.bus.max_payload:  # too large now: the log grows until calls have finished
                return Entry(Draft(self.subject, whole, expect=self.sequence), True)
        return Entry(Draft(self.subject, packed, expect=self.sequence), False)

    def landed(self, entry: Entry, sequence: int) -> None:
        """The commit with `entry` is stored, and the entry has `sequence`."""
        self.sequence = sequence
        self.since += 1
        if entry.snapshot:
            self.base, self.since = sequence, 0


class Entry(NamedTuple):
    """A log entry to be written, and whether it holds a snapshot."""

    draft: Draft
    snapshot: bool


def unpack(data: bytes) -> Mapping[str, Any]:
    """A log entry as plain data."""
    entry: Mapping[str, Any] = msgpack.unpackb(data, strict_map_key=False)
    return entry
