"""The workers of the testing driver: the real worker loop, with answers that the test gives in place of a model."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from dspex.bus.codecs.msgpack import msgpack_bytes
from dspex.bus.errors import CallError, DspexError, InvalidInput, InvalidOutput, NoAnswer, ProgramError
from dspex.bus.port import Bus, Delivery
from dspex.bus.records import CallRecord, CallRequest
from dspex.bus.serving.work_loop import Job, WorkLoop
from dspex.engine.runtime.failure import Failure, attempt
from dspex.engine.testing.places import Ground

Answers = Mapping[str, Any] | Callable[[dict[str, Any]], Mapping[str, Any]]
ROOM = 1000  # calls at once


@dataclass
class _Answer:
    outputs: Answers
    after: float


class Workers:
    """One worker for each pool in `pools`.

    Attributes:
        problem: the error of a call that no answer was given for; None while there is none.
        sessions: see WorkLoop.
    """

    sessions = True

    def __init__(self, place: Ground, app: str, pools: Sequence[str]) -> None:
        self._place, self._app, self._pools = place, app, pools
        self._answers: dict[str, _Answer] = {}
        self._failures: dict[str, deque[Exception]] = {}
        self._failing: dict[str, Exception] = {}  # how executions end that were to fail
        self._running: list[tuple[WorkLoop, Bus]] = []
        self._held: dict[Delivery, None] = {}
        self.problem: DspexError | None = None

    def answer(self, node: str, outputs: Answers, after: float) -> None:
        """From now on, calls of `node` give `outputs` after so many seconds."""
        self._answers[node] = _Answer(outputs, after)

    def fail(self, node: str, error: Exception, times: int) -> None:
        """The next `times` calls of `node` fail with `error`."""
        self._failures.setdefault(node, deque()).extend([error] * times)

    async def start(self) -> None:
        """Begin to take work."""
        for pool in self._pools:
            bus = await self._place.connect()
            accept, sessions = partial(self._accept, pool), self.sessions
            loop = WorkLoop(bus, self._app, pool, accept, free=lambda: ROOM, failed=self._failed, sessions=sessions)
            loop.start()
            self._running.append((loop, bus))

    async def kill(self) -> None:
        """End as SIGKILL would: the work that was taken comes again when the bus misses their signs of life."""
        for loop, bus in self._running:
            await loop.kill()
            await bus.close()
        self._running.clear()
        self._place.lost(list(self._held))
        self._held.clear()

    def _failed(self, error: BaseException) -> None:
        self.problem = DspexError(f"the driver's workers failed: {error!r}")

    def _accept(self, pool: str, request: CallRequest, delivery: Delivery) -> Job:
        async def job() -> CallRecord | None:
            self._held[delivery] = None
            record = await self.run(pool, request)
            del self._held[delivery]  # not where this is cancelled: it was killed, and holds it
            return record

        return job

    async def run(self, pool: str, request: CallRequest) -> CallRecord | None:
        """The record of an execution; None where it gets none."""
        answer, failures = self._answers.get(request.node), self._failures.get(request.node)
        if answer is not None and answer.after:
            await asyncio.sleep(answer.after)
        record = partial(
            CallRecord,
            call=request.call,
            try_number=request.try_number,
            attempt=request.attempt,
            topology=request.topology,
            node=request.node,
            worker="driver",
            lm="driver",
            started=self._place.now,
        )
        execution = request.record.id if request.record else ""  # it comes again where its workers were killed
        if failures and execution not in self._failing:
            self._failing[execution] = failures.popleft()
        if execution in self._failing:
            return record(error=_as_error(self._failing[execution]).as_dict())
        if answer is None:
            self.problem = NoAnswer(
                f"{request.node} was called with {dict(request.inputs)} and has no answer", node=request.node
            )
            return None
        made = _made(answer.outputs, request)
        if isinstance(made, Failure):  # as a program that raises
            error = made.error if isinstance(made.error, CallError) else ProgramError(made.error.message)
            return record(error=error.as_dict())
        if not isinstance(made, Mapping):
            what = f"the answer of {request.node} is {made!r}, and outputs are a mapping: {{field: value}}"
            self.problem = NoAnswer(what, node=request.node)
            return None
        given = dict(made)
        try:
            msgpack_bytes(given)
        except InvalidInput as e:  # as a worker says it; else no record could be stored, and the call would time out
            return record(error=InvalidOutput(f"the answer cannot be sent: {e.message}", node=request.node).as_dict())
        return record(outputs=given)


def _made(outputs: Answers, request: CallRequest) -> Any:
    """The outputs of an answer; a Failure where its function fails."""
    if not callable(outputs):
        return outputs
    return attempt(lambda: outputs(dict(request.inputs)), lambda: request.node)


def _as_error(failure: Exception) -> DspexError:
    """The error of a worker whose program raised `failure`."""
    return failure if isinstance(failure, DspexError) else ProgramError(f"{type(failure).__name__}: {failure}")
