"""Whether pools make progress, said by the age of a file, which the probe of a container looks at.

The loop of a process that hangs touches no file. Neither does that of pools one of which takes no work, though there is some
and it has slots: whoever runs the process then starts it again. Waiting is no stall: for a server that is away, for room in a
full stream, for calls that run, or because an operator has drained the pool.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import structlog

from dspex.bus import subjects
from dspex.bus.errors import BusError, ConfigError
from dspex.bus.port import Bus
from dspex.workers.pool.pool import Pool

LOOK: Final = 5.0  # seconds between two looks, at most
_log = structlog.get_logger("dspex.workers")


class Alive:
    """Touches `file` at each look at which all pools make progress, from when it is made.

    Args:
        after: seconds in which a pool takes nothing of what waits, after which it stands still.

    Raises ConfigError (DX105) where the file cannot be written.
    """

    def __init__(self, bus: Bus, pools: Sequence[Pool], file: Path, after: float) -> None:
        self._bus, self._pools, self._file, self._after = bus, pools, file, after
        self._seen: dict[str, tuple[object, float]] = {}  # pool → what it has taken while something waited, and since when
        self._told = ""
        try:
            file.touch()
        except OSError as error:
            raise ConfigError(
                f"--alive {file}: {error.strerror}", code="DX105", fix="name a file that may be written"
            ) from None

    async def run(self) -> None:
        """Look again and again, until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(min(LOOK, self._after / 2))

    async def look(self) -> str:
        """Which pool stands still, and "" where none does: then the file is touched."""
        still = [pool.config.name for pool in self._pools if await self._still(pool)]
        told = f"takes no work, though there is some: {', '.join(still)}" if still else ""
        if told and told != self._told:
            _log.error("stalled: alive, and makes no progress", why=told, seconds=self._after)
        self._told = told
        if not told:
            try:
                self._file.touch()
            except OSError as error:  # the file grows old, and the probe says so
                _log.error("cannot say that it is alive", file=str(self._file), why=error.strerror)
        return told

    async def _still(self, pool: Pool) -> bool:
        now, name = asyncio.get_running_loop().time(), pool.config.name
        taken = (pool.work.served, pool.work.refused, len(pool.work.calls), pool.children.slots.busy)
        before, since = self._seen.get(name, (None, now))
        if taken != before or not await self._could(pool):
            since = now
        self._seen[name] = taken, since
        return now - since > self._after

    async def _could(self, pool: Pool) -> bool:
        """Whether something waits that it could take. It has room; or nothing runs in it, perhaps since no process starts."""
        room = pool.free() > 0 or pool.children.slots.busy == 0
        if pool.draining or pool.records.pending or not room or not self._bus.connected:
            return False
        stream = subjects.stream(pool.config.app)
        names = [subjects.work_consumer(pool.config.name, band) for band in subjects.BANDS]
        try:
            return any([await self._bus.backlog(stream, name) for name in names])
        except BusError:
            return False  # it can do nothing while the server is away
