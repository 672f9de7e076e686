"""`dspex check` and `dspex show`: topologies as such; nothing but `check --live` needs a server."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from dspex.bus.errors import Problem, TopologyError
from dspex.bus.serving.call_spec import without_price
from dspex.bus.serving.keys.secret_fields import in_clear_text
from dspex.bus.settings.called.refs import allows, not_allowed
from dspex.engine.cli.figures import GIVE_A_KEY
from dspex.engine.cli.server.named import missing_here, no_topology
from dspex.engine.cli.terminal.client import client, count
from dspex.engine.cli.terminal.terminal import Terminal, terminal, to_json
from dspex.engine.cli.topology.targets import Targets, load, load_one, named
from dspex.engine.graph.defaults import with_defaults
from dspex.engine.graph.graph import Graph
from dspex.engine.graph.hops import keyed
from dspex.engine.graph.nodes import Call, CallNode

if TYPE_CHECKING:
    from dspex.bus.settings.model import Settings
    from dspex.operators.topology import Topology


# -- check ---------------------------------------------------------------------------------------------------------
def check(
    context: typer.Context,
    targets: Targets = None,
    strict: Annotated[bool, typer.Option("--strict", help="Warnings are errors.")] = False,
    live: Annotated[bool, typer.Option("--live", help="Ask the workers too: pools, programs, language models.")] = False,
) -> None:
    """Check topologies and print every problem; exit 3 where there is an error."""
    t = terminal(context)
    checked = [problems_of(t, target) for target in named(t, targets)]
    said = t.run(_live(t, checked)) if live else ""
    valid = [_valid(t, topology, found, strict, said) for topology, found in checked]
    of_settings = [] if targets else list(_of_settings(t, checked))  # there may be others than those that are named
    for problem in of_settings:
        t.problem(problem)
    if not all(valid) or any(strict or problem.level == "error" for problem in of_settings):
        raise typer.Exit(3)


def _valid(t: Terminal, topology: Topology | None, found: Sequence[Problem], strict: bool, more: str) -> bool:
    """Print the problems of a target, or that it has none worth an error."""
    for problem in found:
        t.problem(problem)
    levels = [p.level for p in found]
    if topology is None or "error" in levels or (strict and "warning" in levels):
        return False
    warnings = f", {count(levels.count('warning'), 'warning')}" if "warning" in levels else ""
    t.line(f"ok {topology.name} {count(len(topology.graph.nodes), 'node')}{warnings}{more}")
    return True


async def _live(t: Terminal, checked: Sequence[tuple[Topology | None, list[Problem]]]) -> str:
    """Add what the workers lack to the problems of each topology that has no error so far; what answered."""
    from dspex.engine.cli.workers.live_check import LiveCheck

    sound = [(topology, found) for topology, found in checked if topology and not any(p.level == "error" for p in found)]
    async with client(t, "check") as c:
        answered = LiveCheck(c)
        for topology, found in sound:
            found += await answered.problems(topology.name, _calls(t, topology.graph))
    return f"; answered: {count(len(answered.pools), 'pool')}, {count(len(answered.models), 'language model')}"


def problems_of(t: Terminal, target: str) -> tuple[Topology | None, list[Problem]]:
    """The topology, None where it cannot be loaded, and its problems, also with the settings."""
    try:
        topology = load_one(target)
    except TopologyError as e:
        return None, list(e.problems) or [Problem(e.code, "error", "", e.node or target, None, None, e.message, e.fix)]
    found: list[Problem] = topology.check()
    if not any(p.level == "error" for p in found):
        found += _with_settings(t, topology.graph)
    return topology, found


def _of_settings(t: Terminal, checked: Sequence[tuple[Topology | None, list[Problem]]]) -> Iterator[Problem]:
    """What the settings name that is not there. `checked`: all topologies that there are."""
    settings = t.settings()
    yield from missing_here(settings)
    graphs = [topology.graph for topology, found in checked if topology and not any(p.level == "error" for p in found)]
    if len(graphs) == len(checked):  # of one with errors nobody knows what it has
        yield from no_topology(settings, {graph.name: [node.name for node in graph.calls] for graph in graphs})


def _with_settings(t: Terminal, graph: Graph) -> Iterator[Problem]:
    """Pools and language models that the settings do not have, what a pool may not use, and what an order means."""
    settings = t.settings()
    has_keys = keyed(graph)
    for node in _calls(t, graph):
        file, line = node.place or (None, None)
        if not settings.engine.encrypt_key_env and (names := node.call.spec.secrets):
            error = in_clear_text(names, "what a topology asks")
            yield Problem(error.code, "error", graph.name, node.name, file, line, error.message, error.fix)
        for code, message, fix in _refused_by_pool(settings, node.call):
            yield Problem(code, "error", graph.name, node.name, file, line, message, fix)
        if node.call.order != "any" and node.name not in has_keys:  # whether events have one is known only when they come
            text = "results are kept in the order of the events' keys, and events without one wait for each other"
            yield Problem("DX322", "note", graph.name, node.name, file, line, text, GIVE_A_KEY)


def _calls(t: Terminal, graph: Graph) -> Sequence[CallNode]:
    settings = t.settings()
    return with_defaults(graph, settings.defaults.call.options(), settings.timeouts).calls


def _refused_by_pool(settings: Settings, call: Call) -> Iterator[tuple[str, str, str]]:
    """Code, message and fix of what keeps the pool of a call from running it."""
    name = call.pool
    if name not in settings.pools:
        fix = f"add it to dspex.toml: pools.{name} = {{}};  there are: {', '.join(settings.pools)}"
        yield "DX133", f"there is no pool {name!r}", fix
    for lm in call.spec.lm:
        if lm not in settings.lm:
            fix = f"one of: {', '.join(settings.lm)}; or add it to dspex.toml: lm.{lm} = {{ model = … }}"
            yield "DX111", f"there is no language model {lm!r}", fix
        elif name in settings.pools and lm not in settings.lms_of(name):
            yield "DX113", f"pool {name} may not use lm.{lm}", f'pools.{name}.lms = ["{lm}"]'
    if call.spec.choose == "cheapest":
        for lm in settings.priceless(call.spec.lm):
            yield "DX105", *without_price(lm)
    if name in settings.pools:
        if call.spec.cost > (slots := settings.pools[name].slots):
            said = f"cost={call.spec.cost} is more slots than a process of pool {name} has: {slots}"
            yield "DX105", said, f"lower cost, or raise pools.{name}.slots"
        allowed = settings.pools[name].programs
        for ref in [ref for ref in call.spec.refs if not allows(allowed, ref)]:
            yield "DX138", *not_allowed(name, allowed, ref)


# -- show ----------------------------------------------------------------------------------------------------------
class Form(StrEnum):
    """What `show --as` can write."""

    text = "text"
    mermaid = "mermaid"
    yaml = "yaml"
    json = "json"
    asyncapi = "asyncapi"


def show(
    context: typer.Context,
    targets: Targets = None,
    form: Annotated[Form, typer.Option("--as", help="How to write it.")] = Form.text,
    schema: Annotated[bool, typer.Option("--schema", help="The JSON Schema of topology files, for editors.")] = False,
) -> None:
    """Show what a topology is made of: stages, nodes, types, pools."""
    from dspex.engine.cli.topology.show import text
    from dspex.operators.formats.schema import yaml_schema

    t = terminal(context)
    if schema:
        t.document(to_json(yaml_schema()))
        return
    for topology in load(t, targets):
        if t.json or form is Form.json:
            t.document(to_json({"v": 1, **topology.describe().as_dict()}))
        elif form is Form.asyncapi:
            t.document(to_json(topology.to_asyncapi()))
        elif form is Form.text:
            t.document(text(topology.graph))
        else:
            t.document(topology.to_yaml() if form is Form.yaml else topology.to_mermaid())
