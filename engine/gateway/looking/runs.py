"""Runs over HTTP: which there are, what each did and does, its end, and what people say of it afterwards."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import suppress
from dataclasses import asdict
from typing import Any, Final

from sse_starlette import EventSourceResponse
from sse_starlette.event import ServerSentEvent
from starlette.requests import Request
from starlette.responses import Response

from dspex.bus.errors import ConfigError, DecodeError, DspexError, InvalidInput, RunFailed
from dspex.bus.serving.keys.secret_fields import Secrets
from dspex.engine.client.client import Client
from dspex.engine.client.following import hidden
from dspex.engine.client.following.progress import RunInfo
from dspex.engine.client.run import Run
from dspex.engine.client.runs.steps import Step
from dspex.engine.client.runs.then.masking import masked, secrets_of
from dspex.engine.client.runs.tree import Happening
from dspex.engine.gateway.entrance import Entrance, duration_of, known, query_of, while_there
from dspex.engine.gateway.looking.lists import RunList, RunLists
from dspex.engine.gateway.looking.prompts import prompts_of
from dspex.engine.gateway.looking.said import MOST, as_object, dumped, flag_of, json, number_of, run_of
from dspex.engine.gateway.problems import problem_of

STATES: Final = ("running", "done", "failed", "cancelled")
PING: Final = 15
LOOK: Final = 1.0  # seconds between two looks whether anything was written


class Looking:
    """What is below `/v1/runs`."""

    def __init__(self, entrance: Entrance) -> None:
        self._entrance, self._lists = entrance, RunLists()

    async def ahead(self) -> None:
        """Read the list with which the page opens, before anybody looks. Raises DspexError."""
        if self._entrance.access.looked_at:
            await self._lists.of(_asked({})).now(await self._entrance.client())

    def first(self, request: Request) -> str | None:
        """The list with which the page opens, as it was read last, for who may look without a token."""
        last = self._lists.of(_asked({})).last if self._entrance.access.free(request) else None
        return None if last is None else _listed({info.id: info for info in last}, {}, current=False)

    async def runs(self, request: Request) -> Response:
        """The latest runs first; `before=ID`: those that began before that one."""
        client, chosen = await self._chosen(request, "before")
        if (before := request.query_params.get("before")) is not None:
            found = [info async for info in client.runs(**chosen, before=before)]
        else:
            found = await self._lists.of(chosen).now(client)
        return json({"runs": [as_object(info) for info in found]})

    async def _chosen(self, request: Request, *more: str) -> tuple[Client, Mapping[str, Any]]:
        """Which runs are asked for. Raises HTTPException, ConfigError."""
        self._entrance.access.to_look(request)
        return await self._entrance.client(), _asked(query_of(request, "topology", "status", "since", "limit", *more))

    async def listing(self, request: Request) -> Response:
        """The latest runs as they change: their ids in `order`, and in `runs` those that are new or other than before.

        Where somebody has looked at the same before, the first ones are those of then, which are not `current`.
        """
        client, chosen = await self._chosen(request)
        shown = self._lists.of(chosen)
        soon = await shown.soon(client)  # raises before anything is sent
        return EventSourceResponse(self._changing(client, shown, soon), ping=PING, sep="\n")

    async def _changing(self, client: Client, shown: RunList, soon: list[RunInfo]) -> AsyncGenerator[ServerSentEvent]:
        sent = {info.id: info for info in soon}
        yield ServerSentEvent(_listed(sent, {}, current=False), event="runs")
        try:
            first = True
            while True:
                now = {info.id: info for info in await shown.now(client)}
                if first or now != sent:
                    yield ServerSentEvent(_listed(now, sent, current=True), event="runs")
                sent, first = now, False
                await asyncio.sleep(LOOK)
        except DspexError as error:
            yield ServerSentEvent(dumped(problem_of(error)), event="error")

    async def run(self, request: Request) -> Response:
        """A run, and with `tree=true` all that it did; with `wait=30s` once it is over, or that time is."""
        run, client = await run_of(self._entrance, request)
        query = query_of(request, "wait", "tree", "outputs")
        if "wait" in query:
            limit = duration_of(query, "wait")
            with suppress(RunFailed, TimeoutError):
                async with asyncio.timeout(limit):
                    await while_there(request, run.wait())
        found = as_object(await run.info())
        if flag_of(query.get("tree")):
            root = await run.tree()
            found["tree"] = nested(masked(root, secrets_of(root)))
            found["prompts"] = [{"step": step, "attempt": at, "messages": m} for (step, at), m in prompts_of(root).items()]
        if flag_of(query.get("outputs")):
            shows, sent = await hidden.HiddenEvents.of(client), await run.outputs()
            shown = [await shows.shown(one) for one in sent]
            found["outputs"] = [{"subject": one.subject, "data": one.data} for one in shown]
        return json(found)

    async def events(self, request: Request) -> Response:
        """Its steps as they end, then the run itself. `Last-Event-ID`: those that were sent are left out."""
        run, client = await run_of(self._entrance, request)
        sent = _sent(request.headers.get("last-event-id", ""))
        await run.info()  # raises, before anything is sent, for a run that nobody knows
        return EventSourceResponse(self._told(client, run, sent), ping=PING, sep="\n")

    async def _told(self, client: Client, run: Run, sent: set[int]) -> AsyncGenerator[ServerSentEvent]:
        places: dict[tuple[str, int], int] = {}
        try:
            async for step in run.steps(follow=True):
                if (step.call, step.attempt) not in places:  # all that were asked for so far, in their order, which stays
                    places = {(one.call, one.attempt): place async for place, one in _numbered(run)}
                place = places.get((step.call, step.attempt), len(places))
                if place not in sent:
                    sent.add(place)
                    secrets = await hidden.in_run(client, Secrets(()), run.id)
                    yield ServerSentEvent(dumped(_step(hidden.step(secrets, step))), event="step", id=_ranges(sent))
            with suppress(RunFailed):
                await run.wait()
            yield ServerSentEvent(dumped(as_object(await run.info())), event="run", id=_ranges(sent))
        except DspexError as error:
            yield ServerSentEvent(dumped(problem_of(error)), event="error")

    async def cancel(self, request: Request) -> Response:
        """End what is open of a run."""
        self._entrance.access.to_look(request, "operate")
        run, _ = await run_of(self._entrance, request)
        await run.cancel()
        return json(as_object(await run.info()))

    async def score(self, request: Request) -> Response:
        """Say how good a run is: `{"name": "helpful", "value": 1, "node": null, "note": ""}`."""
        self._entrance.access.to_look(request, "operate")
        run, client = await run_of(self._entrance, request)
        said = await self._entrance.fields(request)
        known(said, ("name", "value", "node", "note"))
        name, value, node, note = said.get("name"), said.get("value"), said.get("node"), said.get("note", "")
        if not isinstance(name, str) or isinstance(value, bool) or not isinstance(value, (int, float)):
            raise InvalidInput("a score has a name and a number", fix='{"name": "helpful", "value": 1}')
        if not isinstance(note, str) or not isinstance(node, (str, type(None))):
            raise InvalidInput("node and note are texts", fix='{"name": "helpful", "value": 1, "note": "…"}')
        return json(asdict(await client.score(run.id, name, value, node=node, note=note)), 201)


def _asked(query: Mapping[str, str]) -> Mapping[str, Any]:
    """Which runs are asked for. Raises ConfigError (DX102, DX105)."""
    status = query.get("status")
    if status not in (None, *STATES):
        raise ConfigError(f"status={status!r} is none", code="DX105", fix=f"one of {', '.join(STATES)}")
    chosen = {"topology": query.get("topology"), "status": status, "since": duration_of(query, "since")}
    return {**chosen, "limit": number_of(query.get("limit"), 100, MOST)}


def _listed(now: Mapping[str, RunInfo], sent: Mapping[str, RunInfo], *, current: bool) -> str:
    """What of a list is new or other than what was sent of it."""
    rows = [as_object(info) for id, info in now.items() if sent.get(id) != info]
    return dumped({"order": list(now), "runs": rows, "current": current})


async def _numbered(run: Run) -> AsyncGenerator[tuple[int, Step]]:
    place = 0
    async for step in run.steps():
        yield place, step
        place += 1


def _step(step: Step) -> dict[str, Any]:
    return asdict(step)


def nested(told: Happening) -> dict[str, Any]:
    """A happening with what is below it."""
    return {**told.as_dict(), "below": [nested(one) for one in told.below]}


def _ranges(places: set[int]) -> str:
    """Numbers as "0-4,6": what was sent, for who comes back."""
    found: list[list[int]] = []
    for place in sorted(places):
        if found and found[-1][1] == place - 1:
            found[-1][1] = place
        else:
            found.append([place, place])
    return ",".join(f"{first}-{last}" if last > first else f"{first}" for first, last in found) or "-"


def _sent(text: str) -> set[int]:
    """The inverse. Raises DecodeError for what is no id of ours."""
    found: set[int] = set()
    for part in text.split(",") if text not in ("", "-") else ():
        first, _, last = part.partition("-")
        if not first.isdecimal() or not (last or first).isdecimal() or int(last or first) > 1_000_000 or len(text) > 4096:
            raise DecodeError(f"Last-Event-ID {text[:40]!r} is none that was sent from here")
        found.update(range(int(first), int(last or first) + 1))
    return found
