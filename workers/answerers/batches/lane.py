"""Answers calls of the batch lane: with the request that a native call would send, and its reply read in the same way."""

from __future__ import annotations

import time
from collections.abc import Callable

from dspex.bus.errors import ProgramError
from dspex.bus.records import Outputs, Usage
from dspex.operators.native.lm.batch_api import BatchApi
from dspex.workers.answerers.attempt import Attempt, plain
from dspex.workers.answerers.batches.batches import Batches
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
        self.changed: Callable[[], None] = lambda: None

    async def ask(self, attempt: Attempt, lm: str, seconds: float) -> Outputs:
        """The outputs, if a batch has them within so many seconds. Raises as `Native.ask`; NoBatchAnswer where it has none."""
        work = attempt.work
        attempt.lm, attempt.route, attempt.dspy_version = lm, self.route, self._native.dspy_version
        profile, predict = self._pool.profile(lm), self._native.predict_of(attempt)
        if profile.local:
            predict = f"lm.{lm} runs on this machine"
        journal = attempt.requests.journal
        if isinstance(predict, str) or journal is None:
            why = predict if isinstance(predict, str) else "the call has no journal"
            raise ProgramError(f'lane="batch" cannot be: {why}', fix=LIVE, node=work.node)
        attempt.program = attempt.spec.program
        attempt.spend(Usage(), profile)  # known to be nothing, should no answer come
        attempt.requests.made += 1
        line, since = f"{work.call}.{work.try_number}", time.monotonic()
        found = await self._of(lm).ask(line, predict.body(work.inputs), journal, seconds, attempt.over)
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
