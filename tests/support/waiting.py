"""Waiting for conditions that no event announces, by looking again and again. Nothing else in the tests sleeps in real time."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import Any

PATIENCE = 60.0  # seconds until a wait fails: a bound for a busy machine, since what is waited for comes at once
PAUSE = 0.01


async def until(condition: Callable[[], object | Awaitable[object]], patience: float = PATIENCE) -> None:
    """Return as soon as `condition()`, or what it awaits, is true."""
    end = time.monotonic() + patience
    while not (await found if inspect.isawaitable(found := condition()) else found):
        assert time.monotonic() < end, "did not happen in time"
        await asyncio.sleep(PAUSE)


def eventually(test: Callable[[], Any], patience: float = PATIENCE) -> Any:
    """What `test()` gives, as soon as it is something, where nothing is asynchronous."""
    end = time.monotonic() + patience
    while not (found := test()):
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(PAUSE)
    return found
