"""`dspex run`: a server if there is none, the engine, and its pools, until a signal drains them."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, TypedDict

import typer

from dspex.bus import subjects
from dspex.bus.serving import audit
from dspex.bus.tasks import Tasks, first
from dspex.engine.cli.terminal.client import count, shown
from dspex.engine.cli.terminal.progress import Bar
from dspex.engine.cli.terminal.terminal import Terminal, terminal
from dspex.engine.cli.topology.targets import Targets, load

if TYPE_CHECKING:
    from dspex.bus.local.open import Found
    from dspex.bus.settings.model import Settings
    from dspex.engine.client.status.rows import StageReport
    from dspex.engine.hosting.engine import Engine

LINE_EVERY = 10.0  # seconds between status lines


def run(
    context: typer.Context,
    targets: Targets = None,
    pools: Annotated[str, typer.Option("--pools", metavar="all|none|A,B", help="Worker pools to start beside it.")] = "all",
    no_server: Annotated[bool, typer.Option("--no-server", help="Do not start a nats-server where none is running.")] = False,
    grace: Annotated[str, typer.Option("--grace", help="What running calls have to finish after ^C.")] = "30s",
) -> None:
    """Run topologies until ^C or SIGTERM, which drains; a second one stops at once."""
    from dspex.bus.settings.duration import seconds

    t = terminal(context)
    wait, topologies = seconds(grace), load(t, targets)
    wanted: Any = pools if pools in ("all", "none") else [p.strip() for p in pools.split(",") if p.strip()]
    t.run(_Run(t, topologies, wanted, not no_server, wait).main())


class _Run:
    """One run of the verb, and what it prints."""

    def __init__(self, t: Terminal, topologies: list[Any], pools: Any, start_server: bool, grace: float) -> None:
        from dspex.engine.hosting.engine import Engine

        self.t, self.grace = t, grace
        self.topologies = topologies
        self.engine: Engine = Engine(
            *topologies, settings=t.settings(), pools=pools, start_server=start_server, on_ready=self._pool_ready
        )
        self.began = time.monotonic()
        self.ready_pools: list[Mapping[str, Any]] = []
        self.bar: Bar | None = None  # while the pools warm up

    async def main(self) -> None:
        from dspex.engine.hosting.engine import stop_on_signals, until_stopped

        stopped = stop_on_signals()
        async with self.engine as engine:
            self._print_server()
            self._print_topologies()
            await self._note_changes()
            await self._warm_up(stopped)
            lines = Tasks("dspex", lambda name, error: self.t.note(f"the status lines ended: {error!r}"))
            lines.start(self._lines(), "lines")
            try:
                await until_stopped(engine, stopped)
            finally:
                await lines.stop()
                await self._drain(stopped)

    # -- start ----------------------------------------------------------------------------------------------------
    async def _note_changes(self) -> None:
        running = self.engine.running
        changed = {name: change for name, change in running.host.applied.items() if change != "unchanged"}
        if changed:
            await audit.leave(running.bus, running.host.app, "apply", **changed)

    async def _warm_up(self, stopped: asyncio.Future[int]) -> None:
        pools = self.engine.running.pools
        if pools.names:
            sizes = [self.engine.settings.pools[name].size for name in pools.names]
            with self.t.progress("warming up", sum(sizes)) as self.bar:
                await first(stopped, pools.ready(), self.engine.wait())
            self.bar = None
            if stopped.done():
                return
            if pools.failures:
                raise pools.failures[0]
            self._print_pools()
        took = time.monotonic() - self.began
        self.t.emit({"event": "ready", "seconds": round(took, 3)}, f"ready in {took:.1f} s")

    def _pool_ready(self, said: Mapping[str, Any]) -> None:
        """A pool takes work: for the first time, or again after it died."""
        if self.bar is not None:
            self.bar.advance(said["size"], said["pool"])
            self.ready_pools.append(said)
        else:
            self._print_pool(said)

    def _print_server(self) -> None:
        server, settings = self.engine.running.server, self.engine.settings
        sync = settings.server.local.sync_interval
        data = {"event": "server", "url": server.url, "started": server.started, "local": server.local}
        self.t.emit(
            data | {"store": str(settings.store) if server.local else None, "sync_interval": sync if server.local else None},
            f"server    {server.url}  {_server_words(settings, server)}",
        )

    def _print_topologies(self) -> None:
        host = self.engine.running.host
        for graph in self.engine.graphs:
            stages = sum(r.topology == graph.name for r in host.runners)
            change, stream = host.applied[graph.name], subjects.stream(host.app)
            data = {"event": "topology", "topology": graph.name, "digest": graph.digest, "nodes": len(graph.nodes)}
            self.t.emit(
                data | {"stages": stages, "applied": change, "stream": stream, "stream_applied": host.stream_applied},
                f"topology  {graph.name} {graph.digest[:8]}  {count(len(graph.nodes), 'node')}, {count(stages, 'stage')}; "
                f"{change}, stream {stream} {host.stream_applied}",
            )

    def _print_pools(self) -> None:
        if self.t.json:
            for said in self.ready_pools:
                self._print_pool(said)
            return
        text = "    ".join(f"{s['pool']} {s['size']}/{s['size']} ready" for s in self.ready_pools)
        self.t.line(f"pool      {text}")
        for said in self.ready_pools:
            self._print_failed(said)

    def _print_pool(self, said: Mapping[str, Any]) -> None:
        self.t.emit({**said, "event": "pool ready"}, f"pool      {said['pool']} {said['size']}/{said['size']} ready again")
        if not self.t.json:
            self._print_failed(said)

    def _print_failed(self, said: Mapping[str, Any]) -> None:
        for pattern, why in said["failed"].items():
            self.t.note(f"warning: pool {said['pool']}: {pattern} cannot be imported: {why}; calls of it become dead letters")

    # -- while it runs --------------------------------------------------------------------------------------------
    async def _lines(self) -> None:
        """A line about each stage now and then: for people on a terminal, as a log line elsewhere."""
        import sys

        import structlog

        log, before = structlog.get_logger("dspex.engine"), self.engine.statistics()
        people = sys.stderr.isatty() and not self.t.json
        while True:
            await asyncio.sleep(LINE_EVERY)
            now = self.engine.statistics()
            for old, new in zip(before["stages"], now["stages"]):
                figures = _figures(old, new)
                if people:
                    self.t.note(_line(figures))
                else:
                    log.info("stage", **figures)
            before = now

    # -- stop -----------------------------------------------------------------------------------------------------
    async def _drain(self, stopped: asyncio.Future[int]) -> None:
        name = signal.Signals(stopped.result()).name if stopped.done() else None
        self.t.emit({"event": "draining", "signal": name})
        if not self.t.json and name:
            self.t.note("draining: what runs is finished and committed; once more to stop at once")
        began = time.monotonic()
        await self.engine.drain(self.grace)
        took = time.monotonic() - began
        self.t.emit({"event": "stopped", "seconds": round(took, 3)})
        if not self.t.json:
            self.t.note(f"stopped after {took:.1f} s; dspex run goes on from here")


def _server_words(settings: Settings, server: Found) -> str:
    if not server.local:
        return "yours"
    from dspex.bus.settings.duration import human

    sync = settings.server.local.sync_interval
    started, store = "started" if server.started else "was running", shown(settings.store)
    if isinstance(sync, str):
        return f"{started}, data in {store}, every write is synced to disk"
    lost = f"sync_interval {human(sync)} (an OS crash can lose that much: dspex doctor)"
    return f"{started}, data in {store}, {lost}"


class _Figures(TypedDict):
    """What is said of a stage now and then. `rate`: events a second since the last time."""

    topology: str
    stage: str
    events: int
    rate: float
    open_calls: int
    partitions: int
    dead_letters: int
    stopped: str | None


def _figures(old: StageReport, new: StageReport) -> _Figures:
    return {
        "topology": new["topology"],
        "stage": new["stage"],
        "events": new["events"],
        "rate": round((new["events"] - old["events"]) / LINE_EVERY, 1),
        "open_calls": sum(p["open_calls"] for p in new["partitions"]),
        "partitions": len(new["partitions"]),
        "dead_letters": new["dead_letters"],
        "stopped": new["stopped"],
    }


def _line(f: _Figures) -> str:
    stopped = f"  STOPPED: {f['stopped']}" if f["stopped"] else ""
    return (
        f"{f['topology']}/{f['stage']}  {f['events']:,} events, {f['rate']:g}/s  {count(f['open_calls'], 'open call')}  "
        f"{count(f['dead_letters'], 'dead letter')}{stopped}"
    )
