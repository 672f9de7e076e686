"""Dead letters over HTTP: in groups by what went wrong, run again at a pace, or dropped."""

from __future__ import annotations

import asyncio
import re
from collections import OrderedDict
from collections.abc import AsyncGenerator, Collection, Mapping
from hashlib import sha256
from typing import Any, Final

from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import Response

from dspex.bus import subjects
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
_KEPT: Final = 16  # questions for groups whose letters are kept in mind
_BEGIN: Final = 120  # characters of a message that tell its kind


class LettersOffered:
    """What is below `/v1/letters`."""

    def __init__(self, entrance: Entrance) -> None:
        self._entrance = entrance
        self._groups = OrderedDict[str, _Groups]()  # by what was asked for

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
        client, query = await self._entrance.client(), query_of(request, "topology", "node", "reason")
        if "topology" in query:
            await is_applied(client, query["topology"])
        asked = str(sorted(query.items()))
        groups = self._groups[asked] = self._groups.pop(asked) if asked in self._groups else _Groups(query)
        if len(self._groups) > _KEPT:
            self._groups.popitem(last=False)
        found = await groups.now(client)
        return json({"groups": sorted(found, key=lambda group: -group["count"])})

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


class _Groups:
    """Letters that are asked for, by what went wrong. Those that were read once are not read again, unless some are gone."""

    def __init__(self, query: QueryParams) -> None:
        self._query, self._turn = query, asyncio.Lock()
        self._found = dict[str, dict[str, Any]]()
        self._last, self._count = 0, 0  # of the letters that were read: the sequence of the last one, and how many
        self._applied = dict[str, int]()  # what is secret, and the names of operators, change with versions

    async def now(self, client: Client) -> Collection[dict[str, Any]]:
        """The groups as they are now, each with how many letters it has, and when the first and the last one was given up."""
        async with self._turn:  # who asks at the same time reads nothing twice
            applied = {name: one.version for name, one in (await client.manifests()).items()}
            last, count = await self._there(client, 0)
            new = count if not self._last else (await self._there(client, self._last))[1] if last > self._last else 0
            on = applied == self._applied and count - new == self._count
            found = {name: {**group} for name, group in self._found.items()} if on else dict[str, dict[str, Any]]()
            if not on or new:
                await self._read(client, found, self._last if on else 0, last)
            self._found, self._last, self._count, self._applied = found, last, count, applied
        return found.values()

    async def _there(self, client: Client, after: int) -> tuple[int, int]:
        """The sequence of the last letter, and how many lie behind a sequence."""
        stream, pattern = subjects.stream(client.app), subjects.dead_pattern(client.app, self._query.get("topology", "*"))
        if await client.bus.stream(stream) is None or (last := await client.bus.last(stream, pattern)) is None:
            return 0, 0
        return last.sequence, await client.bus.count(stream, [pattern], after=after)

    async def _read(self, client: Client, found: dict[str, dict[str, Any]], after: int, last: int) -> None:
        """Add the letters behind a sequence, up to the last one."""
        first = dict[str, DeadLetter]()
        async for one in _chosen(client, self._query, after=after):
            if one.sequence > last:
                break
            name = fingerprint(one)
            row = {"fingerprint": name, "topology": one.topology, "node": one.node, "reason": one.reason, "code": one.code}
            if name not in found:
                first[name] = one
                found[name] = {**row, "message": "", "count": 0, "oldest": one.time}
            found[name] |= {"count": found[name]["count"] + 1, "latest": one.time}
        shown = await hidden.whole_letters(client, await hidden.secrets_of(client), [*first.values()])
        for name, one in zip(first, shown, strict=True):
            found[name]["message"] = one.message


def fingerprint(letter: DeadLetter) -> str:
    """What letters of one kind share: operator, error, and its message but for what is another thing in each."""
    message = _VARIES.sub("…", letter.message)[:_BEGIN]
    return sha256("\0".join((letter.topology, letter.node, letter.reason, letter.code, message)).encode()).hexdigest()[:12]


async def _chosen(client: Client, said: QueryParams | Mapping[str, Any], after: int = 0) -> AsyncGenerator[DeadLetter]:
    """The letters that are asked for, as they are shown. Raises HTTPException (404): no such topology."""
    topology, wanted = said.get("topology", "*"), said.get("fingerprint")
    if topology != "*":
        await is_applied(client, topology)
    secrets = await hidden.secrets_of(client)
    node, reason = said.get("node"), said.get("reason")
    async for letter in letters.listing(client.bus, client.app, topology, node=node, reason=reason, after=after):
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
