"""Which worker of a pool answers the calls of a key: with `affinity="require"` one, for as long as it lives.

Who gets the first call of a key writes into the bucket that a child of its own holds it, with compare and set. All others read
it there, at each call: so there is one holder, whatever processes believe of each other. Whoever finds that the holder is gone
puts a child of its own in its place, and the call is told (AffinityLost): what was in memory is gone, and who asks again gets
the new one.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from hashlib import blake2b
from typing import TYPE_CHECKING, Final

import orjson
from typing_extensions import TypedDict

from dspex.bus import subjects
from dspex.bus.codecs.checking import checked
from dspex.bus.errors import AffinityLost, ConfigError, DecodeError, Fenced, Saturated, Unsettled
from dspex.bus.port import Bucket
from dspex.workers.pool.children.child_process import Child

if TYPE_CHECKING:
    from dspex.workers.pool.pool import Pool

RENEWED: Final = 86400.0  # seconds after which it is written anew who holds a key: what is old is removed (housekeeping)


class Holder(TypedDict):
    """Who holds a key: a child of a process, by its number there. `at`: when that was written, in seconds since the epoch."""

    process: str
    child: int
    at: float


class Holding:
    """What one process of a pool does about it."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._opened: Bucket | None = None

    async def holder(self, affinity: str) -> Child | str:
        """The child that holds a key, or the other process that has it. Where nobody has held it, a child of this process
        does from now on.

        Raises AffinityLost where the holder is gone: from now on a child of this process holds it. Saturated where there is
        none; ConfigError where nothing was applied; BusError.
        """
        bucket, key = await self._bucket(), subjects.held_key(self._pool.config.name, affinity)
        tried: dict[bytes, tuple[Child, bool]] = {}  # what may have been written, its child, and whether nobody held the key
        while True:
            stored = await bucket.get(key)
            if stored is not None and stored[0] in tried:
                child, first = tried[stored[0]]
                break
            found = read_holder(stored[0]) if stored is not None else None
            revision = stored[1] if stored is not None else 0
            if found is not None:
                if found["process"] != self._pool.id:
                    if await self._pool.scaling.takes_calls(found["process"]):
                        return found["process"]
                elif holder := self._child(found["child"]):
                    await self._renewed(bucket, key, found, holder, revision)
                    return holder
            child, first = self._least(affinity), stored is None
            value = self._value(child)
            try:
                await bucket.put(key, value, revision=revision)
                break
            except Fenced:
                continue  # somebody else does
            except Unsettled:
                tried[value] = child, first
        if first:
            return child
        gone = f"the worker that had the calls of this key is gone, and worker {child.pid} has them now"
        raise AffinityLost(gone, node=self._pool.config.name)

    async def _renewed(self, bucket: Bucket, key: str, found: Holder, child: Child, revision: int) -> None:
        """Have what is stored look young, now and then. Where somebody else has written meanwhile, that did it."""
        if self._now() - found["at"] > RENEWED:
            with suppress(Fenced, Unsettled):
                await bucket.put(key, self._value(child), revision=revision)

    def _value(self, child: Child) -> bytes:
        holder: Holder = {"process": self._pool.id, "child": child.number, "at": self._now()}
        return orjson.dumps(holder)

    def _child(self, number: int) -> Child | None:
        return next((child for child in self._pool.children.slots.usable if child.number == number), None)

    def _least(self, affinity: str) -> Child:
        """The child that has least to do; of several, another one for another key."""
        usable = self._pool.children.slots.usable
        child = min(usable, key=lambda child: (child.busy, hash((affinity, child.number))), default=None)
        if child is None:
            raise Saturated(f"pool {self._pool.config.name} has no worker that takes calls", node=self._pool.config.name)
        return child

    def _now(self) -> float:
        """The server's time; 0 while it is not known."""
        clock = self._pool.work.clock
        return clock() if clock.known else 0.0

    async def _bucket(self) -> Bucket:
        if self._opened is None:
            if not await self._pool.bus.has("bucket", name := subjects.bucket(self._pool.config.app)):
                why = 'affinity="require" needs the bucket of the application, which has none yet'
                raise ConfigError(why, code="DX105", fix="dspex apply")
            self._opened = await self._pool.bus.bucket(name)
        return self._opened


def read_holder(value: bytes) -> Holder | None:
    """Who holds a key; None for what no pool wrote: it is replaced."""
    try:
        holder: Holder = checked(Holder, "who holds a key", orjson.loads(value))
    except (ValueError, DecodeError):
        return None
    return holder


def own(affinity: str, processes: Sequence[str]) -> str:
    """The process that is to have the calls of a key, where that has room: when one comes or goes, only its keys move."""
    return max(processes, key=lambda id: blake2b(f"{affinity}\0{id}".encode(errors="replace"), digest_size=8).digest())
