"""What is said where a run cannot be done again, since a call has no recorded answer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dspex.bus.errors import Divergence, DspexError, RecordingIncomplete
from dspex.bus.records import CallRequest
from dspex.bus.serving.keys.secret_fields import SECRET, Secrets
from dspex.engine.client.runs.judged.beside import change
from dspex.engine.client.runs.steps import what_is_asked
from dspex.engine.client.runs.tree import Happening
from dspex.engine.graph.graph import Graph


def stopped(
    run: str, step: str, request: CallRequest, recorded: Happening | None, graphs: Sequence[Graph], secrets: Secrets
) -> DspexError:
    """The error that says it.

    Args:
        run: that was done again. step: where it stopped. request: what was asked there.
        recorded: the call that was made there then, as far as one is left; None: there is none.
        secrets: what is secret of the recorded run.
    """
    secrets |= Secrets(request.spec.secrets)
    secrets.learn(request.inputs)
    asked = list(_inputs(recorded.data, request.inputs)) if recorded is not None else []
    if marked := [name for name, then, _ in asked if SECRET in str(then)]:
        why = f"of run {run}, {', '.join(marked)} of {step} cannot be compared: secret, so its file has not got it"
        return RecordingIncomplete(why, node=request.node, run=run, fix=f"from the server, which has it: dspex replay {run}")
    if recorded is None:
        what, lines = "it was not called so often then", [f"  in: {secrets.masked(request.inputs)}"]
    elif asked:
        behind = _behind(graphs, request)
        lines = [f"  {name}: {change(*(secrets.masked({name: one})[name] for one in (a, b)))}" for name, a, b in asked]
        lines[0] += f"        (behind {', '.join(behind)})" if behind else ""
        what = "its input is not the recorded one"
    else:
        what, lines = "it asks something else than the recorded call", [f"  {one}" for one in _specs(recorded, request)]
    why = f"replay of …{run[-8:]} stopped at {step}: {what}, so there is no answer to read back"
    fix = f"undo the change, or see what it does: dspex replay {run[-8:]} --mode hybrid"
    return Divergence("\n".join([why, *lines]), run=run, node=request.node, fix=fix)


def _inputs(then: Any, now: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """The inputs that differ: name, then, now."""
    recorded = then if isinstance(then, Mapping) else {}
    for name in dict.fromkeys((*recorded, *now)):
        if recorded.get(name) != now.get(name):
            yield name, recorded.get(name, "nothing"), now.get(name, "nothing")


def _behind(graphs: Sequence[Graph], request: CallRequest) -> list[str]:
    """The native operators that lead to a call, back to the source or to the calls before it, with where they were written."""
    graph = next((one for one in graphs if one.name == request.topology), None)
    if graph is None or request.node not in graph.nodes:
        return []
    found, left = dict[str, str](), [inlet.node for inlet in graph.nodes[request.node].inputs]
    while left:
        node = graph.nodes[left.pop(0)]
        if node.role == "native" and node.name not in found:
            found[node.name] = f"{node.name}, {node.place.file}:{node.place.line}" if node.place else node.name
        if node.role != "call":
            left += [inlet.node for inlet in node.inputs]
    return list(found.values())


def _specs(recorded: Happening, request: CallRequest) -> Iterator[str]:
    """What differs in what is asked, as far as the record says."""
    last, spec = recorded.attempts[-1], request.spec
    if last.program and last.program != spec.program:
        yield f"program: {last.program} → {spec.program}"
    if last.lm and spec.lm and last.lm not in spec.lm:
        yield f"lm: {last.lm} → {', '.join(spec.lm)}"
    if last.asked == what_is_asked(spec):
        yield f"state: {last.state or 'none'} → {spec.state or 'none'}"
    elif not (last.program and last.program != spec.program):
        yield "its models, its parameters or what it may use"
