"""Runs over HTTP: which there are, what each did and does, what people decide, and what they say of it afterwards."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from typing import Any, Final, cast

import orjson
from sse_starlette import EventSourceResponse
from sse_starlette.event import ServerSentEvent
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from dspex.bus.errors import ConfigError, DecodeError, DspexError, InvalidInput, RunFailed
from dspex.bus.serving.keys.secret_fields import Secrets
from dspex.bus.subjects import SUBMITTED
from dspex.engine.client.client import Client
from dspex.engine.client.following import hidden
from dspex.engine.client.following.progress import RunInfo
from dspex.engine.client.run import FULL_ID, Run
from dspex.engine.client.runs.steps import Step
from dspex.engine.client.runs.then.masking import masked, secrets_of
from dspex.engine.client.runs.tree import Happening
from dspex.engine.gateway.entrance import Entrance, duration_of, known, query_of, while_there
from dspex.engine.gateway.problems import problem_of
from dspex.engine.graph.manifest import Manifest

STATES: Final = ("running", "done", "failed", "cancelled")
MOST: Final = 1000  # runs, or dead letters, in one answer
PING: Final = 15


class Looking:
    """What is below `/v1/runs` and `/v1/approvals`; `/v1/letters`, `/v1/topologies`, and `/v1/status`."""

    def __init__(self, entrance: Entrance) -> None:
        self._entrance = entrance

    async def runs(self, request: Request) -> Response:
        """The latest runs first."""
        self._entrance.access.to_look(request)
        query = query_of(request, "topology", "status", "since", "limit")
        status = query.get("status")
        if status not in (None, *STATES):
            raise ConfigError(f"status={status!r} is none", code="DX105", fix=f"one of {', '.join(STATES)}")
        client, limit = await self._entrance.client(), _number(query.get("limit"), 100, MOST)
        listed = client.runs(query.get("topology"), status=cast(Any, status), since=duration_of(query, "since"), limit=limit)
        return json({"runs": [as_object(info) async for info in listed]})

    async def run(self, request: Request) -> Response:
        """A run, and with `tree=true` all that it did; with `wait=30s` once it is over, or that time is."""
        run, client = await self._one(request)
        query = query_of(request, "wait", "tree", "outputs")
        if "wait" in query:
            limit = duration_of(query, "wait")
            with suppress(RunFailed, TimeoutError):
                async with asyncio.timeout(limit):
                    await while_there(request, run.wait())
        found = as_object(await run.info())
        if _flag(query.get("tree")):
            root = await run.tree()
            found["tree"] = nested(masked(root, secrets_of(root)))
        if _flag(query.get("outputs")):
            secrets, sent = await hidden.secrets_of(client), await run.outputs()
            shown = [await hidden.event(client, secrets, one) for one in sent]
            found["outputs"] = [{"subject": one.subject, "data": one.data} for one in shown]
        return json(found)

    async def _one(self, request: Request) -> tuple[Run, Client]:
        """The run that a path names. Who published it may look at it; to know its whole id is enough for that."""
        id = request.path_params["id"]
        if len(id) < FULL_ID or self._entrance.access.open:
            self._entrance.access.to_look(request)
        else:
            self._entrance.access.caller(request)
        client = await self._entrance.client()
        return client.run(id), client

    async def events(self, request: Request) -> Response:
        """Its steps as they end, then the run itself. `Last-Event-ID`: those that were sent are left out."""
        run, client = await self._one(request)
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
                    yield ServerSentEvent(_dumped(_step(hidden.step(secrets, step))), event="step", id=_ranges(sent))
            with suppress(RunFailed):
                await run.wait()
            yield ServerSentEvent(_dumped(as_object(await run.info())), event="run", id=_ranges(sent))
        except DspexError as error:
            yield ServerSentEvent(_dumped(problem_of(error)), event="error")

    async def cancel(self, request: Request) -> Response:
        """End what is open of a run."""
        self._entrance.access.to_look(request, "operate")
        run, _ = await self._one(request)
        await run.cancel()
        return json(as_object(await run.info()))

    async def score(self, request: Request) -> Response:
        """Say how good a run is: `{"name": "helpful", "value": 1, "node": null, "note": ""}`."""
        self._entrance.access.to_look(request, "operate")
        run, client = await self._one(request)
        said = await self._entrance.fields(request)
        known(said, ("name", "value", "node", "note"))
        name, value, node, note = said.get("name"), said.get("value"), said.get("node"), said.get("note", "")
        if not isinstance(name, str) or isinstance(value, bool) or not isinstance(value, (int, float)):
            raise InvalidInput("a score has a name and a number", fix='{"name": "helpful", "value": 1}')
        if not isinstance(note, str) or not isinstance(node, (str, type(None))):
            raise InvalidInput("node and note are texts", fix='{"name": "helpful", "value": 1, "note": "…"}')
        return json(asdict(await client.score(run.id, name, value, node=node, note=note)), 201)

    # -- what waits for a person
    async def approvals(self, request: Request) -> Response:
        """What waits, the oldest first."""
        self._entrance.access.to_look(request)
        client, topology = await self._entrance.client(), query_of(request, "topology").get("topology")
        if topology is not None:
            await _is_applied(client, topology)
        secrets = await hidden.secrets_of(client)
        return json({"approvals": [hidden.approval(secrets, one).as_dict() async for one in client.approvals(topology)]})

    async def decide(self, request: Request) -> Response:
        """Decide: `{"decision": "accept" or "reject", "edit": {…}, "note": ""}`."""
        self._entrance.access.to_look(request, "operate")
        said = await self._entrance.fields(request)
        known(said, ("decision", "edit", "note"))
        decision, edit, note = said.get("decision"), said.get("edit"), said.get("note", "")
        if decision not in ("accept", "reject") or not isinstance(edit, (dict, type(None))) or not isinstance(note, str):
            raise InvalidInput('a decision is "accept" or "reject"', fix='{"decision": "accept", "edit": {"reply": "…"}}')
        client = await self._entrance.client()
        await client.decide(request.path_params["id"], decision, edit=cast(Any, edit), note=note)
        return json({"id": request.path_params["id"], "decision": decision})

    # -- the application
    async def letters(self, request: Request) -> Response:
        """Dead letters, the oldest first."""
        self._entrance.access.to_look(request)
        client, query = await self._entrance.client(), query_of(request, "topology", "node", "reason", "limit")
        topology, most = query.get("topology", "*"), _number(query.get("limit"), 100, MOST)
        if topology != "*":
            await _is_applied(client, topology)
        found, secrets = list[dict[str, Any]](), await hidden.secrets_of(client)
        async for letter in client.dead_letters(topology, node=query.get("node"), reason=query.get("reason")):
            found.append(hidden.letter(secrets, letter).as_dict(traceback=True))
            if len(found) == most:
                break
        return json({"letters": found})

    async def topologies(self, request: Request) -> Response:
        """What is applied: of each topology its operators, and what each of them reads."""
        self._entrance.access.to_look(request)
        applied = await (await self._entrance.client()).manifests()
        return json({"topologies": [_topology(name, one) for name, one in sorted(applied.items()) if name != SUBMITTED]})

    async def status(self, request: Request) -> Response:
        """The application, as `dspex status --json` prints it."""
        self._entrance.access.to_look(request)
        return json(await (await self._entrance.client()).status())


async def _is_applied(client: Client, topology: str) -> None:
    """Raise HTTPException (404) where it is not."""
    if topology not in await client.manifests():
        raise HTTPException(404, f"no topology {topology!r} is applied")


def _topology(name: str, applied: Manifest) -> dict[str, Any]:
    """A topology without the options of its operators: prompts and saved states are nobody's business here."""
    nodes = {id: {"op": node["op"], "from": [read for read, _ in node["from"]]} for id, node in applied.nodes.items()}
    return {"name": name, "version": applied.version, "nodes": nodes, "sinks": list(applied.sinks)}


async def _numbered(run: Run) -> AsyncGenerator[tuple[int, Step]]:
    place = 0
    async for step in run.steps():
        yield place, step
        place += 1


def json(value: Mapping[str, Any], status: int = 200) -> Response:
    """A response with times and durations as text, as everywhere in JSON."""
    return Response(_dumped(value), status, media_type="application/json")


def _dumped(value: Any) -> str:
    return orjson.dumps(value, default=_plain).decode()


def _plain(value: object) -> object:
    seconds: Callable[[], float] | None = getattr(value, "total_seconds", None)
    return str(value) if seconds is None else seconds()


def as_object(info: RunInfo) -> dict[str, Any]:
    """A run, as `dspex runs ls --json` prints it."""
    return asdict(info)


def _step(step: Step) -> dict[str, Any]:
    return asdict(step)


def nested(told: Happening) -> dict[str, Any]:
    """A happening with what is below it."""
    return {**told.as_dict(), "below": [nested(one) for one in told.below]}


def _flag(text: str | None) -> bool:
    if text not in (None, "true", "false"):
        raise ConfigError(f"{text!r} is neither true nor false", code="DX105", fix="tree=true")
    return text == "true"


def _number(text: str | None, default: int, most: int) -> int:
    if text is None:
        return default
    if not text.isdecimal() or not 0 < int(text) <= most:
        raise ConfigError(f"limit={text!r} is no number from 1 to {most:,}", code="DX105", fix="limit=100")
    return int(text)


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
