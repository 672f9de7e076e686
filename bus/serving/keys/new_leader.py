"""A server that has just become the leader of a stream may not show yet what was put just before: it is asked again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from dspex.bus.port import Bus, Kept

NEW: Final = 10.0  # seconds for which a leader may not show what was put just before it became that
PAUSES: Final = (0.1, 0.2, 0.5, 1.0, 2.0, 4.0)  # seconds between looks

T = TypeVar("T")


async def shown(bus: Bus, kind: Kept, name: str, look: Callable[[], Awaitable[T | None]]) -> T | None:
    """What `look` finds in a stream or store; None where it is not there.

    A leader that is not new is believed at once: whoever may publish can name what never was, and who waited for it would
    stand still for as long as somebody sends such messages.
    """
    for pause in (*PAUSES, 0.0):
        if (found := await look()) is not None:
            return found
        if await bus.led_for(kind, name) > NEW:
            return None
        await asyncio.sleep(pause)
    return None
