from __future__ import annotations

from dspex.operators.stateless import merge
from dspex.operators.topology import Topology


def test_a_merge_adds_no_step_of_its_own():
    def following(data: object, ctx: object) -> None: ...

    assert merge.build([following]) is following


def test_a_merge_has_every_stream_as_input_with_its_outlet():
    t = Topology("t")
    hot, cold = t.source("a").branch("x > 1")
    hot.merge(cold, t.source("b")).sink("c")
    assert [tuple(i) for i in t.graph.nodes["merge"].inputs] == [("branch", 0), ("branch", 1), ("b", 0)]


def test_streams_of_two_topologies_cannot_be_merged():
    one, other = Topology("one"), Topology("other")
    one.source("a").merge(other.source("b")).sink("c")
    (found,) = [p for p in one.check() if p.code == "DX227"]
    assert "a stream of topology other cannot be merged into one" in found.message
    assert ".source()" in found.fix


def test_merging_with_what_is_not_a_stream_is_a_problem():
    one = Topology("one")
    one.source("a").merge(3).sink("c")  # type: ignore[arg-type]
    assert "one argument is of type int" in "".join(p.message for p in one.check())
