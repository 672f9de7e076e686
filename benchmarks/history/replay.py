"""A thousand runs that asked a model, again without it: how much faster, and whether all is as it was.

    python benchmarks/history/replay.py --runs 1000 [--rounds 3] [--json]

The runs are messages of banking77, live with an engine, a pool of 16 slots and the stand-in for a model, which takes 300 ms
for an answer. Then the stand-in, the engine and the pool end. Replayed is in four ways:

* server: the logs, as users get it: several processes, one for each processor, that have no connection but that to nats-server:
  their sockets are read meanwhile. The outputs are compared with those in the sink, byte by byte. Counted is from when the
  first process is made to the last comparison.
* alone: the same by one process.
* files: the runs as exported files (`dspex runs export --topology`), by `Driver.replay`, in a process without a network
  (`unshare -n`, where this user may). Counted is from the first file that is read.
* processes: these files, as users get it: several processes, one for each processor.

`command` is the whole of `dspex replay --topology`, `export` that of the export, with the start of Python. The goal is 50 times
the speed of live.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import pickle
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import IO, Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # scripts of that folder import each other by name

import psutil
from arguments import positive
from calling.processes import FOLDER, module, running

import dspex
from dspex.bus import subjects
from dspex.bus.local.crew import Crew, processes
from dspex.bus.local.server import LocalServer
from dspex.bus.nats import connect
from dspex.bus.port import NewMessage
from dspex.bus.settings.model import Settings
from dspex.engine.graph import manifest
from dspex.engine.graph.graph import Graph
from dspex.engine.replay.pieces import PartitionPieces, PieceCrew, PieceReplayed, PieceShare
from dspex.engine.replay.topology import replayed
from dspex.engine.replay.watched import ReplayPlace, Watcher
from history import banking

WAYS = ("server", "alone", "files", "processes")
APP, LATENCY, GOAL = "banking", 0.3, 50
STANDIN = Path(__file__).parents[2] / "tests" / "support" / "standin.py"
HERE = Path(__file__)


def settings(url: str, folder: str, model: str) -> Settings:
    """Of the engine, the pool, and who looks."""
    made = {
        "app": APP,
        "path": [str(FOLDER)],
        "server": {"url": url},
        "lm": {"main": {"model": "openai/stand-in", "base_url": model, "key_env": "OPENAI_API_KEY"}},
        "pools": {banking.POOL: {"size": 1, "slots": banking.SLOTS}},
        "telemetry": {"log": "error"},
    }
    return Settings.model_validate(made).placed(Path(folder), {})


# -- live ----------------------------------------------------------------------------------------------------------------
async def live(url: str, folder: str, runs: int) -> tuple[Settings, dict[str, float]]:
    """Have the runs happen. How long they took, and how often the stand-in was asked; it is shut down then."""
    pipe = subprocess.PIPE
    model = await asyncio.create_subprocess_exec(
        sys.executable, str(STANDIN), "--latency", str(LATENCY), stdin=pipe, stdout=pipe
    )
    assert model.stdout is not None
    try:
        address = json.loads(await model.stdout.readline())["url"]
        found = settings(url, folder, address)
        variables = {"DSPEX_SETTINGS_JSON": found.to_json(), "OPENAI_API_KEY": "stand-in"}
        run = module("dspex", "--json", "run", "history.banking:topology", "--pools", banking.POOL, "--no-server")
        async with running(run, variables, ready='"pool ready"', folder=folder):
            seconds = await _happened(url, runs)
        requests = (await asyncio.to_thread(_stats, address.removesuffix("/v1") + "/stats"))["requests"]
    finally:
        model.kill()
        await model.wait()
    return found, {"seconds": seconds, "requests": requests}


def _stats(url: str) -> dict[str, Any]:
    with urllib.request.urlopen(url) as answer:
        found: dict[str, Any] = json.load(answer)
    return found


async def _happened(url: str, runs: int) -> float:
    bus = await connect(url)
    drafts = [NewMessage(banking.ASKED, json.dumps({"text": text}).encode()) for text in banking.texts(runs)]
    began = time.perf_counter()
    await bus.publish_all(drafts)
    while await bus.count(subjects.stream(APP), [banking.SINK]) < runs:
        await asyncio.sleep(0.02)
    await bus.close()
    return time.perf_counter() - began


# -- again ---------------------------------------------------------------------------------------------------------------
class Sinks(Watcher):
    """Writes down what would be stored in the sink, of all processes: id and body. `file`: into which, appended."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    async def gave(self, where: ReplayPlace, messages: Sequence[NewMessage]) -> None:
        found = [((m.headers or {})[subjects.EVENT_ID], m.data) for m in messages if m.subject == banking.SINK]
        os.write(self._file.fileno(), pickle.dumps(found))

    def written(self) -> Counter[tuple[str, bytes]]:
        """What all have written."""
        self._file.seek(0)
        found, end = Counter[tuple[str, bytes]](), self._file.seek(0, os.SEEK_END)
        self._file.seek(0)
        while self._file.tell() < end:
            found.update(pickle.load(self._file))
        return found


def by_server(url: str, jobs: int | None) -> dict[str, Any]:
    """Replay what the topology did, and compare what comes out with what lies in the sink. `jobs`: see `by_files`."""
    assert banking.topology is not None
    graph, began = banking.topology.graph, time.perf_counter()
    with tempfile.NamedTemporaryFile("ab+", buffering=0) as file:
        sinks = Sinks(file)

        async def work(share: PieceShare) -> list[PieceReplayed | None]:
            bus = await connect(url)
            pieces = PartitionPieces(bus, APP, graph, share.applied)
            found = [await pieces.replayed(piece, sinks) for piece in share.pieces]
            await bus.close()
            return [*found]

        count = processes(jobs)
        with Crew(work, count) if count > 1 else nullcontext() as crew:
            return asyncio.run(_compared(url, graph, sinks, crew, began))


async def _compared(url: str, graph: Graph, sinks: Sinks, crew: PieceCrew | None, began: float) -> dict[str, Any]:
    bus = await connect(url)
    applied = (await manifest.of_application(bus, APP))[banking.NAME]
    found = await replayed(bus, APP, graph, applied, {}, watcher=sinks, crew=crew)
    info = await bus.stream(subjects.stream(APP))
    stored = await bus.scan(subjects.stream(APP), [banking.SINK], start=1, stop=info.last if info else 0)
    made = sinks.written()
    same = made == Counter((m.headers[subjects.EVENT_ID], m.data) for m in stored) and found.same
    seconds = time.perf_counter() - began
    family = [psutil.Process(), *psutil.Process().children()]
    sockets = sorted({c.raddr.port for one in family for c in one.net_connections("inet") if c.raddr})
    await bus.close()
    return {"seconds": seconds, "same": same, "runs": sum(made.values()), "ports": sockets}


def by_files(folder: str, jobs: int | None) -> dict[str, Any]:
    """Replay the files of a folder. `network`: whether there is one here. `jobs`: processes; None: as many as it takes."""
    assert banking.topology is not None
    with dspex.testing.Driver(banking.topology) as d:
        began = time.perf_counter()
        found = d.replay(folder, jobs=jobs)
        seconds = time.perf_counter() - began
    network = sorted(name for name, one in psutil.net_if_stats().items() if one.isup)
    return {"seconds": seconds, "same": found.same, "runs": found.runs, "network": network}


def _alone() -> list[str]:
    """The begin of a command that has no network; nothing where this user may not."""
    for words in (["unshare", "-n"], ["unshare", "-rn"]):
        if shutil.which(words[0]) and subprocess.run([*words, "true"], capture_output=True, check=False).returncode == 0:
            return words
    return []


def _said(command: list[str]) -> dict[str, Any]:
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _replayed(found: Settings) -> float:
    """Seconds of `dspex replay`, of which it says `same`."""
    return _command(found, "replay", "--topology", banking.NAME, "--with", "history.banking:topology")


def _command(found: Settings, *words: str) -> float:
    """Seconds of a command."""
    began = time.perf_counter()
    env = {**os.environ, "DSPEX_SETTINGS_JSON": found.to_json(), "PYTHONPATH": str(FOLDER)}
    subprocess.run(module("dspex", "--json", *words), env=env, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


async def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Seconds of everything."""
    with tempfile.TemporaryDirectory() as folder:
        async with LocalServer(Path(folder) / "jetstream", port=None) as server:
            found, figures = await live(server.url, folder, args.runs)
            port = int(server.url.rpartition(":")[2])
            again_of = [sys.executable, str(HERE), "--again", server.url]
            again = [_said(again_of) for _ in range(args.rounds)]
            alone = [_said([*again_of, "--jobs", "1"]) for _ in range(args.rounds)]
            commands = [_replayed(found) for _ in range(args.rounds)]
            exported = _command(found, "runs", "export", "--topology", banking.NAME, "-o", str(files := Path(folder) / "files"))
        words = _alone()
        files_of = [*words, sys.executable, str(HERE), "--files", str(files)]
        of_files = [_said([*files_of, "--jobs", "1"]) for _ in range(args.rounds)]
        of_processes = [_said(files_of) for _ in range(args.rounds)]
    return {
        "live": figures,
        "server": again,
        "alone": alone,
        "only nats-server": all(one["ports"] == [port] for one in again + alone),
        "command": commands,
        "export": exported,
        "files": of_files,
        "processes": of_processes,
        "no network": all(one["network"] in ([], ["lo"]) for one in of_files + of_processes) and bool(words),
    }


def faster(figures: Mapping[str, Any], what: str) -> float:
    """How many times as fast as live."""
    found: float = figures["live"]["seconds"] / statistics.median(one["seconds"] for one in figures[what])
    return found


def table(figures: Mapping[str, Any]) -> list[str]:
    """The lines for people."""
    live, runs = figures["live"], figures["server"][0]["runs"]
    lines = [f"{runs:,} runs, live: {live['seconds']:.2f} s, {live['requests']:,} requests to the stand-in", ""]
    for what in WAYS:
        same = "byte by byte the same" if what in ("server", "alone") else "the same"
        said = same if all(one["same"] for one in figures[what]) else "NOT THE SAME"
        seconds = statistics.median(one["seconds"] for one in figures[what])
        lines.append(f"{what:<10}{seconds:>8.3f} s{faster(figures, what):>8.1f}x live, {said}, 0 requests")
    lines[2] += f"  (goal: at least {GOAL}x)"
    lines.append(f"{'command':<10}{statistics.median(figures['command']):>8.3f} s")
    lines.append(f"{'export':<10}{figures['export']:>8.3f} s")
    where = "no connection but that to nats-server" if figures["only nats-server"] else "OTHER CONNECTIONS"
    cut = "no network" if figures["no network"] else "this user may not cut off the network"
    lines.append(f"server: {where}; files: {cut}")
    return lines


def good(figures: Mapping[str, Any]) -> bool:
    """Whether all is as it must be."""
    same = all(one["same"] for what in WAYS for one in figures[what])
    return bool(same and figures["only nats-server"] and min(faster(figures, what) for what in ("server", "processes")) >= GOAL)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=positive, default=1000)
    parser.add_argument("--rounds", type=positive, default=3)
    parser.add_argument("--again", help=argparse.SUPPRESS)
    parser.add_argument("--files", help=argparse.SUPPRESS)
    parser.add_argument("--jobs", type=positive, help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true", help="an object instead of tables")
    args = parser.parse_args()
    if banking.topology is None:
        print(f"skipped: there is no {banking.DATA}", file=sys.stderr)
        return 0
    if args.again or args.files:
        print(json.dumps(by_server(args.again, args.jobs) if args.again else by_files(args.files, args.jobs)))
        return 0
    figures = asyncio.run(measure(args))
    print(json.dumps(figures) if args.json else "\n".join(table(figures)))
    return int(not good(figures))


if __name__ == "__main__":
    sys.exit(main())
