"""Serving the gateway by uvicorn, in this process and on its loop."""

from __future__ import annotations

import socket
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Final

import uvicorn

from dspex.bus.errors import ConfigError
from dspex.bus.settings.values import host_port
from dspex.bus.tasks import Tasks

GRACE: Final = 5.0  # seconds that open requests have when it ends


class _Server(uvicorn.Server):
    """Leaves signals to who runs it."""

    @contextmanager
    def capture_signals(self) -> Generator[None]:
        """Nothing is captured."""
        yield


@asynccontextmanager
async def serving(app: Any, bind: str) -> AsyncGenerator[str]:
    """Serve an application while the block runs; its address. At the end open requests have `GRACE` seconds.

    Raises ConfigError (DX105) where nothing can listen there.
    """
    listening = listening_on(bind)
    host, port = listening.getsockname()[:2]
    config = uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=int(GRACE), server_header=False)
    server, tasks = _Server(config), Tasks("gateway")
    try:
        tasks.start(server.serve([listening]), "uvicorn")
        yield f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{port}"
    finally:
        server.should_exit = True
        await tasks.finish(GRACE + 1)
        await tasks.stop()
        listening.close()


def listening_on(bind: str) -> socket.socket:
    """A socket whose connections send at once. asyncio sees to that only where it makes the socket itself; else an answer in
    two pieces waits 40 ms, until the other side acknowledges the first. Raises ConfigError where nothing can listen.
    """
    host, port = host_port(bind)
    try:
        made = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # those that it accepts have it from here
        return made
    except OSError as e:
        fix = "another port, or end what listens there"
        raise ConfigError(f"nothing can listen on {bind}: {e.strerror}", code="DX105", fix=fix) from e
