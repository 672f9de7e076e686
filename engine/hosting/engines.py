"""The other engine processes of `dspex run --processes N`: each is a `dspex run` without pools, started again when it dies.

They share the partitions with this one as engines of several machines do. What is started again does not help where it dies
at once, again and again: then all of it ends, with the reason.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from time import monotonic
from typing import Any

from dspex.bus.errors import DspexError, from_dict
from dspex.bus.seldom import logger
from dspex.bus.settings.model import Settings
from dspex.bus.tasks import Tasks
from dspex.engine.hosting.command_process import BACK_OFF, CommandProcess, OnOutput

_log = logger("dspex.engine")
MOST_DEATHS, WITHIN = 5, 60.0  # of one process, in so many seconds; at one more it is not started again
_USELESS = (2, 3)  # exit codes for what is wrong with settings and topologies: another start would not help


class EngineProcesses:
    """Processes 2 to `count`, kept running.

    Args:
        options: of `dspex run`, and its targets. on_ready: called with the number of a process that is ready, and what it says.
    """

    def __init__(
        self,
        count: int,
        options: Sequence[str],
        settings: Settings,
        on_ready: Callable[[int, Mapping[str, Any]], None],
        on_output: OnOutput = None,
    ) -> None:
        self._on_ready = on_ready
        self._ready = {number: asyncio.Event() for number in range(2, count + 1)}
        self._failures: dict[int, DspexError] = {}  # number → what its process said before it ended
        self._tasks = Tasks("dspex.engines", self._given_up)
        self._children: list[CommandProcess] = []
        for number in self._ready:
            args = ("run", "--as-process", str(number), *options)

            def said(what: Mapping[str, Any], number: int = number) -> None:
                self._said(number, what)

            child = CommandProcess(f"engine process {number}", args, settings, said, on_output, folder=Path.cwd())
            self._children.append(child)
            self._tasks.start(self._keep(number, child), str(number))

    def _said(self, number: int, what: Mapping[str, Any]) -> None:
        if what.get("event") == "engine failed":
            self._failures[number] = from_dict(what["error"])
        elif what.get("event") == "ready":
            self._ready[number].set()
            self._on_ready(number, what)

    async def _keep(self, number: int, child: CommandProcess) -> None:
        deaths = deque[float]()
        while True:
            code = await child.live()
            deaths.append(monotonic())
            while deaths[0] < deaths[-1] - WITHIN:
                deaths.popleft()
            error = self._failures.pop(number, None)
            why = error.message if error is not None else f"it ended with exit code {code}"
            if code in _USELESS or len(deaths) > MOST_DEATHS:
                raise error or DspexError(
                    f"{child.name} died {len(deaths)} times within {WITHIN:.0f} s: {why}",
                    fix="see what it logged before; where memory is short, run fewer processes",
                )
            pause = BACK_OFF[min(len(deaths), len(BACK_OFF)) - 1]
            _log.error("an engine process died, starting it again", number=number, why=why, pause=pause)
            await asyncio.sleep(pause)

    async def ready(self) -> None:
        """Wait until each of them runs the topologies."""
        await asyncio.gather(*(ready.wait() for ready in self._ready.values()))

    async def failed(self) -> None:
        """Wait until one is not started again, and raise why."""
        await self._tasks.wait()

    def _given_up(self, number: str, error: BaseException) -> None:
        _log.error("an engine process is not started again", number=int(number), why=str(error))

    async def stop(self, grace: float) -> None:
        """Drain them; kill those for which `grace` seconds were not enough."""
        await self._tasks.stop()
        await asyncio.gather(*(child.stop(grace) for child in self._children))
