"""`dspex worker`: the pools of one process, from start to drain."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

import structlog

from dspex.bus.local.open import open_bus
from dspex.bus.local.processes import when_stdin_ends
from dspex.bus.port import BusEvents
from dspex.bus.seldom import Seldom
from dspex.bus.settings.model import Settings
from dspex.bus.tasks import first
from dspex.workers.config import resolve
from dspex.workers.pool.pool import Pool
from dspex.workers.pool.status import Summary
from dspex.workers.processes.alive import Alive
from dspex.workers.processes.ending import adopt
from dspex.workers.processes.titles import set_title

log = structlog.get_logger("dspex.workers")


async def serve(
    settings: Settings,
    names: Sequence[str],
    *,
    size: int | None = None,
    slots: int | None = None,
    grace: float = 30.0,
    with_parent: bool = False,
    alive: Path | None = None,
    ready: Callable[[Summary], None] = lambda summary: None,
) -> None:
    """Run the pools until SIGTERM or SIGINT, then drain; a second signal ends the process at once with 143 or 130.

    Args:
        names: of the pools.
        size, slots: instead of those in the settings.
        grace: seconds that running calls have to finish.
        with_parent: drain when stdin ends too, so that no pool outlives the process that started it.
        alive: a file that is touched while the pools make progress, once all are ready; see `workers/processes/alive.py`.
        ready: called for each pool that has begun to take work.

    Raises:
        ConfigError, BusError; WorkerLost where a part of a pool failed, so that the process ends and is started anew.
    """
    configs = [resolve(settings, name, size=size, slots=slots) for name in names]
    set_title("worker", " ".join(names))
    stopped = _on_signals()
    if with_parent:
        loop = asyncio.get_running_loop()
        when_stdin_ends(lambda: loop.call_soon_threadsafe(stopped.set))
    seldom = Seldom(log)
    events = BusEvents(
        state=lambda state, why: log.info("bus", state=state, why=why), error=lambda text: seldom.warning("bus", error=text)
    )
    async with open_bus(settings, name=f"dspex-worker-{'-'.join(names)}", events=events) as bus:
        pools = [Pool(bus, config) for config in configs]
        adopt()  # not before there is a server: a process that only says that there is none may have children of its own
        try:
            for pool in pools:
                if await first(pool.start(), pool.failed(), stopped.wait()) != 0:
                    return
                ready(pool.status.summary())
            looks = [Alive(bus, pools, alive, settings.engine.stall_after).run()] if alive is not None else []
            await first(stopped.wait(), *looks, *(pool.failed() for pool in pools))
        finally:
            await asyncio.gather(*(pool.drain(grace) for pool in pools))


def _on_signals() -> asyncio.Event:
    """An event that the first SIGTERM or SIGINT sets. The second one ends the process, and the children end with it."""
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()

    def handle(number: int) -> None:
        if stopped.is_set():
            os._exit(128 + number)
        log.info("stopping", signal=signal.Signals(number).name)
        stopped.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, handle, number)
    return stopped
