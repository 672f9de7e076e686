"""The gateway: an application over HTTP, to be mounted in FastAPI or Starlette, or served by `dspex gateway`.

What a request does is in one file each: publishing.py, calling.py, looking/, health.py. Who may is access.py, and what went
wrong is problems.py. The page for people is in web/.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

import structlog
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from dspex.bus import subjects
from dspex.bus.codecs import tracing
from dspex.bus.errors import DspexError
from dspex.bus.settings.model import Settings
from dspex.bus.tasks import Tasks
from dspex.engine.client.client import Client
from dspex.engine.gateway import problems
from dspex.engine.gateway.calling import Calling
from dspex.engine.gateway.described import Descriptions
from dspex.engine.gateway.entrance import Called, Entrance
from dspex.engine.gateway.health import Health
from dspex.engine.gateway.looking.again import AgainOffered
from dspex.engine.gateway.looking.letters import LettersOffered
from dspex.engine.gateway.looking.runs import Looking
from dspex.engine.gateway.looking.state import Overview
from dspex.engine.gateway.publishing import Publishing
from dspex.engine.gateway.web import page

__all__ = ["app"]  # what `dspex.asgi` has

_Endpoint = Callable[[Request], Awaitable[Response]]
_log = structlog.get_logger("dspex.gateway")
_UNDESCRIBED: Final = ("/v1/hooks/{name}", "/openapi.json", "/asyncapi.json", "/metrics")  # for others than those who call


def app(
    settings: Settings | None = None,
    *,
    subjects: Sequence[str] = (),
    calls: Mapping[str, Called] | None = None,
    client: Client | None = None,
    works: Callable[[], str] = lambda: "ok",
) -> Starlette:
    """An ASGI application that offers events, calls and runs of a dspex application over HTTP: only what is listed.

    Args:
        settings: loaded as every dspex process does when left out. Their `[calls]` say whose tokens are good for what; without
            any, all may publish and call what is offered, and only this machine sees runs.
        subjects: to which events may be published, besides those of `settings.http`.
        calls: what may be called by which name: a Spec, a deployed node "topology/node", or a signature; likewise.
        client: one that is connected, and stays open. By default one is connected at the first request, and closed when the
            application ends (where it is mounted: with the process, since Starlette tells no mounted application of its end).
        works: how what else runs in this process is, for `/livez`: "ok", or what stands still.

    Raises:
        ConfigError: DX112, the variable of a token is not set; DX105, a token is good for something that is not offered.
    """
    entrance = Entrance(settings, subjects, calls or {}, client)
    looking = Looking(entrance)
    told = _paths(entrance, works, looking)
    described = Descriptions(
        entrance, [(path, method, do.__doc__ or "") for path, method, do in told if path not in _UNDESCRIBED]
    )
    routes: list[BaseRoute] = [Route(path, do, methods=[method.upper()]) for path, method, do in told]
    routes += [Route("/openapi.json", described.openapi), Route("/asyncapi.json", described.asyncapi)]
    routes += [WebSocketRoute("/v1/call/{name}", Calling(entrance).socket), *page.routes(looking.first)]

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncGenerator[None]:
        ahead = Tasks("gateway", lambda _, error: _log.info("runs are read when somebody looks", why=str(error)))
        ahead.start(looking.ahead(), "runs")
        yield
        await ahead.stop()
        await entrance.close()

    handlers: dict[Any, Any] = {DspexError: problems.of_error, HTTPException: problems.of_refusal, 500: problems.of_bug}
    traced = [Middleware(Traced)]
    made = Starlette(routes=routes, lifespan=lifespan, exception_handlers=handlers, middleware=traced)
    made.state.entrance = entrance
    return made


class Traced:
    """What is asked for is of the trace that the request names in its `traceparent` and `tracestate`."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request within its trace."""
        headers = Headers(scope=scope) if scope["type"] in ("http", "websocket") else Headers()
        said = tracing.joined(headers.get(subjects.TRACEPARENT), ",".join(headers.getlist(subjects.TRACESTATE)))
        if said is None:  # then that of a span that the program around it has open
            await self._app(scope, receive, send)
            return
        with tracing.within(said):
            await self._app(scope, receive, send)


def _paths(entrance: Entrance, works: Callable[[], str], looking: Looking) -> list[tuple[str, str, _Endpoint]]:
    """Every path but those that describe the others: path, method, and what answers."""
    publishing, calling, health = Publishing(entrance), Calling(entrance), Health(entrance, works)
    again, letters, overview = AgainOffered(entrance), LettersOffered(entrance), Overview(entrance)
    return [
        ("/v1/publish/{subject}", "post", publishing.publish),
        ("/v1/hooks/{name}", "post", publishing.hook),
        ("/v1/call/{name}", "post", calling.call),
        ("/v1/ag-ui/{name}", "post", calling.ag_ui),
        ("/v1/ai-sdk/{name}", "post", calling.ai_sdk),
        ("/v1/chat/completions", "post", calling.completions),
        ("/v1/models", "get", calling.models),
        ("/v1/runs", "get", looking.runs),
        ("/v1/runs/events", "get", looking.listing),
        ("/v1/runs/{id:path}/events", "get", looking.events),
        ("/v1/runs/{id:path}/cancel", "post", looking.cancel),
        ("/v1/runs/{id:path}/scores", "post", looking.score),
        ("/v1/runs/{id:path}/replay", "post", again.replay),
        ("/v1/runs/{id:path}/fork", "post", again.fork),
        ("/v1/runs/{id:path}/diff", "get", again.diff),
        ("/v1/runs/{id:path}", "get", looking.run),
        ("/v1/approvals", "get", overview.approvals),
        ("/v1/approvals/{id}", "post", overview.decide),
        ("/v1/letters", "get", letters.letters),
        ("/v1/letters/groups", "get", letters.groups),
        ("/v1/letters/redrive", "post", letters.redrive),
        ("/v1/letters/drop", "post", letters.drop),
        ("/v1/topologies", "get", overview.topologies),
        ("/v1/sessions", "get", overview.sessions),
        ("/v1/sessions/{id}", "get", overview.session),
        ("/v1/windows", "get", overview.windows),
        ("/v1/status", "get", overview.status),
        ("/livez", "get", health.live),
        ("/readyz", "get", health.ready),
        ("/metrics", "get", health.metrics),
    ]
