"""The one thing that a fork changes: an input, an output, a model, a program, or the code."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple

from dspex.bus.errors import ConfigError, InvalidInput, RecordingIncomplete, RunNotFound
from dspex.bus.records import CallRequest
from dspex.bus.settings.similar import did_you_mean, listed
from dspex.bus.subjects import SUBMITTED
from dspex.engine.again.answering import Alter
from dspex.engine.again.change.fits import Direction, fitting_call, fitting_data
from dspex.engine.again.change.interposed import Interposed
from dspex.engine.again.change.reached import Reached, merged
from dspex.engine.again.event import id_in
from dspex.engine.client.resolve import HasCall
from dspex.engine.client.runs.export import RunFile
from dspex.engine.client.runs.then.changes import CODE, KeptChange
from dspex.engine.graph.graph import Graph
from dspex.engine.graph.nodes import Call, CallNode, NativeNode, Node, SourceNode, StateNode

WAYS = "lm, program, spec, inputs, outputs or topology"
_OWN: Final = ("native", "state", "source")
"""What the engine runs itself."""


@dataclass(frozen=True)
class ForkChange:
    """What is changed, one of these. `program`: the name of a saved state. `topology`: the graphs are of other code."""

    lm: str | None = None
    program: str | None = None
    spec: HasCall[Any] | None = None
    inputs: Mapping[str, Any] | None = None
    outputs: Mapping[str, Any] | None = None
    topology: bool = False

    def check(self) -> None:
        """Raise ConfigError (DX105) where it is not one change."""
        given = [name for name, value in vars(self).items() if value not in (None, False)]
        if len(given) != 1:
            why = f"a fork changes one thing, and this is {', '.join(given) or 'nothing'}"
            raise ConfigError(why, code="DX105", fix=f"give one of {WAYS}")


class ForkPlace(NamedTuple):
    """Where: an operator, and of its steps that one; None: all of them. `asked`: what the call of that step was asked. `key`:
    the step is that of a key; None: of all.
    """

    node: str
    ordinal: int | None
    asked: Mapping[str, Any] | None
    key: str | None = None


def place_of(at: str, file: RunFile, graphs: Sequence[Graph]) -> ForkPlace:
    """Where `at` is: the name of an operator, or a step id. Raises RunNotFound for what the run has not got."""
    before, mark, number = at.rpartition("#")  # a key may have one, too
    node, keyed, key = (before if mark else at).partition("/")
    calls = {call.label: call for call in file.calls}
    graph = next(one for one in graphs if one.name == file.info.topology)
    if mark and at in calls:
        return ForkPlace(node, 0, calls[at].data)
    known = graph.nodes.get(node)
    decided = known is not None and known.op == "approve" and not mark
    native = known is not None and known.role in _OWN and known.op != "approve"
    if known is None or not (native or decided or known.role == "call") or (mark and not (native and number.isdecimal())):
        names = [n.name for n in graph.nodes.values() if n.role in (*_OWN, "call")]
        there = f"one of: {listed(names)}; or a call: {listed(calls)}" if calls else f"one of: {listed(names)}"
        fix = there if known is not None else did_you_mean(at, [*calls, *names], "see dspex runs show")
        raise RunNotFound(f"run {file.info.id} has no step or operator {at!r} that can be forked", run=file.info.id, fix=fix)
    if not mark and not native and not decided and not any(call.node == node for call in file.calls):
        fix = "see dspex runs show; behind a window or a batch it is called in other runs: change there what goes into it"
        raise RunNotFound(f"{node} was not called in run {file.info.id}", run=file.info.id, fix=fix)
    return ForkPlace(node, int(number) if mark else None, None, key if keyed else None)


def is_of_engine(at: ForkPlace, graphs: Sequence[Graph], topology: str) -> bool:
    """Whether the engine runs the operator itself, so that it is known whether the run came to it."""
    node = next(one for one in graphs if one.name == topology).nodes[at.node]
    return node.role in ("native", "state") and node.op != "approve"


def changed(
    change: ForkChange,
    at: ForkPlace,
    file: RunFile,
    graphs: Sequence[Graph],
    reached: Reached,
    runs: Collection[str] | None = None,
) -> tuple[RunFile, list[Graph]]:
    """The event and the graphs of the fork. Raises ConfigError where the operator has not got what is changed.

    `reached`: is told of it while the run is done again. `runs`: whose steps are changed; None: those of the run.
    """
    graph = next(one for one in graphs if one.name == file.info.topology)
    node = graph.nodes[at.node]
    if change.topology or (node.role == "call" and change.outputs is not None):
        return file, list(graphs)
    if isinstance(node, SourceNode):
        if change.inputs is None:
            raise ConfigError(f"of a source the event is changed: {at.node}", code="DX105", fix="give inputs")
        return replace(file, root=replace(file.root, data=_published(node, file.root.data, change.inputs))), list(graphs)
    if node.op == "approve":
        return _decided(change, at, file), list(graphs)
    made: Node
    pools, is_own = graph.pools, change.inputs is not None or change.outputs is not None
    put = Interposed(runs if runs is not None else {id_in(file)}, change.inputs, change.outputs, at.ordinal, reached, at.key)
    if isinstance(node, CallNode):
        made, pools = _of_call(change, at, node, submitted=graph.name == SUBMITTED), (*pools, *_pools(change, node))
    elif isinstance(node, NativeNode) and is_own:
        made = replace(node, build=put.build(node.build))
    elif isinstance(node, StateNode) and is_own:
        made = replace(node, state=put.state(node.state))
    else:
        raise ConfigError(f"{at.node} asks no model", code="DX105", fix="change its inputs or its outputs")
    other = replace(graph, nodes={**graph.nodes, at.node: made}, pools=pools)
    return file, [other if one is graph else one for one in graphs]


def fitting(change: ForkChange, at: ForkPlace, file: RunFile, graphs: Sequence[Graph]) -> ForkChange:
    """The change with values as the types of their fields have them. Raises ConfigError (DX105) where one does not fit, or
    where a call has not got a field.
    """
    graph = next(one for one in graphs if one.name == file.info.topology)
    node = graph.nodes[at.node]
    if node.role == "call":
        _check_names(change, at, file)
    side: Direction = "inputs" if change.inputs is not None else "outputs"
    given = change.inputs if change.inputs is not None else change.outputs
    if given is None or node.op == "approve":
        return change
    if isinstance(node, CallNode):
        asked = node.call.for_event(file.root.data, file.root.node) if graph.name == SUBMITTED else node.call
        found = fitting_call(asked.spec, node.name, side, given)
    else:
        found = fitting_data(graph, node, side, given) if node.inputs else dict(given)
    return replace(change, inputs=found) if side == "inputs" else replace(change, outputs=found)


def _check_names(change: ForkChange, at: ForkPlace, file: RunFile) -> None:
    """Raise ConfigError where a call has not got a field that is to be changed: another one would be none of it."""
    calls = [call for call in file.calls if call.node == at.node]
    asked, gave = [call.data for call in calls], [step.outputs for call in calls for step in call.attempts if step.outputs]
    for what, given, there in (("input", change.inputs, asked), ("output", change.outputs, gave)):
        known = {name for fields in there if isinstance(fields, Mapping) for name in fields}
        if known and (unknown := [name for name in given or () if name not in known]):
            fix = did_you_mean(unknown[0], sorted(known))
            raise ConfigError(f"{at.node} has no {what} {unknown[0]!r}", code="DX105", fix=fix)


def _published(node: SourceNode, data: Any, fields: Mapping[str, Any]) -> Any:
    """The event with these fields. Raises ConfigError (DX105) where its source would not take it."""
    try:
        found = merged(data, fields)
        if node.source.accept is not None:
            node.source.accept(found)
    except InvalidInput as error:
        raise ConfigError(f"{node.name}: {error.message}", code="DX105", fix=error.fix or "k:=JSON") from error
    return found


def _decided(change: ForkChange, at: ForkPlace, file: RunFile) -> RunFile:
    """The run with another decision about all that waited there."""
    if change.outputs is None:
        raise ConfigError(f"of {at.node} what was decided is changed", code="DX105", fix="--set decision=accept, or reject")
    if all(one.node != at.node for one in file.state.decisions):
        raise ConfigError(f"nobody decided anything at {at.node} in this run", code="DX105", fix="see dspex runs show")
    then, given = file.state.decisions, change.outputs
    decisions = tuple(one.altered(given) if one.node == at.node else one for one in then)
    return replace(file, state=replace(file.state, decisions=decisions))


def _pools(change: ForkChange, node: CallNode) -> tuple[str, ...]:
    return (node.call.pool, *((change.spec.to_call().pool,) if change.spec is not None else ()))


def _of_call(change: ForkChange, at: ForkPlace, node: CallNode, *, submitted: bool) -> CallNode:
    """The operator with the change in each call, or in those that ask what the step at `at` was asked."""
    own = node.call
    if submitted:
        raise ConfigError("a submitted call is forked by its outputs alone", code="DX105", fix="submit another one")

    def of(data: Any, subject: str) -> Call[Any]:
        now = own if own.of is None else own.of(data, subject)  # a fork of a fork has changed it before
        given = dict(now.inputs(data))
        return _call(change, now, given) if at.asked is None or given == dict(at.asked) else now

    return replace(node, call=replace(own, of=of))


def _call(change: ForkChange, own: Call[Any], given: Mapping[str, Any]) -> Call[Any]:
    if change.lm is not None:
        return replace(own, spec=replace(own.spec, lm=(change.lm,)))
    if change.program is not None:
        return replace(own, spec=replace(own.spec, state=change.program))
    if change.spec is not None:
        new = change.spec.to_call()
        return replace(own, spec=new.spec, pool=new.pool, inputs=new.inputs)
    if unknown := sorted((change.inputs or {}).keys() - given.keys()):
        fix = f"its inputs: {', '.join(sorted(given))}"
        raise InvalidInput(f"the call has no input {unknown[0]!r}", fix=fix)
    made = {**given, **(change.inputs or {})}
    return replace(own, inputs=lambda data: made)


def kept(change: ForkChange, at: ForkPlace) -> KeptChange:
    """A change as the file of its fork has it."""
    given = {name: value for name, value in vars(change).items() if value not in (None, False)}
    ((what, value),) = given.items()
    where = (at.node, at.ordinal, dict(at.asked) if at.asked is not None else None)
    if what in ("lm", "program"):
        return KeptChange(*where, "lm" if what == "lm" else "program", str(value))
    if what in ("inputs", "outputs"):
        return KeptChange(*where, "inputs" if what == "inputs" else "outputs", dict(value), at.key)
    return KeptChange(*where, CODE, None)


class ForkedGraphs(NamedTuple):
    """Graphs that forks have changed. `alter`: outputs that calls have. `programs`: names of saved states."""

    graphs: list[Graph]
    alter: Alter | None
    programs: list[str]


def before(file: RunFile, graphs: Sequence[Graph]) -> ForkedGraphs:
    """The changes of the forks that a run comes from, made again, but for those of code. Raises RecordingIncomplete where one
    has no place any more.
    """
    alters, programs = list[Alter](), list[str]()
    for one in file.changes:
        graph = next(graph for graph in graphs if graph.name == file.info.topology)
        node = graph.nodes.get(one.node)
        if one.what == CODE or node is None or node.role not in ("native", "state", "call") or node.op == "approve":
            if one.what == CODE or (node is not None and (node.role == "source" or node.op == "approve")):
                continue  # it is in the event, or in what was decided
            why = f"run {file.info.id} comes from a fork at {one.node}, which the code has not got"
            raise RecordingIncomplete(why, run=file.info.id, fix="fork its parent: dspex runs show names it")
        change, at = ForkChange(**one.given), ForkPlace(one.node, one.ordinal, one.asked, one.key)
        graphs = changed(change, at, file, graphs, Reached())[1]
        alters += [alter] if (alter := outputs_of(change, at)) is not None and node.role == "call" else []
        programs += [change.program] if change.program is not None else []
    return ForkedGraphs(list(graphs), altered(alters), programs)


def altered(alters: Sequence[Alter]) -> Alter | None:
    """Several changes of outputs as one, of which the last one holds; None for none."""
    if not alters:
        return None

    def of(request: CallRequest) -> Mapping[str, Any] | None:
        found = [given for alter in alters if (given := alter(request)) is not None]
        return {name: value for given in found for name, value in given.items()} if found else None

    return of


def outputs_of(change: ForkChange, at: ForkPlace) -> Alter | None:
    """What says which outputs a call has that is not made; None where the change is another one."""
    if change.outputs is None:
        return None
    given = change.outputs

    def of(request: CallRequest) -> Mapping[str, Any] | None:
        mine = request.node == at.node and (at.asked is None or dict(request.inputs) == dict(at.asked))
        return given if mine else None

    return of
