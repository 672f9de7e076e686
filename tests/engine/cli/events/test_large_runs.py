"""`dspex runs show` of a run that made much: a screen of lines, which say how many more there are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from engine_lab import Lab

from dspex.engine.cli.runs.drawing import drawn
from dspex.engine.client.runs.tree import Happening
from dspex.operators.topology import Topology

MakeLab = Callable[..., Lab]
SCREEN = 40  # lines


def many(count: int, *, calls: bool) -> Topology:
    topology = Topology("many")
    pieces = topology.source("in").flat_map(lambda data: [{"text": f"{data['text']} {n}"} for n in range(count)], name="cut")
    (pieces.predict("text -> intent", name="classify") if calls else pieces).sink("out")
    return topology


@pytest.mark.parametrize(("count", "calls"), [(5000, False), (200, True)])
def test_a_run_of_5000_events_or_200_calls_is_shown_on_a_screen_and_wholly_with_all(
    lab: MakeLab, count: int, calls: bool
) -> None:
    one = lab(many(count, calls=calls))
    one.answers["classify"] = lambda inputs, work: {"intent": "card"}
    one.start()
    one.work()
    run = one.client.run(one.publish("in", {"text": "x" * 1000}))
    one.advance(30)
    root: Happening = one.run(run.tree())
    info: Any = one.run(run.info())
    lines, whole = list(drawn(root, info.started)), list(drawn(root, info.started, True))
    named = "classify" if calls else "out"
    assert len(lines) < SCREEN
    assert max(map(len, lines)) < 250
    assert any(f"{count - 5:,} more of {named}" in line and line.endswith(": --all shows them") for line in lines)
    assert len(whole) >= count
    assert (info.status, info.calls) == ("done", count if calls else 0)


def test_of_many_dead_letters_the_first_are_shown_and_how_many_more_there_are(lab: MakeLab) -> None:
    one = lab(many(100, calls=True))
    one.answers["classify"] = lambda inputs, work: {"intent": 1 / 0}
    one.start()
    one.work()
    run = one.client.run(one.publish("in", {"text": "x"}))
    one.advance(60)
    info: Any = one.run(run.info())
    lines = list(drawn(one.run(run.tree()), info.started))
    assert (info.status, info.dead_letters) == ("failed", 100)
    assert sum("dead letter at" in line for line in lines) == 12
    assert [line for line in lines if "88 more of classify (88 dead letters)" in line]
