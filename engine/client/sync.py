"""`dspex.sync`: the client without `await`, for scripts and notebooks.

`sync_client` is generated from the client by `scripts/make_sync.py`, and a test holds it to that: every method runs on one
background loop, coroutines are waited for, asynchronous iterators become plain ones.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dspex.engine.client import client
from dspex.engine.client.sync_client import Client, Run, Session

if TYPE_CHECKING:
    from dspex.bus.settings.model import Settings

__all__ = ["Client", "Run", "Session", "connect"]


def connect(url: str | None = None, *, settings: Settings | None = None) -> Client:
    """A synchronous client: `with dspex.sync.connect() as client: client.call(...)`. See `dspex.connect`."""
    return Client(client.connect(url, settings=settings))
