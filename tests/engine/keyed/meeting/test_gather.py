"""gather: the branches of one event meet again, all of them or a letter that names who is missing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from engine_lab import Lab
from pydantic import BaseModel

import dspex
from dspex.bus.errors import RateLimited
from dspex.engine.testing.driver import Driver
from dspex.operators.stream import AnyStream, gather
from dspex.operators.topology import Topology

MakeLab = Callable[..., Lab]


def gathering(*, fan: bool = False, keyed: bool = False, **options: Any) -> Topology:
    topology = Topology("t")
    s: AnyStream = topology.source("in")
    if fan:
        s = s.flat_map(lambda d: [{"n": n} for n in range(d["many"])], name="fan")
    if keyed:
        s = s.key_by("str(n)", name="by_n")
    a = s.predict("n: int -> draft", name="draft").set({"drafted": "True"}, name="a")
    b = s.predict("n: int -> review", name="review", pool="others")
    gather(a, b, within="30s", name="both", **options).sink("out")
    return topology


def test_branches_of_one_event_become_one_datum_whichever_is_answered_first_and_whoever_dies() -> None:
    with Driver(gathering()) as d:
        d.answer("draft", lambda i: {"draft": f"d{i['n']}"}, after="2s")
        d.answer("review", lambda i: {"review": f"r{i['n']}"}, after="1s")
        runs = [d.publish("in", {"n": n}, key="k") for n in range(3)]
        d.advance("1500ms")
        assert [list(branches) for branches in d.state("both", "").values()] == [["1"]] * 3  # of each event the second one
        d.crash()
        d.advance("10s")
        whole = [{"n": n, "drafted": True, "draft": f"d{n}", "review": f"r{n}"} for n in range(3)]
        assert sorted(d.outputs("out"), key=lambda o: o["n"]) == whole
        assert {e.run for e in d.events("out")} == set(runs)
        assert {e.key for e in d.events("out")} == {"k"}


@pytest.mark.parametrize("keyed", [False, True])
def test_events_of_one_flat_map_are_not_mixed_and_nothing_is_left(lab: MakeLab, keyed: bool) -> None:
    one = lab(gathering(fan=True, keyed=keyed))
    one.start()
    one.answers["draft"] = lambda inputs, request: {"draft": str(inputs["n"])}
    one.answers["review"] = lambda inputs, request: {"review": str(inputs["n"])}
    one.publish("in", {"many": 20})
    one.work()  # one branch of all of them comes first
    one.kill()
    one.start("b")
    one.work("others")
    one.advance(10)
    assert sorted(o["n"] for o in one.outputs("out")) == list(range(20))
    assert all(str(o["n"]) == o["draft"] == o["review"] for o in one.outputs("out"))
    assert one.left() == []
    assert one.differences() == []


def test_branches_that_are_on_their_way_meet_at_a_gather_of_another_name(lab: MakeLab) -> None:
    def named(name: str, **options: Any) -> Topology:
        topology = Topology("t", **options)
        s = topology.source("in")
        gather(s, s.predict("n: int -> answer", name="ask"), within="60s", name=name).sink("out")
        return topology

    one = lab(named("both"))
    one.start()
    one.publish("in", {"n": 1})
    one.kill()
    one.start("b", named("whole", renamed_from={"whole": "both"}))
    one.work()
    one.advance(10)
    assert one.outputs("out") == [{"n": 1, "answer": "yes"}]
    assert one.left() == []


def test_an_event_without_a_branch_is_a_letter_that_names_it() -> None:
    with Driver(gathering()) as d:
        d.answer("draft", {"draft": "x"})
        d.fail("review", ValueError("a bug"), times=1)
        d.publish("in", {"n": 1})
        d.advance("31s")
        failed, missing = d.dead_letters()
        assert (failed.node, missing.node, missing.code) == ("review", "both", "DX515")
        assert "branch review of the event did not come within 30 s" in missing.message
        assert missing.event.data == {"a": {"n": 1, "draft": "x", "drafted": True}}
        d.answer("review", {"review": "y"})
        assert d.redrive() == 2
        d.advance("1s")
        assert d.outputs("out") == [{"n": 1, "draft": "x", "drafted": True, "review": "y"}]


def test_a_branch_that_skips_the_event_is_missing(lab: MakeLab) -> None:
    topology = Topology("t")
    s = topology.source("in")
    gather(s, s.filter("n > 1", name="large").set({"large": "True"}, name="mark"), within="5s", name="both").sink("out")
    one = lab(topology)
    one.start()
    for n in (1, 2):
        one.publish("in", {"n": n})
    one.advance(10)
    assert one.outputs("out") == [{"n": 2, "large": True}]
    assert [letter.message for letter in one.letters()] == ["branch mark of the event did not come within 5 s"]
    assert one.left() == []
    assert one.differences() == []


def test_diamonds_may_stand_in_diamonds_and_what_is_behind_can_fail_and_go_on() -> None:
    broken = [True]

    def check(data: Any) -> Any:
        if broken:
            raise ValueError("no")
        return data

    topology = Topology("t")
    s = topology.source("in")
    inner = s.set({"i": "n"}, name="i")
    first = gather(inner.set({"x": "n + 1"}, name="x"), inner.set({"y": "n + 2"}, name="y"), within="5s", name="inner")
    gather(first, s.set({"z": "n + 3"}, name="z"), within="5s", name="outer").map(check, name="check").sink("out")
    with Driver(topology) as d:
        d.publish("in", {"n": 1})
        assert [letter.node for letter in d.dead_letters()] == ["check"]
        broken.clear()
        d.redrive()
        assert d.outputs("out") == [{"n": 1, "i": 1, "x": 2, "y": 3, "z": 4}]


class Whole(BaseModel):
    n: int
    draft: str
    review: int


def test_the_whole_has_its_type_or_is_a_letter_with_its_parts() -> None:
    with Driver(gathering(into=Whole)) as d:
        d.answer("draft", {"draft": "x"})
        d.answer("review", {"review": "many"})
        d.publish("in", {"n": 1})
        (letter,) = d.dead_letters()
        assert (letter.node, letter.code) == ("both", "DX502")
        assert set(letter.event.data) == {"a", "review"}


def test_a_branch_that_gives_two_is_a_letter_that_says_so() -> None:
    topology = Topology("t")
    s = topology.source("in")
    gather(s, s.flat_map(lambda d: [d, d], name="twice"), s.predict("n: int -> a", name="ask"), within="5s", name="g").sink(
        "out"
    )
    with Driver(topology) as d:
        d.answer("ask", {"a": "x"})
        d.publish("in", {"n": 1})
        (letter,) = d.dead_letters()
        assert letter.message == "the branch twice gave more than one datum of the same event"


def over_a_hop(topology: Topology) -> list[AnyStream]:
    s = topology.source("in")
    return [s.set({"x": "1"}, name="x"), s.key_by("k").set({"y": "1"}, name="y")]


def of_two_sources(topology: Topology) -> list[AnyStream]:
    return [topology.source("in"), topology.source("other")]


def of_two_outlets(topology: Topology) -> list[AnyStream]:
    return list(topology.source("in").branch("n > 1", name="split"))


def of_a_batch(topology: Topology) -> list[AnyStream]:
    s = topology.source("in").key_by("k", name="by_k")
    return [s, s.batch(3, within="1m", name="b").map(len, name="size")]


def of_a_window(topology: Topology) -> list[AnyStream]:
    s = topology.source("in").key_by("k", name="by_k")
    return [s, s.session_window("1m").count(name="w")]


@pytest.mark.parametrize(
    ("parts", "why"),
    [
        (of_a_batch, "g gathers what b gives, which is made of several events: no branch of one"),
        (of_a_window, "g gathers what w gives, which is made of several events: no branch of one"),
        (over_a_hop, "g gathers over the hop by_k: behind it a branch may be in another partition"),
        (of_two_sources, "g gathers branches of one event, and no event comes to all of its inputs"),
        (of_two_outlets, "g gathers outlets of split, and an event takes one of them alone"),
    ],
)
def test_branches_that_can_never_meet_are_refused_with_the_reason(
    parts: Callable[[Topology], list[AnyStream]], why: str
) -> None:  # I13
    topology = Topology("t")
    gather(*parts(topology), within="5s", name="g").sink("out")
    (problem,) = topology.check()
    assert (problem.code, problem.message) == ("DX244", why)


def test_fields_of_all_branches_are_known_behind_it_and_yaml_says_the_same(tmp_path: Any) -> None:
    topology = Topology("t")
    s = topology.source("in").validate(Whole)
    parts = [s.predict("n: int -> a: int", name="a"), s.predict("n: int -> b: int", name="b")]
    dspex.gather(*parts, within="5s", name="g").filter("c > 1", name="f").sink("out")
    (problem,) = topology.check()
    assert problem.code == "DX207"
    text = """
dspex: 1
topology: t
sources: { in: {} }
nodes:
  x: { from: in, set: { x: "1" } }
  y: { from: in, set: { y: "2" } }
  both: { from: [x, y], gather: {}, within: 5s }
sinks: { out: { from: both } }
"""
    (tmp_path / "t.yaml").write_text(text)
    loaded = Topology.load(str(tmp_path / "t.yaml"))
    with Driver(loaded) as d:
        d.publish("in", {})
        assert d.outputs("out") == [{"x": 1, "y": 2}]
    (tmp_path / "again.yaml").write_text(loaded.to_yaml())
    assert Topology.load(str(tmp_path / "again.yaml")).digest == loaded.digest


def test_it_can_fail_again_and_again_and_loses_nothing() -> None:
    with Driver(gathering(), faults=dspex.testing.Faults(duplicate=0.1, crash=0.01), seed=3) as d:
        d.answer("draft", {"draft": "x"}, after="1s")
        d.answer("review", {"review": "y"})
        d.fail("review", RateLimited("slow down"), times=3)
        for n in range(6):
            d.publish("in", {"n": n}, id=f"m{n}")
        d.advance("25s")
        assert sorted(o["n"] for o in d.outputs("out")) == list(range(6))


@pytest.mark.parametrize(
    ("timeout", "said"),
    [(None, "ask waits for a person without limit, and both for its branches 60 s"), ("1h", "for 3600"), ("30s", None)],
)
def test_a_gather_that_waits_less_long_than_a_person_may_take_is_a_warning(timeout: str | None, said: str | None) -> None:
    t = Topology("small")
    s = t.source("in")
    before = s.approve(name="first", timeout="2h")
    asked = before.approve(name="ask", timeout=timeout) if timeout else before.approve(name="ask")
    gather(before, asked, within="1m", name="both").sink("out")
    found = [(p.code, p.level, p.node) for p in t.check()]
    assert found == ([("DX323", "warning", "both")] if said else [])
    assert said is None or said in t.check()[0].message


@pytest.mark.parametrize(("within", "timeout"), [("soon", "1h"), ("1m", "soon")])
def test_where_a_time_is_none_that_alone_is_said(within: str, timeout: str) -> None:
    t = Topology("small")
    s = t.source("in")
    gather(s, s.approve(name="ask", timeout=timeout), within=within, name="both").sink("out")
    assert [p.code for p in t.check()] == ["DX205"]
