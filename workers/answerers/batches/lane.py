"""Answers calls of the batch lane: with the request that a native call would send, and its reply read in the same way."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from dspex.bus.errors import ProgramError
from dspex.bus.records import Outputs, Usage
from dspex.operators.native.lm.batch_api import BatchApi
from dspex.workers.answerers.attempt import Attempt, plain
from dspex.workers.answerers.batches.batch import BatchNote, WaitingCall
from dspex.workers.answerers.batches.batches import AT_ONCE, Batches
from dspex.workers.answerers.native import Native
from dspex.workers.config import PoolConfig
from dspex.workers.frames import BatchRow

LIVE = 'leave out lane="batch", or name another profile'


class BatchLane:
    """The batches of all profiles in one process.

    Attributes:
        changed: called when `rows` gives something else.
    """

    route = "batch"

    def __init__(self, pool: PoolConfig, native: Native) -> None:
        self._pool, self._native = pool, native
        self._batches: dict[str, Batches] = {}
        self._turns = asyncio.Semaphore(AT_ONCE)
        self.changed: Callable[[], None] = lambda: None

    async def ask(self, attempt: Attempt, lm: str, seconds: float) -> Outputs:
        """The outputs, if a batch has them within so many seconds. Raises as `Native.ask`; NoBatchAnswer where it has none."""
        work, journal, now = attempt.work, attempt.requests.journal, asyncio.get_running_loop().time
        if journal is None:
            raise ProgramError('lane="batch" cannot be: the call has no journal', fix=LIVE, node=work.node)
        until = now() + seconds
        async with self._turns:
            left = await journal.open()
        # a batch that it is in already is paid for, whichever profile a call would be asked with by now
        lm, note = next(((name, note) for name in self._pool.profiles if (note := BatchNote.of(left, name))), (lm, None))
        attempt.lm, attempt.route, attempt.dspy_version = lm, self.route, self._native.dspy_version
        profile, predict = self._pool.profile(lm), self._native.predict_of(attempt)
        if profile.local:
            predict = f"lm.{lm} runs on this machine"
        if isinstance(predict, str):
            raise ProgramError(f'lane="batch" cannot be: {predict}', fix=LIVE, node=work.node)
        attempt.program = attempt.spec.program
        attempt.spend(Usage(), profile)  # known to be nothing, should no answer come
        attempt.requests.made += 1
        one = WaitingCall(f"{work.call}.{work.try_number}", predict.body(work.inputs), journal, note)
        since = time.monotonic()
        found = await self._of(lm).ask(one, until - now(), attempt.over)
        attempt.heard(found, profile, since)
        return {name: plain(name, value) for name, value in predict.outputs(found).items()}

    def rows(self) -> list[BatchRow]:
        """The batches that run, and those that are being gathered."""
        return [row for batches in self._batches.values() for row in batches.rows()]

    async def close(self) -> None:
        """Look at no batch any more; they run on."""
        for batches in self._batches.values():
            await batches.close()

    def _of(self, lm: str) -> Batches:
        if lm not in self._batches:
            profile = self._pool.profile(lm)
            rule = profile.batch
            self._batches[lm] = Batches(
                lm,
                BatchApi(self._native.endpoint_of(profile, None)),
                gather=rule.get("gather", 10.0),
                calls=int(rule.get("calls", 5_000)),
                poll=rule.get("poll", 60.0),
                changed=lambda: self.changed(),
            )
        return self._batches[lm]
