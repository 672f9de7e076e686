"""dspex, with a pool as `dspex worker` runs it. Each is a way to call the same program.

* direct: `client.call`. Nothing is stored before the answer.
* cached: the same with `cache=`, of a hundred texts by turns: answers that the pool has in memory.
* durable: `client.submit`, of which `dspex run` makes a call, and `run.result`: stored, answered, read back.
* session, required: turns of sessions that have 200 turns each, which the call gets as its history, as a model would; with
  affinity="require", whose worker is found first.
* awaited: an event is published, and a topology calls the program for it; then `run.wait`. What it gave is not read.
* watched: the same, but its client reads all results by one `client.watch`.
"""

from __future__ import annotations

import asyncio
import itertools
import tempfile
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Literal

import dspex
from calling.load import Coroutines
from calling.processes import FOLDER, System, module, running
from calling.where import Where
from dspex.bus import subjects
from dspex.bus.port import StreamConfig
from dspex.bus.serving.sessions.state import MOST_TURNS, TTL, SessionState, StoredTurn
from dspex.bus.serving.sessions.store import SessionStore
from dspex.bus.settings.imports import lean_nats
from dspex.bus.settings.model import Settings

lean_nats()  # as in `dspex run`

APP, POOL, CROWD, SIGNATURE = "calls", "calls", "crowd", "text -> reply"
SOURCE, SINK = "calls.asked", "calls.answered"
LIMIT = "60s"
SESSIONS = [f"session {n}" for n in range(64)]
KNOWN = [f"known {n}" for n in range(100)]


def _program(where: Where) -> str:
    return f"calling.programs:{where.program}"


topology = dspex.Topology("durable")  # an event comes, the program is called, and what it gave is stored
topology.source(SOURCE).program(_program(Where.here()), SIGNATURE, name="call", pool=POOL).sink(SINK)


@asynccontextmanager
async def direct(where: Where) -> AsyncGenerator[System]:
    """A pool, and a client that asks it."""
    with tempfile.TemporaryDirectory() as folder:
        settings = _settings(where, folder)
        async with _worker(settings, where) as pid, dspex.connect(settings=settings) as client, _crowd(settings, where):
            await client.bus.ensure_stream(StreamConfig(subjects.stream(APP), subjects.own_subjects(APP)))
            spec = dspex.program(_program(where), SIGNATURE, pool=POOL)

            async def ask(text: str) -> object:
                return (await client.call(spec, {"text": text}, timeout=LIMIT)).data["reply"]

            yield System(Coroutines(ask), {"worker": pid})


@asynccontextmanager
async def cached(where: Where) -> AsyncGenerator[System]:
    """A pool, and a client that asks it what it has answered before."""
    with tempfile.TemporaryDirectory() as folder:
        settings = _settings(where, folder)
        async with _worker(settings, where) as pid, dspex.connect(settings=settings) as client:
            await client.bus.ensure_stream(StreamConfig(subjects.stream(APP), subjects.own_subjects(APP)))
            spec = dspex.program(_program(where), SIGNATURE, pool=POOL, cache="1h")
            for known in KNOWN * 2:  # twice: of code of users, an answer is kept once its version is known
                await client.call(spec, {"text": known}, timeout=LIMIT)
            turns = itertools.cycle(KNOWN)

            async def ask(text: str) -> object:
                known = next(turns)
                result = await client.call(spec, {"text": known}, timeout=LIMIT)
                return text if (result.route, result.data["reply"]) == ("cache", known) else result

            yield System(Coroutines(ask), {"worker": pid})


@asynccontextmanager
async def _in_sessions(where: Where, affinity: Literal["prefer", "require"]) -> AsyncGenerator[System]:
    with tempfile.TemporaryDirectory() as folder:
        settings = _settings(where, folder)
        async with _worker(settings, where) as pid, dspex.connect(settings=settings) as client:
            await client.bus.ensure_stream(StreamConfig(subjects.stream(APP), subjects.own_subjects(APP)))
            await client.bus.bucket(subjects.bucket(APP))
            spec = dspex.program(f"{_program(where)}_more", f"history, {SIGNATURE}", pool=POOL, affinity=affinity)
            store, said = SessionStore(client.bus, APP), {"text": "x" * 200}
            for id in SESSIONS:
                turns = [StoredTurn(f"{id}.{n}", f"{id}.{n}", 0.0, said, {"reply": "x" * 200}) for n in range(MOST_TURNS)]
                await store.change(id, lambda state, now, turns=turns: SessionState(TTL, now, turns=turns, count=len(turns)))
            whose = itertools.cycle(SESSIONS)

            async def ask(text: str) -> object:
                return (await client.session(next(whose)).call(spec, {"text": text}, timeout=LIMIT)).data["reply"]

            yield System(Coroutines(ask), {"worker": pid})


session = partial(_in_sessions, affinity="prefer")
required = partial(_in_sessions, affinity="require")


@asynccontextmanager
async def durable(where: Where) -> AsyncGenerator[System]:
    """A pool, an engine, and a client that submits calls."""
    async with _engine(where) as (client, workers):
        spec = dspex.program(_program(where), SIGNATURE, pool=POOL)

        async def ask(text: str) -> object:
            run = await client.submit(spec, {"text": text})
            return (await run.result(LIMIT)).data["reply"]

        yield System(Coroutines(ask), workers)


@asynccontextmanager
async def awaited(where: Where) -> AsyncGenerator[System]:
    """A pool, an engine, and a client that waits for each of its runs."""
    async with _engine(where) as (client, workers):

        async def ask(text: str) -> object:
            run = await client.publish(SOURCE, {"text": text})
            info = await run.wait(LIMIT)
            return text if (info.status, info.calls) == ("done", 1) else info

        yield System(Coroutines(ask), workers)


@asynccontextmanager
async def watched(where: Where) -> AsyncGenerator[System]:
    """A pool, an engine, and a client that reads the sink."""
    async with _engine(where) as (client, workers):
        waiting: dict[str, asyncio.Future[object]] = {}

        async def ask(text: str) -> object:
            waiting[text] = answer = asyncio.get_running_loop().create_future()
            await client.publish(SOURCE, {"text": text})
            return await answer

        async def read() -> None:
            async for event in client.watch(SINK, start="all"):
                waiting.pop(event.data["text"]).set_result(event.data["reply"])

        async with asyncio.TaskGroup() as group:  # whatever ends the reading ends the measurement
            reading = group.create_task(read())
            yield System(Coroutines(ask), workers)
            reading.cancel()


@asynccontextmanager
async def _engine(where: Where) -> AsyncGenerator[tuple[dspex.Client, dict[str, int]]]:
    with tempfile.TemporaryDirectory() as folder:
        settings = _settings(where, folder)
        variables = {**where.variables(), "DSPEX_SETTINGS_JSON": settings.to_json()}
        run = module("dspex", "--json", "run", "calling.in_dspex:topology", "--pools", "none", "--no-server", "--grace", "0s")
        start = partial(running, run, variables, ready='"ready"', folder=folder)
        async with start() as engine, _worker(settings, where) as pid, dspex.connect(settings=settings) as client:
            yield client, {"engine": engine, "worker": pid}


@asynccontextmanager
async def _crowd(settings: Settings, where: Where) -> AsyncGenerator[None]:
    """The other pool, once all of its slots are taken."""
    if not where.crowd:
        yield
        return
    spec, limit = dspex.program("calling.programs:stays", SIGNATURE, pool=CROWD), "1h"
    async with _worker(settings, where, CROWD), dspex.connect(settings=settings) as client, asyncio.TaskGroup() as group:
        calls = [group.create_task(client.call(spec, {"text": str(n)}, timeout=limit)) for n in range(where.crowd)]
        while True:
            (pool,) = (await client.status([CROWD]))["pools"]
            if pool["busy"] == where.crowd:
                break
            await asyncio.sleep(0.05)
        yield
        for call in calls:
            call.cancel()


def _settings(where: Where, folder: str) -> Settings:
    pool = {"programs": ["calling.programs:*"], "size": where.processes, "slots": where.slots}
    found = Settings.model_validate(
        {
            "app": APP,
            "path": [str(FOLDER)],
            "server": {"url": where.nats},
            "pools": {POOL: pool, CROWD: pool | {"size": 1, "slots": max(1, where.crowd)}},
            "engine": {"submit": True},
            "telemetry": {"log": "error"},
        }
    )
    return found.placed(Path(folder), {})


@asynccontextmanager
async def _worker(settings: Settings, where: Where, pool: str = POOL) -> AsyncGenerator[int]:
    variables = {**where.variables(), "DSPEX_SETTINGS_JSON": settings.to_json()}
    command = module("dspex", "--json", "--quiet", "worker", pool, "--grace", "0s")
    async with running(command, variables, ready='"pool ready"', folder=str(settings.root)) as pid:
        yield pid
