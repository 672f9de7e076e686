"""What the answers have in common: how they are written, and how the parameters of a query are read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, Final

import orjson
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from dspex.bus.errors import ConfigError
from dspex.engine.client.client import Client
from dspex.engine.client.following.progress import RunInfo
from dspex.engine.client.run import FULL_ID, Run
from dspex.engine.gateway.entrance import Entrance

MOST: Final = 1000  # runs, or dead letters, in one answer


def json(value: Mapping[str, Any], status: int = 200) -> Response:
    """A response with times and durations as text, as everywhere in JSON."""
    return Response(dumped(value), status, media_type="application/json")


def dumped(value: Any) -> str:
    """An answer as text."""
    return orjson.dumps(value, default=_plain).decode()


def _plain(value: object) -> object:
    seconds: Callable[[], float] | None = getattr(value, "total_seconds", None)
    return str(value) if seconds is None else seconds()


def as_object(info: RunInfo) -> dict[str, Any]:
    """A run, as `dspex runs ls --json` prints it."""
    return asdict(info)


def flag_of(text: str | None) -> bool:
    """A parameter that is true or false. Raises ConfigError (DX105)."""
    if text not in (None, "true", "false"):
        raise ConfigError(f"{text!r} is neither true nor false", code="DX105", fix="tree=true")
    return text == "true"


def number_of(text: str | None, default: int, most: int) -> int:
    """A parameter that says how many. Raises ConfigError (DX105)."""
    if text is None:
        return default
    if not text.isdecimal() or not 0 < int(text) <= most:
        raise ConfigError(f"limit={text!r} is no number from 1 to {most:,}", code="DX105", fix="limit=100")
    return int(text)


async def run_of(entrance: Entrance, request: Request) -> tuple[Run, Client]:
    """The run that a path names. Who published it may look at it; to know its whole id is enough for that."""
    id = request.path_params["id"]
    if len(id) < FULL_ID or entrance.access.open:
        entrance.access.to_look(request)
    else:
        entrance.access.caller(request)
    client = await entrance.client()
    return client.run(id), client


async def is_applied(client: Client, topology: str) -> None:
    """Raise HTTPException (404) where it is not."""
    if topology not in await client.manifests():
        raise HTTPException(404, f"no topology {topology!r} is applied")
