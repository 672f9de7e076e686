"""Streamed calls of dspex, beside a raw stream of the same model's server: when a worker has the call, when the first word is
there, and what one reader that does not read costs so many others. Prints its figures as JSON.

python -m calling.streams --seconds 5 --streams 200
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

import dspex
from calling.model import HEADER, WORDS
from calling.processes import module, running
from calling.where import Where
from dspex.bus import subjects
from dspex.bus.port import StreamConfig
from dspex.bus.settings.model import Settings
from dspex.engine.client.calls.events import Accepted

APP, POOL, SIGNATURE = "streams", "streams", "text -> reply"
SPEC = dspex.predict(SIGNATURE, pool=POOL)


async def raw(session: aiohttp.ClientSession, url: str) -> float:
    """Seconds until a client of the model's server has the first word."""
    began, got = time.perf_counter(), ""
    body = {"model": "m", "stream": True, "messages": [{"role": "user", "content": "x"}]}
    async with session.post(f"{url}/chat/completions", json=body) as response:
        async for line in response.content:
            if line.startswith(b"data: {"):
                got += json.loads(line[6:])["choices"][0]["delta"]["content"]
                if got.startswith(HEADER) and len(got) > len(HEADER):
                    return time.perf_counter() - began
    raise SystemExit("bench: the model's server sent no word")


async def streamed(client: dspex.Client, *, whole: bool = False) -> tuple[float, float, float]:
    """Seconds until a worker has the call, until the first word is there, and until the end; 0 for what is not waited for."""
    began, accepted, first = time.perf_counter(), 0.0, 0.0
    async with client.stream(SPEC, {"text": "x"}, timeout="5m") as answer:
        async for event in answer.events():
            at = time.perf_counter() - began
            if isinstance(event, Accepted):
                accepted = at
            elif not first:
                first = at
                if not whole:
                    return accepted, first, 0.0
        if (await answer.result()).data["reply"].split() != [word.strip() for word in WORDS]:
            raise SystemExit("bench: an answer is not what the model wrote")
    return accepted, first, time.perf_counter() - began


async def stuck(client: dspex.Client) -> None:
    """Take an answer, and read nothing of it but the first."""
    async with client.stream(SPEC, {"text": "x"}, timeout="5m") as answer:
        async for _ in answer:
            await asyncio.Event().wait()


async def _repeated(ask: Callable[[], Awaitable[Any]], seconds: float) -> list[Any]:
    end, found = time.perf_counter() + seconds, [await ask()]
    while time.perf_counter() < end:
        found.append(await ask())
    return found


async def _crowd(client: dspex.Client, streams: int) -> dict[str, float]:
    found = await asyncio.gather(*(streamed(client, whole=True) for _ in range(streams)))
    return {name: _p99([one[n] for one in found]) for n, name in enumerate(("accepted", "first", "end"))}


def _p99(values: list[float]) -> float:
    return 1000 * statistics.quantiles([*values, *values], n=100, method="inclusive")[98]


async def measure(seconds: float, streams: int) -> dict[str, Any]:
    """Milliseconds of each."""
    async with _pool(streams) as (client, url):
        async with aiohttp.ClientSession() as session:
            await raw(session, url)
            await streamed(client)
            plain = await _repeated(lambda: raw(session, url), seconds)
        told = await _repeated(lambda: streamed(client), seconds)
        alone = await _crowd(client, streams)
        async with asyncio.TaskGroup() as group:
            slow = group.create_task(stuck(client))
            beside = await _crowd(client, streams)
            slow.cancel()
    return {
        "raw": {"p50": 1000 * statistics.median(plain), "p99": _p99(plain)},
        "first": {"p50": 1000 * statistics.median(one[1] for one in told), "p99": _p99([one[1] for one in told])},
        "accepted": {"p50": 1000 * statistics.median(one[0] for one in told), "p99": _p99([one[0] for one in told])},
        "streams": streams,
        "alone": alone,
        "beside": beside,
    }


@asynccontextmanager
async def _pool(streams: int) -> AsyncGenerator[tuple[dspex.Client, str]]:
    where = Where.here()
    model = await asyncio.create_subprocess_exec(*module("calling.model"), stdout=asyncio.subprocess.PIPE)
    assert model.stdout is not None
    try:
        url = (await model.stdout.readline()).decode().strip()
        with tempfile.TemporaryDirectory() as folder:
            settings = Settings.model_validate(
                {
                    "app": APP,
                    "server": {"url": where.nats},
                    "lm": {"main": {"model": "openai/m", "base_url": url}},
                    "pools": {POOL: {"size": where.processes, "slots": streams + 8}},
                    "telemetry": {"log": "error"},
                }
            ).placed(Path(folder), {})
            variables = {**where.variables(), "DSPEX_SETTINGS_JSON": settings.to_json()}
            command = module("dspex", "--json", "--quiet", "worker", POOL, "--grace", "0s")
            worker = running(command, variables, ready='"pool ready"', folder=folder)
            async with worker, dspex.connect(settings=settings) as client:
                await client.bus.ensure_stream(StreamConfig(subjects.stream(APP), subjects.own_subjects(APP)))
                yield client, url
    finally:
        model.terminate()
        await model.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--streams", type=int, default=200)
    args = parser.parse_args()
    sys.stdout.write(json.dumps(asyncio.run(measure(args.seconds, args.streams))) + "\n")


if __name__ == "__main__":
    main()
