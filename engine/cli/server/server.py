"""Verbs about the wire and the settings: `server`, `doctor`, `config`."""

from __future__ import annotations

import shlex
from typing import Annotated, Any
from urllib.parse import urlsplit

import typer

from dspex.bus import subjects
from dspex.bus.errors import ConfigError, TopologyError
from dspex.engine.cli.server.permissions import RoleName, rights_of
from dspex.engine.cli.terminal.terminal import Terminal, terminal

Port = Annotated[
    int | None, typer.Option("--port", min=-1, max=65535, help="Port on loopback; a free one if it is taken, or for -1.")
]


def start(context: typer.Context, port: Port = None) -> None:
    """Start a nats-server in the background, on the store of this folder."""
    t = terminal(context)
    started = t.run(_start(t, port))
    _print_state(t, "started" if started else "was already running")


async def _start(t: Terminal, port: int | None) -> bool:
    from dspex.bus.local.open import local_server
    from dspex.bus.local.state import running

    settings = t.settings()
    if state := running(settings.store.parent):
        here = urlsplit(str(state["url"])).port
        if port not in (None, -1, here):
            raise ConfigError(
                f"a server of this folder is running already, on port {here}",
                code="DX115",
                fix="leave --port out, or stop that one first: dspex server stop",
            )
        return False
    await local_server(settings, settings.server.local.port if port is None else port, detached=True).start()
    return True


def stop(context: typer.Context) -> None:
    """Stop the nats-server of this folder."""
    from dspex.bus.local.state import stop_running

    t = terminal(context)
    stopped = t.run(stop_running(t.settings().store.parent))
    t.emit({"stopped": stopped}, "stopped" if stopped else "no server is running here")


def status(context: typer.Context) -> None:
    """Tell where the nats-server of this folder is; exit 1 where there is none."""
    _print_state(terminal(context), "running")


def _print_state(t: Terminal, word: str) -> None:
    from dspex.bus.local import login
    from dspex.bus.local.state import running

    home = t.settings().store.parent
    state = running(home)
    if state is None:
        t.emit({"running": False, "url": None, "pid": None}, f"no server is running in {home}")
        raise typer.Exit(1)
    data = {"running": True, "url": state["url"], "pid": state["pid"], "version": state["version"], "store": state["store"]}
    text = f"{state['url']}  {word}, pid {state['pid']}, nats-server {state['version']}, data in {state['store']}"
    # in the environment, which nobody else can read: the arguments of a process are for all users of the machine to see
    how = f'NATS_USER={login.USER} NATS_PASSWORD="$(cat {shlex.quote(str(login.file_of(home)))})" nats --server {state["url"]}'
    t.emit({**data, "user": login.USER, "password_file": str(login.file_of(home))}, text, f"other tools log in: {how}")


def show(context: typer.Context) -> None:
    """Print every setting and where it was written."""
    t = terminal(context)
    settings = t.settings()
    origins = settings.origins()
    rows: list[dict[str, Any]] = [
        {"key": key, "value": value, "origin": origins[key]} for key, value in settings.values().items()
    ]
    t.table(rows, {"key": "setting", "value": "value", "origin": "from"})


def doctor(
    context: typer.Context,
    role: Annotated[RoleName | None, typer.Option("--role", help="A fault where the connection may do more than that.")] = None,
    pool: Annotated[list[str] | None, typer.Option("--pool", help="Of that role: a pool.")] = None,
    subject: Annotated[list[str] | None, typer.Option("--subject", help="Of that role: a subject.")] = None,
    no_ask: Annotated[bool, typer.Option("--no-ask", help="Send the language models no call.")] = False,
) -> None:
    """Check settings, topologies, server, models and pools; exit 1 where something is wrong.

    Each language model that is not local is sent one call of a few tokens, which its provider may charge for.
    """
    from dspex.engine.cli.server.doctor import checks
    from dspex.engine.cli.server.written import written

    t = terminal(context)
    healthy = True
    if role is None and (pool or subject):
        raise ConfigError("--pool and --subject say more of a role, and none is given", code="DX105", fix="add --role")
    user = t.settings().server.inbox_prefix.removeprefix(subjects.INBOX).removeprefix("_") or "nobody"
    try:
        enough = rights_of(t, role or RoleName.OPERATOR, user, pool or (), subject or ())
    except TopologyError:  # dspex check says what is wrong with a topology
        if role is not None:
            raise
        enough = None
    for check in [*written(t), *t.run(checks(t.settings(), enough, role, ask=not no_ask))]:
        healthy = healthy and check.ok
        mark = "ok   " if check.ok else "FAULT"
        fix = [f"       fix: {check.fix}"] if check.fix and not check.ok else []
        t.emit(check.as_dict(), f"{mark}  {check.name}  {check.message}", *fix)
    if not healthy:
        raise typer.Exit(1)
