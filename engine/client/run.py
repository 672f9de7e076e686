"""A run as a client holds it: its state, the wait for its end, what it sent to sinks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from os import PathLike
from typing import Any

from dspex.bus import subjects
from dspex.bus.errors import CallTimeout, RunFailed, RunNotFound
from dspex.bus.local.whole_file import write
from dspex.bus.message import Event, new_id
from dspex.bus.port import Bus, Reader
from dspex.bus.settings.duration import Duration, human, seconds
from dspex.engine.client.call import Result
from dspex.engine.client.calls import cancelling
from dspex.engine.client.calls.answers import Submission, answer_to
from dspex.engine.client.calls.cancelling import CancelledRun
from dspex.engine.client.following.follower import Follower
from dspex.engine.client.following.naming import AT, find, full_ids
from dspex.engine.client.following.progress import RunInfo, RunProgress
from dspex.engine.client.following.waits import RunWaits
from dspex.engine.client.runs import kept
from dspex.engine.client.runs.export import RunFile, written
from dspex.engine.client.runs.history import History, history
from dspex.engine.client.runs.info import info_of
from dspex.engine.client.runs.listing import named
from dspex.engine.client.runs.outputs import outputs
from dspex.engine.client.runs.steps import Step
from dspex.engine.client.runs.then.builds import builds_of
from dspex.engine.client.runs.then.state import NOT_READ, state_before
from dspex.engine.client.runs.tree import Happening, Tree
from dspex.engine.graph import manifest
from dspex.engine.graph.manifest import Manifest

FULL_ID = 36  # characters; what is shorter is the end of one
AGAIN = 0.2  # seconds between two looks at a run that is followed
MANY = 5000  # entries of all logs that are passed over in between


class Run:
    """Everything that one source event caused.

    Attributes:
        id: of the run. One that this client published is named by the place of its event, `<stream>@<sequence>`, until it
            is looked up, so that publishing needs no second question; one that was named by its end has only that until then.
            That of a submitted call is `<pool>/<call>` until then.
        subject, stream, sequence: where its event is stored, if this client published it.
        duplicate: the same event was stored before.
        later: of a fork that this client has made, what it leads to in other runs, as `dspex fork --json` has it; else None.
    """

    def __init__(
        self,
        bus: Bus,
        app: str,
        id: str,
        subject: str = "",
        stream: str = "",
        sequence: int = 0,
        duplicate: bool = False,
        waits: RunWaits | None = None,
        submission: Submission | None = None,
    ) -> None:
        self._bus = bus
        self._waits = waits
        self._app = app
        self.id = id
        self.subject = subject
        self.stream = stream
        self.sequence = sequence
        self.duplicate = duplicate
        self.later: Mapping[str, Any] | None = None
        self._submission = submission or Submission.of(id)
        self._told: tuple[RunProgress, Mapping[str, Manifest]] | None = None  # what a wait has seen of it

    async def _known(self) -> tuple[str, Mapping[str, Manifest]]:
        """The full id, and what is applied."""
        applied = await manifest.of_application(self._bus, self._app)
        if AT in self.id[1:] or "/" in self.id:
            (self.id,) = await full_ids(self._bus, self._app, [self.id])
        elif self.id.startswith("@"):
            self.id = await named(self._bus, self._app, applied, self.id)
        elif len(self.id) < FULL_ID:
            self.id = await find(self._bus, self._app, applied, self.id)
        return self.id, applied

    async def info(self) -> RunInfo:
        """What is known of it now. Raises RunNotFound."""
        if (info := (await kept.infos(self._bus, self._app, (await self._known())[0])).get(self.id)) is not None:
            return info
        past, applied = await self.history()
        return info_of(past, self._app, applied)

    async def wait(self, timeout: Duration | None = None) -> RunInfo:
        """Until nothing that it caused is outstanding. Raises RunFailed if it has dead letters, CallTimeout."""
        try:
            async with asyncio.timeout(seconds(timeout) if timeout is not None else None):
                info = await self._finished()
        except TimeoutError:
            raise _too_late([self.id], 1, timeout) from None
        if info.dead_letters:
            how = "was cancelled" if info.status == "cancelled" else "is done"
            raise RunFailed(f"run {info.id} {how}, with {info.dead_letters} dead letter(s)", run=info.id)
        return info

    async def _finished(self) -> RunInfo:
        """What is known of it once it is done."""
        place = f"{self.stream}{AT}{self.sequence}" if self.sequence else self.id
        if self._waits is not None and AT in place and (AT in self.id or "/" in self.id):
            stream, _, number = place.rpartition(AT)
            told = await self._waits.wait(self._bus, stream, int(number)) if number.isdecimal() else None
            if told is not None:
                self.id, self._told = told[0].id, told
                return told[0].info(told[1])
        id, applied = await self._known()
        if (info := (await kept.infos(self._bus, self._app, id)).get(id)) is not None:
            return info
        async for finished in finishing(self._bus, self._app, [id], None, applied):
            return finished[0].info(applied)
        raise RunNotFound(f"run {id} is not known", run=id)

    async def result(self, timeout: Duration | None = None) -> Result[Any]:
        """The result of a submitted call (`Client.submit`), when it is there; in any process of the user who submitted it, by
        the id that its run had then (`pool/call`). By the full id of the run it is read from the application's stream, which
        takes the right to read that.

        Raises the call's error, CallTimeout after `timeout`, RunFailed where the call's own time was over, RunNotFound where
        the run is no submitted call, or its record is not kept any more; without a timeout also where none of its name is
        stored, and this user may look for that.
        """
        from dspex.engine.client.calls.submit import finished

        if self._submission is not None:
            return await answer_to(self._bus, self._app, self._submission, timeout)
        return await finished(self, self._bus, self._app, timeout)

    async def steps(self, *, follow: bool = False) -> AsyncIterator[Step]:
        """The attempts at calls so far, in the order in which they were asked for. Raises RunNotFound.

        `follow`: each as it ends, until nothing of the run is open.
        """
        (id, applied), seen = await self._known(), set[tuple[str, int]]()
        if (file := await kept.kept(self._bus, self._app, id)) is not None:
            for step in file.steps:
                yield step
            return
        async with AsyncExitStack() as stack:
            reader = await stack.enter_async_context(self._news()) if follow else None
            while True:
                found = await history(self._bus, self._app, applied, id)
                for step in Tree(found, applied).steps:
                    if (step.call, step.attempt) not in seen and (not follow or step.ended):
                        seen.add((step.call, step.attempt))
                        yield step
                if reader is None or found.done:
                    return
                await asyncio.sleep(AGAIN)
                await reader.read(MANY)

    @asynccontextmanager
    async def _news(self) -> AsyncGenerator[Reader]:
        """What engines store from now on."""
        stream, name = subjects.stream(self._app), f"dspex-{self._app}-steps-{new_id()}"
        info = await self._bus.stream(stream)
        logs = [subjects.log(self._app, "*", "*", "*")]
        reader = await self._bus.reader(stream, logs, after=info.last if info is not None else 0, name=name)
        try:
            yield reader
        finally:
            await reader.close()

    async def tree(self) -> Happening:
        """Its source event, with all that it caused below it. Raises RunNotFound."""
        if (file := await self.kept()) is not None:
            return file.root
        return Tree(*await self.history()).root

    async def export(self, path: str | PathLike[str]) -> None:
        """Write it to a file, for `Driver.replay`. Raises RunNotFound; RecordingIncomplete where a call has no record."""
        file = await self.file(state=True)
        await asyncio.to_thread(write, path, file.text or written(file))

    async def file(self, *, state: bool = False) -> RunFile:
        """What its file would say, also where a call has no record. `state`: with what operators kept when it began: to do it
        again. Raises RunNotFound.
        """
        if (one := await self.kept()) is not None:
            return one
        past, applied = await self.history()
        then = await state_before(self._bus, self._app, past, applied) if state else NOT_READ
        builds = await builds_of(self._bus, self._app, past) if state else {}
        return RunFile.of(info_of(past, self._app, applied), Tree(past, applied).root, past, then, builds)

    async def kept(self) -> RunFile | None:
        """What is kept of it where it is in no log, such as one that was imported. None for any other; for tools."""
        return await kept.kept(self._bus, self._app, (await self._known())[0])

    async def remove(self) -> str:
        """Remove it where it is in no log; its full id. Raises ConfigError (DX125) for another one, RunNotFound. For tools."""
        id, applied = await self._known()
        if not await kept.remove(self._bus, self._app, id):
            past = await history(self._bus, self._app, applied, id)
            session = past.source.headers.get(subjects.SESSION)
            raise kept.not_apart(id, session)
        return id

    async def history(self) -> tuple[History, Mapping[str, Manifest]]:
        """The commits that took something of it, and what is applied; for tools. Raises RunNotFound."""
        id, applied = await self._known()
        return await history(self._bus, self._app, applied, id), applied

    async def cancel(self) -> None:
        """End its open calls in their workers, with the requests that they make, and those that follow from what is under way,
        and withdraw its approvals: each becomes a dead letter, which can be redriven. What was sent stays. A run that is over
        is left as it is.

        It returns when nothing of the run is open any more, or after ten seconds: a call that waits for a slot ends when it
        would begin. Events that wait for their time go on then.

        Raises Saturated where no process of a pool is there that could end its calls; RunNotFound; BusError.
        """
        await self.cancelled()

    async def cancelled(self) -> CancelledRun:
        """`cancel`, and what came of it; for tools."""
        id, applied = await self._known()
        return await cancelling.cancel(self._bus, self._app, applied, id)

    async def outputs(self) -> list[Event[Any]]:
        """What it sent to sinks so far, in order."""
        progress, applied = self._told or (None, {})
        if progress is None or progress.after is None:
            id, applied = await self._known()
            if (file := await kept.kept(self._bus, self._app, id)) is not None:
                return file.outputs
            return (await outputs(self._bus, self._app, applied, [id]))[id]
        return (await outputs(self._bus, self._app, applied, [progress.id], after=progress.after))[progress.id]

    def __repr__(self) -> str:
        return f"Run({self.id!r})"


async def finishing(
    bus: Bus, app: str, ids: Iterable[str], timeout: Duration | None, applied: Mapping[str, Manifest] | None = None
) -> AsyncIterator[list[RunProgress]]:
    """The runs that have just finished, as they do, until all of `ids` have. Raises CallTimeout after `timeout`.

    `ids`: full ones; see `full_ids`. `applied`: what is applied, where that was read just now.
    """
    follower = Follower(bus, app, applied if applied is not None else await manifest.of_application(bus, app), ids)
    try:
        async with asyncio.timeout(seconds(timeout) if timeout is not None else None):
            async for finished in follower.follow():
                yield finished
    except TimeoutError:
        left = [r.id for r in follower.runs.values() if not r.done]
        raise _too_late(left, len(follower.runs), timeout) from None


def _too_late(left: Sequence[str], of: int, timeout: Duration | None) -> CallTimeout:
    return CallTimeout(
        f"{len(left)} of {of} runs are not finished after {human(seconds(timeout or 0))}",
        run=left[0],
        fix="wait longer, or see what they wait for: dspex status",
    )
