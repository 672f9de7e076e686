"""A worker for `dspex bench`: a pool in a process of its own on a server of its own, asked over the bus as clients ask."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from dspex.bus import subjects
from dspex.bus.errors import DspexError, WorkerLost, from_dict
from dspex.bus.local.open import open_bus
from dspex.bus.local.server import LocalServer
from dspex.bus.message import Message, new_id
from dspex.bus.port import Bus, StreamConfig
from dspex.bus.records import CallRecord, CallRequest
from dspex.bus.serving.call_spec import CallSpec
from dspex.bus.serving.sayings import RESULT
from dspex.bus.settings.model import Settings
from dspex.workers.bench.server import REPLIES

APP, POOL = "bench", "bench"
LIMIT = 60.0  # seconds for a call; for the start of the pool too


class Worker:
    """What answers."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    async def call(self, spec: CallSpec, inputs: Mapping[str, object]) -> tuple[dict[str, object], float]:
        """The outputs of one call, and the seconds from the request to their arrival. Raises the call's error."""
        began = time.perf_counter()
        result: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

        def heard(message: Message) -> None:
            if message.headers.get(subjects.KIND) == RESULT and not result.done():
                result.set_result(message.data)

        inbox = self._bus.inbox(heard)
        try:
            work = CallRequest(id := new_id(), 1, 1, "", "bench", spec, inputs, id, timeout=LIMIT)
            await self._bus.send(work.called_on(APP, POOL), work.pack(), reply=inbox.subject)
            async with asyncio.timeout(LIMIT):
                record = CallRecord.unpack(await result)
        finally:
            inbox.close()
        if record.error is not None:
            raise from_dict(record.error)
        return dict(record.outputs or {}), time.perf_counter() - began

    async def operation(self, name: str, data: object) -> tuple[object, float]:
        """An operation of `programs.py`: its result, and the seconds of the round trip."""
        spec = CallSpec("program", "dspex.workers.bench.programs:operation", "name: str, data: Any -> result: Any")
        outputs, seconds = await self.call(spec, {"name": name, "data": data})
        return outputs["result"], seconds


def by_dspy(kind: str, signature: str, lm: str) -> CallSpec:
    """A call that DSPy itself answers, in the worker."""
    return CallSpec(kind, signature, signature, lm=(lm,), route="worker")


@asynccontextmanager
async def worker(url: str) -> AsyncGenerator[Worker, None]:
    """A worker that is ready, with each model of the server at `url` as a profile. Raises what kept it from starting."""
    with tempfile.TemporaryDirectory(prefix="dspex-bench-") as folder:
        async with LocalServer(Path(folder) / "jetstream", port=None) as server:
            profiles = {model: {"model": f"openai/{model}", "base_url": url} for model in REPLIES}
            programs = ("dspex.workers.bench.programs:*",)
            found = Settings.model_validate(
                {
                    "app": APP,
                    "server": {"url": server.url},
                    "lm": profiles,
                    "pools": {POOL: {"programs": programs, "lm": next(iter(profiles)), "lms": list(profiles)}},
                    "telemetry": {"log": "error"},
                }
            ).placed(Path(folder), {})
            async with open_bus(found, name="dspex-bench") as bus, _pool(found):
                await bus.ensure_stream(StreamConfig(subjects.stream(APP), subjects.own_subjects(APP)))
                yield Worker(bus)


@asynccontextmanager
async def _pool(settings: Settings) -> AsyncGenerator[None, None]:
    """`dspex worker`, as an engine starts it: it ends when its stdin does."""
    command = [sys.executable, "-m", "dspex", "--json", "--quiet", "worker", POOL, "--with-parent", "--grace", "0s"]
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=settings.root,
        env={**os.environ, "DSPEX_SETTINGS_JSON": settings.to_json()},
        start_new_session=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        async with asyncio.timeout(LIMIT):
            said: dict[str, Any] = json.loads(await process.stdout.readline() or b"{}")
        if said.get("event") != "pool ready":
            raise _failure(said)
        yield
    finally:
        process.stdin.close()
        await process.wait()


def _failure(said: Mapping[str, Any]) -> DspexError:
    return from_dict(said["error"]) if "error" in said else WorkerLost("the worker of the benchmark did not start", node=POOL)
