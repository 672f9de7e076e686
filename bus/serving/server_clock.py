"""The server's clock: stored messages carry its time, and the clock of a worker's machine may be hours away from it."""

from __future__ import annotations

import asyncio

from dspex.bus.port import Bus


class ServerClock:
    """Tells how long ago a message was stored, by the clock that wrote its time.

    Args:
        stream: its leader is asked for the time.
    """

    def __init__(self, bus: Bus, stream: str) -> None:
        self._bus, self._stream = bus, stream
        self._ahead: float | None = None  # seconds from the loop's clock to the server's

    async def ask(self) -> None:
        """Ask for the time; it is carried on by the loop's clock, which no step of the machine's clock moves.

        Raises BusError.
        """
        clock = asyncio.get_running_loop().time
        asked = clock()
        info = await self._bus.stream(self._stream)
        if info is not None:
            self._ahead = info.now - (asked + clock()) / 2  # it was said about half way

    def age(self, stored: float) -> float:
        """Seconds since a message was stored, 0 while the server's time is not known: that refuses nobody wrongly."""
        if self._ahead is None:
            return 0.0
        return max(0.0, asyncio.get_running_loop().time() + self._ahead - stored)
