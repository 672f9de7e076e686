"""`dspex.sync`: the client without `await`, for scripts and notebooks.

Made from the same class: every method runs on one background loop, coroutines are waited for, asynchronous iterators become
plain ones. So there is nothing here that could differ from the client.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from functools import wraps
from typing import Any

from dspex.engine.client import client as _client

__all__ = ["connect"]


class _Loop:
    """One loop in one daemon thread, shared by all synchronous clients of the process."""

    _lock = threading.Lock()
    _loop: asyncio.AbstractEventLoop | None = None

    @classmethod
    def run(cls, coroutine: Coroutine[Any, Any, Any]) -> Any:
        with cls._lock:
            if cls._loop is None:
                cls._loop = asyncio.new_event_loop()
                threading.Thread(target=cls._loop.run_forever, name="dspex-sync", daemon=True).start()
        return asyncio.run_coroutine_threadsafe(coroutine, cls._loop).result()


class Sync:
    """An object of the client's, with its methods made synchronous."""

    def __init__(self, of: Any) -> None:
        self._of = of

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._of, name)
        return _plain(value) if callable(value) else _wrap(value)

    def __enter__(self) -> Sync:
        _Loop.run(self._of.__aenter__())
        return self

    def __exit__(self, *exc: object) -> None:
        _Loop.run(self._of.__aexit__(*exc))

    def __repr__(self) -> str:
        return repr(self._of)


def _plain(method: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(method)
    def call(*args: Any, **kw: Any) -> Any:
        result = method(*args, **kw)
        if asyncio.iscoroutine(result):
            result = _Loop.run(result)
        if hasattr(result, "__anext__"):
            return _each(result)
        return _wrap(result)

    return call


def _each(items: Any) -> Iterator[Any]:
    async def following() -> Any:
        return await anext(items)  # begun on the loop's thread, so that the loop closes a generator that nobody reads on

    while True:
        try:
            yield _wrap(_Loop.run(following()))
        except StopAsyncIteration:
            return


def _wrap(value: Any) -> Any:
    return Sync(value) if isinstance(value, (_client.Client, _client.Run)) else value


def connect(url: str | None = None, *, settings: Any = None) -> Any:
    """A synchronous client: `with dspex.sync.connect() as client: client.call(...)`."""
    return Sync(_client.connect(url, settings=settings))
