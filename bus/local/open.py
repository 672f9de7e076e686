"""Which server, and a bus on it: the one that settings name, the one that runs here, or one that we start."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncGenerator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import structlog

from dspex.bus.errors import BusError, ConfigError, NotAllowed, Unreachable
from dspex.bus.local import login
from dspex.bus.local.server import LocalServer
from dspex.bus.local.state import running
from dspex.bus.port import Bus, BusEvents
from dspex.bus.serving.keys.keyring import Keyring
from dspex.bus.settings.model import Settings
from dspex.bus.settings.not_built import CODE
from dspex.bus.settings.server import LOGIN, TLSSettings
from dspex.bus.tasks import Tasks

_log = structlog.get_logger(__name__)
_PAUSE = 1.0  # seconds between two starts of a server that does not start
_LOOK = 0.2  # seconds between two looks for a server of another process


@dataclass(frozen=True)
class Found:
    """A server. `started`: by us, and it stops with us; `local`: it keeps its data in our store, and has a login of its own."""

    url: str
    started: bool
    local: bool


@asynccontextmanager
async def server_of(settings: Settings, *, start: bool = False) -> AsyncGenerator[Found, None]:
    """The server to use, for as long as the block runs.

    Args:
        start: start one in `settings.store` where settings name none and none is running. It is started again
            when it dies, and stops at the end. One that another process started and takes down with itself is taken
            over: `dspex run` goes on when the `dspex publish` that was there first has ended.

    Raises:
        Unreachable: there is none, and none may be started.
        ConfigError: DX108, a login is given, and no server that it is for.
    """
    if settings.server.url:
        yield Found(settings.server.url, started=False, local=False)
        return
    _refuse_login(settings)
    if state := running(settings.store.parent):
        found = Found(str(state["url"]), started=False, local=True)
        stays = not start or state.get("detached")
        async with _while(asyncio.sleep(0) if stays else _take_over(settings, found.url)):
            yield found
        return
    if not start:
        raise Unreachable(
            f"no NATS server: none is named, and none is running in {settings.store.parent}",
            fix="start one (dspex server start, or dspex run), or name one: --server nats://host:4222",
        )
    async with local_server(settings, settings.server.local.port) as server, _while(_keep(server)):
        yield Found(server.url, started=True, local=True)


def _refuse_login(settings: Settings) -> None:
    """Raise ConfigError (DX108) for a login that the local server, which has its own, would ignore.

    What the shell says to all NATS tools (`NATS_CREDS`, …) was not meant for it, and is noted only.
    """
    given = settings.server.model_dump(include=set(LOGIN), exclude_none=True)
    origins = settings.origins()
    for name in given:
        key = f"server.{name}"
        origin = next(o for k, o in origins.items() if k == key or k.startswith(f"{key}."))
        if origin.startswith(("env NATS_", "context ")):  # a context is judged by who names it: `server.context`
            _log.info("a login is not used: the local server has its own", setting=key, origin=origin)
        else:
            raise ConfigError(
                f"{key} ({origin}) is a login, and no server is named: the local one has its own",
                code=CODE,
                node=key,
                fix=f"name the server (server.url, or --server nats://host:4222), or leave {key} out",
            )


def local_server(settings: Settings, port: int, *, detached: bool = False) -> LocalServer:
    """The server of the settings' folder, with its login. Raises ConfigError (DX123)."""
    sync = settings.server.local.sync_interval
    return LocalServer(
        settings.store,
        port=port,
        sync_interval="always" if isinstance(sync, str) else sync,
        user=login.USER,
        password=login.make(settings.store.parent),
        detached=detached,
    )


@asynccontextmanager
async def _while(work: Coroutine[Any, Any, None]) -> AsyncGenerator[None, None]:
    """Run `work` until the block ends."""
    tasks = Tasks("nats-server")
    tasks.start(work, "keep")
    try:
        yield
    finally:
        await tasks.stop()


async def _take_over(settings: Settings, url: str) -> None:
    """Start the server of another process again when it is gone, on the same port, and keep it from then on."""
    while True:
        while running(settings.store.parent):  # noqa: ASYNC110  only the lock shows that the server of another process ended
            await asyncio.sleep(_LOOK)
        try:
            async with local_server(settings, urlsplit(url).port or -1) as server:
                _log.info("the local nats-server stopped with the process that had started it: started again", url=server.url)
                await _keep(server)
        except (BusError, ConfigError) as e:
            _log.debug("not taken over", reason=e.message)  # another process may have been quicker
            await asyncio.sleep(_PAUSE)


async def _keep(server: LocalServer) -> None:
    """Start the server again whenever it died: on the same port, so that every connection finds it by itself."""
    while True:
        await server.died()
        _log.warning("the local nats-server died and is started again", store=str(server.store))
        try:
            await server.start()
        except (BusError, ConfigError) as e:
            _log.error("the local nats-server does not start", reason=e.message, fix=e.fix)
            await asyncio.sleep(_PAUSE)


@asynccontextmanager
async def open_bus(
    settings: Settings, *, name: str, start: bool = False, events: BusEvents | None = None
) -> AsyncGenerator[Bus, None]:
    """A bus on the server of `server_of`, closed at the end of the block.

    Args:
        name: of the connection, for those who look at the server.
        start: as in `server_of`.
        events: called with the events of the connection.

    Raises:
        Unreachable, NotAllowed, UnsupportedServer, ConfigError.
    """
    async with server_of(settings, start=start) as found:
        bus = await connect(settings, found, name=name, events=events)
        try:
            yield bus
        finally:
            await bus.close()


async def connect(settings: Settings, found: Found, *, name: str, events: BusEvents | None = None) -> Bus:
    """A bus on a server that is there, with the login of the settings where they name that server, else with its own."""
    from dspex.bus import nats  # the client costs 0.1 s to import; it is not needed to look for a server

    how: dict[str, Any] = {"inbox_prefix": settings.server.inbox_prefix}
    if found.local:
        how |= {"user": login.USER, "password": login.read(settings.store.parent)}
    else:
        how |= settings.server.login()
        if settings.server.tls:
            how["tls"] = tls_context(settings.server.tls)
    try:
        bus = await nats.connect(found.url, name=name, events=events, **how)
    except NotAllowed as error:
        own = None if found.local else running(settings.store.parent)
        if own is None or urlsplit(str(own["url"])).port != urlsplit(found.url).port:
            raise
        fix = "leave the address out (server.url, --server): it is the server of this folder, found with its login without that"
        raise NotAllowed(error.message, fix=fix) from None
    if settings.engine.encrypt_key_env is not None:
        bus.sealing = Keyring(bus, settings.app, settings.engine.encrypt_key_env)
    return bus


def tls_context(tls: TLSSettings) -> ssl.SSLContext:
    """Certificates for the connection. Raises ConfigError (DX122) where a file cannot be used."""
    try:
        context = ssl.create_default_context(cafile=tls.ca)
        if tls.cert:
            context.load_cert_chain(tls.cert, tls.key)
    except (OSError, ssl.SSLError) as e:
        message = f"the certificates of server.tls cannot be used: {e}"
        raise ConfigError(message, code="DX122", node="server.tls", fix="correct the paths of ca, cert and key") from e
    return context
