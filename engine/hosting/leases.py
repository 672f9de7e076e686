"""Leases say which engine should run which partition. They only spread the work: who owns a partition is decided by its
commit log, so a mistake here costs time and never an event.

A lease is a key that its holder touches. Another engine that sees it untouched for `lease` seconds *by its own clock* takes it,
so clocks need not agree. An engine that loses a lease and does not notice goes on until its next commit is fenced.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import orjson
import structlog

from dspex.bus import subjects
from dspex.bus.clock import ServerClock
from dspex.bus.errors import BusError, Fenced
from dspex.bus.local.processes import is_dead, process
from dspex.bus.port import Bucket

_log = structlog.get_logger("dspex.engine")


@dataclass
class Slot:
    """One stage partition that someone should run."""

    topology: str
    stage: str
    index: int
    claim: Callable[[int], None]
    release: Callable[[int], None]
    revision: int = 0  # of our lease; 0: not ours
    returning: bool = False  # given up: the lease goes back at the next round

    @property
    def key(self) -> str:
        return subjects.lease_key(self.topology, self.stage, self.index)


@dataclass
class _Holder:
    """A key as it was last seen: unchanged since `at`, by our own clock."""

    revision: int
    at: float


@dataclass
class Leases:
    """Keeps this engine's leases, and takes those that nobody keeps."""

    bucket: Bucket
    engine: str
    seconds: float
    clock: ServerClock
    describe: Callable[[], dict[str, object]]
    slots: list[Slot] = field(default_factory=list)
    _seen: dict[str, _Holder] = field(default_factory=dict)

    async def run(self) -> None:
        """Keep and take leases until cancelled."""
        while True:
            try:
                await self.once()
                await self.clock.ask()
            except BusError as e:
                _log.debug("cannot keep leases now, trying again", why=e.message)  # the engine goes on: the log decides
            await asyncio.sleep(self.seconds / 3)

    async def once(self) -> None:
        """One round: write the member key, keep our leases, take free ones, hand over what exceeds our share."""
        await self.bucket.put(subjects.member_key("engine", self.engine), orjson.dumps(self.describe()))
        leases = await self.bucket.items("lease")
        members = await self.bucket.items("engine")
        alive = [said(v) for k, (v, r) in members.items() if self._lives(k, v, r)]
        for key in [k for k, (v, _) in members.items() if is_dead(said(v))]:
            await self.bucket.delete(key)
        for topology in {s.topology for s in self.slots}:
            slots = [s for s in self.slots if s.topology == topology]
            engines = sum(topology in map(str, _list(member.get("topologies"))) for member in alive)
            share = -(-len(slots) // max(1, engines))
            for slot in slots:
                await self._look(slot, leases.get(slot.key), sum(bool(s.revision) for s in slots) < share)
            for slot in [s for s in slots if s.revision and not s.returning][share:]:
                _log.info("hands over", topology=topology, stage=slot.stage, partition=slot.index)
                slot.release(slot.index)

    async def _look(self, slot: Slot, found: tuple[bytes, int] | None, may_take: bool) -> None:
        if slot.returning:
            slot.returning, slot.revision = False, 0
            await self.bucket.delete(slot.key)
        elif slot.revision:
            if found and found[1] == slot.revision:
                slot.revision = await self.bucket.put(slot.key, self._value(), revision=slot.revision)
            else:
                slot.revision = 0  # taken over while we were away; our next commit will be fenced
        else:
            free = found is None or self._abandoned(
                slot.key, *found
            )  # looked at in every round: that measures how long it is untouched
            if may_take and free:
                await self._take(slot, found[1] if found else 0)

    def _abandoned(self, key: str, value: bytes, revision: int) -> bool:
        holder = said(value)
        if holder.get("engine") == self.engine or is_dead(holder):
            return True
        seen = self._seen.get(key)
        if seen is None or seen.revision != revision:
            self._seen[key] = _Holder(revision, asyncio.get_running_loop().time())
            return False
        return asyncio.get_running_loop().time() - seen.at > self.seconds

    async def _take(self, slot: Slot, revision: int) -> None:
        try:
            slot.revision = await self.bucket.put(slot.key, self._value(), revision=revision)
        except Fenced:
            return  # another engine was quicker
        slot.claim(slot.index)

    def _lives(self, key: str, value: bytes, revision: int) -> bool:
        return key == subjects.member_key("engine", self.engine) or not self._abandoned(key, value, revision)

    def revoked(self, topology: str, stage: str, index: int, *, given_up: bool = False) -> None:
        """A partition was fenced, or given up: it is not ours any more."""
        for slot in self.slots:
            if (slot.topology, slot.stage, slot.index) == (topology, stage, index):
                slot.returning = given_up and bool(slot.revision)
                slot.revision = slot.revision if slot.returning else 0
                self._seen.pop(slot.key, None)

    async def leave(self) -> None:
        """Give back all leases, so that nobody has to wait for them to run out."""
        for slot in self.slots:
            if slot.revision:
                slot.revision = 0
                await self.bucket.delete(slot.key)
        await self.bucket.delete(subjects.member_key("engine", self.engine))

    def _value(self) -> bytes:
        return orjson.dumps({"engine": self.engine, **process()})


def said(value: bytes) -> dict[str, Any]:
    """What is under a key of an engine or a lease; {} where that is not what an engine writes."""
    try:
        found = orjson.loads(value)
    except orjson.JSONDecodeError:
        return {}
    return found if isinstance(found, dict) else {}


def _list(found: object) -> list[object]:
    return found if isinstance(found, list) else []
