"""What dspex's gateway costs: events, calls and streams over HTTP, beside a FastAPI app that does the same by hand.

* publish: an event is stored; 202 when it is. The app: `await js.publish`.
* call: the model's server is asked, and its answer is read. The app: httpx, and a regular expression.
* stream: the same in pieces, as server-sent events, until the last one.

Both ask the same stand-in for a model's server, which answers at once. Of each part, the app's CPU for a request is measured
first; then both get as many requests a second as make the app use half a core (`--rate`: so many in place of that), at random
times, the same for both, by turns. Times count from when a request is due. `overhead` is the difference of the medians.

* gone: who asked goes away in the middle. How long the request to the model goes on after that, of the gateway alone.

    scripts/bench http [--seconds 10] [--rounds 3] [--parts publish,call,stream,gone]
        [--rate N] [--processes 1] [--json FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import psutil
from arguments import one_of, positive
from calling.load import Coroutines
from calling.processes import FOLDER, module, running, used

from dspex.bus.local.launch import free_port
from dspex.bus.local.server import LocalServer
from dspex.bus.settings.model import Settings
from jobs.over_http import gone
from jobs.over_http.model import WORDS
from jobs.over_http.requests import Requests

PARTS = ("publish", "call", "stream")
CALIBRATE = 50.0  # requests a second while the CPU of one is measured
HALF = 0.5  # of a core
GONE, TIMES = "gone", 20  # so many go away
LAST = WORDS[-1].strip().encode()  # is in a whole answer
TOPOLOGY = "dspex: 1\ntopology: http\nsources: { bench.in: {} }\nsinks: { bench.out: { from: bench.in } }\n"
Figures = dict[str, Any]


class Side(NamedTuple):
    """One of the two: how it is asked, its processes by what they are, and where it is."""

    ask: Mapping[str, Callable[[str], Awaitable[object]]]
    processes: Callable[[], dict[str, list[psutil.Process]]]
    url: str


def _side(requests: Requests, paths: Mapping[str, str], processes: Callable[[], dict[str, list[psutil.Process]]]) -> Side:
    async def publish(text: str) -> str:
        await requests.post(paths["publish"], {"text": text})
        return text

    async def call(text: str) -> str:
        await requests.post(paths["call"], {"text": text}, wanted=LAST)
        return text

    async def stream(text: str) -> str:
        found = await requests.post(paths["stream"], {"text": text}, "text/event-stream", wanted=LAST)
        if b"event: result" not in found:
            raise RuntimeError(f"a stream without its end: {found[-200:]!r}")
        return text

    return Side({"publish": publish, "call": call, "stream": stream}, processes, requests.url)


@asynccontextmanager
async def _app(model: str, nats: str, server: int) -> AsyncGenerator[Side]:
    port = free_port(None)
    variables = {**os.environ, "BENCH_MODEL": model, "BENCH_NATS": nats}
    command = module("uvicorn", "jobs.over_http.app:app", "--port", str(port), "--no-access-log")
    async with running(command, variables, ready="Application startup complete") as pid:
        requests = Requests(f"http://127.0.0.1:{port}")
        yield _side(
            requests,
            {name: f"/{name}" for name in PARTS},
            lambda: {"app": [psutil.Process(pid)], "server": [psutil.Process(server)]},
        )
        await requests.close()


@asynccontextmanager
async def _dspex(model: str, nats: str, server: int, processes: int) -> AsyncGenerator[Side]:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "http.yaml").write_text(TOPOLOGY)
        settings = Settings.model_validate(
            {
                "app": "overhttp",
                "server": {"url": nats},
                "lm": {"main": {"model": "openai/bench", "base_url": model}},
                "pools": {"lightweight": {"size": processes, "slots": 64}},
                "http": {"subjects": ["bench.in"], "calls": {"reply": "text -> reply"}},
                "telemetry": {"log": "error"},
            }
        ).placed(Path(folder), {})
        variables = {**os.environ, "DSPEX_SETTINGS_JSON": settings.to_json()}
        port = free_port(None)
        engine = module("dspex", "--json", "run", "http.yaml", "--pools", "none", "--grace", "1s")
        pool = module("dspex", "--json", "worker", "lightweight", "--grace", "1s")
        gateway = module("dspex", "--json", "gateway", "--bind", f"127.0.0.1:{port}")
        async with (
            running(engine, variables, ready='"ready"', folder=folder) as engine_pid,
            running(pool, variables, ready='"pool ready"', folder=folder) as pool_pid,
            running(gateway, variables, ready='"gateway"', folder=folder) as gateway_pid,
        ):
            requests = Requests(f"http://127.0.0.1:{port}")

            def all_of_it() -> dict[str, list[psutil.Process]]:
                parent = psutil.Process(pool_pid)
                named = {"gateway": gateway_pid, "server": server, "engine": engine_pid, "pool": pool_pid}
                return {**{n: [psutil.Process(p)] for n, p in named.items()}, "children": parent.children(recursive=True)}

            paths = {"publish": "/v1/publish/bench.in", "call": "/v1/call/reply", "stream": "/v1/call/reply"}
            yield _side(requests, paths, all_of_it)
            await requests.close()


@asynccontextmanager
async def _nats() -> AsyncGenerator[tuple[str, int]]:
    """A server of its own: where, and its process."""
    with tempfile.TemporaryDirectory() as folder:
        async with LocalServer(Path(folder) / "jetstream", port=None) as server:
            assert server.pid is not None
            yield server.url, server.pid


@asynccontextmanager
async def _both(processes: int) -> AsyncGenerator[dict[str, Side]]:
    variables = {**os.environ, "PYTHONPATH": str(FOLDER)}
    command = module("jobs.over_http.model")
    model = await asyncio.create_subprocess_exec(*command, env=variables, stdout=asyncio.subprocess.PIPE)
    assert model.stdout is not None
    try:
        url = (await model.stdout.readline()).decode().strip()
        async with _nats() as where, _app(url, *where) as app, _dspex(url, *where, processes) as ours:
            yield {"fastapi": app, "dspex": ours}
    finally:
        model.terminate()
        await model.wait()


async def _measured(side: Side, part: str, rate: float, seconds: float) -> Figures:
    load, processes = Coroutines(side.ask[part]), side.processes()
    await load.once()
    before = used(processes)
    took = await load.on_schedule(rate, seconds)
    spent = {name: sum(now) - sum(before[name]) for name, now in used(processes).items()}
    ms = sorted(1000 * one for one in took.latencies)
    return {
        "rate": rate,
        "p50": statistics.median(ms),
        "p99": statistics.quantiles([*ms, *ms], n=100, method="inclusive")[98],
        "kept": took.kept,
        "cpu": {name: 1e6 * each / len(ms) for name, each in spent.items()},  # microseconds of a request
    }


async def measure(seconds: float, rounds: int, parts: Sequence[str], rate: float | None, processes: int = 1) -> Figures:
    """By part, what each of the two gave in the middle of all rounds."""
    found: Figures = {}
    async with _both(processes) as sides:
        for part in parts:
            for side in sides.values():  # their connections, and what they load at the first request
                await _measured(side, part, CALIBRATE, min(seconds, 2.0))
            wanted = rate or await _half(sides["fastapi"], part, seconds)
            rows: dict[str, list[Figures]] = {name: [] for name in sides}
            for number in range(rounds):
                for name in sorted(sides, reverse=bool(number % 2)):
                    rows[name].append(await _measured(sides[name], part, wanted, seconds))
                    print(f"  {part}, {name}: p50 {rows[name][-1]['p50']:.2f} ms", file=sys.stderr)
            found[part] = {name: _middle(several) for name, several in rows.items()}
    return found


async def measure_gone(times: int = TIMES, processes: int = 1) -> Figures:
    """By part, how long a request to the model goes on when who asked has gone."""
    async with gone.held() as (model, url), _nats() as (nats, pid), _dspex(url, nats, pid, processes) as side:
        return {
            part: gone.figures(await gone.seconds_of(model, side.url, "/v1/call/reply", part, times)) for part in gone.ASKED
        }


async def _half(app: Side, part: str, seconds: float) -> float:
    """Requests a second that take half a core of the app."""
    found = await _measured(app, part, CALIBRATE, seconds)
    return float(HALF * 1e6 / max(found["cpu"]["app"], 1.0))


def _middle(rows: Sequence[Figures]) -> Figures:
    plain = {name: statistics.median(row[name] for row in rows) for name in rows[0] if name != "cpu"}
    return {**plain, "cpu": {name: statistics.median(row["cpu"][name] for row in rows) for name in rows[0]["cpu"]}}


def table(found: Mapping[str, Mapping[str, Figures]]) -> list[str]:
    """The figures for people."""
    lines = [f"{'':<10}{'':<10}{'a second':>9}{'p50, ms':>10}{'p99, ms':>10}{'overhead p50':>14}   CPU a request, µs"]
    for part, rows in found.items():
        for name, row in rows.items():
            over = f"{row['p50'] - rows['fastapi']['p50']:.2f} ms" if name != "fastapi" else ""
            cpu = ", ".join(f"{process} {spent:,.0f}" for process, spent in row["cpu"].items())
            late = "  too much: requests were left over" if row["kept"] < 0.9 else ""
            lines.append(
                f"{part:<10}{name:<10}{row['rate']:>9,.0f}{row['p50']:>10.2f}{row['p99']:>10.2f}{over:>14}   {cpu}{late}"
            )
    return lines


def table_gone(found: Mapping[str, Figures]) -> list[str]:
    """The same of who goes away."""

    def line(part: str, row: Figures) -> str:
        took = f"{row['p50']:.1f} ms after who asked has gone, at most {row['most']:.1f} ({row['times']} times)"
        return f"{part:<10}{'dspex':<10}the request to the model ends {took}"

    return [line(part, row) for part, row in found.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description="What the gateway costs, beside a FastAPI app.")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rounds", type=positive, default=3)
    parser.add_argument("--parts", type=one_of((*PARTS, GONE)), default=[*PARTS, GONE])
    parser.add_argument("--rate", type=float, help="requests a second; else as many as make the app use half a core")
    parser.add_argument("--processes", type=positive, default=1, help="of the pool")
    parser.add_argument("--json", type=Path, help="a file for all figures")
    args = parser.parse_args()
    beside = [part for part in args.parts if part != GONE]
    found = asyncio.run(measure(args.seconds, args.rounds, beside, args.rate, args.processes)) if beside else {}
    away = asyncio.run(measure_gone(processes=args.processes)) if GONE in args.parts else {}
    if args.json is not None:
        args.json.write_text(json.dumps({"load": os.getloadavg()[0], "cores": os.cpu_count(), **found, GONE: away}, indent=1))
    print("\n".join([*(table(found) if found else []), *table_gone(away)]))


if __name__ == "__main__":
    main()
