"""What all requests share: the client, what is offered, and reading what a request says."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

from starlette.datastructures import QueryParams
from starlette.exceptions import HTTPException
from starlette.requests import Request

from dspex.bus import codecs
from dspex.bus.errors import ConfigError, DecodeError
from dspex.bus.settings.duration import seconds
from dspex.bus.settings.model import Settings
from dspex.bus.settings.server import HookSettings, need_events
from dspex.bus.settings.similar import did_you_mean
from dspex.bus.tasks import first
from dspex.engine.client.client import Client
from dspex.engine.client.resolve import HasCall
from dspex.engine.gateway.access import Access

T = TypeVar("T")
Called: TypeAlias = HasCall[Any] | str


class Entrance:
    """One gateway: what it offers, and the client by which it asks.

    Attributes:
        calls: what may be called, by name. subjects: to which events may be published. hooks: webhooks by name.
        access: who may.
    """

    def __init__(
        self, settings: Settings | None, subjects: Sequence[str], calls: Mapping[str, Called], client: Client | None
    ) -> None:
        """`client`: one that is connected, and is not closed here; None: one is connected when it is first needed.

        Raises ConfigError.
        """
        self.settings = settings or Settings.load()
        http = self.settings.http
        self.calls: Mapping[str, Called] = {**http.calls, **calls}
        self.subjects: Sequence[str] = [*http.subjects, *subjects]
        self.hooks: Mapping[str, HookSettings] = http.hooks
        self.access = Access(self.settings.calls, {"calls": list(self.calls), "subjects": self.subjects})
        self._check()
        self._given, self._own = client, None if client is None else client
        self._one = asyncio.Lock()

    def _check(self) -> None:
        """Raise ConfigError (DX105) for what is no subject of events, and for a token that is good for what is not offered."""
        for one in self.subjects:
            need_events(one)
        for name, token in self.settings.calls.items():
            for kind, offered in (("calls", list(self.calls)), ("subjects", list(self.subjects))):
                if unknown := [one for one in getattr(token, kind) if one not in ("*", *offered)]:
                    fix = f'write one of http.{kind}: {", ".join(offered) or "there are none"}; or all of them, "*"'
                    raise ConfigError(f"calls.{name}.{kind} names {unknown[0]!r}, which is not offered", code="DX105", fix=fix)

    async def client(self) -> Client:
        """The client, connected. Where no server could be reached, the next request tries it again. Raises BusError."""
        if self._own is None:
            async with self._one:
                if self._own is None:
                    self._own = await Client(self.settings)
        return self._own

    @property
    def connected(self) -> Client | None:
        """The client, where it is connected."""
        return self._own

    async def close(self) -> None:
        """Close the client, where it is the gateway's own."""
        own, self._own = self._own, self._given
        if own is not None and own is not self._given:
            await own.close()

    # -- what requests say
    async def body(self, request: Request) -> bytes:
        """The body. Raises HTTPException (413), before it is read whole."""
        found, most = bytearray(), self.settings.http.max_body
        async for piece in request.stream():
            found += piece
            if len(found) > most:
                raise HTTPException(413, f"a request may have {most:,} bytes (http.max_body)")
        return bytes(found)

    async def fields(self, request: Request) -> dict[str, Any]:
        """The body, which is a JSON object. Raises HTTPException (413, 415), DecodeError."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != codecs.JSON:  # a page of another site could send any other without being asked
            raise HTTPException(415, f"send JSON, with Content-Type: {codecs.JSON}")
        return mapping(codecs.decode(await self.body(request), codecs.JSON))


def mapping(data: object) -> dict[str, Any]:
    """Data that is an object. Raises DecodeError."""
    if not isinstance(data, dict):
        raise DecodeError(f"a request has fields, and this is {type(data).__name__}", fix='send an object: {"text": "…"}')
    return data


def query_of(request: Request, *names: str) -> QueryParams:
    """The query. Raises ConfigError (DX105) for a parameter that the path has not got: ignored it would be false safety."""
    known(request.query_params, names)
    return request.query_params


def known(given: Iterable[str], names: Sequence[str]) -> None:
    """Raise ConfigError (DX105) where a name is given that is none of `names`."""
    for name in given:
        if name not in names:
            fix = did_you_mean(name, names, f"one of {', '.join(names)}" if names else "leave it out")
            raise ConfigError(f"there is no parameter {name!r} here", code="DX105", fix=fix)


def duration_of(query: Mapping[str, str], name: str) -> float | None:
    """A parameter of the query in seconds, "30s" or "30"; None: not given. Raises ConfigError (DX102)."""
    said = query.get(name)
    return None if said is None else seconds(float(said) if said.isascii() and said.isdigit() else said)


async def while_there(request: Request, work: Awaitable[T]) -> T:
    """What `work` gives, which is cancelled when who asks goes away. Raises what it raises; HTTPException (499) then.

    The body must have been read.
    """

    found: list[T] = []

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    async def done() -> None:
        found.append(await work)

    if await first(done(), gone()):
        raise HTTPException(499, "who asked has gone away")
    return found[0]
