"""A connection of a process that can die, or stand still, in the middle of what it does."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Protocol, TypeVar, cast

from dspex.bus.memory.faults import Luck
from dspex.bus.port import Bus

T = TypeVar("T")
_OPENED = ("read", "next", "ack", "put")  # whatever has one of these does operations of its own: readers, queues, buckets, …


class Passage(Protocol):
    """What each operation on a bus passes."""

    async def through(self, name: str, operation: Callable[[], Awaitable[T]]) -> T:
        """Do the operation of this name, or what happens to it."""
        ...


class Door:
    """What each operation of a process passes on its way to the bus and back, and where its faults happen.

    Attributes:
        hit: set when it has died or is frozen: it does nothing any more until it is thawed.
        frozen: it stands still, and is not dead.
        armed: whether faults happen.
    """

    def __init__(self, luck: Luck) -> None:
        self._luck = luck
        self.armed = luck.faults.crash > 0 or luck.faults.freeze > 0
        self.hit, self.frozen = asyncio.Event(), False
        self._open = asyncio.Event()
        self._open.set()

    def thaw(self) -> None:
        """Let a frozen process go on, without faults."""
        self._open.set()

    async def through(self, name: str, operation: Callable[[], Awaitable[T]]) -> T:
        """Do an operation; a fault happens before it, or behind it, when it is done and nobody has heard so."""
        await self._pass()
        result = await operation()
        await self._pass()
        return result

    async def _pass(self) -> None:
        await self._open.wait()
        if self.armed:
            faults = self._luck.faults
            crash = self._luck.hits(faults.crash)
            if crash or self._luck.hits(faults.freeze):
                self.armed, self.frozen = False, not crash
                self._open.clear()
                self.hit.set()
                await self._open.wait()


def behind(door: Passage, bus: Bus) -> Bus:
    """The bus, every operation of which passes the door; those of what it opens, too."""
    return cast("Bus", BehindDoor(door, bus))


class BehindDoor:
    """A bus, or what it opened, behind a door."""

    def __init__(self, door: Passage, inner: Any) -> None:
        self._door, self._inner = door, inner

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        return partial(self._operation, name, found) if inspect.iscoroutinefunction(found) else found

    async def _operation(self, name: str, method: Callable[..., Awaitable[Any]], /, *args: Any, **given: Any) -> Any:
        result = await self._door.through(name, lambda: method(*args, **given))
        opened = any(hasattr(result, name) for name in _OPENED)
        return BehindDoor(self._door, result) if opened else result
