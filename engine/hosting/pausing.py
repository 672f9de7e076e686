"""Pauses stages that somebody has paused, and lets them go on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dspex.bus.errors import BusError
from dspex.bus.port import Bucket
from dspex.bus.seldom import logger
from dspex.engine.graph.manifest import goes_on
from dspex.engine.graph.pauses import Pauses, read
from dspex.engine.runtime.inputs.upto import REST
from dspex.engine.runtime.stage import StageRunner

_log = logger("dspex.engine")


@dataclass(frozen=True)
class Pausing:
    """Attributes:
    bucket: of the manifests. every: seconds between two looks. clock: seconds since the epoch.
    """

    bucket: Bucket
    runners: Sequence[StageRunner]
    every: float
    clock: Callable[[], float]

    async def run(self) -> None:
        """Look again and again, until cancelled."""
        while True:
            await asyncio.sleep(self.every)
            await self.look()

    async def look(self) -> None:
        """Pause what is paused, and go on with what was resumed, or whose time has come."""
        try:
            known = await read(self.bucket)
        except BusError as e:
            _log.debug("cannot look now what is paused, trying again", why=e.message)  # all stays as it is
            return
        now = self.clock()
        for runner in self.runners:
            pauses = known.get(runner.topology)
            end = pauses.until(runner.stage.begins, now) if pauses is not None and pauses.names else None
            if (end is not None) != runner.paused:
                what = "goes on after a pause" if end is None else "paused: nothing is admitted, what is open comes to its end"
                _log.warning(what, topology=runner.topology, stage=runner.stage.id)
            runner.pause(end is not None)
            if runner.source is not None:
                stop = await self._stop(runner, pauses, now) if pauses is not None else None
                if stop is not None and runner.source.upto.of(REST) is None:
                    what = "another version goes on from here: start that one; this one brings nothing that is stored later"
                    _log.warning(what, topology=runner.topology, source=runner.stage.name, at=stop)
                runner.source.upto.set(REST, stop)

    async def _stop(self, runner: StageRunner, pauses: Pauses, now: float) -> float | None:
        """Where the source of a stage stops. Once another version goes on there, that is for good."""
        rest = pauses.stop(runner.manifest)
        if rest is None or now < rest.until:
            return rest.at if rest is not None else None
        try:
            return rest.at if await goes_on(self.bucket, runner.topology, rest.version, rest.at) else None
        except BusError as e:
            _log.debug("cannot look now what is applied, trying again", why=e.message)
            return runner.source.upto.of(REST) if runner.source is not None else None
