"""`Topology.check`: the problems noted while the topology grew, and those of the graph as a whole.

docs/errors.md lists their codes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import replace
from typing import Final

from dspex.bus.errors import Problem
from dspex.engine.graph import check as graph_check
from dspex.engine.graph.nodes import SourceLine
from dspex.operators.plan import NodeDraft, Plan
from dspex.operators.registry import operators

LONGEST: Final = 1000  # nodes in a row: each calls the next one, and Python has room for that


def check(plan: Plan, renamed_from: Mapping[str, str], drop: Sequence[str]) -> list[Problem]:
    """Every problem once, errors first, in the order of the file."""
    names, place = plan.names(), plan.place
    noted = [replace(p, node=names[d]) if d else p for d, p in plan.problems]
    of_graph = graph_check.problems(plan.topology, [d.node(names) for d in plan.drafts])
    moved = _moved(plan, set(names.values()), renamed_from, drop)
    found = [
        *noted,
        *_anchored([*of_graph, *moved], place),
        *_lonely(plan, names),
        *_begun(plan),
        *_misplaced(plan, names),
        *_suffixed(plan, names),
        *_impatient(plan, names),
        *_long(plan, names),
    ]
    return sorted(dict.fromkeys(found), key=lambda p: (p.level != "error", p.file or "", p.line or 0, p.code))


def _anchored(found: list[Problem], place: SourceLine | None) -> Iterator[Problem]:
    """Problems of no node are shown at the topology."""
    for p in found:
        yield replace(p, file=place.file, line=place.line) if p.node is None and place else p


def _moved(plan: Plan, names: Set[str], renamed_from: Mapping[str, str], drop: Sequence[str]) -> Iterator[Problem]:
    """DX205: what the topology says about the nodes of the version before it, and does not fit its own."""
    for name in drop:
        if name in names:
            yield _of_topology(plan, f"drop names {name!r}, which is still there", "take it out of drop, or remove the node")
    for new, old in renamed_from.items():
        if new not in names:
            fix = f'it is the new name of a node, which was called {old!r}: renamed_from={{"new": "old"}}'
            yield _of_topology(plan, f"renamed_from names {new!r}, and there is no such node", fix)


def _of_topology(plan: Plan, message: str, fix: str) -> Problem:
    return Problem("DX205", "error", plan.topology, None, None, None, message, fix)


def _lonely(plan: Plan, names: Mapping[NodeDraft, str]) -> Iterator[Problem]:
    """DX204: an operator that joins streams and was given none to join. Where one was refused, that is reported already."""
    refused = {d for d, _ in plan.problems}
    for d in plan.drafts:
        declaration = operators().get(d.op)
        if declaration and declaration.many_inputs and len(d.inputs) < 2 and d not in refused:
            file, line = d.place or (None, None)
            message, fix = f"{d.op} joins streams, and was given no other", f"a.{d.op}(b)"
            yield Problem("DX204", "error", plan.topology, names[d], file, line, message, fix)


def _misplaced(plan: Plan, names: Mapping[NodeDraft, str]) -> Iterator[Problem]:
    """DX205: a schedule that would be run by more stages than one, or in partitions that no source has."""
    for d in plan.drafts:
        if d.op == "cron" and any(before.op != "source" for before, _ in d.inputs):
            file, line = d.place or (None, None)
            fix = "topology.cron(…), or source(…).cron(…)"
            yield Problem("DX205", "error", plan.topology, names[d], file, line, "cron stands right behind a source", fix)


def _begun(plan: Plan) -> Iterator[Problem]:
    """DX204: what was begun and does nothing as it is."""
    for begun in plan.unfinished:
        if not begun.done:
            file, line = begun.place or (None, None)
            yield Problem("DX204", "error", plan.topology, None, file, line, begun.what, begun.fix)


def _suffixed(plan: Plan, names: Mapping[NodeDraft, str]) -> Iterator[Problem]:
    """DX320: dead letters and their redrive go by the operator's name, and a made-up `_2` moves with its siblings."""
    for d in plan.drafts:
        if d.name is None and names[d] != d.automatic and re.search(r"_\d+$", names[d]):
            file, line = d.place or (None, None)
            message = (
                f"the name {names[d]} was made up, and another {d.automatic} before it would take it over; "
                "dead letters are run again by this name"
            )
            yield Problem("DX320", "warning", plan.topology, names[d], file, line, message, 'give it a name: name="..."')


def _impatient(plan: Plan, names: Mapping[NodeDraft, str]) -> Iterator[Problem]:
    """DX323: a gather that waits less long than a person in one of its branches may take. Of one with a wrong option the times
    are not known, and what is wrong is reported already.
    """
    refused = {d for d, _ in plan.problems}
    for d in plan.drafts:
        if d.op != "gather" or d in refused or len(d.inputs) < 2:
            continue
        branches = [_above(before) for before, _ in d.inputs]
        within = float(str(d.options.get("within") or 0))
        some, every = set[NodeDraft]().union(*branches), branches[0].intersection(*branches)
        for waits in sorted(some - every - refused, key=lambda one: names[one]):
            timeout = waits.options.get("timeout")
            if waits.op == "approve" and (timeout is None or float(str(timeout)) > within):
                file, line = d.place or (None, None)
                takes = "without limit" if timeout is None else f"for {timeout} s"
                message = f"{names[waits]} waits for a person {takes}, and {names[d]} for its branches {within:g} s"
                fix = "approve behind the gather; or give approve a timeout that is shorter than within"
                yield Problem("DX323", "warning", plan.topology, names[d], file, line, message, fix)


def _long(plan: Plan, names: Mapping[NodeDraft, str]) -> Iterator[Problem]:
    """DX248: more nodes in a row than can be run. Told of the first that is one too many."""
    for d, length in plan.lengths().items():
        if length == LONGEST + 1:
            file, line = d.place or (None, None)
            message = f"{names[d]} is the {length:,}th node in a row, and {LONGEST:,} may be"
            fix = "make one function of several: .map(lambda data: third(second(first(data))))"
            yield Problem("DX248", "error", plan.topology, names[d], file, line, message, fix)


def _above(draft: NodeDraft) -> set[NodeDraft]:
    """A node, and all that it gets its events from."""
    found, left = set[NodeDraft](), [draft]
    while left:
        if (one := left.pop()) not in found:
            found.add(one)
            left += [before for before, _ in one.inputs]
    return found
