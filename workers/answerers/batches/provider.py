"""A provider's batch API, asked with patience: a batch has time, so what does not work now is tried again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import aclosing
from functools import partial
from typing import Final, TypeVar, cast

import orjson
import structlog
from structlog.typing import FilteringBoundLogger

from dspex.bus.errors import CallError, CallTimeout, LMUnavailable, RateLimited
from dspex.operators.native.lm.batch_api import BatchApi, ProviderBatch, request_line
from dspex.workers.answerers.batches.batch import OpenBatch

log: FilteringBoundLogger = structlog.get_logger("dspex.workers")
T = TypeVar("T")

FIRST: Final = 5.0  # seconds until the first look at a batch, unless `poll` is less
SLOWER: Final = 1.5  # times as long is each pause, up to `poll`
PASSING: Final = (LMUnavailable, RateLimited, CallTimeout)  # errors after which the same is tried again


class PatientProvider:
    """The provider of one profile. `poll`: seconds between two questions, at most."""

    def __init__(self, lm: str, api: BatchApi, poll: float) -> None:
        self._lm, self._api, self._poll = lm, api, poll

    def pauses(self) -> Iterator[float]:
        """Seconds between a question and the next one, for ever."""
        pause = min(FIRST, self._poll)
        while True:
            yield pause
            pause = min(pause * SLOWER, self._poll)

    async def make(self, batch: OpenBatch, seen: Callable[[ProviderBatch], None]) -> ProviderBatch | None:
        """A batch of the calls that wait for it, when the provider has looked at it; where there is no room now, it is made
        again later. When none waits any more, what there is of it; None for nothing.

        `seen`: told of it when there is one, which the provider may look at for hours. Raises CallError: it is refused.
        """
        calls = list(batch.calls.values())
        file = await self._patiently(lambda: self._api.upload(request_line(one.line, one.body) for one in calls))
        tried = False

        async def create() -> ProviderBatch | None:
            nonlocal tried
            found = await self._api.find(batch.key) if tried else None  # what failed may have been done
            if found is not None or not batch.calls:
                return found
            tried = True
            return await self._api.create(file, batch.key)

        pauses = self.pauses()
        while True:
            made: ProviderBatch | None = await self._patiently(create)
            looks = self.pauses()
            while made is not None and made.state == "new" and batch.calls:
                seen(made)
                await asyncio.sleep(next(looks))
                made = await self._patiently(partial(self._api.get, made.id))
            if not batch.calls:
                return made
            if made is not None and made.state != "full":
                log.info("a batch was made", lm=self._lm, batch=made.id, calls=len(calls))
                return made
            log.warning("no room for a batch, trying again", lm=self._lm, batch=made.id if made is not None else "gone")
            batch.seen = None  # it is none any more
            await asyncio.sleep(next(pauses))

    async def find(self, key: str) -> ProviderBatch | None:
        """The batch that was made with this key. Raises CallError: the provider refuses to tell."""
        return await self._patiently(lambda: self._api.find(key))

    async def end(self, batch: OpenBatch, seen: Callable[[ProviderBatch], None]) -> ProviderBatch | None:
        """A batch when it is over; None where the provider knows it no more. `seen`: told of it at each look."""
        for pause in self.pauses():
            await asyncio.sleep(pause)
            try:
                found = await self._api.get(batch.id)
            except CallError as error:  # also a key that is wrong: the answers are paid for, and somebody may correct it
                log.warning("a batch cannot be looked at, trying again", lm=self._lm, batch=batch.id, why=error.message)
                continue
            if found is None:
                return None
            seen(found)
            if found.state not in ("new", "runs"):
                log.info("a batch is over", lm=self._lm, batch=found.id, status=found.status, calls=found.total)
                return found
        raise AssertionError("there is always a next pause")

    async def answer(self, batch: OpenBatch, found: ProviderBatch) -> None:
        """Give the calls that wait for a batch what its files have for them. A file that is lost has nothing."""
        for file in found.files:
            try:
                await self._patiently(partial(self._read, batch, file))
            except (CallError, FileNotFoundError) as error:
                log.error("a file with answers cannot be read", lm=self._lm, batch=batch.id, file=file, why=str(error))

    async def cancel(self, batch: OpenBatch) -> None:
        """Have a batch made no further, if it has no other calls than those that were here and have left."""
        try:
            if await self._has_others(batch):
                return
            await self._patiently(lambda: self._api.cancel(batch.id))
        except CallError as error:
            why = error.message
            log.warning("a batch whose calls wait for it no more is not cancelled", lm=self._lm, batch=batch.id, why=why)

    async def _has_others(self, batch: OpenBatch) -> bool:
        """Whether a batch has calls that never were here, or is over. Its provider may not know yet how many it has."""
        looks = self.pauses()
        while not batch.total:
            found = await self._patiently(partial(self._api.get, batch.id))
            if found is None or found.state not in ("new", "runs"):
                return True
            batch.total = found.total
            if not batch.total:
                await asyncio.sleep(next(looks))
        return batch.total > batch.left

    async def _read(self, batch: OpenBatch, file: str) -> None:
        async with aclosing(self._api.answers(file)) as lines:
            async for line in lines:
                found = line_of(line)
                name = found.get("custom_id")
                one = batch.calls.get(name) if isinstance(name, str) else None
                if one is not None:
                    one.answered(self._api.read(found))

    async def _patiently(self, what: Callable[[], Awaitable[T]]) -> T:
        """What `what` gives, when the provider answers: the calls that wait have their own time. Raises CallError."""
        for pause in self.pauses():
            try:
                return await what()
            except PASSING as error:
                log.warning("a provider does not answer about batches, trying again", lm=self._lm, why=error.message)
                asked = error.retry_after or 0.0
            await asyncio.sleep(max(pause, asked))
        raise AssertionError("there is always a next pause")


def line_of(line: bytes) -> Mapping[str, object]:
    """A line of a file; {} for what is none."""
    try:
        found = orjson.loads(line) if line.strip() else {}
    except ValueError:
        log.error("a line of a file with answers is no JSON", line=line[:200])
        return {}
    return cast("Mapping[str, object]", found) if isinstance(found, dict) else {}
