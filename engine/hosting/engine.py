"""The engine as users run it: settings, a server, the host, and the pools beside it."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Literal, NamedTuple, Self

from dspex.bus import telemetry
from dspex.bus.errors import ConfigError
from dspex.bus.local.open import Found, connect, server_of
from dspex.bus.port import Bus, BusEvents
from dspex.bus.seldom import Seldom, logger
from dspex.bus.serving.keys.signatures import keys_of
from dspex.bus.settings.called.refs import allows, not_allowed
from dspex.bus.settings.duration import Duration, seconds
from dspex.bus.settings.model import Settings
from dspex.bus.tasks import first
from dspex.engine.graph.defaults import with_defaults
from dspex.engine.graph.graph import Graph, HasGraph, graphs_of
from dspex.engine.graph.submitted import submitted
from dspex.engine.hosting.command_process import OnOutput
from dspex.engine.hosting.host import Host
from dspex.engine.hosting.pools import Pools
from dspex.engine.runtime.walk.timing import NodeTimes

_log = logger("dspex.engine")
_HAPPENED = telemetry.HAPPENINGS.keys() - {"handled", "noted"}  # these are told in words of the engine's own


def engine_id() -> str:
    """A new id: host, process, and four hex digits, so that a restarted process is another engine."""
    host = "".join(c if c.isalnum() else "-" for c in socket.gethostname())[:32]
    return f"{host}-{os.getpid()}-{secrets.token_hex(2)}"


@dataclass(frozen=True)
class RunningEngine:
    """What an engine consists of while it runs.

    `pools`: those that it started itself. `settings`: those with which a process beside it finds the same server.
    """

    server: Found
    bus: Bus
    host: Host
    pools: Pools
    settings: Settings


class EngineEvent(NamedTuple):
    """Something that happened. `name` and `facts`: see `dspex.bus.telemetry.HAPPENINGS`."""

    name: str
    facts: Mapping[str, object]


class Engine:
    """Runs topologies until it is drained. Several engines share the partitions of one application.

    Args:
        topologies: to run together, as one application.
        settings: loaded as every dspex process loads them when left out.
        pools: which worker pools to start beside it: "all" that the topologies need, and where calls can be submitted all of
            the settings but those with GPUs; "none", or names.
        observer: called with what happens in this process while the engine runs (commits, dead letters, partitions that
            come and go, …), on its loop, so it must not block. Pools are processes of their own.
        on_ready: called when a pool is ready, with its description as plain data.
        on_output: called with each line that a pool logs; None: the pools write to stderr themselves.
        again: whether a version that another one has replaced is applied again, on the server of this folder.
        times: where what operators take in this process is measured; None: it is not.
    """

    def __init__(
        self,
        *topologies: HasGraph,
        settings: Settings | None = None,
        pools: Literal["all", "none"] | Sequence[str] = "all",
        observer: Callable[[EngineEvent], None] | None = None,
        start_server: bool = True,
        on_ready: Callable[[dict[str, object]], None] = lambda said: None,
        on_output: OnOutput = None,
        again: bool = False,
        times: NodeTimes | None = None,
    ) -> None:
        self.settings = settings or Settings.load()
        defaults = self.settings.defaults.call.options()
        self.graphs: list[Graph] = [with_defaults(g, defaults, self.settings.timeouts) for g in graphs_of(topologies)]
        if self.settings.engine.submit:
            self.graphs.append(submitted(self.settings.app, tuple(sorted({*self.settings.pools}))))
        self.id = engine_id()
        self._running: RunningEngine | None = None
        self._wanted = pools
        self._start_server = start_server
        self._on_ready, self._on_output, self._again = on_ready, on_output, again
        self._observer, self.times, self._stack = observer, times, AsyncExitStack()

    @property
    def running(self) -> RunningEngine:
        """What it consists of, from the begin of its block until it is drained. Raises RuntimeError outside."""
        if self._running is None:
            raise RuntimeError("the engine does not run: use it inside `async with Engine(…) as engine`")
        return self._running

    async def __aenter__(self) -> Self:
        needed = self._pool_names()
        if self._observer is not None:
            self._stack.callback(telemetry.subscribe(partial(_observed, self._observer), _HAPPENED))
        try:
            self._running = await self._start(needed)
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def _start(self, pools: Sequence[str]) -> RunningEngine:
        s = self.settings
        keys = {name: found for name, p in s.pools.items() if (found := keys_of(name, p.hmac_key_env))}
        server = await self._stack.enter_async_context(server_of(s, start=self._start_server))
        bus = await connect(s, server, name=f"dspex/engine/{self.id}", events=_events())
        self._stack.push_async_callback(bus.close)
        host = Host(
            bus,
            s.app,
            self.graphs,
            engine=self.id,
            replicas=s.server.replicas,
            max_bytes=s.engine.max_bytes,
            heartbeat=s.engine.heartbeat,
            records=s.engine.records,
            stall_after=s.engine.stall_after,
            align=s.engine.align,
            most_arrivals=s.engine.commit.max_events,
            most_open_calls=s.engine.max_open_calls,
            state_limit=s.engine.state_limit,
            claim_check_above=s.engine.claim_check_above,
            keys=keys,
            only_additive=not server.local,
            again=self._again and server.local,
            times=self.times,
        )
        try:
            await host.start()
            # Who finds the local server by its store has its password, too.
            here = s.server if server.local else s.server.model_copy(update={"url": server.url})
            settings = s.model_copy(update={"server": here}).placed(s.root, s.origins())
            return RunningEngine(server, bus, host, Pools(pools, settings, self._on_ready, self._on_output), settings)
        except BaseException:
            await host.kill()
            raise

    def _pool_names(self) -> list[str]:
        calls = [n.call for g in self.graphs for n in g.calls if n.call.of is None]
        for lm in [lm for c in calls for lm in c.spec.lm if lm not in self.settings.lm]:
            known = ", ".join(self.settings.lm)
            message = f"a topology uses language model {lm!r}; the settings have: {known}"
            raise ConfigError(message, code="DX111", node=lm, fix=f"add it to dspex.toml: lm.{lm} = {{ model = … }}")
        used = sorted({c.pool for c in calls})
        wanted = [] if isinstance(self._wanted, str) else list(self._wanted)
        unknown = [p for p in (*used, *wanted) if p not in self.settings.pools]
        if unknown:
            known = ", ".join(self.settings.pools)
            who = "a topology uses" if unknown[0] in used else "asked for"
            raise ConfigError(
                f"{who} pool {unknown[0]!r}; the settings have: {known}",
                code="DX133",
                node=unknown[0],
                fix=f"add it to dspex.toml: pools.{unknown[0]} = {{}}",
            )
        started = sorted({*used, *self._submitted_to()}) if self._wanted == "all" else wanted
        for name, ref in [(c.pool, ref) for c in calls if c.pool in started for ref in c.spec.refs]:
            if not allows(allowed := self.settings.pools[name].programs, ref):  # each call of it would fail, or fall back
                message, fix = not_allowed(name, allowed, ref)
                raise ConfigError(message, code="DX138", node=ref, fix=fix)
        return started

    def _submitted_to(self) -> list[str]:
        """The pools that any client may submit calls to, without those whose GPUs may be those of another machine."""
        return [name for name, pool in self.settings.pools.items() if not pool.gpus] if self.settings.engine.submit else []

    async def __aexit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        await self.drain()

    async def wait(self) -> None:
        """Wait until the engine fails; raises the error."""
        await first(self.running.host.wait(), *(k.failed() for k in self.running.pools.processes))

    async def drain(self, timeout: Duration = "30s") -> None:
        """Stop reading, commit what was walked, let the pools finish what they run, then close everything."""
        if self._running is not None:
            await self._running.host.drain(seconds(timeout))
            await self._running.pools.stop(seconds(timeout))
            self._running = None
        await self._stack.aclose()

    def statistics(self) -> dict[str, Any]:
        """What it is and does now, as plain data."""
        return self._running.host.describe() if self._running else {}


def _observed(observer: Callable[[EngineEvent], None], name: str, facts: Mapping[str, object]) -> None:
    observer(EngineEvent(name, facts))


def _events() -> BusEvents:
    seldom = Seldom(_log)
    return BusEvents(
        state=lambda state, why: _log.info("bus", state=state, why=why),
        error=lambda text: seldom.warning("bus", error=text),
    )


def stop_on_signals() -> asyncio.Future[int]:
    """A future that the first SIGINT or SIGTERM resolves with its number; the second one ends the process at once."""
    loop = asyncio.get_running_loop()
    stopped: asyncio.Future[int] = loop.create_future()

    def handle(number: int) -> None:
        if stopped.done():
            os._exit(128 + number)
        stopped.set_result(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, handle, number)
    return stopped


async def until_stopped(engine: Engine, stopped: asyncio.Future[Any]) -> None:
    """Wait for a signal, or until the engine fails; then raises the error."""
    await first(stopped, engine.wait())


async def _run(topologies: Sequence[HasGraph], settings: Settings | None) -> None:
    stopped = stop_on_signals()
    async with Engine(*topologies, settings=settings) as engine:
        await until_stopped(engine, stopped)


def run(*topologies: HasGraph, settings: Settings | None = None) -> None:
    """Run topologies until SIGINT or SIGTERM, which drain; a second one stops at once. Blocks."""
    asyncio.run(_run(topologies, settings))
