"""Who answers the calls of a run that is done again: its recording, or a worker of the application."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias, get_args

from dspex.bus.errors import CallError, Divergence, DspexError, RecordingIncomplete, Saturated
from dspex.bus.records import CallRecord, CallRequest, Usage
from dspex.bus.serving.keys.secret_fields import SECRET
from dspex.engine.again.ground import OutsideLoop
from dspex.engine.client.runs.then.recorded import Answer, RecordedCalls
from dspex.engine.testing.places import Ground
from dspex.engine.testing.workers import Workers

Mode: TypeAlias = Literal["strict", "hybrid", "live"]
"""Which calls are made: none; those that have no recorded answer; all."""
MODES: tuple[Mode, ...] = get_args(Mode)

Make: TypeAlias = Callable[[str, CallRequest], Coroutine[Any, Any, CallRecord]]
"""Makes a call of a pool, in the world. Raises CallError as a call does."""
Alter: TypeAlias = Callable[[CallRequest], "Mapping[str, Any] | None"]
"""What a fork says that a call has given, in the place of some of its outputs; None: it does not concern that call."""


@dataclass
class CallsSoFar:
    """What was done to answer calls. `served`: read back. `called`: made. `usage`: of those that were made."""

    served: int = 0
    called: int = 0
    usage: Usage = field(default_factory=Usage)


class NotRecorded(Exception):
    """A call that no recorded answer was found for, where none may be made."""

    def __init__(self, request: CallRequest) -> None:
        super().__init__(request.node)
        self.request = request


class Answering(Workers):
    """The workers of a run that is done again.

    Args:
        run: whose calls are answered: what operators kept of others may lead to calls, which nobody answers.
        recorded: what may be read back. mode: what is made.
        make: makes calls; None: none may be.
        alter: of a fork. hidden: what is secret of the run is not known, and a marker stands for it.

    Attributes:
        failure: what ended it: a call that may not be made, or could not be. ran: the seconds that calls may take from here on.
    """

    sessions = False  # they are those of then: an answer that is read back was a turn, and no other one becomes one

    def __init__(
        self,
        place: Ground,
        loop: OutsideLoop,
        app: str,
        pools: list[str],
        run: str,
        recorded: RecordedCalls,
        mode: Mode,
        make: Make | None,
        alter: Alter | None = None,
        *,
        hidden: bool = False,
    ) -> None:
        super().__init__(place, app, pools)
        self._loop, self._recorded, self._mode, self._make, self._alter = loop, recorded, mode, make, alter
        self._called, self._run, self._hidden = set[str](), run, hidden
        self.spent, self.ran = CallsSoFar(), 0.0
        self.failure: BaseException | None = None

    async def run(self, pool: str, request: CallRequest) -> CallRecord | None:
        """See Workers. None: the run ends with `failure`, or the call is of another one."""
        if request.run != self._run:
            return None
        try:
            altered = self._alter(request) if self._alter is not None else None
            found = None
            if self._mode != "live":
                found = self._recorded.answer(request.call, request.node, request.spec, request.inputs)
            if altered is not None:
                last = found
                while found is not None:  # attempts that failed are left out
                    last, found = found, self._recorded.answer(request.call, request.node, request.spec, request.inputs)
                then = last.step.outputs if last is not None and last.step.outputs is not None else {}
                return self._record(request, CallRecord("", 0, 0, "", "", outputs={**then, **altered}, route="record"))
            if found is None:
                return await self._live(pool, request, request)
            return await self._read_back(request, found)
        except (DspexError, NotRecorded, asyncio.CancelledError) as error:
            self.failure = self.failure or error
            return None

    async def _read_back(self, request: CallRequest, found: Answer) -> CallRecord | None:
        step = found.step
        if not step.ended:  # nobody ever answered it: it comes to its deadline again
            return None
        if step.wrong:
            raise RecordingIncomplete(f"the record of {step.id} is {step.wrong}", node=step.node, run=request.run)
        await asyncio.sleep(step.elapsed.total_seconds())
        return self._record(
            request,
            CallRecord(
                *("", 0, 0, "", ""),
                outputs=step.outputs,
                error=found.failure,
                route="record",
                lm=step.lm or "",
                worker=step.worker or "",
                program=step.program or "",
                elapsed=step.elapsed.total_seconds(),
                usage=vars(step.usage),
                state=step.state,
            ),
        )

    async def _live(self, pool: str, request: CallRequest, asked: CallRequest) -> CallRecord:
        """Make a call. `asked`: by the engine. Raises what is no end of a call: that there is no worker, no server."""
        make = self._make
        if self._mode == "strict" or make is None:
            raise NotRecorded(request)
        if self._hidden and (marked := [name for name, value in request.inputs.items() if SECRET in str(value)]):
            why = f"{request.node} would be asked with {SECRET} in {', '.join(marked)}: the file of the run has not got it"
            raise RecordingIncomplete(
                why, node=request.node, run=request.run, fix="do it again from the server: dspex replay RUN"
            )
        if request.spec.effect:
            why = f"{request.node} changes something elsewhere, and is not called for a run that is done again"
            raise Divergence(why, node=request.node, run=request.run, fix="say what it gives, in a fork: --set k=v")
        self.ran += request.left
        self._called.add(request.call)
        self.spent.called = len(self._called)
        try:
            made = await self._loop.outside(lambda: make(pool, request))
        except Saturated:
            raise
        except CallError as error:
            made = CallRecord("", 0, 0, "", "", error=error.as_dict(), elapsed=request.timeout)
        self.spent.usage += Usage.read(made.usage)
        await asyncio.sleep(made.elapsed)
        return self._record(asked, made)

    def _record(self, request: CallRequest, made: CallRecord) -> CallRecord:
        """A record as one of this execution."""
        self.spent.served = self._recorded.served
        return replace(
            made,
            call=request.call,
            try_number=request.try_number,
            attempt=request.attempt,
            topology=request.topology,
            node=request.node,
            number=None,
            event=b"",
            started=self._place.now - made.elapsed,
        )
