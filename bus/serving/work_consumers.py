"""The durable consumers from which the workers of a pool take work: one for each band of priority that is in use.

Only engines make them. Somebody may delete one; a new one that began at the front would deliver all work that is still
stored, and every call would be paid again. So its successor begins behind the last message of the stream, and says so under
a key. The owners of calls whose request lies before that ask again, with the same call and the same try.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Final

import orjson
import structlog

from dspex.bus import subjects
from dspex.bus.errors import BusError, Fenced
from dspex.bus.port import Bucket, Bus

_log = structlog.get_logger("dspex.engine")
LOOK: Final = 5.0  # seconds between two looks at the consumers
ACK_WAIT: Final = 15.0  # seconds without a sign of life after which work is given to somebody else


class WorkConsumers:
    """Keeps the consumers of these (pool, band) pairs there.

    Args:
        used: the pairs that new calls go to. waiting: gives those of the calls that are open now.

    Attributes:
        behind: (pool, band) → the consumer delivers only what lies behind this sequence.
    """

    def __init__(
        self,
        bus: Bus,
        app: str,
        used: Iterable[tuple[str, int]],
        waiting: Callable[[], Iterable[tuple[str, int]]] = tuple,
        *,
        ack_wait: float = ACK_WAIT,
    ) -> None:
        self.bus, self.app, self._ack_wait = bus, app, ack_wait
        self._used, self._waiting = frozenset(used), waiting
        self.behind: dict[tuple[str, int], int] = {}

    async def run(self) -> None:
        """Look now and then, until cancelled."""
        while True:
            await asyncio.sleep(LOOK)
            try:
                await self.look()
            except BusError as e:
                _log.warning("cannot look after the consumers of work now, trying again", why=e.message)

    async def look(self) -> None:
        """Make the consumers that are missing. Raises BusError."""
        if used := sorted(self._used.union(self._waiting())):
            bucket = await self.bus.bucket(subjects.bucket(self.app))
            for pool, band in used:
                self.behind[pool, band] = await self._look(bucket, pool, band)

    async def _look(self, bucket: Bucket, pool: str, band: int) -> int:
        stream, name = subjects.stream(self.app), subjects.work_consumer(pool, band)
        while True:
            found = await bucket.get(subjects.work_key(pool, band))
            after, generation = _read(found[0]) if found is not None else (0, 0)
            if found is not None and await self.bus.has_consumer(stream, name):
                return after
            if generation:
                info = await self.bus.stream(stream)
                after = info.last if info is not None else 0
                _log.error(
                    "the consumer of work is gone: it is made anew, and open calls are asked again", name=name, after=after
                )
            value = orjson.dumps({"generation": generation + 1, "after": after})
            try:
                await bucket.put(subjects.work_key(pool, band), value, revision=found[1] if found is not None else 0)
            except Fenced:
                continue  # another engine makes it
            pattern = subjects.work_pattern(self.app, pool, band)
            await self.bus.add_consumer(stream, pattern, name=name, ack_wait=self._ack_wait, after=after)
            return after


def _read(value: bytes) -> tuple[int, int]:
    """(after, generation) of a key. Raises BusError for what no engine wrote there."""
    try:
        raw = orjson.loads(value)
        return int(raw["after"]), int(raw["generation"])
    except (ValueError, TypeError, KeyError) as e:
        fix = "delete the key with the nats tools: the consumer is then made as at first"
        raise BusError(f"the key of a work consumer holds what no engine wrote: {e!r}", code="DX411", fix=fix) from None
