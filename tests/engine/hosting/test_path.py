"""How many files an event passes, from the reader's bytes to the commit: traced on a real server."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, Self

import pytest
from waiting import until

from dspex.bus import nats
from dspex.bus.port import Bus, Delivery
from dspex.bus.records import CallRecord, CallRequest
from dspex.bus.serving.work_loop import Job, WorkLoop
from dspex.engine.client.client import Client
from dspex.engine.hosting.host import Host
from dspex.operators.topology import Topology

ROOT = str(Path(__file__).parents[3]) + "/"
TESTS = f"{ROOT}tests/"
CLOCK = "bus/serving/server_clock.py"  # looked at once for each chunk: no event goes there
MADE = "bus/codecs/checking.py"  # makes an object of its fields, as a dataclass does itself
MOST_FILES = 8
MOST_CHANGES = 20
ROUNDS = 5  # other tasks of the engine may run in between: the shortest path is the event's own


class Trail:
    """The files whose functions run from where the reader gives a message out until the committer is asked for a commit.

    Both the way into a function of another file and the way back are a change of file.
    """

    def __init__(self) -> None:
        self.paths: list[list[str]] = []
        self._now: list[str] | None = None

    def __enter__(self) -> Self:
        sys.setprofile(self._look)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)

    def _look(self, frame: FrameType, event: str, argument: object) -> None:
        if event not in ("call", "return"):
            return
        name, function = _ours(frame), frame.f_code.co_name
        if event == "call" and (name, function) == ("bus/nats/reader.py", "read"):
            self._now = [name]  # it may wait again: what counts begins where it is called for the last time
        elif self._now is None:
            return
        elif event == "call" and (name, function) == ("engine/runtime/committer.py", "request_commit"):
            self.paths.append([*self._now, name])
            self._now = None
        else:
            name = _caller(frame) if event == "return" else name
            if name and name not in (CLOCK, MADE, self._now[-1]):
                self._now.append(name)


def _ours(frame: FrameType) -> str:
    """The file of a frame within the package; "" for another's."""
    name = frame.f_code.co_filename
    return name.removeprefix(ROOT) if name.startswith(ROOT) and not name.startswith(TESTS) and ".venv" not in name else ""


def _caller(frame: FrameType) -> str:
    back = frame.f_back
    while back is not None and not _ours(back):
        back = back.f_back
    return _ours(back) if back is not None else ""


def said(path: list[str]) -> str:
    return f"{len(set(path))} files, {len(path) - 1} changes: {' > '.join(path)}"


@asynccontextmanager
async def running(url: str, app: str, topology: Topology) -> AsyncIterator[Bus]:
    """An engine with its topology; a connection for workers."""
    async with AsyncExitStack() as stack:
        buses = [await nats.connect(url) for _ in range(2)]
        for bus in buses:
            stack.push_async_callback(bus.close)
        host = Host(buses[0], app, [topology.graph], engine="one")
        await host.start()
        stack.push_async_callback(host.drain)
        yield buses[1]


def publishing(url: str, app: str, subject: str, data: object) -> Callable[[], Awaitable[None]]:
    """Publish from another thread, which is not traced."""

    async def publish() -> None:
        bus = await nats.connect(url)
        await Client(bus=bus, app=app).publish(subject, data)
        await bus.close()

    async def elsewhere() -> None:
        await asyncio.to_thread(asyncio.run, publish())

    return elsewhere


@pytest.mark.asyncio
async def test_a_native_event_passes_few_files_from_the_readers_bytes_to_the_commit(nats_url: str, unique: str) -> None:
    topology = Topology("short")
    topology.source(f"{unique}.in").map(lambda d: {**d, "seen": True}, name="see").sink(f"{unique}.out")
    trail = Trail()
    async with running(nats_url, unique, topology):
        for n in range(ROUNDS):
            with trail:
                await publishing(nats_url, unique, f"{unique}.in", {"n": n})()
                await until(lambda n=n: len(trail.paths) > n)
    path = min(trail.paths, key=len)
    assert len(set(path)) <= MOST_FILES, said(path)
    assert len(path) - 1 <= MOST_CHANGES, said(path)


@pytest.mark.asyncio
async def test_a_call_passes_few_files_from_its_records_bytes_to_the_commit(nats_url: str, unique: str) -> None:
    topology = Topology("asking")
    topology.source(f"{unique}.in").predict("text -> answer", name="ask").sink(f"{unique}.out")
    trail = Trail()
    async with running(nats_url, unique, topology) as bus:
        loop = work_loop(bus, unique)
        loop.start()
        for n in range(1, ROUNDS + 1):
            with trail:
                await publishing(nats_url, unique, f"{unique}.in", {"text": str(n)})()
                await until(lambda n=n: len(trail.paths) >= 2 * n)  # the event's way there, and the record's way back
        await loop.drain(1.0)
    path = min(trail.paths[1::2], key=len)
    assert len(set(path)) <= MOST_FILES, said(path)
    assert len(path) - 1 <= MOST_CHANGES, said(path)


def work_loop(bus: Bus, app: str) -> WorkLoop:
    def accept(request: CallRequest, delivery: Delivery) -> Job:
        return partial(answer, request)

    return WorkLoop(bus, app, "lightweight", accept, free=lambda: 10, failed=lambda error: None)


async def answer(request: CallRequest) -> CallRecord:
    values: dict[str, Any] = {"call": request.call, "try_number": request.try_number, "attempt": request.attempt}
    return CallRecord(**values, topology=request.topology, node=request.node, outputs={"answer": "yes"}, worker="test")
