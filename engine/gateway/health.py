"""Whether this process lives, works, and can be given work; and what it measures."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from importlib.util import find_spec

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from dspex.bus import subjects
from dspex.bus.errors import DspexError
from dspex.engine.gateway.entrance import Entrance

LOOK = 5.0  # seconds that the server has to answer; probes give up soon


class Health:
    """`/livez`, `/readyz` and `/metrics`. `works`: how what else runs in this process is: "ok", or what stands still."""

    def __init__(self, entrance: Entrance, works: Callable[[], str]) -> None:
        self._entrance, self._works = entrance, works

    async def live(self, request: Request) -> Response:
        """503 where this process lives and makes no progress: it is to be started again."""
        said = self._works()
        return JSONResponse({"status": said}, 200 if said == "ok" else 503)

    async def ready(self, request: Request) -> Response:
        """503 where its server cannot be reached, or has no stream of the application: requests would fail."""
        try:
            async with asyncio.timeout(LOOK):
                client = await self._entrance.client()
                there = await client.bus.stream(subjects.stream(client.app)) is not None
        except DspexError as error:
            return JSONResponse({"status": error.message, "fix": error.fix}, 503)
        except TimeoutError:
            return JSONResponse({"status": "the server does not answer"}, 503)
        if not there:
            return JSONResponse({"status": "nothing is applied yet", "fix": "dspex run, or dspex apply"}, 503)
        return JSONResponse({"status": "ok"})

    async def metrics(self, request: Request) -> Response:
        """What is measured in this process, as Prometheus' text."""
        self._entrance.access.to_look(request)
        if find_spec("prometheus_client") is None:
            raise HTTPException(404, "nothing is measured here: pip install 'dspex[otel]', and set telemetry.metrics")
        from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

        return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)
