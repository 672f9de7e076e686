"""The places of a pool, in each of which its supervisor keeps a child."""

from __future__ import annotations

import asyncio

from dspex.bus.errors import DspexError
from dspex.workers.pool.children.child_process import Child


class Seat:
    """A place for one child.

    Attributes:
        child: who sits there; None while nobody does.
        wanted: there shall be somebody. False: whoever sits there finishes and goes.
        why: a successor is wanted, for this reason; "": none is.
        vain: too many starts in a row have failed.
        told: set when any of that has changed.
        renewed: of whoever waits for the successor.
    """

    def __init__(self, index: int) -> None:
        self.index = index
        self.child: Child | None = None
        self.wanted, self.why, self.vain = True, "", False
        self.told = asyncio.Event()
        self.renewed: asyncio.Future[None] | None = None

    def renew(self, why: str) -> None:
        """Ask for a successor. Whoever sits there takes calls until that is ready."""
        self.why = self.why or why
        self.told.set()

    def renewal(self, error: DspexError | None = None) -> None:
        """Tell whoever waits what has become of it."""
        waiting, self.renewed = self.renewed, None
        if waiting is not None and not waiting.done():
            if error is None:
                waiting.set_result(None)
            else:
                waiting.set_exception(error)
