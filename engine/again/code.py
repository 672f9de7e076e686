"""The code of today: what runs are done again with."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from dspex.bus import subjects
from dspex.bus.errors import ConfigError, TopologyError
from dspex.bus.settings.similar import did_you_mean
from dspex.engine.graph.defaults import with_defaults
from dspex.engine.graph.graph import Graph, HasGraph, graphs_of
from dspex.engine.graph.submitted import submitted
from dspex.engine.log.build import build

if TYPE_CHECKING:
    from dspex.bus.settings.model import Settings


def code(app: str, settings: Settings | None, given: Sequence[HasGraph] = ()) -> list[Graph]:
    """The graphs of an application, as an engine would run them.

    Args:
        given: topologies; none: those that the settings name, which are imported.

    Raises:
        ConfigError: DX135, none is given, and the settings name none. TopologyError.
    """
    if not given:
        given = _loaded(settings)
    graphs = graphs_of(given)
    if settings is not None:
        defaults, timeouts = settings.defaults.call.options(), settings.timeouts
        graphs = [with_defaults(graph, defaults, timeouts) for graph in graphs]
    return [*graphs, submitted(app, tuple(sorted(settings.pools if settings is not None else ())))]


def search(settings: Settings) -> None:
    """Have Python look for the user's modules where the settings say that they lie."""
    for folder in reversed(settings.search_path):
        if folder not in sys.path:
            sys.path.insert(0, folder)


def _loaded(settings: Settings | None) -> list[HasGraph]:
    if settings is None or not settings.topologies:
        fix = "give the topology: topology=…; or name it in dspex.toml, and connect with dspex.connect()"
        raise ConfigError("no topology is given, and the settings name none", code="DX135", fix=fix)
    from dspex.operators.topology import Topology

    search(settings)
    yaml = (".yaml", ".yml")
    return [Topology.load(str(settings.root / one) if one.endswith(yaml) else one) for one in settings.topologies]


def builds_now(graphs: Sequence[Graph]) -> dict[str, Mapping[str, str]]:
    """The builds of graphs, by their names."""
    return {graph.name: build(graph) for graph in graphs}


def of_run(graphs: Sequence[Graph], topology: str, data: object) -> list[Graph]:
    """The graphs with which a run of a topology is done again. Raises TopologyError (DX235).

    `data`: of its source event, which says the pool of a call that was submitted.
    """
    names = sorted(graph.name for graph in graphs if graph.name != subjects.SUBMITTED)
    if topology not in {graph.name for graph in graphs}:
        fix = did_you_mean(topology, names, "name it: --with module:attr")
        raise TopologyError(f"there is no topology {topology!r} in the code", code="DX235", fix=fix)
    if topology != subjects.SUBMITTED:
        return [graph for graph in graphs if graph.name != subjects.SUBMITTED]
    pool = data.get("pool") if isinstance(data, dict) else None
    pools = (pool,) if isinstance(pool, str) else ()
    return [replace(graph, pools=pools) for graph in graphs if graph.name == subjects.SUBMITTED]
