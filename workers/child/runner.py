"""Runs the calls that the parent sends."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from dspex.bus.errors import InvalidInput, InvalidOutput
from dspex.bus.records import CallRequest
from dspex.bus.tasks import Tasks, first
from dspex.workers.answer import error_map
from dspex.workers.answerers.router import Router
from dspex.workers.frames import CallFrame, CancelFrame, DoneFrame, Frame, Pipe, StatusFrame, StopFrame


class Runner:
    """Runs calls as tasks of one loop."""

    def __init__(self, pipe: Pipe, router: Router) -> None:
        self._pipe, self._router = pipe, router
        self._calls: dict[int, asyncio.Task[None]] = {}
        self._tasks = Tasks("child")
        self._stopped = asyncio.Event()

    def handle(self, frame: Frame) -> None:
        """Act on a frame. Called on the loop."""
        match frame:
            case CallFrame(id=number):
                task = self._tasks.start(self._run(frame), f"call-{number}")
                self._calls[number] = task
                task.add_done_callback(lambda _: self._calls.pop(number, None))
            case CancelFrame(id=number) if number in self._calls:
                self._calls[number].cancel()
            case StopFrame():
                self._stopped.set()
            case _:
                pass  # the end of a call that has ended already

    async def wait(self) -> None:
        """Wait until the parent says stop. Raises what a call raised that could not be answered: the parent sees this end."""
        await first(self._stopped.wait(), self._tasks.wait())

    async def _run(self, call: CallFrame) -> None:
        work = CallRequest.unpack(call.work)
        answer = await self._router.run(work, call.local, lambda text: self._pipe.send(StatusFrame(call.id, text)))
        done = DoneFrame(call.id, answer)
        try:
            self._pipe.send(done)
        except InvalidInput as error:  # a call that never ends would end this process, and its other calls with it
            self._pipe.send(_sendable(done, work.node, error.message))


def _sendable(done: DoneFrame, node: str, why: str) -> DoneFrame:
    """The same end of a call without what MessagePack cannot hold: an int of more than 64 bits, a lone surrogate."""
    error = done.answer.error or error_map(InvalidOutput(f"{node}: the answer cannot be sent: {why}", node=node))
    texts = {k: v.encode(errors="replace").decode() for k, v in error.items() if isinstance(v, str)}
    return replace(done, answer=replace(done.answer, outputs=None, error={**error, **texts}))
