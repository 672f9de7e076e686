"""Runs done again over HTTP: replayed, forked, and compared."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response

from dspex.bus.errors import ConfigError, DecodeError
from dspex.engine.client.runs.diff import Diff
from dspex.engine.gateway.entrance import Entrance, known, query_of, while_there
from dspex.engine.gateway.looking.said import as_object, json, run_of

CHANGES: Final = ("inputs", "outputs", "lm", "program")
_MOST: Final = 2  # runs that are done again at a time: each takes a thread, and memory for what operators kept


class AgainOffered:
    """What is at `/v1/runs/{id}/replay`, `…/fork` and `…/diff`. The code is that which the settings name."""

    def __init__(self, entrance: Entrance) -> None:
        self._entrance, self._turns = entrance, asyncio.Semaphore(_MOST)

    async def replay(self, request: Request) -> Response:
        """Do a run again with every call answered by its record. No call is made, and nothing is written."""
        self._entrance.access.to_look(request)
        run, client = await run_of(self._entrance, request)
        query_of(request)
        known(await self._entrance.fields(request), ())
        async with self._turns:
            found = await while_there(request, client.replay(run))
        told = {name: value for name, value in vars(found).items() if name not in ("diff", "diverged")}
        return json({**told, "diff": _diff(found.diff)})

    async def fork(self, request: Request) -> Response:
        """Do a run again with one change, as a run of its own: `{"at": "classify#0", "outputs": {…}, "deliver": false}`.

        Calls that were asked something else are made; with `"mode": "strict"` none is, with `"live"` all of the run are.
        Its outputs are published to the sinks with `deliver` alone. `later` is what it leads to in other runs.
        """
        self._entrance.access.to_look(request, "operate")
        run, client = await run_of(self._entrance, request)
        query_of(request)
        at, given, deliver, mode = _change(await self._entrance.fields(request))
        await run.info()  # whether there is one comes before what it can change
        async with self._turns:
            made = await while_there(request, client.fork(run, at, **given, deliver=deliver, mode=mode))
        told = await client.diff(run, made)
        found = {"run": made.id, "parent": run.id, "at": at, "delivered": deliver, "diff": _diff(told), "later": made.later}
        return json(found, 201)

    async def diff(self, request: Request) -> Response:
        """What another run did otherwise: `?with=ID`."""
        self._entrance.access.to_look(request)
        run, client = await run_of(self._entrance, request)
        other = query_of(request, "with").get("with")
        if not other:
            raise ConfigError("with which run is it compared?", code="DX105", fix="?with=ID")
        return json(_diff(await client.diff(run, client.run(other))))


def _change(said: Mapping[str, Any]) -> tuple[str, dict[str, Any], bool, Any]:
    """Where a fork changes what, whether it is delivered, and which calls are made. Raises ConfigError, DecodeError."""
    known(said, ("at", "deliver", "mode", *CHANGES))
    at, deliver, mode = said.get("at"), said.get("deliver", False), said.get("mode", "hybrid")
    given = {name: said[name] for name in CHANGES if said.get(name) is not None}
    kinds = {"inputs": dict, "outputs": dict, "lm": str, "program": str}
    wrong = [name for name, value in given.items() if not isinstance(value, kinds[name])]
    if not isinstance(at, str) or not isinstance(deliver, bool) or not isinstance(mode, str) or wrong:
        fix = '{"at": "classify", "outputs": {"kind": "good"}}'
        raise DecodeError("a fork has a place, and one change", fix=fix)
    return at, given, deliver, mode


def _diff(found: Diff) -> dict[str, Any]:
    runs = [as_object(info) for info in found.runs or ()]
    return {**found.as_dict(), "equal": found.equal, "runs": runs}
