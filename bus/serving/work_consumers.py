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

from dspex.bus import subjects
from dspex.bus.errors import BusError, Fenced
from dspex.bus.port import Bucket, Bus
from dspex.bus.seldom import Seldom, logger

_log = logger("dspex.engine")
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
        self._seldom = Seldom(_log)
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
        """Behind which sequence the consumer delivers: as the server says. The key tells only whether there was one before."""
        stream, name, key = subjects.stream(self.app), subjects.work_consumer(pool, band), subjects.work_key(pool, band)
        while True:
            known, begin = await asyncio.gather(bucket.get(key), self.bus.begin_of_consumer(stream, name))
            if known is not None and begin is not None:
                return await self._reached(name, begin)
            after, value, revision = begin or 0, b"", 0
            if known is not None:
                after, (value, revision) = await self._last(), known
                _log.error(
                    "the consumer of work is gone: it is made anew, and open calls are asked again", name=name, after=after
                )
            try:
                await bucket.put(key, orjson.dumps({"generation": _generation(value) + 1, "after": after}), revision=revision)
            except Fenced:
                continue  # another engine makes it
            if begin is None:
                pattern = subjects.work_pattern(self.app, pool, band)
                await self.bus.add_consumer(stream, pattern, name=name, ack_wait=self._ack_wait, after=after)
            return after

    async def _reached(self, name: str, after: int) -> int:
        """`after`; 0 where it lies beyond the end of the stream: somebody else made that consumer, and whatever is asked again
        would be asked for ever. Its calls end at their deadline.
        """
        if after == 0 or after <= await self._last():
            return after
        fix = "delete this consumer with the nats tools: it is then made anew"
        self._seldom.warning("a consumer of work begins behind the end of the stream, and delivers nothing", name=name, fix=fix)
        return 0

    async def _last(self) -> int:
        info = await self.bus.stream(subjects.stream(self.app))
        return info.last if info is not None else 0


async def backlog(bus: Bus, app: str, pool: str) -> int:
    """Durable calls of a pool that nobody has taken. Raises BusError, also where the application has no stream."""

    async def of(bands: Iterable[int]) -> list[int | None]:
        stream = subjects.stream(app)
        return await asyncio.gather(*(bus.backlog(stream, subjects.work_consumer(pool, band)) for band in bands))

    fronts = [band for band in subjects.BANDS if not subjects.is_behind(band)]
    first, *others = zip(*map(subjects.side_queues, fronts))
    found = await of([*fronts, *first])
    there = [number is not None for number in found[len(fronts) :]]  # the side queues of a band are made together
    found += await of(queue for queues in others for queue, known in zip(queues, there) if known)
    return sum(number or 0 for number in found)


def _generation(value: bytes) -> int:
    """How many consumers there were, as a key says; 0 for what no engine wrote there."""
    try:
        generation = orjson.loads(value)["generation"]
    except (ValueError, TypeError, KeyError):
        return 0
    return generation if isinstance(generation, int) and 0 < generation < 1 << 32 else 0
