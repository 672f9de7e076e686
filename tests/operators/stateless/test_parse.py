"""parse: replies of models become fields; what cannot be read is a data error, never retried."""

from __future__ import annotations

from typing import Literal

import pytest
from pydantic import BaseModel

from dspex import Signature, Topology
from dspex.bus.errors import CallError, DataError, InvalidInput, TopologyError
from dspex.engine.testing.driver import Driver
from dspex.operators.stateless import parse

CHAT = "[[ ## answer ## ]]\nParis\n\n[[ ## score ## ]]\n0.5\n\n[[ ## completed ## ]]"
JSON = 'Sure: {"answer": "Paris", "score": 0.5,}'
XML = "<answer>Paris</answer><score>0.5</score>"
SIGNATURE = "question -> answer, score: float"


@pytest.mark.parametrize(("adapter", "text"), [("chat", CHAT), ("json", JSON), ("xml", XML)])
def test_a_reply_becomes_the_outputs_and_the_data_is_kept(run, adapter, text):
    data = {"id": 1, "reply": text}
    assert run(parse.build(SIGNATURE, "reply", adapter), data) == [{**data, "answer": "Paris", "score": 0.5}]


@pytest.mark.parametrize(
    ("adapter", "signature", "text", "outputs"),
    [
        ("code", "-> code", "Run:\n```python\nprint(1)\n```\nand\n```\n2\n```", {"code": "print(1)"}),
        ("code", "-> code: list[str]", "```python\nprint(1)\n```\nand\n```\n2\n```", {"code": ["print(1)", "2"]}),
        ("code", "-> data: dict[str, int]", '```json\n{"a": 1}\n```', {"data": {"a": 1}}),
        ("pairs", "-> due_date, n: int", "- **Due Date**: May\nN = 3\nBye: all", {"due_date": "May", "n": 3}),
        ("pairs", "-> a, b: str | None", "a: 1\nA: 2", {"a": "1", "b": None}),
        ("numbers", "-> low: int, high: float", "between 3 and 1,200.5 of 9", {"low": 3, "high": 1200.5}),
        ("numbers", "-> all: list[float]", "12% or 3", {"all": [0.12, 3.0]}),
        ("list", "-> steps: list[str]", "Do:\n1. Mix\n2. Bake\n", {"steps": ["Mix", "Bake"]}),
        ("list", "-> years: list[int]", "* 1999\n* 2000", {"years": [1999, 2000]}),
    ],
)
def test_free_text_is_read_by_its_kind(run, adapter, signature, text, outputs):
    assert run(parse.build(signature, "t", adapter), {"t": text}) == [{"t": text, **outputs}]


@pytest.mark.parametrize(
    ("adapter", "signature", "text", "message"),
    [
        ("chat", SIGNATURE, "Paris", "no answer; no score"),
        ("json", SIGNATURE, '{"answer": "Paris", "score": "high"}', "score"),
        ("code", "-> code", "none", "no code"),
        ("pairs", "-> a: int, b", "a: x", "a: .*; no b"),
        ("numbers", "-> a: int, b: int", "only 3", "no b"),
        ("list", "-> years: list[int]", "* soon", "years"),
        ("numbers", "-> a: Annotated[int, Field(ge=5)]", "3", "greater than or equal to 5"),
    ],
)
def test_a_reply_that_does_not_fit_its_signature_is_a_data_error_naming_the_fields(run, adapter, signature, text, message):
    with pytest.raises(InvalidInput, match=message) as e:
        run(parse.build(signature, "t", adapter), {"t": text})
    assert isinstance(e.value, DataError)
    assert not isinstance(e.value, CallError)
    assert not e.value.retryable


def test_a_field_that_is_missing_or_no_text_is_named(run):
    with pytest.raises(InvalidInput, match="no field 'reply'") as e:
        run(parse.build(SIGNATURE, "reply"), {"replies": CHAT})
    assert e.value.fix == "did you mean 'replies'?"
    with pytest.raises(InvalidInput, match="holds int"):
        run(parse.build(SIGNATURE, "reply"), {"reply": 5})


class Answer(BaseModel):
    answer: Literal["Paris", "Rome"]
    score: float


def test_parse_types_its_result_by_into(run):
    assert run(parse.build(SIGNATURE, "r", "json", Answer), {"r": JSON}) == [Answer(answer="Paris", score=0.5)]
    with pytest.raises(InvalidInput, match="does not fit Answer: answer"):
        run(parse.build(SIGNATURE, "r", "json", Answer), {"r": JSON.replace("Paris", "Oslo")})


class Reply(BaseModel):
    text: str
    count: int


def problems(make) -> list[tuple[str, str, str]]:
    topology = Topology("t")
    make(topology.source("a.b", Reply)).sink("c.d")
    return [(p.code, p.message, p.fix) for p in topology.check()]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ({"field": "txt"}, "DX207", "parse wants field 'txt'"),
        ({"field": "count"}, "DX207", "wants str in 'count', which is int"),
        ({"field": "text", "adapter": "yaml"}, "DX205", "adapter cannot be 'yaml'"),
        ({"field": "text", "adapter": "list"}, "DX205", 'adapter "list" needs one output, a list'),
        ({"field": "text", "into": Answer}, "DX212", "the signature gives answer: int, and Answer wants"),
        ({"field": ""}, "DX205", "field cannot be ''"),
    ],
)
def test_parse_refuses_wrong_arguments_at_build(arguments, code, message):
    found = problems(lambda s: s.parse("-> answer: int, score: float", **arguments))
    assert [(c, message in m) for c, m, _ in found if c == code] == [(code, True)]


def test_parse_refuses_an_invalid_signature_at_build():
    assert [c for c, _, _ in problems(lambda s: s.parse("-> a: Nothing", field="text"))] == ["DX209"]


def test_the_outputs_of_parse_are_known_to_later_operators():
    assert problems(lambda s: s.parse("-> n: int", field="text").set({"m": "n + count"})) == []
    found = problems(lambda s: s.parse("-> n: int", field="text").set({"m": "nn"}))
    assert [c for c, _, _ in found] == ["DX207"]


YAML = """
dspex: 1
topology: t
types: {{ Reply: "{module}:Reply" }}
sources:
  a.b: {{ type: Reply }}
nodes:
  parse: {{ from: a.b, parse: "-> answer, n: int", field: text, adapter: pairs }}
sinks:
  c.d: {{ from: parse }}
"""


def test_parse_in_yaml_and_python_gives_the_same_graph(module, tmp_path):
    made = module("replies", "from pydantic import BaseModel\nclass Reply(BaseModel):\n    text: str\n")
    topology = Topology("t")
    topology.source("a.b", made.Reply).parse(Signature("-> answer, n: int"), field="text", adapter="pairs").sink("c.d")
    (tmp_path / "t.yaml").write_text(YAML.format(module="replies"))
    loaded = Topology.load(tmp_path / "t.yaml")
    assert loaded.check() == []
    assert loaded.digest == topology.digest
    (tmp_path / "again.yaml").write_text(topology.to_yaml())
    assert Topology.load(tmp_path / "again.yaml").digest == topology.digest


def test_another_adapter_changes_the_digest_of_a_topology():
    def digest(adapter):
        topology = Topology("t")
        topology.source("a.b").parse("-> a", field="text", adapter=adapter).sink("c.d")
        return topology.digest

    assert digest("json") != digest("chat")


def test_a_reply_that_cannot_be_read_goes_to_the_dead_letters():
    topology = Topology("t")
    topology.source("a.b").parse("-> n: int", field="text", adapter="numbers").sink("c.d")
    with Driver(topology) as d:
        d.publish("a.b", {"text": "7 days"})
        d.publish("a.b", {"text": "soon"})
        assert d.outputs("c.d") == [{"text": "7 days", "n": 7}]
        (letter,) = d.dead_letters()
    assert (letter.node, letter.reason, letter.attempts) == ("parse", "InvalidInput", 1)


def test_a_signature_with_types_of_the_users_own_cannot_be_written_as_yaml():
    topology = Topology("t")
    topology.source("a.b").parse(Signature("-> a: Answer", types={"Answer": Answer}), field="text").sink("c.d")
    with pytest.raises(TopologyError, match="parse uses"):
        topology.to_yaml()
