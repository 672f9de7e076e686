"""Saved states of programs as a client sees them: save, promote, roll back. Each leaves an entry in the audit, and tells the
pools: what an alias means is believed for a few seconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import orjson

from dspex.bus import subjects
from dspex.bus.port import Bus
from dspex.bus.serving import audit
from dspex.bus.serving.programs import form
from dspex.bus.serving.programs.states import SavedStates, SavedVersion
from dspex.engine.graph import manifest


class ProgramStore:
    """The saved programs of an application.

    Args:
        pools: more pools than the topologies use, that are to be told of what changes.
        replicas: of what is made on the server, where nothing is there yet.
    """

    def __init__(self, bus: Bus, app: str, pools: Iterable[str] = (), replicas: int = 1) -> None:
        self._bus, self._app, self._pools = bus, app, tuple(pools)
        self.states = SavedStates(bus, app, replicas)

    async def put(self, name: str, state: Mapping[str, Any]) -> tuple[SavedVersion, tuple[str, ...]]:
        """Save a state; its version, and the predictors whose language model was left out. Raises InvalidInput, ConfigError."""
        found = form.read(state)
        version = await self.states.put(name, found)
        await self._told("put", program=version.name, digest=version.digest)
        return version, found.models

    async def promote(self, name: str, version: int, alias: str) -> int:
        """Have an alias point to a version; the version. Raises RunError (DX627), ConfigError."""
        change = await self.states.promote(name, version, alias)
        await self._told("promote", program=f"{name}@{version}", alias=alias)
        return change.version

    async def rollback(self, name: str, alias: str) -> int:
        """Have an alias point to what it pointed to before; the version. Raises RunError (DX627), Fenced, ConfigError."""
        change = await self.states.rollback(name, alias)
        await self._told("rollback", program=f"{name}@{change.version}", alias=alias)
        return change.version

    async def _told(self, verb: str, **what: str) -> None:
        await audit.leave(self._bus, self._app, verb, **what)
        applied = await manifest.of_application(self._bus, self._app)
        for pool in {*self._pools, *(str(call["pool"]) for one in applied.values() for call in one.calls.values())}:
            await self._bus.send(subjects.control(self._app, pool), orjson.dumps({"kind": "programs"}))
