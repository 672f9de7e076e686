"""What the verbs that talk to an application share: a client, and how runs and figures are written for people."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from dspex.bus.settings.imports import lean_nats as lean_nats
from dspex.engine.cli.terminal.terminal import Terminal

if TYPE_CHECKING:
    from dspex.bus.records import Usage
    from dspex.engine.client.client import Client


@asynccontextmanager
async def client(t: Terminal, verb: str, *, start: bool = False) -> AsyncGenerator[Client, None]:
    """A client on the server of the settings.

    Args:
        start: start a server for this command where none is named and none is running. Only for a verb that changes
            something: one that only looks would leave a `.dspex/` behind, and would look at an empty server.

    Raises:
        Unreachable: there is no server, and none may be started.
    """
    from dspex.bus.local.open import connect, server_of
    from dspex.engine.client.client import Client

    settings = t.settings()
    async with server_of(settings, start=start) as found:
        if found.started:
            store = shown(settings.store)
            t.note(f"no server was running: started one at {found.url} for this command, data in {store}")
        lean_nats()
        bus = await connect(settings, found, name=f"dspex/{verb}")
        try:
            async with Client(bus=bus, app=settings.app) as c:
                yield c
        finally:
            await bus.close()


def shown(path: os.PathLike[str]) -> str:
    """A path as people read it: relative where it lies below the working directory."""
    relative = os.path.relpath(path)
    return os.fspath(path) if relative.startswith("..") else relative


def count(number: int, word: str) -> str:
    """`1 node`, `3,080 nodes`."""
    return f"{number:,} {word}" if number == 1 else f"{number:,} {word}s"


def spent(calls: int | None, usage: Usage) -> str:
    """`2 calls  611 tokens  $0.0009`; no price where none is known."""
    tokens = usage.input_tokens + usage.output_tokens
    price = "" if usage.cost is None else f"  ${usage.cost:.4f}"
    return (f"{count(calls, 'call')}  " if calls is not None else "") + f"{count(tokens, 'token')}{price}"
