"""`dspex run`: a server if there is none, the engine, and its pools, until a signal drains them."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Coroutine, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import structlog
import typer

from dspex.bus import subjects
from dspex.bus.errors import DspexError
from dspex.bus.local.processes import when_stdin_ends
from dspex.bus.seldom import Seldom
from dspex.bus.serving import audit
from dspex.bus.tasks import Tasks, first
from dspex.engine.cli.reload import RELOAD, Files, again_and_again, watching
from dspex.engine.cli.terminal.client import count, shown
from dspex.engine.cli.terminal.live import Draw
from dspex.engine.cli.terminal.progress import Bar
from dspex.engine.cli.terminal.terminal import Terminal, terminal
from dspex.engine.cli.topology.targets import Targets, load

if TYPE_CHECKING:
    from dspex.bus.local.open import Found
    from dspex.bus.settings.model import Settings
    from dspex.engine.client.status.rows import StageReport
    from dspex.engine.hosting.engine import Engine

LINE_EVERY = 10.0  # seconds between two log lines about the same
DRAW_EVERY = 2.0  # seconds between two looks at all that runs, on a terminal


def run(
    context: typer.Context,
    targets: Targets = None,
    pools: Annotated[str, typer.Option("--pools", metavar="all|none|A,B", help="Worker pools to start beside it.")] = "all",
    no_server: Annotated[bool, typer.Option("--no-server", help="Do not start a nats-server where none is running.")] = False,
    grace: Annotated[str, typer.Option("--grace", help="What running calls have to finish after ^C.")] = "30s",
    reload: Annotated[bool, typer.Option("--reload", help="Drain and start again when the project's files change.")] = False,
    with_parent: Annotated[bool, typer.Option("--with-parent", hidden=True, help="Drain when stdin ends.")] = False,
) -> None:
    """Run topologies until ^C or SIGTERM, which drains; a second one stops at once."""
    from dspex.bus.settings.duration import seconds

    t = terminal(context)
    if with_parent:
        when_stdin_ends(lambda: os.kill(os.getpid(), signal.SIGTERM))
    wait, files = seconds(grace), Files(t, targets) if reload else None
    wanted: Any = pools if pools in ("all", "none") else [p.strip() for p in pools.split(",") if p.strip()]

    def once() -> Coroutine[Any, Any, int]:
        return _Run(t, load(t, targets), wanted, not no_server, wait, files).main()

    if files is not None:
        again_and_again(t, files, once)
    else:
        t.run(once())


class _Run:
    """One run of the verb, and what it prints."""

    def __init__(
        self, t: Terminal, topologies: list[Any], pools: Any, start_server: bool, grace: float, files: Files | None
    ) -> None:
        from dspex.engine.hosting.engine import Engine

        self.t, self.grace, self.files = t, grace, files
        self.topologies = topologies
        self.engine: Engine = Engine(
            *topologies,
            settings=t.settings(),
            pools=pools,
            start_server=start_server,
            on_ready=self._pool_ready,
            on_output=t.relay if t.people else None,  # else what is drawn in place would be torn
        )
        self.began = time.monotonic()
        self.ready_pools: list[Mapping[str, Any]] = []
        self.bar: Bar | None = None  # while the pools warm up
        self._seldom = Seldom(structlog.get_logger("dspex.engine"))

    async def main(self) -> int:
        """The number of the signal that ended it, or RELOAD."""
        from dspex.engine.hosting.engine import stop_on_signals, until_stopped

        stopped = stop_on_signals()
        async with watching(self.t, self.files, stopped), self.engine as engine:
            self._print_server()
            self._print_topologies()
            await self._note_changes()
            await self._warm_up(stopped)
            lines = Tasks("dspex", lambda name, error: self.t.note(f"what runs is not shown any more: {error!r}"))
            lines.start(self._watch(), "view")
            try:
                await until_stopped(engine, stopped)
            finally:
                await lines.stop()
                await self._drain(stopped)
        return stopped.result()

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
    async def _watch(self) -> None:
        """Show what runs: in place on a terminal, as log lines elsewhere."""
        with self.t.live() as draw:
            if draw is not None:
                await self._drawn(draw)
            elif not sys.stderr.isatty() or self.t.json:
                await self._logged()

    async def _drawn(self, draw: Draw) -> None:
        from dspex.engine.cli.figures import blocks
        from dspex.engine.client.client import Client

        running = self.engine.running
        async with Client(bus=running.bus, app=running.host.app) as c:
            while True:
                try:
                    found = await c.status(running.pools.names)
                    alive = running.pools.alive  # one that cannot be heard may run: an engine's user need not be allowed to ask
                    found["pools"] = [p for p in found["pools"] if p["id"] is not None or p["pool"] not in alive]
                    draw(blocks(found))
                except DspexError as e:  # what is drawn stays
                    self._seldom.warning("cannot look now, trying again", why=e.message)
                await asyncio.sleep(DRAW_EVERY)

    async def _logged(self) -> None:
        """A line about each stage and operator that did something since the last."""
        log, before = structlog.get_logger("dspex.engine"), self.engine.statistics()
        while True:
            await asyncio.sleep(LINE_EVERY)
            now = self.engine.statistics()
            for stage in now["stages"]:
                old = next((s for s in before["stages"] if _same(s, stage, "stage")), None)
                if old is None or _figures(old) != _figures(stage):
                    log.info("stage", **_figures(stage), rate=stage["rate"])
            for operator in [o for o in now["operators"] if o not in before["operators"]]:
                log.info("operator", **operator)
            before = now

    # -- stop -----------------------------------------------------------------------------------------------------
    async def _drain(self, stopped: asyncio.Future[int]) -> None:
        name = signal.Signals(stopped.result()).name if stopped.done() and stopped.result() != RELOAD else None
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


def _same(a: Mapping[str, Any], b: Mapping[str, Any], name: str) -> bool:
    return bool(a["topology"] == b["topology"] and a[name] == b[name])


def _figures(stage: StageReport) -> dict[str, object]:
    """What is logged of a stage when it has changed."""
    return {
        "topology": stage["topology"],
        "stage": stage["stage"],
        "events": stage["events"],
        "open_calls": sum(p["open_calls"] for p in stage["partitions"]),
        "partitions": len(stage["partitions"]),
        "dead_letters": stage["dead_letters"],
        "fallbacks": stage.get("fallbacks", 0),
        "stopped": stage["stopped"],
    }
