"""Partitions go from one engine to another, in good order and by a death: every step of every run has its span, once."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from engine_lab import Cut, Lab
from opentelemetry.sdk.trace import ReadableSpan
from told import span_id, told_spans

from dspex.bus.records import CallRequest
from dspex.operators.topology import Topology

MakeLab = Callable[..., Lab]
STEPS = {"process in": 2, "call ask": 1, "call sign": 1}  # of each run: it comes, and comes over the hop


def two_calls() -> Topology:
    topology = Topology("moved")
    asked = topology.source("in", partitions=4).predict("text -> reply", name="ask")
    asked.key_by("text", name="by").predict("reply -> signed", name="sign").sink("out")
    return topology


def answered(inputs: dict[str, Any], work: CallRequest) -> Mapping[str, Any]:
    return {"reply": "so", "signed": "me"}


def publish(one: Lab, count: int, begin: int) -> None:
    for n in range(begin, begin + count):
        one.publish("in", {"text": f"t{n}"}, key=f"k{n}")


def by_trace(spans: list[ReadableSpan]) -> Mapping[int, list[ReadableSpan]]:
    found = defaultdict[int, list[ReadableSpan]](list)
    for span in spans:
        assert span.context is not None
        found[span.context.trace_id].append(span)
    return found


def parent(span: ReadableSpan) -> int | None:
    return span.parent.span_id if span.parent is not None else None


def chained(spans: list[ReadableSpan]) -> None:
    """A run has each of its steps, and each is below what caused it."""
    kinds = {name: [span for span in spans if span.name.startswith(name)] for name in STEPS}
    assert {name: len(found) for name, found in kinds.items()} == STEPS, Counter(span.name for span in spans)
    event, hop = sorted(kinds["process in"], key=lambda span: span.parent is not None)
    (ask,), (sign,) = kinds["call ask"], kinds["call sign"]
    assert [parent(span) for span in (event, ask, hop, sign)] == [None, span_id(event), span_id(ask), span_id(hop)]


# An answer takes so many milliseconds: calls are open at the moves.
@pytest.mark.parametrize("tokens", [0, pytest.param(300, marks=pytest.mark.long), pytest.param(1500, marks=pytest.mark.long)])
def test_an_engine_that_comes_and_one_that_dies_leave_one_span_of_each_step_below_what_caused_it(
    lab: MakeLab, tokens: int
) -> None:
    one = lab(two_calls())
    one.answers |= {"ask": answered, "sign": answered}
    one.tokens = {None: tokens} if tokens else {}
    with told_spans() as told:
        one.start("a")
        one.work()
        publish(one, 8, 0)
        one.start("b")  # half of the partitions go to it, with what is open in them
        publish(one, 8, 8)
        one.advance(20)
        a, b = ([p for r in host.runners for p in r.partitions] for host, _ in one.hosts.values())
        assert a
        assert b
        publish(one, 8, 16)
        one.kill("a")  # what it has taken and not stored is taken again
        publish(one, 8, 24)
        one.advance(120)
        assert len(one.outputs("out")) == 32
        assert (told.lost(), told.twice()) == ([], [])
        runs = by_trace(told.all())
    assert len(runs) == 32
    for spans in runs.values():
        chained(spans)
    assert one.differences() == []


@pytest.mark.parametrize("at", [3, 5, 8])
@pytest.mark.parametrize("landed", [True, False])
def test_an_engine_that_dies_in_a_commit_leaves_no_second_span_and_all_of_what_was_not_stored(
    lab: MakeLab, at: int, landed: bool
) -> None:
    one = lab(two_calls())
    one.answers |= {"ask": answered, "sign": answered}
    cut = Cut(one.server, at, landed)
    with told_spans() as told:
        one.start("a", bus=cut)
        one.work()
        for n in range(8):
            publish(one, 1, n)
        one.advance(2)
        assert cut.cut.is_set()
        one.kill("a")
        one.start("b")
        one.advance(120)
        assert len(one.outputs("out")) == 8
        assert told.twice() == []
        for spans in by_trace(told.all()).values() if not landed else ():  # of what is stored the dead one alone could tell
            chained(spans)
        assert len(told.named("call sign")) == 8 or landed
