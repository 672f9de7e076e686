"""The thread in which a testing driver works, from the begin of its `with` block to the end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from dspex.bus.errors import BusError, ConfigError
from dspex.engine.testing.engines import AGAIN

T = TypeVar("T")


class OwnThread:
    """Works between `begin` and `end`, once. Every method raises ConfigError (DX105) where it is called at another time."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="dspex-driver")
        self._begun = self._ended = False

    def begin(self, fn: Callable[[], None]) -> None:
        """Do this first; where it fails, it is the end, too."""
        __tracebackhide__ = True
        if self._begun:
            fix = "make another one for another block: Driver(topology)"
            raise ConfigError("the driver has begun before: one `with` is its life", code="DX105", fix=fix)
        self._begun = True
        try:
            self.do(fn)
        except BaseException:
            self._end()
            raise

    def do(self, fn: Callable[[], T]) -> T:
        """What the function gives, called in the thread."""
        __tracebackhide__ = True
        self.refuse_outside()
        return self._pool.submit(fn).result()

    def refuse_outside(self) -> None:
        """Raise ConfigError before the begin and behind the end."""
        __tracebackhide__ = True
        if self._ended or not self._begun:
            why = "the driver has ended with its `with`" if self._ended else "the driver is used outside of `with`"
            raise ConfigError(why, code="DX105", fix="with Driver(topology) as d: …, and what is done with d inside of it")

    def end(self, fn: Callable[[], None]) -> None:
        """Do this last."""
        __tracebackhide__ = True
        try:
            self.do(fn)
        finally:
            self._end()

    def _end(self) -> None:
        self._ended = True
        self._pool.shutdown()


async def insist(make: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Do it again until the bus lets it pass: the engine has to cope with faults, not the test."""
    while True:
        try:
            return await make()
        except BusError as e:
            if not e.retryable:
                raise
        await asyncio.sleep(AGAIN)
