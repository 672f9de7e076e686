"""Runs the calls that the parent sends."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace
from functools import partial

from dspex.bus import errors
from dspex.bus.errors import DecodeError, InvalidInput, InvalidOutput
from dspex.bus.records import CallRequest, Usage
from dspex.bus.tasks import Tasks, first
from dspex.workers.answer import Answer, ErrorMap, error_map
from dspex.workers.answerers.attempt import LoadedState, sendable
from dspex.workers.answerers.router import Router
from dspex.workers.child.journal import CallJournal
from dspex.workers.frames import (
    BatchesFrame,
    CallFrame,
    CancelFrame,
    ChunkFrame,
    DoneFrame,
    Frame,
    FurtheredFrame,
    FurtherFrame,
    JournalledFrame,
    StateFrame,
    StatusFrame,
    StopFrame,
    kept_states,
    pack,
)
from dspex.workers.processes.link import Link

TELL_AFTER = 0.2  # seconds, in which more may change
SAID_WITHIN = 1.0  # seconds that a thread waits while another program keeps the loop busy


class Runner:
    """Runs calls as tasks of one loop."""

    def __init__(self, link: Link, router: Router) -> None:
        self._link, self._router = link, router
        self._loop, self._thread = asyncio.get_running_loop(), threading.get_ident()
        self._calls: dict[int, asyncio.Task[None]] = {}
        self._journals: dict[int, CallJournal] = {}
        self._further: dict[int, asyncio.Future[None]] = {}  # calls that want to ask another profile
        self._given_up: dict[int, bool] = {}  # of those that run: whether nobody goes on with it
        self._tasks = Tasks("child")
        self._states: dict[str, bytes] = {}  # saved states of programs, packed, by digest
        self._stopped = asyncio.Event()
        self._telling: asyncio.TimerHandle | None = None  # of batches
        router.batches.changed = self._batches_changed

    def handle(self, frame: Frame) -> None:
        """Act on a frame. Called on the loop."""
        match frame:
            case StateFrame(digest=digest, body=body):
                kept_states(self._states, digest, body)
            case CallFrame(id=number):
                if (tag := frame.state) is not None and tag.digest in self._states:
                    kept_states(self._states, tag.digest, self._states[tag.digest])
                task = self._tasks.start(self._run(frame, self._states.get(tag.digest) if tag else None), f"call-{number}")
                self._calls[number] = task
            case CancelFrame(id=number, over=over) if number in self._calls:
                self._given_up[number] = over
                self._loop.call_soon(self._calls[number].cancel)  # behind its begin: one that never began says no end
            case JournalledFrame(id=number) if number in self._journals:
                self._journals[number].take(frame)
            case FurtheredFrame(id=number, error=error) if number in self._further:
                _told(self._further[number], error)
            case StopFrame():
                self._stopped.set()
            case _:
                pass  # the end of a call that has ended already

    async def wait(self) -> None:
        """Wait until the parent says stop. Raises what a call raised that could not be answered: the parent sees this end."""
        await first(self._stopped.wait(), self._tasks.wait())

    def _batches_changed(self) -> None:
        if self._telling is None:
            self._telling = self._loop.call_later(TELL_AFTER, self._tell_batches)

    def _tell_batches(self) -> None:
        self._telling = None
        self._link.send(BatchesFrame(self._router.batches.rows()))

    def _chunk(self, number: int, field: str, text: str) -> None:
        self._link.send(ChunkFrame(number, field, text))

    async def _ask_further(self, number: int, lm: str, used: Usage | None, again: bool) -> None:
        """Returns where another profile may be asked, or the same again. Raises the refusal of a limit."""
        self._further[number] = asyncio.get_running_loop().create_future()
        try:
            self._link.send(FurtherFrame(number, lm, vars(used) if used is not None else None, again))
            await self._further[number]
        finally:
            del self._further[number]

    def _say(self, frame: StatusFrame) -> None:
        """Send what a program says, which it may say in any thread. Returns when it is on its way: what the program does next
        may keep the loop, or the whole process, from doing anything.
        """
        packed = pack(frame)
        if threading.get_ident() == self._thread:
            self._link.write(packed)
            return
        sent = threading.Event()

        def send() -> None:
            self._link.write(packed)
            sent.set()

        self._loop.call_soon_threadsafe(send)
        sent.wait(SAID_WITHIN)

    def _ended(self, number: int) -> None:
        self._calls.pop(number, None)
        self._given_up.pop(number, None)
        if (journal := self._journals.pop(number, None)) is not None:
            journal.close()

    async def _run(self, call: CallFrame, state: bytes | None) -> None:
        try:
            await self._answer(call, state)
        finally:
            self._ended(call.id)

    async def _answer(self, call: CallFrame, state: bytes | None) -> None:
        try:
            work = CallRequest.of_ours(call.work)  # its parent has checked it
        except DecodeError as error:  # the parent could read it: dspex has another version here
            self._link.send(DoneFrame(call.id, Answer.failed(InvalidInput(error.message), self._router.dspy_version)))
            return
        journal = None
        if work.record is not None and (work.spec.journaled or call.batch):  # an interactive call has no second attempt
            journal = self._journals[call.id] = CallJournal(call.id, self._link.send)
        answer = await self._router.run(
            work,
            call.local,
            lambda text: self._say(StatusFrame(call.id, sendable(text))),
            lambda: call.id in self._given_up,
            over=lambda: self._given_up.get(call.id, False),
            lms=call.lms,
            limit=call.limit,
            hedge=call.hedge,
            chunk=partial(self._chunk, call.id) if work.stream else None,
            state=LoadedState(*call.state, state) if call.state is not None and state is not None else None,
            journal=journal,
            batch=call.batch,
            further=partial(self._ask_further, call.id),
        )
        done = DoneFrame(call.id, answer)
        try:
            self._link.send(done)
        except InvalidInput as error:  # a call that never ends would end this process, and its other calls with it
            self._link.send(_sendable(done, work.node, error.message))


def _told(asked: asyncio.Future[None], error: ErrorMap | None) -> None:
    if not asked.done():
        asked.set_exception(errors.from_dict(error)) if error is not None else asked.set_result(None)


def _sendable(done: DoneFrame, node: str, why: str) -> DoneFrame:
    """The same end of a call without what MessagePack cannot hold: an int of more than 64 bits, a lone surrogate."""
    error = done.answer.error or error_map(InvalidOutput(f"the answer cannot be sent: {why}", node=node))
    texts = {k: v.encode(errors="replace").decode() for k, v in error.items() if isinstance(v, str)}
    return replace(done, answer=replace(done.answer, outputs=None, error={**error, **texts}))
