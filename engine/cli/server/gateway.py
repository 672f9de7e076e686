"""`dspex gateway`: events, calls and runs over HTTP; and `dspex ui`: the page on them, for this machine."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dspex.bus.errors import ConfigError
from dspex.engine.cli.terminal.client import count, lean_nats
from dspex.engine.cli.terminal.terminal import Terminal, terminal
from dspex.engine.telemetry.exporting import exporting

if TYPE_CHECKING:
    from dspex.engine.client.client import Client
    from dspex.engine.hosting.engine import Engine

_INSTALL = "pip install 'dspex[asgi]'"


def gateway(
    context: typer.Context,
    bind: Annotated[str | None, typer.Option("--bind", metavar="[HOST]:PORT", help="Where to listen; else http.bind.")] = None,
    allow: Annotated[list[str] | None, typer.Option("--allow", metavar="SUBJECT", help="Offer to publish there, too.")] = None,
    call: Annotated[list[str] | None, typer.Option("--call", metavar="NAME=TARGET", help="Offer to call TARGET, too.")] = None,
) -> None:
    """Offer events, calls and runs over HTTP until ^C or SIGTERM."""
    t = terminal(context)
    calls = dict(_named(one) for one in call or ())
    t.run(_served(t, bind or t.settings().http.bind, allow or [], calls))


def ui(
    context: typer.Context,
    port: Annotated[int, typer.Option("--port", help="Where to listen on this machine.", min=1, max=65535)] = 8090,
) -> None:
    """Serve the page on runs, dead letters, approvals and pools to this machine until ^C or SIGTERM, and print its address."""
    t = terminal(context)
    t.run(_shown(t, f"127.0.0.1:{port}"))


async def _shown(t: Terminal, bind: str) -> int:
    from dspex.engine.hosting.engine import stop_on_signals

    lean_nats()
    stopped = stop_on_signals()
    made, serving = _made(t, [], {})
    async with serving(made, bind) as address:
        t.emit({"event": "ui", "url": f"{address}/ui/"}, f"page      {address}/ui/")
        return await stopped


def _named(text: str) -> tuple[str, str]:
    name, equals, target = text.partition("=")
    if not (name and equals and target):
        raise ConfigError(f"--call {text!r} is no NAME=TARGET", code="DX105", fix="--call classify=support-triage/classify")
    return name, target


async def _served(t: Terminal, bind: str, subjects: list[str], calls: dict[str, Any]) -> int:
    from dspex.engine.hosting.engine import stop_on_signals

    lean_nats()
    stopped = stop_on_signals()
    with exporting(t.settings().app, "gateway", f"{socket.gethostname()}-{os.getpid()}", None):
        async with offered(t, bind, subjects, calls):
            return await stopped


@asynccontextmanager
async def beside(t: Terminal, engine: Engine, bind: str | None) -> AsyncGenerator[None]:
    """Serve the gateway beside an engine that runs, while the block runs; not at all where no address is given."""
    if bind is None:
        yield
        return
    from dspex.engine.client.client import Client

    host = engine.running.host
    client = Client(t.settings(), bus=engine.running.bus, app=host.app)
    async with client, offered(t, bind, [], {}, client, lambda: str(host.describe()["health"])):
        yield


@asynccontextmanager
async def offered(
    t: Terminal,
    bind: str,
    subjects: list[str],
    calls: dict[str, Any],
    client: Client | None = None,
    works: Callable[[], str] | None = None,
) -> AsyncGenerator[None]:
    """The gateway, while the block runs. Once it listens, it prints where, and what it offers.

    Raises ConfigError: DX109, no uvicorn; DX105, nothing can listen there.
    """
    made, serving = _made(t, subjects, calls, client, {} if works is None else {"works": works})
    entrance = made.state.entrance
    if not (entrance.subjects or entrance.calls or entrance.hooks):
        t.note("warning: nothing is offered but runs: --allow SUBJECT, --call NAME=TARGET, or [http] in dspex.toml")
    if entrance.access.open and not bind.startswith(("127.", "localhost", "[::1]")):
        t.note("warning: whoever reaches this port may publish and call: name tokens under [calls] in dspex.toml")
    offers = f"{count(len(entrance.subjects), 'subject')}, {count(len(entrance.calls), 'call')}"
    shown = bind if not bind.startswith(":") else f"127.0.0.1{bind}"
    data = {"event": "gateway", "bind": bind, "subjects": list(entrance.subjects), "calls": list(entrance.calls)}
    async with serving(made, bind):
        t.emit(data, f"gateway   http://{shown}  {offers}")
        yield


def _made(
    t: Terminal, subjects: list[str], calls: dict[str, Any], client: Client | None = None, more: Mapping[str, Any] = {}
) -> tuple[Any, Callable[[Any, str], AbstractAsyncContextManager[str]]]:
    """The gateway, and what serves it. Raises ConfigError (DX109)."""
    try:
        from dspex.engine.gateway.app import app
        from dspex.engine.gateway.serving import serving
    except ImportError as e:
        raise ConfigError(f"the gateway is not installed: {e}", code="DX109", fix=_INSTALL, node="gateway") from e
    return app(t.settings(), subjects=subjects, calls=calls, client=client, **more), serving
