"""What applying topologies would change on the server: one pure function of what is there and of the graphs.

`dspex plan` prints it, `dspex apply` prints it and carries out exactly that, and an engine on a server of others carries it out
only where nothing is lost.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dspex.bus.errors import ConfigError, DspexError, SubjectTaken, TopologyError
from dspex.bus.settings.similar import did_you_mean
from dspex.engine.graph.graph import Graph
from dspex.engine.graph.lanes import with_copies
from dspex.engine.graph.manifest import Manifest
from dspex.engine.graph.nodes import CallNode, HopNode, StateNode
from dspex.engine.graph.versions import changed_forms, described, gone, next_version, not_reset
from dspex.engine.hosting.planning.layout import Layout, PlannedChange, of_consumers, of_stores, of_streams, wanted_subjects
from dspex.engine.hosting.planning.lines import held_words, time_of
from dspex.engine.hosting.planning.remarks import late, mixed, trimmed, unreadable, unsaved
from dspex.engine.hosting.planning.there import NONE, Held, There, sources

_RESETTABLE = (CallNode, HopNode, StateNode)  # what may have open calls, events on their way, or state


@dataclass(frozen=True)
class ApplyPlan:
    """What applying would do.

    Attributes:
        changes: in the order in which they are shown.
        warnings: what is allowed, and may not be what was meant.
        refused: why it cannot be applied; None where it can.
        streams: subject of a source → the stream that it is read from.
        subjects: of the streams that dspex makes.
        manifests: of each topology, as it will be.
    """

    changes: Sequence[PlannedChange]
    warnings: Sequence[str]
    refused: DspexError | None
    streams: Mapping[str, str]
    subjects: Mapping[str, Sequence[str]]
    manifests: Mapping[str, Manifest]

    def is_within(self, agreed: ApplyPlan) -> bool:
        """Whether it does what somebody agreed to: the same changes. What is held may be more or less by now."""
        mine, theirs = ([(c.kind, c.name, None if c.kind == "lane" else c.after) for c in p.changes] for p in (self, agreed))
        return mine == theirs and {c.name for c in self.lossy} <= {c.name for c in agreed.lossy}

    @property
    def lossy(self) -> list[PlannedChange]:
        """The changes by which something is lost."""
        return [c for c in self.changes if not c.additive]


def plan(app: str, graphs: Sequence[Graph], there: There, *, again: bool = False, reset: Collection[str] = ()) -> ApplyPlan:
    """What applying the graphs would change.

    Args:
        again: whether a version that was applied before, and then replaced, may be applied again.
        reset: nodes whose open calls and state are to be dropped.

    Raises: ConfigError for a node in `reset` that has none, or that there is not.
    """
    refuse_reset(graphs, reset)
    layout = Layout(app, graphs, there)
    streams: dict[str, str] = {}
    after: dict[str, Manifest] = {}
    try:
        layout.check_sinks()
        streams = {s.subject: layout.stream_of(s) for g in graphs for s in sources(g)}
    except SubjectTaken as e:
        return ApplyPlan((), (), e, streams, {}, after)
    refused: DspexError | None = None
    reset = dict.fromkeys(name for g in graphs for name in with_copies(g, there.last(g.name), reset))
    nodes = [change for g in graphs for change in (*_nodes(g, there, reset), *_lanes(g, there))]
    for graph in graphs:
        own = {n.name: streams[n.source.subject] for n in graph.sources}
        resets = [reset_key(graph, there, name) for name in reset if name in graph.nodes]
        try:
            versions = there.manifests.get(graph.name, NONE)
            holding = {stage for (name, stage), held in there.held.items() if name == graph.name and _held(held)}
            after[graph.name] = next_version(graph, versions, own, again=again, reset=resets, holding=holding)
        except TopologyError as e:
            refused = refused or e
    wanted = wanted_subjects(app, graphs, streams)
    refused = refused or _on_the_way(graphs, nodes, there) or _not_reset(nodes, reset) or unreadable(streams, there)
    made = [*of_streams(wanted, there), *of_consumers(graphs, there), *of_stores(app, there)]
    warnings = [*trimmed(graphs, streams, there), *mixed(there), *unsaved(there), *(w for g in graphs for w in late(g, there))]
    return ApplyPlan([*made, *nodes], warnings, refused, streams, wanted, after)


def refuse_reset(graphs: Sequence[Graph], names: Collection[str]) -> None:
    """Raise ConfigError for a name in `--reset` that no operator of the graphs has."""
    for name in names:
        if not any(name in g.nodes for g in graphs):
            raise _no_reset(graphs, name, "is no operator of these topologies")


def _no_reset(graphs: Sequence[Graph], name: str, why: str) -> ConfigError:
    lanes = tuple(f"{lane}/" for g in graphs for lane in g.lanes)  # what is in them is reset with what they build
    there = [n for g in graphs for n, node in g.nodes.items() if isinstance(node, _RESETTABLE) and not n.startswith(lanes)]
    fix = did_you_mean(name, there, "leave out --reset: no operator here has calls or state")
    return ConfigError(f"--reset {name}: {name} {why}", code="DX100", node=name, fix=fix)


def _nodes(graph: Graph, there: There, reset: Collection[str]) -> Iterator[PlannedChange]:
    before = there.last(graph.name)
    was = before.nodes if before is not None else {}
    forms = changed_forms(graph, before) if before is not None else {}
    lanes = tuple(f"{name}/" for name in graph.lanes)
    for name, node in graph.nodes.items():
        if lanes and name.startswith(lanes) and (node.op == "boundary" or name not in was):
            continue  # part of a lane, which is shown as one
        old = was.get(name) or was.get(graph.renamed_from.get(name, ""))
        now, held = described(node), held_by(graph, there, name)
        shown, what = _shown(now), (None if old is None else _shown(old) | _held(held))
        if old is not None and name not in was:
            what = {"name": graph.renamed_from[name], **(what or {})}
        title = f"{graph.name}/{name}"
        if name in reset:
            if not isinstance(node, _RESETTABLE) and not held.rows:
                raise _no_reset((graph,), name, "keeps no state")
            behind = _with_unread(held) if isinstance(node, HopNode) else _held(held)
            before_it = None if what is None else {**what, **behind}
            yield PlannedChange("reset", "node", title, before_it, shown, additive=not behind)
        elif old is None:
            if before is None or before.nodes:  # else a version that did not say what it has
                yield PlannedChange("create", "node", title, None, shown)
        elif name in forms:
            yield PlannedChange("reset", "node", title, what, shown, additive=not _held(held))
        elif isinstance(node, HopNode) and old.get("options") != now["options"] and (behind := _with_unread(held)):
            yield PlannedChange("reset", "node", title, {**(what or {}), **behind}, shown, additive=False)
        elif old != now or name not in was:
            yield PlannedChange("change", "node", title, what, shown)
    if before is not None:
        yield from _gone(graph, before, there)


def _lanes(graph: Graph, there: There) -> Iterator[PlannedChange]:
    """The lanes that are new. What was read from a source before, and is not any more, stands among the nodes."""
    for (topology, name), (lane, reads) in there.lanes.items():
        if topology == graph.name:
            begins = {r.subject: time_of(r.since) if r.since else None for r in reads.values()}
            sources = {r.subject: {"events": r.events, "since": begins[r.subject]} for r in reads.values()}
            times = {"since": time_of(lane.since), "boundary": time_of(lane.boundary)}
            after = {"operators": list(lane.operators), **times, "sources": sources}
            yield PlannedChange("create", "lane", f"{topology}/{name}", None, after)


def _gone(graph: Graph, before: Manifest, there: There) -> Iterator[PlannedChange]:
    recorded, renamed = gone(graph, before), set(graph.renamed_from.values())
    parts = {name for name, node in before.nodes.items() if node.get("op") == "boundary"}
    for name in [n for n in before.nodes or recorded if n not in {*graph.nodes, *renamed, *parts}]:
        held = held_by(graph, there, name)
        elsewhere = any(name in lane.sources.values() for lane in graph.lanes.values())  # a lane reads it
        lost = _held(held) if elsewhere else _with_unread(held)
        old = before.nodes.get(name)
        yield PlannedChange(
            "delete", "node", f"{graph.name}/{name}", (_shown(old) if old else {}) | lost, None, additive=not lost
        )


def held_by(graph: Graph, there: There, name: str) -> Held:
    """What a node holds, of all stages of its topology; of a hop or a source, what its stage holds."""
    before = there.last(graph.name)
    names = {name, graph.renamed_from.get(name, name)}
    if before is not None:
        found = [known[n][0] for known in (before.hops, before.stages) for n in names if n in known]
        if found:
            return there.held.get((graph.name, found[0]), Held())
    calls, rows = Counter[str](), Counter[str]()
    for (topology, _), held in there.held.items():
        if topology == graph.name:
            calls.update({n: number for n, number in held.calls.items() if n in names})
            rows.update({n: number for n, number in held.rows.items() if n in names})
    return Held(calls, rows)


def _held(held: Held) -> dict[str, int]:
    """What is held, for `before`; empty for nothing."""
    found = {"open_calls": sum(held.calls.values()), "rows": sum(held.rows.values()), "parked": held.parked}
    return {name: number for name, number in found.items() if number}


def _with_unread(held: Held) -> dict[str, int]:
    return {**_held(held), **({"unread": held.unread} if held.unread else {})}


def _shown(node: Mapping[str, Any]) -> dict[str, Any]:
    """A node as `before` and `after` show it."""
    text = str(node.get("options", ""))
    try:
        options = json.loads(text) if text.startswith("{") else {"digest": text}
    except ValueError:  # no engine wrote it
        options = {"digest": text[:20]}
    return {"op": node.get("op"), "from": node.get("from"), **options}


def reset_key(graph: Graph, there: There, name: str) -> str:
    """Under which name the manifest says that a node is reset: a hop stands for the whole stage behind it."""
    before = there.last(graph.name)
    was = graph.renamed_from.get(name, name)
    hops = before.hops if before is not None else {}
    return f"@{hops.get(name, hops.get(was, ('', 0)))[0]}" if isinstance(graph.nodes[name], HopNode) else name


def _on_the_way(graphs: Sequence[Graph], nodes: Sequence[PlannedChange], there: There) -> TopologyError | None:
    """The refusal of another key, or of a stage that begins anew, while events are on their way by the key of before. Where the
    topology comes to rest first, they are read by then.
    """
    rest = {topology for topology, _ in there.following}
    for graph in [g for g in graphs if g.name not in rest]:
        hops = {f"{graph.name}/{n.name}": n.name for n in graph.hops}
        for change in [c for c in nodes if c.op == "reset" and c.name in hops]:
            if unread := (change.before or {}).get("unread", 0):
                return _not_read(graph, there.last(graph.name), hops[change.name], held_words({"unread": unread}))
    return None


def _not_read(graph: Graph, before: Manifest | None, hop: str, words: str) -> TopologyError:
    sources = " and ".join(f"dspex pause {graph.name}/{name}" for name in (before.streams if before is not None else ()))
    return TopologyError(
        f"{graph.name}: {words} came over {hop} by the key of before, and would meet there what begins anew",
        code="DX231",
        node=hop,
        fix=f"let them be read: {sources}; apply once dspex status shows no lag behind {hop}, and resume; "
        f'or give it another name and drop=["{hop}"]',
    )


def _not_reset(nodes: Sequence[PlannedChange], reset: Collection[str]) -> TopologyError | None:
    """The refusal of a changed key behind which something is held, unless that is given up."""
    for change in nodes:
        topology, _, name = change.name.partition("/")
        if change.op == "reset" and name not in reset:
            held = held_words(change.before)
            why = f"{name} has another key now, and the stage behind it holds {held}, by the keys of before"
            return not_reset(topology, name, why)
    return None
