from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic import BaseModel

from dspex.bus.errors import InvalidInput, TopologyError
from dspex.engine.testing.driver import Driver
from dspex.operators.recorded.calls import predict
from dspex.operators.stream import Stream
from dspex.operators.topology import Topology
from dspex.operators.typing.names import Record


class Message(BaseModel):
    customer: str
    text: str


def clean(m: Record) -> Record:
    return {**m, "text": m["text"].strip()}


def both(m: Message) -> list[Message]:
    return [m, m]


def small() -> Topology:
    t = Topology("small")
    t.source("in", Message).filter("len(text) > 1").sink("out")
    return t


def test_a_topology_freezes_into_a_graph_in_an_order_that_can_be_run():
    t = Topology("t")
    hot, cold = t.source("in").map(clean).branch("n > 1")
    hot.merge(cold).sink("out")
    graph = t.graph
    assert [(n.name, n.role, n.op) for n in graph.nodes.values()] == [
        ("in", "source", "source"),
        ("clean", "native", "map"),
        ("branch", "native", "branch"),
        ("merge", "native", "merge"),
        ("out", "sink", "sink"),
    ]
    assert graph.outputs("branch") == [(0, graph.nodes["merge"]), (1, graph.nodes["merge"])]


def test_a_frozen_topology_cannot_grow():
    t = Topology("t")
    stream = t.source("in")
    stream.sink("out")
    assert t.freeze() is t
    with pytest.raises(TopologyError, match="t is frozen: map cannot be added") as e:
        stream.map(clean)
    assert e.value.code == "DX224"


def test_freeze_raises_one_error_with_all_problems():
    t = Topology("Bad Name")
    t.source("in").filter("x >").sink("a b")
    with pytest.raises(TopologyError) as e:
        t.freeze()
    assert {p.code for p in e.value.problems} == {"DX202", "DX208", "DX217"}
    assert "error[DX208] filter (" in str(e.value)
    assert e.value.exit_code == 3


def test_the_digest_is_of_names_options_and_refs_and_not_of_function_bodies():
    def make(text: str, fn: Any) -> str:
        t = Topology("t")
        t.source("in").map(fn, name="m").filter(text, name="f").sink("out")
        return t.digest

    assert make("a > 1", lambda x: x) == make("a > 1", lambda x: {**x})
    assert make("a > 1", clean) != make("a > 2", clean)
    assert make("a > 1", clean) != make("a > 1", both)
    assert len(make("a", clean)) == 12


def test_automatic_names_are_the_functions_or_the_operators_word_and_given_names_come_first():
    t = Topology("t")
    s = t.source("in").map(lambda x: x).map(clean).map(clean).filter("a").filter("b", name="map_2").map(lambda x: x)
    s.sink("out")
    assert list(t.graph.nodes) == ["in", "map", "clean", "clean_2", "filter", "map_2", "map_3", "out"]
    assert [n.named for n in t.graph.nodes.values()] == [True, False, False, False, False, True, False, True]


def test_problems_name_the_line_of_the_users_call():
    t = Topology("t")
    (
        t.source("in")
        .map(clean)
        .sink("out")
    )  # fmt: skip
    places = [n.place for n in t.graph.nodes.values()]
    assert all(p is not None and p.file.endswith("test_topology.py") for p in places)
    lines = [p.line for p in places if p is not None]
    assert lines == [lines[0], lines[0] + 1, lines[0] + 2]


def test_types_flow_from_source_validate_annotations_signature_and_into():
    t = Topology("t")
    source = t.source("in", Message)
    steps = {
        "set": source.set({"n": "len(text)"}),
        "both": source.flat_map(both),
        "predict": source.predict("text -> lang, score: float", name="predict"),
        "typed": source.predict("text -> lang", name="typed", into=Message),
        "lambda": source.map(lambda m: m.text, name="lambda"),
    }
    for name, stream in steps.items():
        stream.sink(f"out.{name}")
    fields = {name: t.graph.nodes[name].fields for name in steps}
    message = {"customer": "str", "text": "str"}
    assert fields == {
        "set": {**message, "n": "Any"},
        "both": message,
        "predict": {**message, "lang": "str", "score": "float"},
        "typed": message,
        "lambda": None,
    }
    assert t.graph.nodes["typed"].type == "Message"


def test_a_source_checks_and_types_its_data():
    source = small().graph.nodes["in"].source
    assert source is not None
    assert source.accept is not None
    assert source.accept({"customer": "c", "text": "t"}) == Message(customer="c", text="t")
    with pytest.raises(InvalidInput, match="text: Field required"):
        source.accept({"customer": "c"})


@pytest.mark.parametrize("value", ["2026-01-02T03:04:05Z", 1767323045, 1767323045.0, datetime(2026, 1, 2, 3, 4, 5)])
def test_event_time_is_read_from_the_data(value):
    t = Topology("t")
    t.source("in", time="at", start=datetime(2026, 1, 1, tzinfo=UTC), partitions=4, on_gap="skip").sink("out")
    source = t.graph.nodes["in"].source
    assert source is not None
    assert source.time is not None
    assert source.time({"at": value}) == datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    assert (source.start, source.partitions, source.on_gap) == (1767225600.0, 4, "skip")
    with pytest.raises(InvalidInput, match="is no time"):
        source.time({"at": ["x"]})


def test_through_includes_a_part_under_its_name():
    def part(s: Stream[Record]) -> tuple[Stream[Record], Stream[Record]]:
        yes, no = s.map(clean).branch("ok")
        return yes, no

    t = Topology("t")
    yes, no = t.source("in").through(part, name="kyc")
    yes.sink("yes")
    no.map(clean).sink("no")
    assert list(t.graph.nodes) == ["in", "kyc/clean", "kyc/branch", "yes", "clean", "no"]


def test_call_with_a_spec_is_the_method_of_its_kind():
    one, two = Topology("t"), Topology("t")
    one.source("in").predict("q -> a", name="p", pool="x").sink("out")
    two.source("in").call(predict("q -> a", pool="x"), name="p").sink("out")
    assert one.digest == two.digest


def test_sinks_encode_as_the_topology_says_unless_they_say_it_themselves():
    t = Topology("t", codec="msgpack", retention="2d", renamed_from={"in": "old"}, drop=["gone"])
    s = t.source("in")
    s.sink("a")
    s.sink("b", codec="json")
    a, b = t.graph.nodes["a"].sink, t.graph.nodes["b"].sink
    assert a is not None
    assert b is not None
    assert (a.codec, b.codec) == ("msgpack", "json")
    assert (t.graph.codec, t.graph.retention, t.graph.renamed_from, t.graph.drop) == (
        "msgpack", 172800.0, {"in": "old"}, ("gone",),
    )  # fmt: skip


def test_describe_lists_nodes_pools_and_programs():
    t = Topology("t")
    hot, _ = t.source("in").branch("n > 1")
    hot.program("programs:Draft", "text -> reply", name="draft", pool="writers").sink("out")
    info = t.describe()
    assert (info.sources, info.sinks, info.pools, info.programs) == (["in"], ["out"], ["writers"], ["programs:Draft"])
    assert [(n.name, n.inputs, n.signature) for n in info.nodes if n.role == "call"] == [
        ("draft", ["branch.0"], "text -> reply")
    ]
    assert info.as_dict()["digest"] == t.digest


def test_the_drawing_of_a_topology_is_stable():
    t = Topology("t")
    hot, cold = t.source("in.>").branch("n > 1", name="hot-or-not")
    hot.predict("q -> a", name="ask").sink("out")
    cold.sink("end")
    assert t.to_mermaid() == (
        "flowchart LR\n"
        '    in__(["in.>"])\n'
        '    hot_or_not["hot-or-not<br/>branch"]\n'
        '    ask[["ask<br/>predict"]]\n'
        '    out(["out"])\n'
        '    end_4(["end"])\n'
        "    in__ --> hot_or_not\n"
        "    hot_or_not -->|0| ask\n"
        "    ask --> out\n"
        "    hot_or_not -->|rest| end_4\n"
    )


def test_a_topology_is_loaded_by_its_ref(module):
    made = module("shop", "from dspex.operators.topology import Topology\ntopology = Topology('shop')\nnumber = 5\n")
    assert Topology.load("shop:topology") is made.topology
    for target, message in {
        "shop:topolgy": "did you mean topology?",
        "shp:topology": "cannot be imported",
        "shop:number": "is int, not a Topology",
        "shop": "is not a ref",
        "shop.py": 'write "shop:name", with the name that it has in that file',
        "flows/shop.py": 'write "flows.shop:name"',
        "nothing.yaml": "cannot be read",
    }.items():
        with pytest.raises(TopologyError) as e:
            Topology.load(target)
        assert e.value.code == "DX221"
        assert message in e.value.message + e.value.fix


def test_a_row_of_operators_may_be_long_and_one_that_cannot_be_run_is_refused() -> None:
    def row(count: int) -> Topology:
        t = Topology("long")
        s = t.source("in")
        for n in range(count):
            s = s.map(lambda data, n=n: {"n": data["n"] + n}, name=f"m{n}")
        s.sink("out")
        return t

    with Driver(row(998)) as d:
        d.publish("in", {"n": 0})
        assert d.outputs("out") == [{"n": sum(range(998))}]
    assert [p.code for p in row(999).check() if p.level == "error"] == ["DX248"]
