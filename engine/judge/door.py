"""What clients have judged: the one module that they import from here, when they need it."""

from __future__ import annotations

import sys
from os import PathLike
from typing import TYPE_CHECKING, Any

from dspex.engine.client.client import Client
from dspex.engine.client.runs.judged.evaluation import Evaluation
from dspex.engine.graph.defaults import with_defaults
from dspex.engine.graph.graph import HasGraph, graphs_of
from dspex.engine.judge.evaluate import evaluate as judge
from dspex.engine.judge.evaluate import terms_of
from dspex.engine.judge.metric import Metric

if TYPE_CHECKING:
    from dspex.bus.settings.model import Settings


async def evaluate(
    client: Client,
    settings: Settings | None,
    target: str | HasGraph,
    metric: str | Metric,
    since: float,
    baseline: str | PathLike[str] | None,
    **more: Any,
) -> Evaluation:
    """See `Client.evaluate`."""
    terms = terms_of(metric, since=since, baseline=baseline, **more)
    if isinstance(target, str):
        from dspex.operators.topology import Topology

        for folder in reversed(settings.search_path if settings is not None else ()):
            if folder not in sys.path:
                sys.path.insert(0, folder)
        target = Topology.load(target)
    (graph,) = graphs_of([target])
    if settings is not None:
        graph = with_defaults(graph, settings.defaults.call.options(), settings.timeouts)
    return await judge(client, graph.name, [graph], terms)
