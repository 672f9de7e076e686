"""Engines and workers on machines whose clocks are an hour wrong, or are set: nothing is decided by them."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
from broken.wrong_clock import machine
from cli_bench import CLASSIFY, TRIAGE, Project, stand_in
from waiting import until

from dspex.bus import nats, subjects
from dspex.bus.port import Bus, Delivery
from dspex.bus.records import CallRecord, CallRequest
from dspex.bus.serving.work_loop import Job, WorkLoop
from dspex.engine.client.client import Client

HOUR = 3600
WITHIN = 60.0  # seconds until a test gives up
SUPPORT = Path(__file__).parents[2] / "support"


@asynccontextmanager
async def engine(url: str, name: str, env: Mapping[str, str], *options: str) -> AsyncIterator[tuple[Process, str]]:
    """An engine with two partitions in an environment, and its id; killed at the end."""
    arguments = (str(SUPPORT / "engine_process.py"), url, name, f"{name}.in", f"{name}.out", "2", *options)
    process = await asyncio.create_subprocess_exec(sys.executable, *arguments, stdout=PIPE, stderr=PIPE, env=env)
    assert process.stdout is not None
    try:
        async with asyncio.timeout(WITHIN):
            said = json.loads(await process.stdout.readline())
        yield process, said["id"]
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def beats(bus: Bus, name: str, engine: str, count: int) -> None:
    """Wait for so many heartbeats of an engine."""
    bucket, key, seen = await bus.bucket(subjects.bucket(name)), subjects.member_key("engine", engine), set[int]()

    async def enough() -> bool:
        found = await bucket.get(key)
        seen.add(found[1] if found else 0)
        return len(seen) > count

    await until(enough)


async def stored(bus: Bus, name: str, subject: str, count: int) -> list[bytes]:
    """The first messages of a subject in the application's stream."""
    reader = await bus.reader(subjects.stream(name), [subject], after=0, name=f"{name}-test")
    found: list[bytes] = []
    async with asyncio.timeout(WITHIN):
        while len(found) < count:
            found += [m.data for m in await reader.read(count)]
    await reader.close()
    return found


def worker(bus: Bus, app: str) -> WorkLoop:
    async def answer(request: CallRequest) -> CallRecord:
        return CallRecord(
            call=request.call, try_number=request.try_number, attempt=request.attempt, topology=request.topology,
            node=request.node, outputs={"label": str(request.inputs["n"])}, error=None, worker="test",
        )  # fmt: skip

    def accept(request: CallRequest, delivery: Delivery) -> Job:
        return partial(answer, request)

    return WorkLoop(bus, app, "lightweight", accept, free=lambda: 100, failed=lambda error: None)


@pytest.mark.long
@pytest.mark.asyncio
@pytest.mark.parametrize("clock", [HOUR, -HOUR])
async def test_open_calls_are_answered_though_the_next_engines_clock_is_an_hour_wrong(
    nats_url: str, unique: str, clock: int, tmp_path: Path
) -> None:
    bus = await nats.connect(nats_url)
    client, work = Client(bus=bus, app=unique), worker(bus, unique)
    try:
        async with engine(nats_url, unique, os.environ, "calls"):
            for n in range(4):
                await client.publish(f"{unique}.in", {"n": n}, key=str(n))
            await stored(bus, unique, subjects.work_of(unique, "processed"), 4)
        async with engine(nats_url, unique, machine(tmp_path, clock), "calls", "0.3s") as (_, id):
            for n in range(4, 8):
                await client.publish(f"{unique}.in", {"n": n}, key=str(n))
            await stored(bus, unique, subjects.work_of(unique, "processed"), 8)
            await beats(bus, unique, id, 2)  # what it takes for due by its clock is over
            work.start()
            outputs = await stored(bus, unique, f"{unique}.out", 8)
        assert sorted(json.loads(data)["label"] for data in outputs) == [str(n) for n in range(8)]
        assert [letter async for letter in client.dead_letters("*")] == []
    finally:
        await work.kill()
        await bus.close()


@pytest.mark.long
@pytest.mark.asyncio
async def test_an_engine_whose_clock_is_set_back_takes_over_from_one_that_froze(
    nats_url: str, unique: str, tmp_path: Path
) -> None:
    bus = await nats.connect(nats_url)
    client = Client(bus=bus, app=unique)

    async def shared() -> bool:
        return any(len(stage["owners"]) == 2 for stage in (await client.status())["stages"])

    try:
        async with (
            engine(nats_url, unique, os.environ, "0.4s") as (frozen, _),
            engine(nats_url, unique, machine(tmp_path, 0, step=-HOUR), "0.4s") as (other, id),
        ):
            await until(shared)
            frozen.send_signal(signal.SIGSTOP)
            await beats(bus, unique, id, 2)  # it has seen the last heartbeat of the other one
            other.send_signal(signal.SIGUSR1)
            for n in range(8):
                await client.publish(f"{unique}.in", {"n": n}, key=str(n))
            outputs = await stored(bus, unique, f"{unique}.out", 8)
        assert sorted(json.loads(data)["n"] for data in outputs) == list(range(8))
    finally:
        await bus.close()


@pytest.mark.long
@pytest.mark.parametrize("clock", [HOUR, -HOUR])
def test_a_worker_whose_clock_is_an_hour_wrong_answers_calls_at_once(
    nats_url: str, unique: str, tmp_path: Path, clock: int
) -> None:
    with stand_in() as model:
        settings = f'topologies = ["triage.yaml"]\nlm.main = {{ model = "openai/stand-in", base_url = "{model}" }}\n'
        project = Project(tmp_path, unique, settings, NATS_URL=nats_url)
        project.write("triage.yaml", TRIAGE.format(u=unique, signature=CLASSIFY))
        folder = tmp_path / "machine"
        folder.mkdir()
        wrong = machine(folder, clock)["PYTHONPATH"]
        with project.start("run", "--pools", "none") as run, project.start("worker", "lightweight", PYTHONPATH=wrong) as worker:
            run.until("ready")
            worker.until("ready")
            done = project.publish("text=hello")
            assert (done.code, project.here("dlq", "ls").out) == (0, ""), done.err
