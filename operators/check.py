"""`Topology.check`: the problems noted while the topology grew, and those of the graph as a whole.

docs/errors.md lists their codes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace

from dspex.bus.errors import Problem
from dspex.engine.graph import check as graph_check
from dspex.engine.graph.nodes import SourceLine
from dspex.operators.plan import NodeDraft, Plan


def check(plan: Plan) -> list[Problem]:
    """Every problem once, errors first, in the order of the file."""
    names, place = plan.names(), plan.place
    noted = [replace(p, node=names[d]) if d else p for d, p in plan.problems]
    of_graph = graph_check.problems(plan.topology, [d.node(names) for d in plan.drafts])
    found = [*noted, *_anchored(of_graph, place), *_suffixed(plan, names)]
    return sorted(dict.fromkeys(found), key=lambda p: (p.level != "error", p.file or "", p.line or 0, p.code))


def _anchored(found: list[Problem], place: SourceLine | None) -> Iterator[Problem]:
    """Problems of no node are shown at the topology."""
    for p in found:
        yield replace(p, file=place.file, line=place.line) if p.node is None and place else p


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
