"""Whether an application is healthy: what of its status somebody has to do something about."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Final, NamedTuple

from dspex.engine.client.status.rows import EngineRow, StageRow, Status

MOST_SKEW: Final = 3.0  # seconds between the clock of a machine and the server's


class Fault(NamedTuple):
    """One thing that is wrong. `check`: what was looked at: "stream", "engine", "stage", "owner", "pool", "clock"."""

    check: str
    message: str
    fix: str

    def as_dict(self) -> dict[str, object]:
        """The `--json` object."""
        return self._asdict()


def faults(found: Status) -> list[Fault]:
    """What is wrong; empty for a healthy application."""
    alive = [e for e in found["engines"] if e["alive"]]
    return [*_stream(found, alive), *_engines(found, alive), *_stages(found, alive), *_pools(found), *_clocks(alive)]


def _stream(found: Status, alive: list[EngineRow]) -> Iterator[Fault]:
    app = found["server"]["app"]
    running = sorted({topology for e in alive for topology in e["topologies"]})
    applied = {s["topology"] for s in found["stages"]}
    lost = "restore the server's data and start the engines again, or start them anew: dspex run"
    if found["server"]["stream"] is None and (running or applied):
        yield Fault("stream", f"the stream of app {app} is gone from the server, and with it all that it held", lost)
    elif not applied:
        yield Fault("engine", f"nothing is applied for app {app}", "dspex run")
    for topology in sorted(set(running) - applied):
        yield Fault("engine", f"an engine runs {topology}, and the server knows no such topology", lost)


def _engines(found: Status, alive: list[EngineRow]) -> Iterator[Fault]:
    run = {topology for e in alive for topology in e["topologies"]}
    for topology in sorted({s["topology"] for s in found["stages"]} - run):
        yield Fault("engine", f"no engine is running {topology}", "dspex run")
    for e in alive:
        if e["full"]:
            yield Fault("stream", f"{e['engine']}: {e['full']}", "raise max_bytes, or remove what is not needed")
        if (health := e.get("health", "ok")) != "ok" and found["server"]["stream"]:
            yield Fault("engine", f"{e['engine']}: {health}", "look at its log, and start it again")


def _stages(found: Status, alive: list[EngineRow]) -> Iterator[Fault]:
    run = {topology for e in alive for topology in e["topologies"]}
    for s in found["stages"]:
        name = f"{s['topology']}/{s['stage']}"
        if s["stopped"]:
            yield Fault("stage", f"{name} ({s['source']}) is stopped: {s['stopped']}", "the log of its engine says what to do")
        if s["full"] and s["put_off"] > s["open_calls"]:
            fix = "raise engine.max_open_calls, or give events that wait long a source of their own"
            yield Fault("stage", f"{name}: {_waiting(s)}", fix)
        if s["unowned"] and s["topology"] in run:
            yield Fault("owner", f"{name}: {_partitions(s)} no owner", "wait five heartbeats; then look at the engines' logs")


def _waiting(s: StageRow) -> str:
    return f"{s['full']} of {s['partitions']} partitions admit no event: {s['put_off']:,} events wait for their time"


def _partitions(s: StageRow) -> str:
    return f"{s['unowned']} of {s['partitions']} partitions {'has' if s['unowned'] == 1 else 'have'}"


def _pools(found: Status) -> Iterator[Fault]:
    ready, calls = Counter[str](), Counter[str]()
    for p in found["pools"]:
        if p.get("failed"):
            fix = "its log says what its workers die of; it tries again by itself"
            yield Fault("pool", f"pool {p['pool']} ({p['id']}) has failed: its workers die, and its calls fail at once", fix)
        ready[p["pool"]] += 0 if p.get("draining") else p["ready"]
    for s in found["stages"]:
        calls.update(s["calls"])
    for pool in sorted(pool for pool, number in calls.items() if number and not ready[pool]):
        wait = "1 call waits" if calls[pool] == 1 else f"{calls[pool]} calls wait"
        yield Fault("pool", f"{wait} for pool {pool}, and no worker of it is ready", f"dspex worker {pool}")


def _clocks(alive: list[EngineRow]) -> Iterator[Fault]:
    for e in alive:
        if abs(ahead := e.get("clock", 0.0)) > MOST_SKEW:
            message = f"the clock of {e['engine']}'s machine is {ahead:+.1f} s from the server's"
            yield Fault("clock", message, "synchronise the clocks (NTP): logs and ids of that machine have its own time")
