"""A server in virtual time, and the processes of pools at it, whose calls spend tokens."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, cast

from dspex.bus import subjects
from dspex.bus.errors import DspexError
from dspex.bus.memory.server import MemoryBus, MemoryServer
from dspex.bus.memory.virtual import VirtualLoop
from dspex.bus.port import StreamConfig
from dspex.bus.records import CallRecord, CallRequest, RecordTo, Tried, Usage
from dspex.bus.serving.call_spec import CallSpec
from dspex.bus.serving.limits import MINUTE, Budget, Ledger
from dspex.bus.serving.server_clock import ServerClock
from dspex.workers.config import PoolConfig, Profile
from dspex.workers.limits.step import Limits
from dspex.workers.pool.execution import Execution

APP = "test"
START = 1_767_225_600.0  # a full minute, and a full day
PRICE = {"input": 1.0, "output": 10.0}


@dataclass(eq=False)
class Asked:
    """A call on its way through a pool, as its step sees it."""

    work: CallRequest
    lms: list[str] | None = None
    ran: float = 1.0
    ended_worker: bool = False
    routing: list[Tried] = field(default_factory=list[Tried])
    batch: bool = False
    inherited: Usage | None = None
    over: bool = False


@dataclass
class World:
    """A server, and the processes of pools at it. `spent`: tokens by the minute in which the model was asked."""

    loop: VirtualLoop
    server: MemoryServer
    config: PoolConfig
    spent: Counter[int] = field(default_factory=Counter[int])
    requests: Counter[int] = field(default_factory=Counter[int])
    running: int = 0
    peak: int = 0
    buses: dict[Limits, MemoryBus] = field(default_factory=dict[Limits, MemoryBus])

    async def process(self, config: PoolConfig | None = None) -> Limits:
        bus = self.server.connect()
        await bus.ensure_stream(StreamConfig(subjects.stream(APP), subjects.own_subjects(APP)))
        clock = ServerClock(bus, subjects.stream(APP))
        await clock.ask()
        limits = Limits(bus, config or self.config, f"p{len(self.buses) + 1}", clock)
        self.buses[limits] = bus
        await limits.start()
        return limits

    async def kill(self, limits: Limits) -> None:
        """Nothing that it does reaches the server any more."""
        await self.buses[limits].close()

    @property
    def now(self) -> float:
        return self.server.now

    async def call(
        self,
        limits: Limits,
        *,
        tokens: int = 500,
        seconds: float = 1.0,
        batch: bool = False,
        error: DspexError | None = None,
        **options: Any,
    ) -> CallRecord:
        """One call of the model. Raises the refusal. `error`: in which it ends, when no model has answered it."""
        asked = Asked(work(**options), batch=batch)
        execution = cast(Execution, asked)
        found = limits.before(execution)
        if isinstance(found, Coroutine):
            await found
        self.spent[int(self.now // MINUTE)] += tokens
        self.requests[int(self.now // MINUTE)] += 1
        self.running += 1
        self.peak = max(self.peak, self.running)
        try:
            await asyncio.sleep(seconds)
        finally:
            self.running -= 1
        lm = asked.lms[0] if asked.lms else "main"
        cost = (tokens // 2 * PRICE["input"] + (tokens - tokens // 2) * PRICE["output"]) / 1e6
        usage = {"input_tokens": tokens // 2, "output_tokens": tokens - tokens // 2, "requests": 1, "cost": cost}
        if error is not None:
            usage = dict.fromkeys(usage, 0)
        record = CallRecord("c", 1, 1, "", "", outputs={}, lm=lm, usage=usage, error=error and error.as_dict())
        limits.after(execution, record)
        return record

    async def ledger(self, key: str) -> Ledger:
        found = await (await self.server.connect().bucket(subjects.limits(APP))).get(key)
        assert found is not None
        return Ledger.read(found[0])


def work(text: str = "x" * 400, *, run: str = "r", lm: tuple[str, ...] = (), **options: Any) -> CallRequest:
    spec = CallSpec("predict", "text -> reply", "text -> reply", lm=lm, config={"max_tokens": 600})
    known: dict[str, Any] = {"topology": "", "node": "", "run": run, "spec": spec, "inputs": {"text": text}}
    known["record"] = RecordTo("record", "id", 1, b"")
    return CallRequest("c", 1, 1, **{**known, **options})


def configured(*budgets: Budget, **limits: tuple[float, float]) -> PoolConfig:
    profiles = {
        "main": Profile("main", "openai/a", price=PRICE, limits=cast("Any", limits)),
        "other": Profile("other", "openai/b", price=PRICE),
    }
    return PoolConfig(APP, "light", slots=1, profiles=profiles, budgets=budgets)


def world(loop: VirtualLoop, config: PoolConfig, **options: Any) -> World:
    return World(loop, MemoryServer(**options), config)


def run(w: World, main: Coroutine[Any, Any, Any], seconds: float = 3600.0) -> Any:
    task = w.loop.create_task(main)
    w.loop.settle()
    for _ in range(int(seconds)):
        if task.done():
            break
        w.loop.advance(1.0)
    return task.result()
