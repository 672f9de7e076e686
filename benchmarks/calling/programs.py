"""What a pool of dspex is asked to run: nothing, and waiting as for a model."""

from __future__ import annotations

import asyncio

WAIT = 0.1  # seconds


async def nothing(text: str) -> dict[str, str]:
    """Give the argument back."""
    return {"reply": text}


async def nothing_more(history: object, text: str) -> dict[str, str]:
    """The same in a session."""
    return {"reply": text}


async def waits(text: str) -> dict[str, str]:
    """The same, after a tenth of a second in which no processor is needed."""
    await asyncio.sleep(WAIT)
    return {"reply": text}


async def stays(text: str) -> dict[str, str]:
    """The same, after longer than anybody measures."""
    await asyncio.sleep(3600)
    return {"reply": text}
