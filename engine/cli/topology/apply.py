"""`dspex apply`: put topologies in force without running them, also a version that was replaced before."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from dspex.bus.errors import ConfigError
from dspex.engine.cli.terminal.client import client
from dspex.engine.cli.terminal.terminal import Terminal, terminal
from dspex.engine.cli.topology.targets import Targets, load

if TYPE_CHECKING:
    from dspex.engine.graph.graph import Graph


def apply(
    context: typer.Context,
    targets: Targets = None,
    reset: Annotated[list[str] | None, typer.Option("--reset", metavar="NODE", help="Drop the state of an operator.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Make what topologies need on the server, and put them in force. An engine that runs goes on as it began."""
    from dspex.engine.graph.defaults import with_defaults

    t = terminal(context)
    defaults = t.settings().defaults.call.options()
    graphs = [with_defaults(topology.graph, defaults) for topology in load(t, targets)]
    for node in reset or ():
        _check_state(graphs, node)
    names = ", ".join(g.name for g in graphs)
    if (
        not yes
        and sys.stdin.isatty()
        and not typer.confirm(f"Put {names} in force in application {t.settings().app}?", err=True)
    ):
        raise typer.Abort
    t.run(_applied(t, graphs))


def _check_state(graphs: list[Graph], node: str) -> None:
    """No operator of this version keeps state, so there is none to drop. Raises ConfigError."""
    known = [name for g in graphs for name in g.nodes]
    why = "keeps no state" if node in known else "is no operator of these topologies"
    raise ConfigError(f"--reset {node}: {node} {why}", code="DX100", node=node, fix="leave out --reset")


async def _applied(t: Terminal, graphs: list[Graph]) -> None:
    from dspex.bus.serving import audit
    from dspex.engine.hosting.apply import apply as make

    settings = t.settings()
    async with client(t, "apply", start=True) as c:
        done = await make(
            c.bus, settings.app, graphs, replicas=settings.server.replicas, max_bytes=settings.engine.max_bytes, again=True
        )
        await audit.leave(c.bus, settings.app, "apply", **{g.name: done.manifests[g.name].version for g in graphs})
    for graph in graphs:
        m, change = done.manifests[graph.name], done.changes[graph.name]
        row = {"topology": graph.name, "version": m.version, "digest": graph.digest, "change": change, "streams": m.streams}
        t.emit(row, f"{change:<9} {graph.name}  version {m.version}  {graph.digest}")
