"""The next version of a manifest: what a graph makes of the one before, and which changes are refused."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from hashlib import blake2b
from typing import Any, Final

import orjson

from dspex.bus import subjects
from dspex.bus.errors import TopologyError
from dspex.bus.port import Bucket
from dspex.engine.graph.graph import Graph
from dspex.engine.graph.hops import new_id, with_hops
from dspex.engine.graph.manifest import Manifest, Versions, refused
from dspex.engine.graph.nodes import Call, CallNode, HopNode, Node, SourceNode, StateNode

LONGEST: Final = 1000  # characters of a node's options; of longer ones the manifest has their digest


def next_version(
    graph: Graph,
    versions: Versions,
    streams: Mapping[str, str],
    *,
    again: bool = False,
    reset: Collection[str] = (),
    holding: Collection[str] = (),
) -> Manifest:
    """The manifest of `graph` behind those that there are; the last one itself, where it does not differ.

    A new source starts at 0 in it: who applies it puts the position there.

    Args:
        streams: source → stream.
        again: whether a version that was applied before, and then replaced, may be applied again.
        reset: nodes whose open calls and state are dropped by it.
        holding: stages that hold something, of those that are divided or joined by it.

    Raises: TopologyError.
    """
    known, strange, taken = versions
    before = known[-1] if known else None
    if strange and (before is None or before.digest != graph.digest):
        # A version may be lost. Who runs what was applied last can go on, as its logs say what it is.
        raise refused(strange)
    if not again:
        _is_not_old(graph, known)
    _of_one_name(graph, known)
    after = _next(graph, streams, before, holding)
    _of_one_form(graph, before, reset)
    if after == before and not reset:
        return after
    if strange:
        raise refused(strange)
    number = before.version + 1 if before is not None else 1
    while subjects.manifest_key(graph.name, number) in taken:
        number += 1
    dropped = [name for name in gone(graph, before) if name in before.states] if before is not None else []
    return replace(after, version=number, resets={**after.resets, **dict.fromkeys([*reset, *dropped], number)})


async def store(bucket: Bucket, topology: str, version: Manifest) -> None:
    """Store a new version. Raises Fenced where another engine applied one at the same moment."""
    await bucket.put(subjects.manifest_key(topology, version.version), version.pack(), revision=0)


def gone(graph: Graph, before: Manifest) -> list[str]:
    """Sources, hops and operators of the version before that hold something, and that the graph has no more by any name."""
    now = {n.name for n in graph.nodes.values() if isinstance(n, CallNode | HopNode | SourceNode | StateNode)}
    hops = sorted(before.hops.keys() - before.dropped)
    renamed = set(graph.renamed_from.values())
    return [name for name in (*before.calls, *before.streams, *hops, *before.states) if name not in now and name not in renamed]


def described(node: Node) -> dict[str, Any]:
    """What makes a node what it is, as plain data: operator, inputs, and options as JSON; of long ones their digest."""
    text = json.dumps(dict(node.options), sort_keys=True, default=str)
    options = text if len(text) <= LONGEST else blake2b(text.encode(), digest_size=6).hexdigest()
    return {"op": node.op, "from": [[i.node, i.outlet] for i in node.inputs], "options": options}


def _is_not_old(graph: Graph, known: Sequence[Manifest]) -> None:
    """Refuse a version that another one has replaced: an old process that restarts must not undo what was applied since."""
    if not known or graph.digest == known[-1].digest:
        return
    for old in known:
        if old.digest == graph.digest:
            raise TopologyError(
                f"{graph.name}: this is version {old.version} ({old.digest[:8]}), and version {known[-1].version} "
                f"({known[-1].digest[:8]}) is applied",
                code="DX238",
                fix="start the version that is applied; or go back to this one: dspex apply",
            )


def _next(graph: Graph, streams: Mapping[str, str], before: Manifest | None, holding: Collection[str]) -> Manifest:
    stages = dict(before.stages) if before else {}
    begun = dict(before.starts) if before else {}
    behind = dict(before.hops) if before else {}
    for node in graph.sources:
        was = graph.renamed_from.get(node.name, "")
        if node.name not in stages and was in stages:
            stages[node.name], begun[node.name] = stages.pop(was), begun.pop(was, 0)
        elif node.name not in stages:
            stages[node.name], begun[node.name] = (new_id(stages, behind), node.source.partitions), 0
    behind = with_hops(graph, behind, stages, before.dropped if before else (), holding)
    if before is not None:
        _compare(graph, before, stages)
    return Manifest(
        version=before.version if before else 1,
        digest=graph.digest,
        stages=stages,
        streams=dict(streams),
        calls={n.name: _call(n.call) for n in graph.calls},
        sinks=tuple(n.sink.pattern for n in graph.sinks),
        starts=begun,
        retention=graph.retention,
        renamed=_renamed(graph, before.renamed if before else {}),
        copies={n.sink.pattern: n.sink.stream for n in graph.sinks if n.sink.stream is not None},
        hops=behind,
        dropped=tuple(sorted(behind.keys() - {n.name for n in graph.hops})),
        nodes={name: described(node) for name, node in graph.nodes.items()},
        resets=dict(before.resets) if before else {},
        states={n.name: n.state.form for n in graph.states},
        lanes=dict(graph.lanes),
    )


def not_reset(topology: str, node: str, why: str) -> TopologyError:
    """The refusal of a change by which what a node holds would be read as something else."""
    return TopologyError(
        f"{topology}: {why}",
        code="DX231",
        node=node,
        fix=f'wait until that is done (dspex pause {topology}); or give it another name and drop=["{node}"]; '
        f"or give up what is held: dspex apply --reset {node} --yes",
    )


def changed_forms(graph: Graph, before: Manifest) -> dict[str, tuple[str, str]]:
    """The operators whose rows have another form than in the version before: it, and the one that they have now."""
    found: dict[str, tuple[str, str]] = {}
    for node in graph.states:
        was = before.states.get(graph.renamed_from.get(node.name, node.name))
        if was is not None and was != node.state.form:
            found[node.name] = was, node.state.form
    return found


def _of_one_form(graph: Graph, before: Manifest | None, reset: Collection[str]) -> None:
    """Refuse an operator whose rows have another form than those that are kept, unless those are dropped."""
    forms = changed_forms(graph, before) if before is not None else {}
    for name, (was, now) in forms.items():
        if name not in reset:
            raise not_reset(graph.name, name, f"what {name} keeps has another form now ({now}, and it was {was})")


def _of_one_name(graph: Graph, known: Sequence[Manifest]) -> None:
    """Refuse names by which rows of the log, which keep old names, could be those of two nodes."""
    for old, new in _names(graph, known[-1].renamed if known else {}).items():
        if old in graph.nodes and old != new:
            why, other = f"{old} is an old name of {new}, and what was stored under it is of {new}", old
        elif old != new and any({old, new} <= version.nodes.keys() for version in known):
            why, other = f"{old} is to be called {new} now, and what is stored under {new} is of a node that is gone", new
        else:
            continue
        raise TopologyError(f"{graph.name}: {why}", code="DX231", node=other, fix=f'give it another name than "{other}"')


def _names(graph: Graph, before: Mapping[str, str]) -> dict[str, str]:
    """Old names of nodes, with those that they have now."""
    step = graph.renamed
    return {old: step.get(new, new) for old, new in before.items()} | step


def _renamed(graph: Graph, before: Mapping[str, str]) -> dict[str, str]:
    """The same, without names that they have got back."""
    return {old: new for old, new in _names(graph, before).items() if old not in graph.nodes}


def _call(call: Call) -> dict[str, object]:
    # through JSON, as it is stored, so that the two compare equal
    spec: dict[str, object] = orjson.loads(orjson.dumps(call.spec.plain()))
    affinity = {} if call.affinity == "prefer" else {"affinity": call.affinity}
    return {"spec": spec, "pool": call.pool, "timeout": call.timeout, **affinity}


def _within(name: str, names: Collection[str]) -> bool:
    """Whether a node is among these, or belongs to one of them: `once/hop` to `once`, `part/node` to `part`."""
    return any(name == other or name.startswith(f"{other}/") for other in names)


def _compare(graph: Graph, before: Manifest, stages: Mapping[str, tuple[str, int]]) -> None:
    """Refuse changes that would strand state and were not declared. `stages`: as they will be."""
    for node in graph.sources:
        count = stages[node.name][1]
        if node.source.partitions != count:
            raise TopologyError(
                f"{graph.name}: {node.name} was applied with {count} partitions and now has {node.source.partitions}",
                code="DX234",
                fix=f"keep partitions={count}: a key stays in its partition for good",
            )
    lanes = tuple(f"{lane}/" for lane in before.lanes)  # what they are made of goes with what is built in them
    undeclared = [name for name in gone(graph, before) if not _within(name, graph.drop) and not name.startswith(lanes)]
    if undeclared:
        lost = next(name for name in undeclared if not _within(name.rpartition("/")[0], undeclared))
        raise TopologyError(
            f"{graph.name}: node {lost!r} of the applied version is gone, and nothing said about what it holds",
            code="DX232",
            fix=f'Topology(…, renamed_from={{"<new name>": "{lost}"}}) if it has another name now, or drop=["{lost}"]',
        )
