"""The engine of a testing driver: killed and started again when the test says so, and where the faults do."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from dspex.bus.errors import BusError, Unreachable
from dspex.bus.memory.faults import Luck
from dspex.bus.port import Bus
from dspex.bus.tasks import Tasks, first
from dspex.engine.graph.graph import Graph
from dspex.engine.graph.nodes import KEYED_PARTITIONS
from dspex.engine.hosting.host import Host
from dspex.engine.runtime.stage import StageRunner
from dspex.engine.testing.door import Door, behind
from dspex.engine.testing.replayed import first_difference, logs_of

AGAIN = 0.1  # seconds until what a fault made fail is done again
LONGEST_DEATH = 3.0  # seconds until a dead engine is started again, at most
MOST_DEATHS = 3  # in a row of engines that committed nothing: the next one lives until it has
LOOK = 0.5  # seconds between two looks whether a frozen engine was replaced, or one that may not die has committed anything
THAWED = 5.0  # seconds that it goes on, once another one has taken over


class _Engine:
    """One life of an engine."""

    def __init__(self, host: Host, bus: Bus, door: Door) -> None:
        self.host, self.bus, self.door = host, bus, door

    def owns(self) -> set[tuple[str, str, int]]:
        """The partitions that it believes to own."""
        return {(r.topology, r.stage.id, index) for r in self.host.runners for index in r.partitions}

    async def kill(self) -> None:
        """End as SIGKILL would."""
        self.door.armed = False
        self.door.thaw()  # what waits there is cancelled, and what closes has to get through
        await self.host.kill()
        await self.bus.close()


class Engines:
    """One engine at a time, or two, while one is frozen.

    Args:
        connect: gives a connection; each engine has one of its own.
        luck: decides when it dies and when it is frozen.
        heartbeat: seconds between two signs of life of an engine.

    Attributes:
        failure: what made an engine end; None while nothing has.
        lives: engines that were started.
    """

    def __init__(
        self,
        connect: Callable[[], Awaitable[Bus]],
        app: str,
        graphs: Sequence[Graph],
        luck: Luck,
        *,
        heartbeat: float = 1.0,
    ) -> None:
        self._connect, self._app, self._graphs, self._luck, self._heartbeat = connect, app, graphs, luck, heartbeat
        self._living: list[_Engine] = []
        self._tasks = Tasks("driver", lambda name, error: self._failed(error))
        self._frozen = self._in_vain = 0
        self._runners: list[StageRunner] = []
        self.lives = 0
        self._failure: BaseException | None = None

    @property
    def failure(self) -> BaseException | None:
        return self._failure or next((e.host.failure for e in self._living if e.host.failure is not None), None)

    @property
    def runners(self) -> list[StageRunner]:
        """Of the one that was started last."""
        return self._runners

    def _failed(self, error: BaseException) -> None:
        self._failure = self._failure or error

    async def start(self) -> None:
        """Start one, and keep it alive from then on."""
        await self._start()
        faults = self._luck.faults
        if faults.crash or faults.freeze:
            self._tasks.start(self._keep(), "engines")

    async def state(self, node: str, key: str) -> Any:
        """What a node keeps of a key; None where it keeps nothing. Raises Unreachable while no engine runs its stage."""
        stages = [r for e in self._living[-1:] for r in e.host.runners if node in r.stage.states]
        tables = [p.tables.keyed.rows for r in stages for p in r.partitions.values()]
        found = {sub: row for rows in tables for (n, k, sub), row in rows.items() if (n, k) == (node, key)}
        if found:
            shown = stages[0].stage.states[node].state.shown
            return shown(found) if shown is not None else found
        if any(len(r.partitions) < (1 if r.source is not None else KEYED_PARTITIONS) for r in stages) or not stages:
            raise Unreachable(f"no engine runs all partitions of the stage of {node}")
        return None

    async def kill(self) -> None:
        """End all, as SIGKILL would."""
        await self._tasks.stop()
        while self._living:
            await self._kill(self._living[-1])

    async def differs(self, bus: Bus) -> str | None:
        """What gives something else when it is processed again, in words; None for nothing. Ends all. Raises BusError."""
        logs = logs_of(self._runners)
        await self.kill()
        return await first_difference(bus, self._app, logs)

    async def _kill(self, engine: _Engine) -> None:
        if engine.host.failure is not None:
            self._failed(engine.host.failure)
        self._living.remove(engine)
        self._in_vain = 0 if engine.host.committer.commits else self._in_vain + 1
        await engine.kill()

    async def _start(self, *, safely: bool = False) -> _Engine:
        """Start one until it has started, however often it dies on the way. `safely`: it does not."""
        while True:
            self.lives += 1
            door, bus = Door(self._luck), await self._connect()
            if door.armed:
                bus = behind(door, bus)
            door.armed = door.armed and not safely and self._in_vain < MOST_DEATHS
            engine = _Engine(Host(bus, self._app, self._graphs, engine=self._name, heartbeat=self._heartbeat), bus, door)
            self._living.append(engine)
            self._runners = engine.host.runners
            try:
                await first(engine.host.start(), door.hit.wait())
            except BusError as e:
                await self._kill(engine)
                if not e.retryable:
                    raise
            else:
                if not door.hit.is_set():
                    return engine
                await self._kill(engine)
            await asyncio.sleep(AGAIN)

    @property
    def _name(self) -> str:
        """An engine has the id of the one that it replaces, unless that may live."""
        return f"driver-{self._frozen}" if self._frozen else "driver"

    async def _keep(self) -> None:
        """Start the engine again whenever it dies, and another one where it is frozen."""
        while True:
            engine = self._living[-1]
            while not (engine.door.armed or engine.door.hit.is_set()):
                await asyncio.sleep(LOOK)  # of what it commits nobody tells
                engine.door.armed = engine.host.committer.commits > 0
            await engine.door.hit.wait()
            if engine.door.frozen:
                self._frozen += 1
                other = await self._start(safely=True)
                while not engine.owns() <= other.owns():  # noqa: ASYNC110  the clock is virtual, and who owns what is written nowhere else
                    await asyncio.sleep(LOOK)
                engine.door.thaw()
                await asyncio.sleep(THAWED)
                await self._kill(engine)
                await self._kill(other)  # it had no faults
            else:
                await self._kill(engine)
                await asyncio.sleep(self._luck.random.uniform(AGAIN, LONGEST_DEATH))
            await self._start()
