"""Engines in processes of their own, as the benchmarks hold them: start them, let them stand still, hear what they say."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nats
from jobs.peers import event
from jobs.topologies import JOBS

from dspex.bus import subjects
from dspex.bus.message import new_id
from dspex.bus.nats import connect
from dspex.bus.port import NewMessage
from dspex.bus.serving.keys.keyring import Keyring
from dspex.engine.graph.nodes import KEYED_PARTITIONS

TOPOLOGY, STREAM, SUBJECT = "bench", "BENCH_RUN", "bench.run"
KEY = {"SEAL": "a key of the benchmark, and of nothing else"}
BATCH = 500  # events of one atomic batch
LONGEST = 300.0  # seconds that anything here may take


@dataclass
class Running:
    """An engine's process. `spawned`: when it was started, on the monotonic clock. `said`: its lines so far."""

    process: asyncio.subprocess.Process
    spawned: float
    said: list[dict[str, Any]] = field(default_factory=list)
    _more: asyncio.Event = field(default_factory=asyncio.Event)
    _ended: bool = False

    async def listen(self) -> None:
        """Take in what it says, until it ends."""
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            self.said.append(json.loads(line))
            self._more.set()
        self._ended = True
        self._more.set()

    def lines(self, what: str, since: int = 0) -> list[dict[str, Any]]:
        """What it said of one kind."""
        return [line for line in self.said[since:] if line["what"] == what]

    async def more(self) -> None:
        """Wait until it says something."""
        if self._ended:
            raise SystemExit("bench: an engine ended by itself")
        self._more.clear()
        await self._more.wait()

    async def heard(self, what: str, since: int = 0) -> dict[str, Any]:
        """The first line of a kind, as soon as it is said."""
        while not (found := self.lines(what, since)):
            await self.more()
        return found[0]

    @property
    def owned(self) -> int:
        """How many partitions it owns."""
        owns = self.lines("owns")
        return owns[-1]["partitions"] if owns else 0


@asynccontextmanager
async def engine(
    url: str,
    app: str,
    stream: str,
    subject: str,
    partitions: int = 1,
    sealed: bool = False,
    job: str = "hops",
    number: int = 0,
    longest: float | None = LONGEST,
) -> AsyncIterator[Running]:
    """An engine from its start to its drain.

    `job`, `number`: what it does, of jobs/topologies.py. `longest`: seconds that it may live; None: as long as it takes.
    """
    script = Path(__file__).with_name("one_engine.py")
    where = ["--url", url, "--app", app, "--stream", stream, "--subject", subject, "--partitions", str(partitions)]
    where += ["--job", job, "--number", str(number)]
    more, spawned = ["--sealed"] if sealed else [], time.monotonic()
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(script), *where, *more, stdout=asyncio.subprocess.PIPE, env={**os.environ, **KEY}
    )
    running = Running(process, spawned)
    listening = asyncio.create_task(running.listen())
    try:
        async with asyncio.timeout(longest):
            yield running
            process.send_signal(signal.SIGTERM)
            await listening
    finally:
        listening.cancel()
        with suppress(ProcessLookupError):  # it has ended
            process.kill()
        await process.wait()


async def shared(engines: Sequence[Running], partitions: int) -> None:
    """Wait until each engine owns its share."""
    for one in engines:
        while one.owned != partitions // len(engines):
            await one.more()


def new_app() -> str:
    """The name of an application that nothing is stored of."""
    return f"bench{uuid.uuid4().hex[:6]}"


# -- a stream that is full before anybody reads it -------------------------------------------------------------------------
@dataclass(frozen=True)
class Race:
    """What some engines needed for some events. `cpu`: seconds of all their processes together; `server`: of the server's."""

    app: str
    seconds: float
    cpu: float
    server: float = 0.0


async def race(
    url: str,
    events: int,
    *,
    processes: int,
    partitions: int,
    sealed: bool | None = None,
    job: str = "hops",
    number: int = 0,
    results: int | None = None,
    last: int | None = None,
    make: Callable[[int], bytes] = event,
    server: Callable[[], float] = lambda: 0.0,
) -> Race:
    """Let engines take as many events, from a stream that fills while they stand still: no start is in it, and no publisher.

    Args:
        sealed: the events are of 1,000 sessions, and their payloads are sealed, or in clear text. None: they are of no session.
        job, number: what they do. results: how many come of it; None: one of each event.
        server: seconds of CPU that the server used so far.
    """
    app = new_app()
    await empty(url)
    async with AsyncExitStack() as stack:
        engines = [
            await stack.enter_async_context(engine(url, app, STREAM, SUBJECT, partitions, bool(sealed), job, number))
            for _ in range(processes)
        ]
        await shared(engines, partitions + JOBS[job].behind(number) * KEYED_PARTITIONS)
        for one in engines:
            one.process.send_signal(signal.SIGSTOP)
        try:
            await (
                fill(url, events, last=last, make=make) if sealed is None else fill_sessions(url, app, events, sealed=sealed)
            )
        finally:
            heard, used = [len(one.said) for one in engines], server()
            for one in engines:
                one.process.send_signal(signal.SIGCONT)
        began = [await one.heard("goes on", since) for one, since in zip(engines, heard)]
        wanted = events if results is None else results
        while (taken := _taken(engines, heard)) < wanted:
            await _any_more(engines)
        assert taken == wanted, f"{taken} results were stored of {wanted}"
        used = server() - used
        commits = [one.lines("commit", since) for one, since in zip(engines, heard)]
    ends = [(begin, lines[-1]) for begin, lines in zip(began, commits) if lines]
    seconds = max(end["at"] for _, end in ends) - min(begin["at"] for begin in began)
    return Race(app, seconds, sum(end["cpu"] - begin["cpu"] for begin, end in ends), used)


def _taken(engines: Sequence[Running], heard: Sequence[int]) -> int:
    return sum(line["events"] for one, since in zip(engines, heard) for line in one.lines("commit", since))


async def _any_more(engines: Sequence[Running]) -> None:
    waits = [asyncio.ensure_future(one.more()) for one in engines]
    try:
        # A line may come before these tasks begin to wait for one.
        await asyncio.wait(waits, timeout=0.2, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()


async def empty(url: str, stream: str = STREAM, subject: str = SUBJECT) -> None:
    """Make the stream, or make it anew."""
    nc = await nats.connect(url)
    js = nc.jetstream()
    try:
        await js.delete_stream(stream)
    except nats.js.errors.NotFoundError:
        pass
    await js.add_stream(name=stream, subjects=[subject], allow_direct=True, allow_atomic=True)
    await nc.close()


async def fill(
    url: str,
    count: int,
    stream: str = STREAM,
    subject: str = SUBJECT,
    *,
    last: int | None = None,
    make: Callable[[int], bytes] = event,
) -> None:
    """Store events of 1,000 keys behind what the stream has. `last`: number of one more. `make`: an event by its number."""
    nc = await nats.connect(url)
    js = nc.jetstream()
    wanted = (await js.stream_info(stream)).state.messages + count + (last is not None)
    for i in [*range(count), *([] if last is None else [last])]:
        await nc.publish(subject, make(i), headers={subjects.MESSAGE_ID: new_id(), subjects.KEY: f"c{i % 1000:04}"})
        if i % 5000 == 4999:
            await nc.flush()
    await nc.flush()
    while (await js.stream_info(stream)).state.messages < wanted:
        await asyncio.sleep(0.02)
    await nc.close()


async def fill_sessions(url: str, app: str, count: int, *, sealed: bool) -> None:
    """The same events, of 1,000 sessions; sealed, if that is wanted."""
    bus = await connect(url)
    keyring = Keyring(bus, app, "SEAL", KEY)
    for start in range(0, count, BATCH):
        drafts = [_in_session(i) for i in range(start, min(start + BATCH, count))]
        if sealed:
            await keyring.prepare(drafts)
            drafts = [await keyring.sealed(draft) for draft in drafts]
        await bus.commit(drafts)
    await bus.close()


def _in_session(i: int) -> NewMessage:
    key = f"c{i % 1000:04}"
    return NewMessage(SUBJECT, event(i), {subjects.MESSAGE_ID: new_id(), subjects.KEY: key, subjects.SESSION: key})


async def forget(url: str, app: str) -> None:
    """Remove the streams of an application."""
    nc = await nats.connect(url)
    js = nc.jetstream()
    for info in await js.streams_info():
        if app in (info.config.name or ""):
            await js.delete_stream(info.config.name)
    await nc.close()
