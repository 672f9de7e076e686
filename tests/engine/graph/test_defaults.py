"""Call options of the settings: where an operator says nothing, they hold; the digest does not change."""

from __future__ import annotations

from dspex.bus.settings.model import Settings
from dspex.engine.graph.defaults import with_defaults
from dspex.engine.graph.graph import Graph
from dspex.engine.graph.nodes import Call, Retry
from dspex.engine.hosting.engine import Engine
from dspex.operators.topology import Topology

DEFAULTS = {
    "pool": "gpu",
    "lm": "big",
    "timeout": "5s",
    "retry": {"attempts": 2},
    "on_error": "skip",
    "config": {"temperature": 0.5},
    "route": "worker",
}


def settings() -> Settings:
    return Settings.model_validate({"defaults": {"call": DEFAULTS}, "pools": {"gpu": {}}, "lm": {"big": {"model": "a/b"}}})


def topology() -> Topology:
    t = Topology("t")
    asked = t.source("in").predict("question -> answer", name="plain")
    asked.predict("answer -> rating: int", name="own", timeout="9s", retry=Retry(backoff="2s"), lm="small").sink("out")
    return t


def call(graph: Graph, name: str) -> Call:
    return next(n.call for n in graph.calls if n.name == name)


def test_a_default_call_option_holds_where_the_operator_sets_none() -> None:
    changed = with_defaults(topology().graph, settings().defaults.call.options())
    plain, own = call(changed, "plain"), call(changed, "own")
    assert (plain.pool, plain.timeout, plain.retry.attempts, plain.on_error) == ("gpu", 5.0, 2, "skip")
    assert (plain.spec.lm, plain.spec.config, plain.spec.route) == (("big",), {"temperature": 0.5}, "worker")
    assert (own.pool, own.timeout, own.retry.attempts, own.spec.lm) == ("gpu", 9.0, 4, ("small",))
    assert plain.deadline == 600.0


def test_the_timeout_of_a_pool_wins_over_the_default_of_all_and_the_operators_over_both() -> None:
    graph = topology().graph
    plain, own = (
        call(with_defaults(graph, {"pool": "gpu", "timeout": 5.0}, {"gpu": 7200.0}), name) for name in ("plain", "own")
    )
    assert (plain.timeout, plain.deadline) == (7200.0, 7200.0), "a deadline that nobody has set does not cut it off"
    assert (own.timeout, own.deadline) == (9.0, 600.0)
    other = call(with_defaults(graph, {"deadline": 60.0}, {"lightweight": 7200.0, "gpu": 1.0}), "plain")
    assert (other.timeout, other.deadline) == (7200.0, 60.0)
    assert with_defaults(graph, {}, {"gpu": 7200.0}).digest == graph.digest


def test_defaults_do_not_change_the_digest_of_a_topology() -> None:
    graph = topology().graph
    assert with_defaults(graph, settings().defaults.call.options()).digest == graph.digest
    assert with_defaults(graph, {}) is graph


def test_an_engine_runs_with_the_defaults_of_its_settings() -> None:
    (graph,) = Engine(topology(), settings=settings()).graphs
    assert call(graph, "plain").pool == "gpu"
    (graph,) = Engine(topology(), settings=Settings.load(pools={"lightweight": {"timeout": "4h"}})).graphs
    assert call(graph, "plain").timeout == 4 * 3600.0
