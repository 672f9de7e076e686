"""One event loop in a thread of its own, on which synchronous code runs what is asynchronous."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator
from typing import Any, TypeVar

T = TypeVar("T")

_lock = threading.Lock()
_loops: list[asyncio.AbstractEventLoop] = []  # one, once it is needed; shared by all synchronous clients of the process


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """What the coroutine returns, or raises."""
    with _lock:
        if not _loops:
            _loops.append(asyncio.new_event_loop())
            threading.Thread(target=_loops[0].run_forever, name="dspex-sync", daemon=True).start()
    return asyncio.run_coroutine_threadsafe(coroutine, _loops[0]).result()


def each(items: AsyncIterator[T]) -> Iterator[T]:
    """The items of an asynchronous iterator, one at a time; it is closed when the caller takes no more of them."""
    try:
        while True:
            try:
                item = run(_next(items))
            except StopAsyncIteration:
                return
            yield item
    finally:
        close = getattr(items, "aclose", None)
        if close is not None:
            run(close())


async def _next(items: AsyncIterator[T]) -> T:
    return await anext(items)
