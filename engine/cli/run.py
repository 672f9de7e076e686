"""`dspex run`: a server if there is none, the engine, and its pools, until a signal drains them."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import structlog
import typer

from dspex.bus import subjects
from dspex.bus.errors import DspexError
from dspex.bus.local.processes import drain_or_end, when_stdin_ends
from dspex.bus.seldom import Seldom
from dspex.bus.serving import audit
from dspex.bus.tasks import Tasks, first
from dspex.engine.cli.reload import RELOAD, Files, again_and_again, watching
from dspex.engine.cli.server.gateway import beside
from dspex.engine.cli.server.logged import log_what_runs, profile_file, show_profile
from dspex.engine.cli.server.words import not_started, server_words
from dspex.engine.cli.terminal.client import count, lean_nats
from dspex.engine.cli.terminal.live import Draw
from dspex.engine.cli.terminal.options import duration
from dspex.engine.cli.terminal.progress import Bar
from dspex.engine.cli.terminal.terminal import Terminal, terminal
from dspex.engine.cli.topology.targets import Targets, load
from dspex.engine.telemetry.exporting import exporting, measured

if TYPE_CHECKING:
    from dspex.engine.client.status.rows import Status
    from dspex.engine.hosting.engine import Engine
    from dspex.engine.hosting.engines import EngineProcesses

DRAW_EVERY = 2.0  # seconds between two looks at all that runs, on a terminal


def run(
    context: typer.Context,
    targets: Targets = None,
    pools: Annotated[str, typer.Option("--pools", metavar="all|none|A,B", help="Worker pools to start beside it.")] = "all",
    processes: Annotated[int, typer.Option("--processes", min=1, max=64, help="Engine processes; pools run once.")] = 1,
    no_server: Annotated[bool, typer.Option("--no-server", help="Do not start a nats-server where none is running.")] = False,
    grace: Annotated[str, duration("--grace", help="What running calls have to finish after ^C.")] = "30s",
    http: Annotated[str | None, typer.Option("--http", metavar=":PORT", help="Serve the gateway there.")] = None,
    metrics: Annotated[str | None, typer.Option("--metrics", metavar=":PORT", help="Serve Prometheus' metrics there.")] = None,
    profile: Annotated[
        Path | None, typer.Option("--profile", metavar="FILE", help="At the end, say what each operator took.")
    ] = None,
    reload: Annotated[bool, typer.Option("--reload", help="Drain and start again when the project's files change.")] = False,
    with_parent: Annotated[bool, typer.Option("--with-parent", hidden=True, help="Drain when stdin ends.")] = False,
    as_process: Annotated[int, typer.Option("--as-process", hidden=True, help="Which of several, started by the first.")] = 0,
    relayed: Annotated[bool, typer.Option("--relayed", hidden=True, help="What starts it shows its log to people.")] = False,
) -> None:
    """Run topologies until ^C or SIGTERM, which drains; a second one stops at once."""
    from dspex.bus.settings.duration import seconds

    t, wait = terminal(context), seconds(grace)
    t.people = t.people or relayed
    if with_parent or as_process:
        when_stdin_ends(lambda: drain_or_end(wait))
    files = Files(t, targets) if reload else None
    wanted: Any = pools if pools in ("all", "none") else [p.strip() for p in pools.split(",") if p.strip()]
    number = as_process or min(processes - 1, 1)
    same = ("--grace", grace, *(["-v"] * t.verbosity), *(["-q"] if t.quiet else []), "--", *(targets or ()))
    others = ("--pools", "none", "--no-server", *same)
    serve, written = metrics or t.settings().telemetry.metrics, profile_file(profile, processes)
    how = _How(wanted, not no_server, wait, processes, number, others, files, serve, http, written)

    def once() -> Coroutine[Any, Any, int]:
        return _Run(t, load(t, targets), how).main()

    with t.reporting("engine failed") if as_process else nullcontext():
        again_and_again(t, files, once) if files is not None else t.run(once())


@dataclass(frozen=True)
class _How:
    """The options of the verb.

    `number`: of this process among several, from 1; 0 where it is alone. `processes`: how many the first one keeps running.
    `others`: the options of those; their server is there, and so are the pools. `metrics`, `http`: where they
    are served, and the gateway is. `profile`: where it is said what operators took.
    """

    pools: Any
    start_server: bool
    grace: float
    processes: int
    number: int
    others: Sequence[str]
    files: Files | None
    metrics: str | None
    http: str | None
    profile: Path | None


class _Run:
    """One run of the verb, and what it prints."""

    def __init__(self, t: Terminal, topologies: list[Any], how: _How) -> None:
        from dspex.engine.hosting.engine import Engine
        from dspex.engine.runtime.walk.timing import NodeTimes

        self.t, self.how = t, how
        self.topologies = topologies
        self.engine: Engine = Engine(
            *topologies,
            settings=t.settings(),
            pools=how.pools,
            start_server=how.start_server,
            on_ready=self._pool_ready,
            again=how.files is not None,  # who edits back to what was there before means it
            on_output=t.relay if t.people else None,  # else what is drawn in place would be torn
            times=NodeTimes() if how.profile is not None or measured(how.metrics) else None,
        )
        self.others: EngineProcesses | None = None
        self.began = time.monotonic()
        self.ready_pools: list[Mapping[str, Any]] = []
        self.bar: Bar | None = None  # while the pools warm up
        self._seldom = Seldom(structlog.get_logger("dspex.engine"))

    async def main(self) -> int:
        """The number of the signal that ended it, or RELOAD."""
        from dspex.engine.hosting.engine import stop_on_signals

        stopped = stop_on_signals()
        lean_nats()
        if self.how.number:
            structlog.contextvars.bind_contextvars(process=self.how.number)
        serve = self.how.metrics if self.how.number < 2 else None  # a port is one process's
        told = self.engine.settings.telemetry
        with exporting(self.engine.settings.app, "engine", self.engine.id, serve, self.engine.times, told) as self.exported:
            async with (
                watching(self.t, self.how.files, stopped),
                self.engine,
                beside(self.t, self.engine, self.how.http if self.how.number < 2 else None),
            ):
                await self._until(stopped)
        return stopped.result()

    async def _until(self, stopped: asyncio.Future[int]) -> None:
        self._print_server()
        self._print_topologies()
        await self._note_changes()
        lines = Tasks("dspex", lambda name, error: self.t.note(f"what runs is not shown any more: {error!r}"))
        try:
            self._start_others()
            await self._warm_up(stopped)
            lines.start(self._watch(), "view")
            lines.start(self.exported.keep_looking(self._status), "metrics")
            await first(stopped, self._failed())
        finally:
            await lines.stop()
            await self._drain(stopped)

    async def _status(self) -> Status:
        from dspex.engine.client.client import Client

        running = self.engine.running
        async with Client(bus=running.bus, app=running.host.app) as c:
            return await c.status(running.pools.names)

    async def _failed(self) -> None:
        """Wait until the engine fails, or another process is given up; raises the error."""
        await first(self.engine.wait(), *([self.others.failed()] if self.others is not None else []))

    # -- start ----------------------------------------------------------------------------------------------------
    async def _note_changes(self) -> None:
        running = self.engine.running
        changed = {name: change for name, change in running.host.applied.items() if change != "unchanged"}
        if changed:
            await audit.leave(running.bus, running.host.app, "apply", **changed)

    def _start_others(self) -> None:
        if self.how.processes > 1:
            from dspex.engine.hosting.engines import EngineProcesses

            settings, relay = self.engine.running.settings, self.t.relay if self.t.people else None
            self.others = EngineProcesses(self.how.processes, self.how.others, settings, self._print_engine, relay)

    async def _warm_up(self, stopped: asyncio.Future[int]) -> None:
        pools = self.engine.running.pools
        if pools.names:
            sizes = [self.engine.settings.pools[name].size for name in pools.names]
            with self.t.progress("warming up", sum(sizes)) as self.bar:
                await first(stopped, pools.ready(), self._failed())
            self.bar = None
            if stopped.done():
                return
            if pools.failures:
                raise pools.failures[0]
            self._print_pools()
        if self.others is not None:
            await first(stopped, self.others.ready(), self._failed())
            if stopped.done():
                return
        for name in not_started(self.engine.settings, pools.names) if self.how.pools == "all" else ():
            self.t.note(
                f"note: pool {name} has GPUs, and is not started here: calls submitted to it wait for dspex worker {name}"
            )
        took = time.monotonic() - self.began
        self.t.emit({"event": "ready", "engine": self.engine.id, "seconds": round(took, 3)}, f"ready in {took:.1f} s")

    def _pool_ready(self, said: Mapping[str, Any]) -> None:
        """A pool takes work: for the first time, or again after it died."""
        if self.bar is not None:
            self.bar.advance(said["size"], said["pool"])
            self.ready_pools.append(said)
        else:
            self._print_pool(said)

    def _print_engine(self, number: int, said: Mapping[str, Any]) -> None:
        """Another process runs the topologies: for the first time, or again after it died."""
        data = {"event": "engine ready", "process": number, "engine": said["engine"]}
        self.t.emit(data, f"engine    {said['engine']} ready, process {number} of {self.how.processes}")

    def _print_server(self) -> None:
        server, settings = self.engine.running.server, self.engine.settings
        here = {"store": str(settings.store), "sync_interval": settings.server.local.sync_interval} if server.local else {}
        data = {"event": "server", "url": server.url, "started": server.started, "local": server.local}
        none = {"store": None, "sync_interval": None}
        self.t.emit({**data, **none, **here}, f"server    {server.url}  {server_words(settings, server)}")

    def _print_topologies(self) -> None:
        host = self.engine.running.host
        for graph in host.graphs:
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
        self.t.line("pool      " + "    ".join(f"{s['pool']} {s['size']}/{s['size']} ready" for s in self.ready_pools))
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
                await log_what_runs(self.engine.statistics)

    async def _drawn(self, draw: Draw) -> None:
        from dspex.engine.cli.figures import blocks, engines

        pools = self.engine.running.pools
        while True:
            try:
                found = await self._status()
                alive = pools.alive  # one that cannot be heard may run: an engine's user need not be allowed to ask
                found["pools"] = [p for p in found["pools"] if p["id"] is not None or p["pool"] not in alive]
                draw([*([engines(found["engines"])] if self.others is not None else []), *blocks(found)])
            except DspexError as e:  # what is drawn stays
                self._seldom.warning("cannot look now, trying again", why=e.message)
            await asyncio.sleep(DRAW_EVERY)

    # -- stop -----------------------------------------------------------------------------------------------------
    async def _drain(self, stopped: asyncio.Future[int]) -> None:
        name = signal.Signals(stopped.result()).name if stopped.done() and stopped.result() != RELOAD else None
        self.t.emit({"event": "draining", "signal": name})
        if not self.t.json and name:
            self.t.note("draining: what runs is finished and committed; once more to stop at once")
        began = time.monotonic()
        if self.others is not None:  # at once: else this process would take over what those hand over
            await asyncio.gather(self.others.stop(self.how.grace), self.engine.running.host.drain(self.how.grace))
        if self.how.profile is not None:
            await self.engine.running.host.drain(self.how.grace)
            show_profile(self.t, self.how.profile, self.engine.statistics()["operators"])
        await self.engine.drain(self.how.grace)
        took = time.monotonic() - began
        self.t.emit({"event": "stopped", "seconds": round(took, 3)})
        if not self.t.json:
            self.t.note(f"stopped after {took:.1f} s; dspex run goes on from here")
