"""One child process, as the pool sees it: a socket with frames, two pipes with what user code prints, an exit code."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import socket
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import structlog
from structlog.typing import FilteringBoundLogger

from dspex.bus import errors
from dspex.bus.codecs.checking import made
from dspex.bus.errors import DecodeError, WorkerLost
from dspex.bus.tasks import Tasks
from dspex.workers.answer import Answer
from dspex.workers.frames import (
    BatchesFrame,
    BatchRow,
    CallFrame,
    CancelFrame,
    ChunkFrame,
    DoneFrame,
    FatalFrame,
    Frame,
    FurtheredFrame,
    FurtherFrame,
    HelloFrame,
    JournalFrame,
    JournalledFrame,
    StartFrame,
    StateFrame,
    StateTag,
    StatusFrame,
    StopFrame,
    kept_states,
)
from dspex.workers.pool.children.output import forward
from dspex.workers.pool.children.zygote_process import Spawned
from dspex.workers.processes.link import Link

log: FilteringBoundLogger = structlog.get_logger("dspex.workers")

CLOSED_WITHIN = 0.5  # seconds between the end of a child's socket and the end of the child
STOP_WITHIN = 2.0  # seconds between being asked to stop and being killed


class GivenState(NamedTuple):
    """A saved state that a call is answered with. `body`: packed, see bus/serving/programs/form.py."""

    tag: StateTag
    body: bytes


class Caller(Protocol):
    """Who has a call run: told of its end, once, and meanwhile of what its program says and its model writes.

    `lost`: the process has ended. known: by this call, since no other one ran in it, and nobody else ended it.
    """

    def answered(self, answer: Answer) -> None: ...

    def lost(self, error: WorkerLost, *, known: bool) -> None: ...

    def retiring(self) -> None: ...

    def status(self, text: str) -> None: ...

    def chunk(self, field: str, text: str) -> None: ...

    def journal(self, frame: JournalFrame) -> None: ...

    def further(self, frame: FurtherFrame) -> None: ...


_numbers = itertools.count(1)


class Child:
    """A worker process.

    Attributes:
        number: of no other child of this process, those that are gone included: a pid may come again.
        generation: which imports it has; see Nursery.
        hello: its greeting; None before it is ready.
        busy, calls: calls it runs now, and has finished. ended_busy: it ended while it ran some.
        retiring: it takes no more calls.
        gone: set when the process is dead and its calls are answered.
        batches: that its calls wait for.
    """

    def __init__(self, pool: str, process: Spawned, generation: int = 0) -> None:
        self.pool, self.number, self.generation = pool, next(_numbers), generation
        self.hello: HelloFrame | None = None
        self.busy = self.calls = 0
        self.ended_busy = False
        self.retiring = False
        self.batches: list[BatchRow] = []
        self.gone = asyncio.Event()
        self._process = process
        self._why = ""  # it was killed by this process
        self._open: dict[int, Caller] = {}
        self._states: dict[str, None] = {}  # digests of the saved states that it has
        self._none_open = asyncio.Event()
        self._ids = itertools.count(1)
        self._started = time.monotonic()
        self._link = Link(self._handle, self._closed, together=True)
        self._greeting: asyncio.Future[HelloFrame] = asyncio.get_running_loop().create_future()
        self._tasks = Tasks(f"worker {process.pid}")

    async def begin(self, sock: socket.socket, printed: Mapping[str, int], start: StartFrame) -> None:
        """Send it its configuration, and hear it. `printed`: descriptors of the pipes that it prints into, by their names."""
        for name, descriptor in printed.items():
            reader = asyncio.StreamReader()
            protocol = asyncio.StreamReaderProtocol(reader)
            await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, os.fdopen(descriptor, "rb", buffering=0))  # noqa: B023
            self._tasks.start(forward(reader, name, self.pool, self.pid), name)
        await self._link.begin(sock)
        self._link.send(start)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """Exit code; minus the signal's number if one killed it; None while it runs, and where nobody saw it end."""
        return self._process.returncode

    @property
    def age(self) -> float:
        """Seconds since it was started."""
        return time.monotonic() - self._started

    async def ready(self, timeout: float) -> HelloFrame:
        """Its hello. Raises the error that it reported, or WorkerLost."""
        try:
            async with asyncio.timeout(timeout):
                hello = await asyncio.shield(self._greeting)
        except TimeoutError:
            raise WorkerLost(f"worker {self.pid} was not ready within {timeout:.0f} s") from None
        self.hello = hello
        return hello

    # -- calls -----------------------------------------------------------------------------------------------------
    def call(
        self,
        work: bytes,
        local: str | None,
        caller: Caller,
        lms: Sequence[str] | None = None,
        limit: float | None = None,
        state: GivenState | None = None,
        hedge: Mapping[str, float] | None = None,
        *,
        batch: bool = False,
    ) -> int:
        """Run a packed CallRequest; a number to cancel it by. The caller is told later, also where the process has died.

        `lms`: the profiles to try, where they are chosen already; `limit`, `hedge`, `batch`: see CallFrame.
        `state`: of its program; sent once to each process.
        """
        number = next(self._ids)
        self._none_open.clear()
        self._open[number] = caller
        if self.gone.is_set():
            asyncio.get_running_loop().call_soon(self._lose_all)
        else:
            if state is not None:
                if state.tag.digest not in self._states:
                    self._link.send(StateFrame(state.tag.digest, state.body))
                kept_states(self._states, state.tag.digest, None)
            tag = state.tag if state is not None else None
            names, hedged = list(lms) if lms else None, dict(hedge) if hedge else None
            said = {"id": number, "work": work, "local": local, "lms": names, "limit": limit, "state": tag}
            self._link.send(made(CallFrame, {**said, "hedge": hedged, "batch": batch}))
        return number

    def cancel(self, number: int, *, over: bool = False) -> None:
        """Ask the child to give a call up. `over`: see CancelFrame."""
        self._link.send(CancelFrame(number, over))

    def tell(self, frame: JournalledFrame | FurtheredFrame) -> None:
        """Say what came of what a call asked: of its journal, or whether it may ask another profile."""
        self._link.send(frame)

    @property
    def open(self) -> int:
        """Calls that it runs."""
        return len(self._open)

    def retire(self) -> None:
        """It takes no more calls. Those that it has are told, and those that only wait go elsewhere."""
        self.retiring = True
        for caller in list(self._open.values()):
            caller.retiring()

    async def idle(self) -> None:
        """Returns when no call runs."""
        while self._open:
            await self._none_open.wait()

    # -- end -------------------------------------------------------------------------------------------------------
    def kill(self, why: str = "") -> None:
        """End it at once. `why`: what its calls are told."""
        self._why = self._why or why
        self._process.kill()

    async def stop(self) -> None:
        """Ask it to end, kill it if it does not, and wait until it is gone."""
        self._link.send(StopFrame())
        try:
            async with asyncio.timeout(STOP_WITHIN):
                await self._process.wait()
        except TimeoutError:
            self.kill()
        await self._process.wait()
        await self.gone.wait()
        await self._tasks.stop()

    # -- frames ----------------------------------------------------------------------------------------------------
    def _handle(self, frame: Frame) -> None:
        match frame:
            case DoneFrame(id=number, answer=answer) if number in self._open:
                self._ended(number).answered(answer)
            case StatusFrame(id=number, text=text) if number in self._open:
                self._open[number].status(text)
            case ChunkFrame(id=number, field=field, text=text) if number in self._open:
                self._open[number].chunk(field, text)
            case JournalFrame(id=number) if number in self._open:
                self._open[number].journal(frame)
            case FurtherFrame(id=number) if number in self._open:
                self._open[number].further(frame)
            case BatchesFrame(rows=rows):
                self.batches = rows
            case HelloFrame() if not self._greeting.done():
                self._greeting.set_result(frame)
            case FatalFrame(error=error) if not self._greeting.done():
                self._greeting.set_exception(errors.from_dict(error))
            case _:
                pass  # about a call that nobody waits for any more

    def _closed(self, wrong: DecodeError | None) -> None:
        if wrong is not None:  # a program wrote to the socket of its process: nobody knows what else it has broken
            log.error("a worker sent what is no frame, and is ended", pool=self.pool, pid=self.pid, why=wrong.message)
            self.kill("it sent what is no frame")
        self._tasks.start(self._end(), "end")

    async def _end(self) -> None:
        """Wait until the process whose socket is closed has ended, and tell who waits for its answers."""
        try:
            async with asyncio.timeout(CLOSED_WITHIN):
                await self._process.wait()
        except TimeoutError:
            self.kill()  # it closed its socket and goes on: nobody can reach it any more
            await self._process.wait()
        if not self._greeting.done():
            self._greeting.set_exception(self._lost())
            self._greeting.exception()  # nobody may be waiting any more
        self.ended_busy = self.busy > 0
        self.gone.set()
        self._lose_all()

    def _lose_all(self) -> None:
        by_itself = bool(self._why) or self.returncode not in (None, -signal.SIGKILL)
        known = by_itself and len(self._open) == 1
        for number in list(self._open):
            error = self._lost()
            error.retry_after = 0.0 if known else None  # to wait would change nothing
            self._ended(number).lost(error, known=known)

    def _ended(self, number: int) -> Caller:
        caller = self._open.pop(number)
        if not self._open:
            self._none_open.set()
        return caller

    def _lost(self) -> WorkerLost:
        code = self.returncode
        if code is None:
            how = "ended with the process that started it"
        elif self._why:
            how = f"was ended: {self._why}"
        else:
            how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        return WorkerLost(f"worker {self.pid} of pool {self.pool} {how}", node=self.pool)
