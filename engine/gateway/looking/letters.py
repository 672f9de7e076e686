"""Dead letters over HTTP: in groups by what went wrong, run again at a pace, or dropped."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Mapping
from hashlib import sha256
from typing import Any, Final

from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import Response

from dspex.bus.errors import DecodeError
from dspex.engine.client import letters
from dspex.engine.client.client import Client
from dspex.engine.client.following import hidden
from dspex.engine.client.letters import DeadLetter
from dspex.engine.gateway.entrance import Entrance, known, query_of
from dspex.engine.gateway.looking.said import MOST, is_applied, json, number_of

FILTERS: Final = ("topology", "node", "reason", "fingerprint")
_VARIES: Final = re.compile(r"'[^']*'|\"[^\"]*\"|\b[0-9a-f]{8,}\b|\d[\d.,:]*")
"""What is another thing in each letter of a kind: what is quoted, ids, numbers."""
_BEGIN: Final = 120  # characters of a message that tell its kind


class LettersOffered:
    """What is below `/v1/letters`."""

    def __init__(self, entrance: Entrance) -> None:
        self._entrance = entrance

    async def letters(self, request: Request) -> Response:
        """Dead letters, the oldest first."""
        self._entrance.access.to_look(request)
        client, query = await self._entrance.client(), query_of(request, *FILTERS, "limit")
        found, most = list[DeadLetter](), number_of(query.get("limit"), 100, MOST)
        async for letter in _chosen(client, query):
            found.append(letter)
            if len(found) == most:
                break
        shown = await hidden.whole_letters(client, await hidden.secrets_of(client), found)
        return json({"letters": [one.as_dict(traceback=True) for one in shown]})

    async def groups(self, request: Request) -> Response:
        """Dead letters by operator and what went wrong, the largest group first."""
        self._entrance.access.to_look(request)
        client, found, first = await self._entrance.client(), dict[str, dict[str, Any]](), list[DeadLetter]()
        async for one in _chosen(client, query_of(request, "topology", "node", "reason")):
            name = fingerprint(one)
            row = {"fingerprint": name, "topology": one.topology, "node": one.node, "reason": one.reason, "code": one.code}
            if name not in found:
                first.append(one)
                found[name] = {**row, "count": 0, "oldest": one.time}
            group = found[name]
            group["count"] += 1
            group["latest"] = one.time
        shown = await hidden.whole_letters(client, await hidden.secrets_of(client), first)
        for group, one in zip(found.values(), shown, strict=True):
            group["message"] = one.message
        return json({"groups": sorted(found.values(), key=lambda group: -group["count"])})

    async def redrive(self, request: Request) -> Response:
        """Run events again from where they failed, or say how many it would be (`dry_run`).

        At most `limit` behind `after`, the sequence of a letter: who wants a pace asks again, with the `last` of the answer.
        """
        client, said = await self._operating(request)
        chosen = await _sequences(client, said)
        if said.get("dry_run", False):
            return json({"count": len(chosen), "redriven": 0, "refused": [], "last": 0})
        now = chosen[: said.get("limit", MOST)]
        await letters.audited(client.bus, client.app, "redrive", now)
        done, wrong = await letters.each_again(client.bus, client.app, now)
        refused = [{"sequence": at, "why": error.message, "fix": error.fix} for at, error in wrong.items()]
        last = now[-1] if now else said.get("after", 0)
        return json({"count": len(chosen), "redriven": done, "refused": refused, "last": last})

    async def drop(self, request: Request) -> Response:
        """Remove letters for good, or say how many it would be (`dry_run`)."""
        client, said = await self._operating(request)
        chosen = await _sequences(client, said)
        if said.get("dry_run", False):
            return json({"count": len(chosen), "dropped": 0})
        now = chosen[: said.get("limit", MOST)]
        await letters.audited(client.bus, client.app, "drop", now)
        return json({"count": len(chosen), "dropped": await letters.drop(client.bus, client.app, now)})

    async def _operating(self, request: Request) -> tuple[Client, Mapping[str, Any]]:
        """What is to be done with which letters. Raises HTTPException, ConfigError, DecodeError."""
        self._entrance.access.to_look(request, "operate")
        query_of(request)
        said = {name: _whole(value) for name, value in (await self._entrance.fields(request)).items()}
        known(said, (*FILTERS, "sequence", "after", "limit", "dry_run"))
        wrong = [name for name in FILTERS if not isinstance(said.get(name, ""), str)]
        wrong += [name for name in ("sequence", "after", "limit") if not _is_number(said.get(name, 1))]
        if wrong or not isinstance(said.get("dry_run", False), bool):
            why = f"{', '.join(wrong) or 'dry_run'} is not as it should be"
            raise DecodeError(why, fix='{"node": "draft", "dry_run": true}')
        if not any(name in said for name in (*FILTERS, "sequence")):
            raise DecodeError("say which letters", fix=f"give one of {', '.join(FILTERS)}, or a sequence")
        return await self._entrance.client(), said


def fingerprint(letter: DeadLetter) -> str:
    """What letters of one kind share: operator, error, and its message but for what is another thing in each."""
    message = _VARIES.sub("…", letter.message)[:_BEGIN]
    return sha256("\0".join((letter.topology, letter.node, letter.reason, letter.code, message)).encode()).hexdigest()[:12]


async def _chosen(client: Client, said: QueryParams | Mapping[str, Any]) -> AsyncGenerator[DeadLetter]:
    """The letters that are asked for, as they are shown. Raises HTTPException (404): no such topology."""
    topology, wanted = said.get("topology", "*"), said.get("fingerprint")
    if topology != "*":
        await is_applied(client, topology)
    secrets = await hidden.secrets_of(client)
    async for letter in client.dead_letters(topology, node=said.get("node"), reason=said.get("reason")):
        shown = hidden.letter(secrets, letter)
        if wanted in (None, fingerprint(shown)):
            yield shown


async def _sequences(client: Client, said: Mapping[str, Any]) -> list[int]:
    """Those of the letters that are asked for, the oldest first."""
    one, after = said.get("sequence"), said.get("after", 0)
    found = [letter.sequence async for letter in _chosen(client, said)]
    return [sequence for sequence in found if sequence > after and one in (None, sequence)]


def _whole(value: Any) -> Any:
    """Of a number that is whole the integer: JSON does not tell them apart."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _is_number(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
