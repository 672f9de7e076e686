"""A thousand runs that asked a model, again without it: how much faster, and whether all is as it was.

    python benchmarks/history/replay.py --runs 1000 [--rounds 3] [--json]

The runs are messages of banking77, live with an engine, a pool of 16 slots and the stand-in for a model, which takes 300 ms
for an answer. Then the stand-in, the engine and the pool end. Replayed is in three ways:

* server: the logs, by a process of its own that has no connection but that to nats-server: its sockets are read meanwhile. The
  outputs are compared with those in the sink, byte by byte. Counted is from the first question to the last comparison.
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
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # scripts of that folder import each other by name

import psutil
from arguments import positive
from calling.processes import FOLDER, module, running

import dspex
from dspex.bus import subjects
from dspex.bus.local.server import LocalServer
from dspex.bus.nats import connect
from dspex.bus.port import NewMessage
from dspex.bus.settings.model import Settings
from dspex.engine.graph import manifest
from dspex.engine.replay.partition import PartitionReplay
from dspex.engine.runtime.walk.compile import compile_graph
from history import banking

WAYS = ("server", "files", "processes")
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
class Collecting(PartitionReplay):
    """A replay that keeps what it would store. `made`: of the sink, id and body."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.made = list[tuple[str, bytes]]()

    async def _entry(self, sequence: int, entry: Mapping[str, Any], changed: Mapping[str, Any]) -> AsyncIterator[str]:
        async for what in super()._entry(sequence, entry, changed):
            yield what
        found = [m for m in self._batch.messages if m.subject == banking.SINK]
        self.made += [((m.headers or {})[subjects.EVENT_ID], m.data) for m in found]


async def by_server(url: str) -> dict[str, Any]:
    """Replay what the topology did, and compare what comes out with what lies in the sink."""
    assert banking.topology is not None
    bus = await connect(url)
    began = time.perf_counter()
    applied = (await manifest.of_application(bus, APP))[banking.NAME]
    graph, made, differ = banking.topology.graph, Counter[tuple[str, bytes]](), list[Any]()
    for stage, count in compile_graph(graph, applied.stages, applied.hops, applied.renamed):
        for index in range(count):
            replay = Collecting(bus, APP, stage, applied.streams[stage.name], index, count, bus.max_payload)
            differ += [found async for found in replay.differences()]
            made.update(replay.made)
    info = await bus.stream(subjects.stream(APP))
    stored = await bus.scan(subjects.stream(APP), [banking.SINK], start=1, stop=info.last if info else 0)
    same = made == Counter((m.headers[subjects.EVENT_ID], m.data) for m in stored) and not differ
    seconds = time.perf_counter() - began
    sockets = sorted({c.raddr.port for c in psutil.Process().net_connections("inet") if c.raddr})
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
            again = [_said([sys.executable, str(HERE), "--again", server.url]) for _ in range(args.rounds)]
            commands = [_replayed(found) for _ in range(args.rounds)]
            exported = _command(found, "runs", "export", "--topology", banking.NAME, "-o", str(files := Path(folder) / "files"))
        words = _alone()
        again_of = [*words, sys.executable, str(HERE), "--files", str(files)]
        of_files = [_said([*again_of, "--jobs", "1"]) for _ in range(args.rounds)]
        of_processes = [_said(again_of) for _ in range(args.rounds)]
    return {
        "live": figures,
        "server": again,
        "only nats-server": all(one["ports"] == [port] for one in again),
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
        same = "byte by byte the same" if what == "server" else "the same"
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
        print(json.dumps(asyncio.run(by_server(args.again)) if args.again else by_files(args.files, args.jobs)))
        return 0
    figures = asyncio.run(measure(args))
    print(json.dumps(figures) if args.json else "\n".join(table(figures)))
    return int(not good(figures))


if __name__ == "__main__":
    sys.exit(main())
