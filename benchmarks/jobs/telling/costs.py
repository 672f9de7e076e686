"""What telemetry costs an engine and a pool, in microseconds of CPU and as ratios, all in one run.

* runs: an event comes, the engine has a pool called for it, and what it gave is stored: `dspex run` and `dspex worker`, with 16
  runs in flight. The program does nothing, so that this is the most that it can cost of a call.
* events: events that are stored before the engine starts, and no calls: the cheapest thing that an engine does for which there
  is a span.

Each by turns with telemetry off, with metrics, and with spans of everything and metrics (`OTEL_EXPORTER_OTLP_ENDPOINT`). They
go to a server in a process of its own that takes OTLP; what came there is counted: nobody measures what was not sent.
`--sampled 0.1` has that share of the traces told, as `OTEL_TRACES_SAMPLER_ARG` says.

* silence: what is left where it is off, counted and not measured: see silence.py.

    scripts/bench telemetry [--seconds 5] [--rounds 3] [--events 20000] [--parts runs,events,silence] [--sampled 1]
        [--json FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import urllib.request
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path

import calls
import running as engines
from arguments import one_of, positive
from calling.processes import module, running
from calling.where import Where

from dspex.bus.local.launch import free_port
from dspex.bus.local.server import LocalServer
from jobs.telling import silence

PARTS = ("runs", "events", "silence")
FLIGHT = "16"  # runs at a time
OFF, METRICS, SPANS = "off", "metrics", "spans and metrics"
WAYS = {OFF: None, METRICS: "none", SPANS: "otlp"}  # how spans are exported; None: nothing is
Rounds = dict[str, dict[str, list[float]]]


@contextmanager
def told(way: str, port: int, sampled: float) -> Generator[None]:
    """Processes that are started in the block tell what happens in them, or not."""
    before, spans = dict(os.environ), WAYS[way]
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        del os.environ[name]
    if spans is not None:
        os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = f"http://127.0.0.1:{port}"
        os.environ |= {"OTEL_TRACES_EXPORTER": spans, "OTEL_METRIC_EXPORT_INTERVAL": "1000"}
        os.environ |= {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": str(sampled)}
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


async def runs(seconds: float) -> dict[str, float]:
    """Microseconds of CPU a run, by what used them."""
    (row,), why = await calls.one("awaited", seconds, [FLIGHT], Where())
    if why:
        raise SystemExit(f"bench: {why}")
    cpu: Mapping[str, float] = row["cpu"]
    pool = sum(used for name, used in cpu.items() if name.startswith("worker"))
    return {"engine": cpu["engine"], "pool": pool, "runs/s": row["rate"]}


async def events(count: int) -> dict[str, float]:
    """Microseconds of the engine's CPU an event."""
    with tempfile.TemporaryDirectory() as folder:
        async with LocalServer(Path(folder) / "jetstream", port=None) as server:
            done = await engines.race(server.url, count, processes=1, partitions=1)
    return {"events": 1e6 * done.cpu / count}


async def measure(args: argparse.Namespace) -> tuple[dict[str, Rounds], dict[str, int]]:
    """By part, way and figure: of each round. And what came to the server."""
    found: dict[str, Rounds] = {part: {way: {} for way in WAYS} for part in args.parts if part != "silence"}
    port = free_port(None)
    async with running(module("jobs.telling.otlp", "--port", str(port)), os.environ, ready="listens"):
        for number in range(args.rounds):
            for way in WAYS if number % 2 else reversed(WAYS):
                for part, rows in found.items():
                    with told(way, port, args.sampled):
                        figures = await (runs(args.seconds) if part == "runs" else events(args.events))
                    for name, value in figures.items():
                        rows[way].setdefault(name, []).append(value)
                    said = ", ".join(f"{name} {value:,.1f}" for name, value in figures.items())
                    print(f"  {part}, {way}: {said}", file=sys.stderr)
        came: dict[str, int] = await asyncio.to_thread(_came, port)
    if found and not (came["spans"] and came["metrics"]):
        raise SystemExit(f"bench: nothing was sent: {came}")
    return found, came


def _came(port: int) -> dict[str, int]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=10) as answer:
        found: dict[str, int] = json.load(answer)
    return found


def medians(found: Mapping[str, Rounds]) -> dict[str, dict[str, dict[str, float]]]:
    """The middle of all rounds."""
    return {
        part: {way: {name: statistics.median(values) for name, values in figures.items()} for way, figures in rows.items()}
        for part, rows in found.items()
    }


def tables(middle: Mapping[str, Mapping[str, Mapping[str, float]]], silent: Mapping[str, float]) -> list[str]:
    """The lines for people."""
    lines = [f"{'CPU, µs':<26}" + "".join(f"{way:>26}" for way in WAYS)]
    for rows in middle.values():
        for name, off in rows[OFF].items():
            shown = "".join(f"{rows[way][name]:>17,.1f}{rows[way][name] / off:>8.2f}x" for way in WAYS)
            what = {"engine": "engine, a run", "pool": "pool, a call", "events": "engine, an event"}.get(name, name)
            lines.append(f"{what:<26}{shown}")
    if silent:
        lines += ["", f"off, a run says {silent['said']:.1f} things of {silent['emit, ns']:.0f} ns, and looks"]
        lines[-1] += f" {silent['looks']:.1f} times, {silent['look, ns']:.0f} ns each"
        for name in ("engine", "pool"):
            beside = f", {100 * silent[name] / middle['runs'][OFF][name]:.2f} % of what it uses" if "runs" in middle else ""
            lines.append(f"{name + ', at most':<26}{silent[name]:>17.2f} µs{beside}")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=positive, default=5, help="of runs, in each round and way")
    parser.add_argument("--rounds", type=positive, default=3)
    parser.add_argument("--events", type=positive, default=20_000)
    parser.add_argument("--parts", type=one_of(PARTS), default=list(PARTS), help=f"of {','.join(PARTS)}; all by default")
    parser.add_argument("--sampled", type=float, default=1.0, help="the share of traces that are told, from 0 to 1")
    parser.add_argument("--json", type=Path, metavar="FILE", help="all figures, of each round too")
    args = parser.parse_args()
    silent = silence.cost() if "silence" in args.parts else {}
    figures, came = asyncio.run(measure(args))
    middle = medians(figures)
    print("\n".join([*tables(middle, silent), f"{came['spans']:,} spans came, and metrics {came['metrics']} times"]))
    if args.json is not None:
        whole = {"seconds": args.seconds, "rounds": args.rounds, "events": args.events, "sampled": args.sampled}
        args.json.write_text(json.dumps({**whole, "figures": figures, "medians": middle, "silence": silent, "came": came}))


if __name__ == "__main__":
    main()
