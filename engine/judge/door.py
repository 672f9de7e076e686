"""What clients have judged: the one module that they import from here, when they need it."""

from __future__ import annotations

from os import PathLike
from typing import TYPE_CHECKING, Any

from dspex.engine.again.code import code, search
from dspex.engine.client.client import Client
from dspex.engine.client.runs.judged.evaluation import Evaluation
from dspex.engine.graph.graph import HasGraph
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

        if settings is not None:
            search(settings)
        target = Topology.load(target)
    graph, *_ = code(client.app, settings, [target])
    return await judge(client, graph.name, [graph], terms)
