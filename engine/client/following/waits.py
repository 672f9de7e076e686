"""What a client waits for: one reader of the logs tells all runs that it has published, so that a wait asks nobody anything.

A reader of its own for each wait costs a dozen questions (where the run began, a consumer made and deleted), far more than the
run itself. So the first wait opens a reader, and it stays while there are waits and a little longer. It notes what it sees of
every run, because a run may be over before somebody waits for it.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from functools import partial

import structlog

from dspex.bus import subjects
from dspex.bus.errors import RunNotFound
from dspex.bus.message import Message, id_time, new_id, run_of
from dspex.bus.port import Bus
from dspex.bus.serving import payloads
from dspex.bus.serving.deployed import FRESH
from dspex.bus.tasks import Tasks
from dspex.engine.client.following.follower import Follower
from dspex.engine.client.following.progress import RunProgress
from dspex.engine.graph import manifest
from dspex.engine.graph.manifest import Manifest

_log = structlog.get_logger("dspex.client")
IDLE = 10.0  # seconds without a wait after which nothing is read any more
KEPT = 10_000  # runs of which is kept how they ended, in case somebody asks


class _Everyone(Follower):
    """Follows every run that began after it did.

    Attributes:
        since: runs that began before this moment (seconds since the epoch) are not known, or not wholly.
    """

    def __init__(self, bus: Bus, app: str, manifests: Mapping[str, Manifest], first: str) -> None:
        super().__init__(bus, app, manifests, [first])
        self.since = at.timestamp() if (at := id_time(first)) is not None else math.inf
        self._waits: dict[str, list[asyncio.Future[None]]] = {}
        self._task: asyncio.Task[None] | None = None
        self._ends = False
        self._most = 2 * KEPT  # runs, until some are forgotten
        self._partly: set[str] = set()  # runs of which a record was not read

    def _of(self, id: str) -> RunProgress | None:
        if not id:
            return None
        run = self.runs.get(id)
        if run is None:
            run = self.runs[id] = RunProgress(id)
            if len(self.runs) > self._most:
                self._forget()
                self._most = len(self.runs) + KEPT  # where all of them go on, not to look at them again at each new one
        return run

    def _forget(self) -> None:
        """Keep the last runs, those that go on, and those that somebody waits for."""
        for id in list(self.runs)[:-KEPT]:
            run = self.runs[id]
            if not (run.waiting or run.open or id in self._waits):
                del self.runs[id]
                self._partly.discard(id)
                if (at := id_time(id)) is not None:
                    self.since = max(self.since, at.timestamp() + 1e-3)

    def began(self, stream: str, created: float, m: Message) -> RunProgress | None:
        """The run of a source event; None where not all of it may be known here."""
        id = run_of(stream, created, m)
        at = id_time(id)
        readers = [r for (where, source), r in self._sources.items() if where == stream and subjects.matches(source, m.subject)]
        if at is None or at.timestamp() < self.since or id in self._partly or not readers:
            return None
        for one in readers:
            self._arrived(stream, m, one, created)
        run = self.runs[id]
        # one that was taken before it was known to be a run, and of which nothing came: nobody noted when
        return None if run.done and run.finished is None else run

    async def told(self, run: RunProgress) -> None:
        """Wait until a run is done. Raises what ends the reading."""
        future = asyncio.get_running_loop().create_future()
        self._waits.setdefault(run.id, []).append(future)
        try:
            await future
        finally:
            if future.cancelled() and run.id in self._waits:
                self._waits[run.id].remove(future)

    async def read(self) -> None:
        """Read, and tell those who wait, until `end`; then until nobody waits."""
        self._task = asyncio.current_task()
        name = f"dspex-{self.app}-follow-{new_id()}"
        reader = await self.bus.reader(self.stream, self.filters(), after=await self.begin(), name=name)
        try:
            while self._waits or not self._ends:
                for message in await reader.read(500):
                    await self.take(await self._whole(message))
                for id in [id for id in self._waits if self.runs[id].done]:
                    self._tell(id, None)
        finally:
            await reader.close()

    def end(self) -> None:
        """Read no more once nobody waits."""
        self._ends = True
        if not self._waits and self._task is not None:
            self._task.cancel()

    def tell_all(self, error: BaseException | None) -> None:
        """End all waits: cancel them where there is no error."""
        for id in list(self._waits):
            self._tell(id, error or asyncio.CancelledError())

    def _tell(self, id: str, error: BaseException | None) -> None:
        for future in self._waits.pop(id):
            if future.done():
                continue
            if error is None:
                future.set_result(None)
            elif isinstance(error, asyncio.CancelledError):
                future.cancel()
            else:
                future.set_exception(error)

    async def _whole(self, m: Message) -> Message:
        """The message, with its body where somebody waits for it: a large record of a run that nobody waits for is left."""
        id = m.headers.get(subjects.RUN, "")
        if payloads.is_whole(m.headers) or id in self._waits or not subjects.matches(self._records, m.subject):
            return await super()._whole(m)
        self._partly.add(id)
        return m


class RunWaits:
    """The waits of one client. `app`: its application."""

    def __init__(self, app: str) -> None:
        self._app = app
        self._everyone: _Everyone | None = None
        self._tasks = Tasks("waits", lambda name, error: _log.warning("runs are followed no more", why=str(error)))
        self._read_at, self._applied, self._created = -FRESH, dict[str, Manifest](), dict[str, float]()
        self._waiting = 0
        self._idle: asyncio.TimerHandle | None = None

    async def wait(self, bus: Bus, stream: str, sequence: int) -> tuple[RunProgress, Mapping[str, Manifest]] | None:
        """The run whose source event lies at a place, once it is done, and what is applied.

        None where it has to be followed by itself: not all of it is known here. Raises RunNotFound, BusError.
        """
        self._waiting += 1
        if self._idle is not None:
            self._idle.cancel()
        try:
            run = await self._began(bus, stream, sequence)
            everyone = self._everyone
            if run is None or everyone is None:
                return None
            if not run.done:
                await everyone.told(run)
            return run, everyone.manifests
        finally:
            self._waiting -= 1
            if not self._waiting:
                self._idle = asyncio.get_running_loop().call_later(IDLE, self._end)

    async def close(self) -> None:
        """Read no more; who still waits is cancelled."""
        if self._idle is not None:
            self._idle.cancel()
        self._everyone = None
        await self._tasks.stop()

    async def _began(self, bus: Bus, stream: str, sequence: int) -> RunProgress | None:
        message = await bus.get(stream, sequence)
        created = await self._look(bus, stream)
        if message is None or created is None:
            raise RunNotFound(f"no event is stored at {stream}@{sequence}", run=f"{stream}@{sequence}")
        everyone = self._everyone
        if everyone is None or everyone.manifests is not self._applied:
            if everyone is not None:
                everyone.end()
            everyone = self._everyone = _Everyone(bus, self._app, self._applied, run_of(stream, created, message))
            self._tasks.start(everyone.read(), "read").add_done_callback(partial(self._ended, everyone))
        return everyone.began(stream, created, message)

    async def _look(self, bus: Bus, stream: str) -> float | None:
        """When a stream was made; None where there is none. What is applied is looked at again every few seconds."""
        now = asyncio.get_running_loop().time()
        if now - self._read_at > FRESH:
            applied = await manifest.of_application(bus, self._app)
            self._read_at, self._created = now, {}
            if applied != self._applied:
                self._applied = applied
        if stream not in self._created and (info := await bus.stream(stream)) is not None:
            self._created[stream] = info.created
        return self._created.get(stream)

    def _end(self) -> None:
        if self._everyone is not None:
            self._everyone.end()
            self._everyone = None

    def _ended(self, everyone: _Everyone, task: asyncio.Task[None]) -> None:
        if self._everyone is everyone:
            self._everyone = None
        everyone.tell_all(None if task.cancelled() else task.exception())
