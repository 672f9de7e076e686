"""Programs that keep something in their session. A test of a pool runs them in real children."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

from dspex.workers import context


def remembers(text: str) -> dict[str, Any]:
    call = context()
    seen = [*call.load().get("seen", []), text]
    call.save({"seen": seen})
    if text == "raises":
        raise ValueError(text)
    if text == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    return {"reply": " ".join(call.load()["seen"])}


async def waits(text: str) -> dict[str, Any]:
    """Until somebody writes to the pipe of this name."""
    call = context()
    count = call.load().get("count", 0)
    call.status("has loaded")
    await asyncio.to_thread(Path(text).read_bytes)
    call.save({"count": count + 1})
    return {"reply": str(count)}


def saves_what_cannot_be(text: str) -> dict[str, Any]:
    wrong: dict[str, Any] = {"list": ["a"], "number": {"n": float("nan")}, "keys": {1: "a"}, "large": {"n": "x" * 300_000}}
    context().save(wrong[text])
    return {"reply": "saved"}
