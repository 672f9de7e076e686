"""What a call costs: a worker in other processes is asked for what it does at once, and the answer is read back.

* raw: a request of nats-py between two processes: the limit of what crosses a server with this client.
* direct, cached, session, required, durable, awaited, watched: dspex; see calling/in_dspex.py.
* celery, dramatiq, taskiq-nats: peers. One worker each. celery-kept: beside durable calls; see calling/in_celery.py.

Parts:

* 1: milliseconds with one call at a time.
* 16, 64: calls a second with so many in flight, and microseconds of CPU a call of each process.
* burst: calls a second where 1,500 come at once; of peers that block, as many at once as they have threads.
* half: milliseconds where calls come at random times, each counted from when it is due, at half the rate at which a core is
  full: that at which the busiest process would fill one (or all processes together all cores), by what they used with 64 in
  flight. Where too few are answered in time at that, at half as many, and so on.
* even: the same at one rate for all, which the slowest of them can keep: half of a core is another rate for each system.
* crowd: calls of dspex at a fixed rate, alone, and beside another pool all of whose slots have calls that wait: what the crowd
  costs those who are not in it.
* slots: calls of dspex that wait for 100 ms, as for a model, with more and more slots and as many in flight, which begin one
  after the other: the rate beside what so many slots could do, and the share of a core of each process.
* stream: streamed calls of dspex: when a worker has the call, and when the first word is there, beside a raw stream of the same
  model's server; then STREAMS of them at a time, alone and beside one whose reader does not read.

    python benchmarks/calls.py [--seconds 5] [--rounds 3] [--systems raw,direct] [--parts 1,16,64,half,even] [--json FILE]

Each system runs by turns in processes of its own, with a server of its own, the order changing with every round; the middle
of all rounds counts. nats-server stores in files and syncs them every two minutes; redis-server stores nothing on disk, which
is to its credit, and for celery-kept it appends to a file that it syncs every second. What is not installed (the packages of
the peers, redis-server) is named, and so is what fails while the rest goes on. The exit code is 1 where that was no peer.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import signal
import statistics
import sys
import tempfile
from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from arguments import one_of, positive
from calling.one import KEPT, SPREAD
from calling.processes import module, running
from calling.programs import WAIT
from calling.where import Where

from dspex.bus.local.launch import free_port
from dspex.bus.local.server import LocalServer

FOLDER = Path(__file__).parent


class Needs(NamedTuple):
    """`package`: of a peer, which cannot be asked without it. `redis`: whether its server is Redis; `keeps`: which stores."""

    package: str = ""
    redis: bool = False
    keeps: bool = False


SYSTEMS = {
    "raw": Needs(),
    "direct": Needs(),
    "cached": Needs(),
    "session": Needs(),
    "required": Needs(),
    "durable": Needs(),
    "awaited": Needs(),
    "watched": Needs(),
    "celery": Needs("celery", redis=True),
    "celery-kept": Needs("celery", redis=True, keeps=True),
    "dramatiq": Needs("dramatiq", redis=True),
    "taskiq-nats": Needs("taskiq_nats"),
}
PARTS = ("1", "16", "64", "burst", "half", "even", "crowd", "slots", "stream")
OWN = ("crowd", "slots", "stream")  # parts that are of dspex alone
STREAMS = 200  # at a time
CROWD_RATE = 300  # calls a second
EVEN_RATE = 150  # calls a second
SLOTS = (1, 2, 4, 8, 16, 32, 64, 128)
BESIDE = ("raw", "celery", "celery-kept")
Figures = dict[str, Any]
Rounds = dict[str, dict[str, list[Figures]]]


# -- measuring -----------------------------------------------------------------------------------------------------------
def missing(system: str) -> str:
    """Why a system cannot be measured here; "" where it can."""
    needs = SYSTEMS[system]
    if needs.package and find_spec(needs.package) is None:
        return f"{needs.package} is not installed (scripts/setup dev)"
    if needs.redis and shutil.which("redis-server") is None:
        return "there is no redis-server on PATH (on Debian: apt install redis-server)"
    return ""


async def measure(args: argparse.Namespace) -> tuple[Rounds, dict[str, str]]:
    """By system, and of "slots" by their number: what each part gave, by round. And why systems failed."""
    found: Rounds = {system: {} for system in args.systems}
    failed: dict[str, str] = {}
    parts = _in_order(args.parts)
    for number in range(args.rounds):
        turn = [(system, system, parts, Where(processes=args.processes)) for system in args.systems if parts]
        for slots in SLOTS if "slots" in args.parts else ():
            where = Where(processes=args.processes, slots=slots, program="waits")
            turn.append(("slots", "direct", [f"{SPREAD}{slots * args.processes}"], where))
        for crowd in (0, Where().slots) if "crowd" in args.parts else ():
            turn.append(("crowd", "direct", [f"@{CROWD_RATE}"], Where(processes=args.processes, crowd=crowd)))
        for name, system, of, where in turn if number % 2 else turn[::-1]:
            rows, why = await one(system, args.seconds, of, where)
            failed |= {name: why} if why else {}
            for row in rows:
                part = "even" if row["part"] == f"@{EVEN_RATE}" else row["part"].removeprefix(SPREAD)
                part = str(where.crowd) if name == "crowd" else part
                _note(found, name, {**row, "part": part})
    return found, failed


def _in_order(wanted: Collection[str]) -> list[str]:
    """The parts of each system; before `half` the one that says how much that is."""
    parts = [part for part in wanted if part not in ("half", "even", *OWN)]
    if "half" in wanted:
        parts += ["half"] if "64" in parts else ["64", "half"]
    return [*parts, f"@{EVEN_RATE}"] if "even" in wanted else parts


def _note(found: Rounds, name: str, row: Figures) -> None:
    load = os.getloadavg()[0]
    found.setdefault(name, {}).setdefault(row["part"], []).append({**row, "load": load})
    print(f"  {name}, {row['part']}: {row['rate']:,.0f}/s, p50 {row['p50']:.2f} ms, load {load:.1f}", file=sys.stderr)


async def streams(seconds: float, processes: int) -> Figures:
    """What streamed calls give; see calling/streams.py."""
    command = module("calling.streams", "--seconds", str(seconds), "--streams", str(STREAMS))
    async with _server(Where(processes=processes), redis=False) as there:
        variables = {**there.variables(), "PYTHONPATH": str(FOLDER)}
        process = await asyncio.create_subprocess_exec(*command, env=variables, stdout=asyncio.subprocess.PIPE)
        out, _ = await process.communicate()
    if process.returncode:
        raise SystemExit(f"stream: its process ended with {process.returncode}; what it said is above")
    found: Figures = json.loads(out)
    return found


async def one(system: str, seconds: float, parts: Sequence[str], where: Where) -> tuple[list[Figures], str]:
    """The figures of one system, measured in a process of its own, part by part; and why some are missing, if so."""
    command = module("calling.one", system, "--seconds", str(seconds), "--parts", ",".join(parts))
    async with _server(where._replace(keeps=SYSTEMS[system].keeps), redis=SYSTEMS[system].redis) as there:
        variables = {**there.variables(), "PYTHONPATH": str(FOLDER)}
        process = await asyncio.create_subprocess_exec(*command, env=variables, stdout=asyncio.subprocess.PIPE)
        try:
            out, _ = await process.communicate()
        except BaseException:
            process.send_signal(signal.SIGINT)  # it ends its worker
            await process.wait()
            raise
    why = f"its process ended with {process.returncode}; what it said is above" if process.returncode else ""
    return [json.loads(line) for line in out.splitlines()], why


@asynccontextmanager
async def _server(where: Where, *, redis: bool) -> AsyncGenerator[Where]:
    """A server that has nothing stored, and where it is."""
    with tempfile.TemporaryDirectory() as folder:
        if not redis:
            async with LocalServer(Path(folder) / "jetstream", port=None) as server:
                assert server.pid is not None
                yield where._replace(nats=server.url, server=server.pid)
            return
        port = str(free_port(None))
        kept = "yes" if where.keeps else "no"  # synced every second, its default
        command = ["redis-server", "--port", port, "--bind", "127.0.0.1", "--save", "", "--appendonly", kept]
        async with running(command, os.environ, ready="eady to accept connections", folder=folder) as pid:
            yield where._replace(redis=f"redis://127.0.0.1:{port}/0", server=pid)


# -- showing -------------------------------------------------------------------------------------------------------------
def medians(figures: Mapping[str, Mapping[str, Sequence[Figures]]]) -> dict[str, dict[str, Figures]]:
    """The middle of all rounds."""
    return {name: {part: _middle(rounds) for part, rounds in parts.items()} for name, parts in figures.items()}


def _middle(rounds: Sequence[Figures]) -> Figures:
    first = rounds[0]
    plain = {key: statistics.median(row[key] for row in rounds) for key in first if key not in ("part", "cpu", "each")}
    return {**plain, "cpu": {name: statistics.median(row["cpu"][name] for row in rounds) for name in first["cpu"]}}


def tables(middle: Mapping[str, Mapping[str, Figures]]) -> list[str]:
    """The figures for people: each part of which there are some."""
    lines: list[str] = []
    systems = {name: parts for name, parts in middle.items() if name not in OWN}
    for part in PARTS:
        if rows := {name: parts[part] for name, parts in systems.items() if part in parts}:
            lines += ["", *(_latencies(part, rows) if part in _HEADED else _rates(part, rows))]
    if "crowd" in middle:
        lines += ["", *_crowd(middle["crowd"])]
    if "slots" in middle:
        lines += ["", *_slots(middle["slots"])]
    return lines[1:]


def _beside(rows: Mapping[str, Figures], name: str, figure: str) -> str:
    shown = ""
    for other in BESIDE:
        ratio = f"{rows[name][figure] / rows[other][figure]:.2f}x" if other in rows else "-"
        shown += f"{ratio:>20}"
    return shown


_HEADED = {"1": "one at a time", "half": "half of a core", "even": f"{EVEN_RATE} a second"}  # what is told in milliseconds
_HEADS = "".join(f"{'beside ' + name:>20}" for name in BESIDE)


def _latencies(part: str, rows: Mapping[str, Figures]) -> list[str]:
    half = part == "half"
    lines = [
        f"{_HEADED[part]:<16}{'p50, ms':>10}{'p99, ms':>10}{_HEADS}" + (f"{'calls/s':>10}{'of a core':>11}" if half else "")
    ]
    for name, row in rows.items():
        rate = f"{row['due']:>10,.0f}{row['of core']:>11.2f}" if half else ""
        more = "  too much: calls were left over" if row["kept"] < KEPT else ""
        lines.append(f"{name:<16}{row['p50']:>10.2f}{row['p99']:>10.2f}{_beside(rows, name, 'p50')}{rate}{more}")
    return lines


def _rates(part: str, rows: Mapping[str, Figures]) -> list[str]:
    head = "1,500 at once" if part == "burst" else f"{part} in flight"
    lines = [f"{head:<16}{'calls/s':>10}{'p99, ms':>10}{_HEADS}   CPU a call, µs"]
    for name, row in rows.items():
        cpu = ", ".join(f"{process} {used:,.0f}" for process, used in row["cpu"].items())
        lines.append(f"{name:<16}{row['rate']:>10,.0f}{row['p99']:>10.2f}{_beside(rows, name, 'rate')}   {cpu}")
    return lines


def _crowd(rows: Mapping[str, Figures]) -> list[str]:
    lines = [f"{'calls that wait':<16}{'p50, ms':>10}{'p99, ms':>10}{'p99 beside none':>17}"]
    for waiting, row in sorted(rows.items(), key=lambda item: int(item[0])):
        beside = f"{row['p99'] / rows['0']['p99']:.2f}x" if "0" in rows else "-"
        lines.append(f"{waiting:<16}{row['p50']:>10.2f}{row['p99']:>10.2f}{beside:>17}")
    return lines


def shown_streams(found: Figures) -> list[str]:
    """What `streams` gave, for people."""
    lines = [f"{'one at a time':<28}{'p50, ms':>10}{'p99, ms':>10}"]
    for name, key in (("a worker has it", "accepted"), ("first word", "first"), ("first word, raw stream", "raw")):
        lines.append(f"{name:<28}{found[key]['p50']:>10.2f}{found[key]['p99']:>10.2f}")
    lines += ["", f"{found['streams']} streams{'':<18}{'accepted':>10}{'first':>10}{'end':>10}   p99, ms"]
    for name, key in (("alone", "alone"), ("beside one that is stuck", "beside")):
        lines.append(f"{name:<28}" + "".join(f"{found[key][of]:>10.1f}" for of in ("accepted", "first", "end")))
    return lines


def _slots(rows: Mapping[str, Figures]) -> list[str]:
    lines = [f"{'slots':<16}{'calls/s':>10}{'of linear':>10}   CPU, share of a core"]
    for slots, row in sorted(rows.items(), key=lambda item: int(item[0])):
        linear = int(slots) / WAIT
        cpu = ", ".join(f"{process} {used * row['rate'] / 1e6:.2f}" for process, used in row["cpu"].items())
        lines.append(f"{slots:<16}{row['rate']:>10,.0f}{row['rate'] / linear:>10.2f}   {cpu}")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=positive, default=5, help="of each part of each system in each round")
    parser.add_argument("--rounds", type=positive, default=3)
    parser.add_argument(
        "--systems", type=one_of(SYSTEMS), default=list(SYSTEMS), help=f"of {','.join(SYSTEMS)}; all by default"
    )
    parser.add_argument("--parts", type=one_of(PARTS), default=list(PARTS), help=f"of {','.join(PARTS)}; all by default")
    parser.add_argument("--processes", type=positive, default=1, help="of each worker, that run calls")
    parser.add_argument("--json", type=Path, metavar="FILE", help="all figures, of each round too")
    args = parser.parse_args()
    absent = {name: why for name in args.systems if (why := missing(name))}
    args.systems = [name for name in args.systems if name not in absent]
    figures, failed = asyncio.run(measure(args))
    streamed = asyncio.run(streams(args.seconds, args.processes)) if "stream" in args.parts else {}
    middle, left_out = medians(figures), {name: f"not measured: {why}" for name, why in absent.items()}
    left_out |= {name: f"failed: {why}" for name, why in failed.items()}
    more = ["", *shown_streams(streamed)] if streamed else []
    print("\n".join([*tables(middle), *more, *(f"{name}: {why}" for name, why in left_out.items())]))
    if args.json is not None:
        how = {"seconds": args.seconds, "rounds": args.rounds, "processes": args.processes, "cores": os.cpu_count()}
        args.json.write_text(
            json.dumps({**how, "left out": left_out, "medians": middle, "figures": figures, "stream": streamed})
        )
    if any(name in OWN or not SYSTEMS[name].package for name in failed):
        sys.exit(1)


if __name__ == "__main__":
    main()
