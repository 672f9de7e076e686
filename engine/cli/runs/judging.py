"""`dspex eval`: whether a candidate answers as well as what ran, by recorded runs."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from dspex.bus.errors import ConfigError, TopologyError
from dspex.bus.local.whole_file import write
from dspex.bus.settings.similar import did_you_mean
from dspex.engine.cli.runs.again.built import CANDIDATE, entered
from dspex.engine.cli.terminal.client import client
from dspex.engine.cli.terminal.options import duration, how_many
from dspex.engine.cli.terminal.terminal import Terminal, terminal

if TYPE_CHECKING:
    from dspex.engine.client.runs.judged.evaluation import Evaluation
    from dspex.engine.graph.graph import Graph
    from dspex.engine.judge.evaluate import Terms

WITH = Annotated[
    str | None,
    typer.Option("--with", metavar="TARGET", help="The candidate: module:attr or a YAML file; what dspex.toml names."),
]


def evaluate(
    context: typer.Context,
    metric: Annotated[str, typer.Option("--metric", metavar="NAME|REF", help="Of dspex.metrics, or pkg.module:function.")],
    since: Annotated[str, duration("--since", help="The runs of the last 1h, 7d, …")] = "7d",
    target: WITH = None,
    folder: CANDIDATE = None,
    topology: Annotated[
        str | None, typer.Option("--topology", metavar="NAME", help="Whose runs, where there are several.")
    ] = None,
    expected: Annotated[
        str | None,
        typer.Option("--expected", metavar="FIELD", help="Of the source event: what is right; else what was recorded."),
    ] = None,
    fields: Annotated[str | None, typer.Option("--field", metavar="A,B", help="Of outputs: only these are compared.")] = None,
    sink: Annotated[str | None, typer.Option("--sink", metavar="SUBJECT", help="Only what is sent there.")] = None,
    baseline: Annotated[
        str | None,
        typer.Option("--baseline", metavar="RUNS", help="An earlier evaluation: what --json printed; else what was recorded."),
    ] = None,
    policy: Annotated[
        str | None, typer.Option("--policy", metavar="P", help='"no worse than 0.02", or "at least 0.8"; else exit 1.')
    ] = None,
    limit: Annotated[int, how_many("--limit", help="So many runs at most, the latest.")] = 1000,
    budget: Annotated[
        int | None, typer.Option("--budget", min=0, max=10**15, metavar="TOKENS", help="Then no call is made any more.")
    ] = None,
    at_once: Annotated[int, typer.Option("-c", min=1, max=64, help="So many runs together.")] = 4,
    junit: Annotated[Path | None, typer.Option("--junit", metavar="FILE", help="Write it as JUnit, too.")] = None,
    how: Annotated[Literal["text", "markdown", "json"], typer.Option("--as", help="How it is printed.")] = "text",
    every: Annotated[bool, typer.Option("--all", help="Each run, not only those that got worse.")] = False,
) -> None:
    """Judge a candidate by recorded runs. What has not changed is read back, at no cost. Exit 1 where it fails."""
    from dspex.bus.settings.duration import seconds
    from dspex.engine.cli.runs.again.repeated import other_builds
    from dspex.engine.cli.topology.targets import importing, search
    from dspex.engine.judge import forms
    from dspex.engine.judge.evaluate import terms_of

    t = terminal(context)
    if folder is not None:
        entered(t, folder)
    search(t.settings())  # a metric lies where topologies do
    with importing(metric):
        terms = terms_of(
            metric,
            expected=expected,
            fields=[name for name in (fields or "").split(",") if name],
            sink=sink,
            policy=policy,
            baseline=baseline,
            since=time.time() - seconds(since),
            said=since,
            limit=limit,
            budget=budget,
            at_once=at_once,
        )
    graphs, name = candidate(t, target, topology)
    found = t.run(_evaluated(t, name, graphs, terms))
    if junit is not None:
        _write(junit, forms.junit(found))
    if how == "markdown":
        t.document(forms.markdown(found, every=every))
    else:
        t.json = t.json or how == "json"
        for row in found.rows():
            t.emit(row)
        *said, verdict = forms.lines(found, every=every)
        t.emit(found.as_dict(), *said, *other_builds(found.builds), verdict)
    if not found.passed:
        raise typer.Exit(1)


async def _evaluated(t: Terminal, topology: str, graphs: list[Graph], terms: Terms) -> Evaluation:
    from contextlib import ExitStack

    from dspex.engine.cli.terminal.log import without
    from dspex.engine.cli.terminal.progress import Bar, NoBar
    from dspex.engine.judge.evaluate import evaluate as judge

    bar: Bar = NoBar()
    with ExitStack() as stack:

        def begun(total: int) -> None:
            nonlocal bar
            bar = stack.enter_context(t.progress("eval", total))

        def told(so_far: Evaluation) -> None:
            bar.advance(1, f"{so_far.served:,} calls served, {so_far.called:,} made, {so_far.tokens:,} tokens")

        stack.enter_context(without("dspex.engine"))
        async with client(t, "eval") as c:
            return await judge(c, topology, graphs, terms, begun=begun, told=told)


def candidate(t: Terminal, target: str | None, topology: str | None) -> tuple[list[Graph], str]:
    """What is judged: all graphs of the code, and the topology whose runs are taken. Raises TopologyError, ConfigError."""
    from dspex.engine.cli.topology.targets import load
    from dspex.engine.graph.defaults import with_defaults

    settings = t.settings()
    defaults, timeouts = settings.defaults.call.options(), settings.timeouts
    loaded = load(t, [target] if target is not None else None)
    graphs = [with_defaults(one.graph, defaults, timeouts) for one in loaded]
    names = sorted(graph.name for graph in graphs)
    if topology is None and len(names) == 1:
        return graphs, names[0]
    if topology is None:
        raise ConfigError(
            f"there are {len(names)} topologies: {', '.join(names)}", code="DX105", fix="say whose runs: --topology"
        )
    if topology not in names:
        fix = did_you_mean(topology, names, "name it: --with module:attr")
        raise TopologyError(f"there is no topology {topology!r} in the code", code="DX235", fix=fix)
    return graphs, topology


def _write(file: Path, text: str) -> None:
    try:
        write(file, text.encode())
    except OSError as error:
        fix = "name a file in a folder that is there"
        raise ConfigError(f"{file} cannot be written: {error.strerror}", code="DX105", fix=fix) from None
