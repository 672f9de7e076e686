"""The application over HTTP: what waits for people, what is applied, and how it is."""

from __future__ import annotations

from typing import Any, Final, cast

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from dspex.bus.errors import InvalidInput
from dspex.bus.subjects import SUBMITTED
from dspex.engine.client.client import Client
from dspex.engine.client.following import hidden
from dspex.engine.client.status import state
from dspex.engine.client.status.sessions import SessionHeads
from dspex.engine.gateway.entrance import Entrance, known, query_of
from dspex.engine.gateway.looking.reading import ReadAtPace, ReadOnWrite
from dspex.engine.gateway.looking.said import MOST, is_applied, json, number_of
from dspex.engine.graph.manifest import Manifest

_TURNS: Final = 50  # of a session, the latest


class Overview:
    """What is at `/v1/approvals`, `/v1/topologies`, `/v1/sessions`,
    `/v1/windows` and `/v1/status`."""

    def __init__(self, entrance: Entrance) -> None:
        self._entrance = entrance
        self._kept = dict[str, state.KeptRead]()  # of operators with windows
        self._heads = SessionHeads()
        self._waits, self._status = ReadOnWrite(_approvals), ReadAtPace(Client.status)

    # -- what waits for a person
    async def approvals(self, request: Request) -> Response:
        """What waits, the oldest first."""
        self._entrance.access.to_look(request)
        client, topology = await self._entrance.client(), query_of(request, "topology").get("topology")
        if topology is not None:
            await is_applied(client, topology)
        return json({"approvals": [one for one in await self._waits.now(client) if topology in (None, one["topology"])]})

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
    async def topologies(self, request: Request) -> Response:
        """What is applied to which application: of each topology its operators, and what each of them reads."""
        self._entrance.access.to_look(request)
        client = await self._entrance.client()
        applied = [_topology(name, one) for name, one in sorted((await client.manifests()).items()) if name != SUBMITTED]
        return json({"app": client.app, "topologies": applied})

    async def status(self, request: Request) -> Response:
        """The application, as `dspex status --json` prints it: as it is, or was a moment ago."""
        self._entrance.access.to_look(request)
        return json(await self._status.now(await self._entrance.client()))

    # -- what it keeps
    async def sessions(self, request: Request) -> Response:
        """The sessions, those used last first, without what was said in them."""
        self._entrance.access.to_look(request)
        most = number_of(query_of(request, "limit").get("limit"), 100, MOST)
        client = await self._entrance.client()
        infos = await self._heads.now(client.bus, client.app)
        found = sorted(infos, key=lambda one: one.touched, reverse=True)
        return json({"sessions": [one.as_dict() for one in found[:most]], "count": len(found)})

    async def session(self, request: Request) -> Response:
        """A session: its last turns, and the data that its programs saved."""
        self._entrance.access.to_look(request)
        query_of(request)
        client, id = await self._entrance.client(), request.path_params["id"]
        session = client.session(id)
        info = await session.info()
        if info is None:
            raise HTTPException(404, f"there is no session {id!r}")
        found: dict[str, Any] = {**info.as_dict(), "data": {}, "history": []}
        if not info.ended:
            turns, (kept, _) = [one async for one in session.history(limit=_TURNS)], await session.load()
            data, turns = hidden.session(await hidden.secrets_of(client), kept, turns)
            found |= {"data": data, "history": [one.as_dict() for one in turns]}
        return json(found)

    async def windows(self, request: Request) -> Response:
        """The windows that are open, the oldest first: what each has so far."""
        self._entrance.access.to_look(request)
        query = query_of(request, "topology", "limit")
        client, topology, most = await self._entrance.client(), query.get("topology"), number_of(query.get("limit"), 100, MOST)
        if topology is not None:
            await is_applied(client, topology)
        found, manifests = list[dict[str, Any]](), await client.manifests()
        shows = hidden.HiddenEvents(client, manifests)
        for name, applied in manifests.items():
            for node in applied.states if topology in (None, name) else ():
                if applied.nodes.get(node, {}).get("op") in hidden.WINDOWS:
                    what = f"{name}/{node}"
                    kept = await self._kept.setdefault(what, state.KeptRead(what)).now(client.bus, client.app)
                    found += [row for one in kept for row in _windows(shows.state(one))]
        found.sort(key=lambda one: str(one["start"]))
        return json({"windows": found[:most], "count": len(found)})


async def _approvals(client: Client) -> list[dict[str, Any]]:
    secrets = await hidden.secrets_of(client)
    return [hidden.approval(secrets, one).as_dict() async for one in client.approvals()]


def _windows(kept: state.KeyState) -> list[dict[str, Any]]:
    """The windows of a key. `end` of a session is that of its last event so far."""
    of = {"topology": kept.topology, "node": kept.node, "key": kept.key}
    found = list[dict[str, Any]]()
    for one in kept.value if isinstance(kept.value, list) else ():
        start, end = one.get("start", one.get("first")), one.get("end", one.get("last"))
        found.append({**of, "start": start, "end": end, "value": one["value"]})
    return found


def _topology(name: str, applied: Manifest) -> dict[str, Any]:
    """A topology without the options of its operators: prompts and saved states are nobody's business here."""
    nodes = {id: {"op": node["op"], "from": [read for read, _ in node["from"]]} for id, node in applied.nodes.items()}
    return {"name": name, "version": applied.version, "nodes": nodes, "sinks": list(applied.sinks)}
