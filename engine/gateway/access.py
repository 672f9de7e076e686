"""Who may do what over HTTP: bearer tokens, what each is good for, and how much of it."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import math
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final, Literal

from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection

from dspex.bus import subjects
from dspex.bus.serving import audit
from dspex.bus.settings.duration import rate
from dspex.bus.settings.server import TokenSettings, secrets
from dspex.engine.client.publish import named

Right = Literal["read", "operate"]
ALL: Final = "*"
_HERE: Final = frozenset({"127.0.0.1", "::1", "localhost", "testclient"})
_THROUGH: Final = ("forwarded", "x-forwarded-for", "via")  # headers of proxies: who asks is elsewhere


class Bearer:
    """Who has a token; what it is good for, and what is left of its quota in this process."""

    def __init__(self, name: str, settings: TokenSettings) -> None:
        self.name, self._settings = name, settings
        self._hashes = [_hash(token) for token in secrets(settings.token_env, f"calls.{name}.token_env")]
        self._much, self._window = rate(settings.requests) if settings.requests is not None else (math.inf, 1.0)
        self._left, self._at, self._open = self._much, 0.0, 0

    def has(self, token: bytes) -> bool:
        """Whether this is its token; the time that this takes says nothing of it."""
        return sum(hmac.compare_digest(token, known) for known in self._hashes) > 0

    def may(self, right: Right) -> bool:
        """Whether it may see runs, or decide about them."""
        return self._settings.operate or (right == "read" and self._settings.read)

    def named(self, kind: Literal["calls", "subjects"], name: str) -> bool:
        """Whether it may call something, or publish to a subject."""
        if kind == "calls":
            return ALL in self._settings.calls or name in self._settings.calls
        return any(one == ALL or subjects.matches(one, name) for one in self._settings.subjects)

    def count(self) -> None:
        """Count a request. Raises HTTPException (429) where its quota is used up."""
        if self._much == math.inf:
            return
        now = asyncio.get_running_loop().time()
        self._left = min(self._much, self._left + (now - self._at) * self._much / self._window)
        self._at = now
        if self._left < 1:
            wait = (1 - self._left) * self._window / self._much
            _too_many(f"{self.name} may make {self._settings.requests}", wait)
        self._left -= 1

    @contextmanager
    def calling(self) -> Generator[None]:
        """A call is open. Raises HTTPException (429) where as many are as may be."""
        if self._settings.concurrent is not None and self._open >= self._settings.concurrent:
            _too_many(f"{self.name} may have {self._settings.concurrent} calls open at once", 1.0)
        self._open += 1
        try:
            yield
        finally:
            self._open -= 1


def own_key(caller: Bearer | None, what: str, key: str) -> str:
    """What names a request for good: two callers, and two things that are asked for, may use the same key.

    Raises ConfigError (DX105) where the key is empty: requests that have nothing to do with each other would be one.
    """
    return f"{caller.name if caller is not None else ''}/{what}/{named(key)}"


class Access:
    """Who asks. Where `[calls]` names no token, whoever reaches the gateway may publish to and call what is offered; runs and
    decisions are then for who asks from this machine, and not through a proxy.
    """

    def __init__(self, tokens: Mapping[str, TokenSettings], offered: Mapping[str, Sequence[str]]) -> None:
        """`offered`: what there is at all, "calls" and "subjects". Raises ConfigError (DX112): a variable is not set."""
        self._bearers = [Bearer(name, settings) for name, settings in tokens.items()]
        self._offered = offered

    @property
    def open(self) -> bool:
        """Whether no token is asked for."""
        return not self._bearers

    @property
    def looked_at(self) -> bool:
        """Whether anybody may look at runs."""
        return self.open or any(one.may("read") for one in self._bearers)

    def free(self, request: HTTPConnection) -> bool:
        """Whether who asks may look at runs without a token."""
        return self.open and _from_here(request)

    def caller(self, request: HTTPConnection) -> Bearer | None:
        """Who asks, whose request is counted; None where no token is asked for. Raises HTTPException (401, 403, 429)."""
        _same_site(request)
        audit.speak_for("")
        if self.open:
            return None
        kind, _, token = request.headers.get("authorization", "").partition(" ")
        said = _hash(token.strip()) if kind.lower() == "bearer" else b""
        found = next((one for one in self._bearers if one.has(said)), None)
        if found is None:
            why = "say who you are: Authorization: Bearer <token>"
            raise HTTPException(401, why, {"WWW-Authenticate": "Bearer"})
        found.count()
        audit.speak_for(found.name)  # of this request, which has a task of its own
        return found

    def to_use(self, request: HTTPConnection, kind: Literal["calls", "subjects"], name: str) -> Bearer | None:
        """Who asks for something that is offered by name. Raises HTTPException as `caller`, and 404."""
        caller = self.caller(request)
        if not any(one == name or (kind == "subjects" and subjects.matches(one, name)) for one in self._offered[kind]) or (
            caller is not None and not caller.named(kind, name)
        ):  # the same answer, so that nobody learns what there is
            raise HTTPException(404, f"{name!r} is not offered here")
        return caller

    def to_look(self, request: HTTPConnection, right: Right = "read") -> Bearer | None:
        """Who asks about runs, or decides. Raises HTTPException as `caller`."""
        caller = self.caller(request)
        if caller is None:
            if not self.free(request):
                raise HTTPException(403, f"without tokens ([calls] in dspex.toml) only this machine may {right}")
        elif not caller.may(right):
            raise HTTPException(403, f"this token may not {right}")
        return caller


def _hash(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()


def _too_many(why: str, wait: float) -> None:
    raise HTTPException(429, why, {"Retry-After": str(max(1, math.ceil(wait)))})


def _from_here(request: HTTPConnection) -> bool:
    """Whether this machine itself asks. A page of elsewhere that a browser here has open gives its own name as the host."""
    host = request.url.hostname or ""
    through = any(header in request.headers for header in _THROUGH)
    return request.client is not None and request.client.host in _HERE and host in (*_HERE, "testserver") and not through


def _same_site(request: HTTPConnection) -> None:
    """Refuse what a page of another site has a browser send. Raises HTTPException (403)."""
    origin = request.headers.get("origin")
    if origin is not None and origin.partition("://")[2] != request.headers.get("host"):
        raise HTTPException(403, f"requests of pages from {origin} are not taken")
