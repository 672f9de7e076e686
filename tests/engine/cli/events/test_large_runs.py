"""`dspex runs show` of a run that made much: a screen of lines, which say how many more there are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from engine_lab import Lab

from dspex.engine.cli.runs.drawing import SCREENS, drawn
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


def test_what_is_made_of_many_that_are_made_of_many_is_shown_on_a_few_screens_and_in_80_columns(lab: MakeLab) -> None:
    topology = Topology("nested")
    pieces = topology.source("in").flat_map(lambda data: [{"k": str(n)} for n in range(40)], name="cut").key_by("k", name="by")
    summed = (
        pieces.flat_map(lambda data: [data] * 40, name="again").predict("k -> sum", name="total").key_by("sum", name="by_sum")
    )
    summed.flat_map(lambda data: [data] * 13, name="thrice").sink("out")
    one = lab(topology)
    one.answers["total"] = lambda inputs, work: {"sum": "x" * 100}
    one.start()
    one.work()
    run = one.client.run(one.publish("in", {}))
    one.advance(60)
    lines = drawn(one.run(run.tree()), one.run(run.info()).started, width=80)
    assert len(lines) <= SCREENS
    assert max(map(len, lines)) == 80
    assert "37 more of by (1,480 calls, 1,480 hops, 19,240 outputs): --all shows them" in lines[-1]


def test_calls_one_behind_the_other_go_down_and_not_to_the_right_and_of_many_only_their_lines_are_shown(lab: MakeLab) -> None:
    topology = Topology("chain")
    stream = topology.source("in")
    for n in range(60):
        stream = stream.predict("text -> reply" if n % 2 == 0 else "reply -> text", name=f"step{n}")
    stream.sink("out")
    one = lab(topology)
    one.answers |= {f"step{n}": lambda inputs, work: {"text": "y", "reply": "z"} for n in range(60)}
    one.start()
    one.work()
    run = one.client.run(one.publish("in", {"text": "x"}))
    one.advance(60)
    root, began = one.run(run.tree()), one.run(run.info()).started
    lines, whole = drawn(root, began), drawn(root, began, True)
    assert next(line for line in lines if "step59#0" in line).startswith("   +")
    assert (len(lines), lines[-1]) == (63, "what went into calls and came out: --all shows it")
    assert (len(whole), whole[-2].strip()) == (62 + 120, 'out  {"text":"y","reply":"z"}')


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
