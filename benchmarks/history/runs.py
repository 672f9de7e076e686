"""Finding what one event caused, in an application stream of a million messages: `runs ls` and `show`, by id or its end.

    python benchmarks/history/runs.py --messages 1000000 --rounds 5 [--json] [--store FOLDER]

stored.py says what lies there. Every question is asked several times by a client that is connected; what counts is the worst
time of each, which may be a second at most. `command` is the whole of `dspex runs show` and `ls`, with the start of Python.
With --store the stream stays, and is used again.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # scripts of that folder import each other by name

from arguments import positive

import dspex
from dspex.bus import subjects
from dspex.bus.local.server import LocalServer
from history import stored

GOAL = 1.0  # seconds, at most
SHORT = 8  # digits of an id, where a run is named by its end
KNOWN = "known.json"

Ask = Callable[[dspex.Client], Awaitable[object]]


@asynccontextmanager
async def stream(folder: Path, messages: int) -> AsyncGenerator[tuple[str, dict[str, str]]]:
    """A server with the stream, and the runs in it that are known; written unless the folder has it already."""
    async with LocalServer(folder / "jetstream", port=None) as server:
        file = folder / KNOWN
        if not file.exists():
            file.write_text(json.dumps(await stored.write(server.url, messages)))
        yield server.url, json.loads(file.read_text())


def questions(known: Mapping[str, str]) -> dict[str, Ask]:
    """All that is asked, by what it is."""
    found: dict[str, Ask] = {}
    for name, run in known.items():
        found[f"show {name}"] = lambda c, run=run: _shown(c, run)
    for place in stored.PLACES:
        end = known[f"flat {place} done"][-SHORT:]
        found[f"by its end {place}"] = lambda c, end=end: c.run(end).info()
    found["@last"] = lambda c: c.run("@last").info()
    lists: dict[str, dict[str, Any]] = {
        "ls": {},
        "ls --topology keyed": {"topology": "keyed"},
        "ls --since 1h": {"since": "1h"},
        "ls --failed": {"status": "failed"},
        "ls --failed --topology keyed": {"status": "failed", "topology": "keyed"},
        "ls, those that run": {"status": "running"},
    }
    for name, options in lists.items():
        found[name] = lambda c, options=options: _listed(c, options)
    return found


async def _shown(client: dspex.Client, run: str) -> None:
    """What `runs show` reads: the history, once."""
    found = await client.run(run).file()
    assert found.info.id == found.root.id == run


async def _listed(client: dspex.Client, options: Mapping[str, Any]) -> None:
    """What `runs ls` reads."""
    assert [info async for info in client.runs(**options, limit=20)]


async def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Seconds of each question by round, and what was asked about."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.store or Path(temporary)
        async with stream(folder, args.messages) as (url, known):
            found = stored.settings(url, temporary)
            async with dspex.connect(settings=found) as client:
                what = await _counted(client)
                seconds = dict[str, list[float]]()
                for name, ask in questions(known).items():
                    if args.only and args.only not in name:
                        continue
                    seconds[name] = [await _timed(ask, client) for _ in range(args.rounds)]
                    print(f"  {name:<32}{max(seconds[name]):>8.3f} s", file=sys.stderr)
                commands = {} if args.only else _commands(known, found.to_json(), args.rounds)
        return {"stream": what, "seconds": seconds, "commands": commands}


async def _timed(ask: Ask, client: dspex.Client) -> float:
    began = time.perf_counter()
    await ask(client)
    return time.perf_counter() - began


async def _counted(client: dspex.Client) -> dict[str, int]:
    """How much there is."""
    name = subjects.stream(stored.APP)
    info = await client.bus.stream(name)
    entries = await client.bus.count(name, [subjects.log(stored.APP, "*", "*", "*")])
    sources = await client.bus.stream(subjects.sources(stored.APP))
    return {"messages": info.last if info else 0, "log entries": entries, "runs": sources.messages if sources else 0}


def _commands(known: Mapping[str, str], variables: str, rounds: int) -> dict[str, list[float]]:
    """Seconds of whole commands, and of one that does nothing."""
    asked = {
        "--version": ["--version"],
        "runs show": ["runs", "show", known["flat middle done"]],
        "runs ls": ["runs", "ls"],
    }
    found = dict[str, list[float]]()
    for name, words in asked.items():
        for _ in range(rounds):
            began = time.perf_counter()
            command = [sys.executable, "-m", "dspex", *words]
            subprocess.run(command, env={**os.environ, "DSPEX_SETTINGS_JSON": variables}, stdout=subprocess.DEVNULL, check=True)
            found.setdefault(name, []).append(time.perf_counter() - began)
    return found


def table(figures: Mapping[str, Any]) -> list[str]:
    """The lines for people."""
    lines = [", ".join(f"{count:,} {what}" for what, count in figures["stream"].items())]
    lines += ["", f"{'asked by a client':<34}{'median':>10}{'worst':>10}  (goal: at most {GOAL:g} s)"]
    for name, seconds in figures["seconds"].items():
        late = "" if max(seconds) <= GOAL else "  too long"
        lines.append(f"{name:<34}{statistics.median(seconds):>8.3f} s{max(seconds):>8.3f} s{late}")
    if figures["commands"]:
        lines += ["", f"{'command':<34}{'median':>10}{'worst':>10}"]
        for name, seconds in figures["commands"].items():
            lines.append(f"{name:<34}{statistics.median(seconds):>8.3f} s{max(seconds):>8.3f} s")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=positive, default=1_000_000)
    parser.add_argument("--rounds", type=positive, default=5)
    parser.add_argument("--store", type=Path, help="a folder that keeps the stream, for another time")
    parser.add_argument("--only", help="questions that have this in their name")
    parser.add_argument("--json", action="store_true", help="an object instead of tables")
    args = parser.parse_args()
    figures = asyncio.run(measure(args))
    print(json.dumps(figures) if args.json else "\n".join(table(figures)))
    return int(any(max(seconds) > GOAL for seconds in figures["seconds"].values()))


if __name__ == "__main__":
    sys.exit(main())
