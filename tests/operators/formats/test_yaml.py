from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dspex.bus.errors import Problem, TopologyError
from dspex.operators.formats import yaml_read
from dspex.operators.formats.schema import yaml_schema
from dspex.operators.topology import Topology

TRIAGE = """
from typing import Literal
from pydantic import BaseModel, Field
from dspex.operators.typing.names import Record
from dspex.operators.stream import Stream
from dspex.operators.topology import Topology

class Message(BaseModel):
    customer: str
    text: str = Field(min_length=1, max_length=4000)

class Triaged(Message):
    intent: Literal["card_arrival", "lost_card", "exchange_rate", "other"]
    urgency: int = Field(ge=1, le=5)

Intent = Literal["card_arrival", "lost_card", "exchange_rate", "other"]

def clean(m: Record) -> Record:
    return {**m, "text": " ".join(m["text"].split())}

def loud(m: Message) -> bool:
    return m.text.isupper()

def sorry(m: Message) -> Record:
    return {"reply": "Sorry"}

def polite(s: Stream[Record]) -> Stream[Record]:
    return s.set({"reply": "'Dear customer, ' + reply"})

topology = Topology("support-triage")
triaged = (topology.source("support.messages").map(clean).validate(Message)
    .predict("text -> intent: Literal['card_arrival','lost_card','exchange_rate','other'], urgency: int",
             name="classify", pool="lightweight", into=Triaged, timeout="1m"))
urgent, routine = triaged.branch("urgency >= 4")
urgent.program("programs:DraftReply", "text, intent -> reply", name="draft", pool="writers").sink("support.replies")
routine.sink("support.queue")
"""
YAML = """
dspex: 1
topology: support-triage
sources: { support.messages: {} }
nodes:
  draft:    { from: branch.0, program: "programs:DraftReply", signature: "text, intent -> reply", pool: writers }
  branch:   { from: classify, branch: ["urgency >= 4"] }
  classify: { from: validate, pool: lightweight, into: "triage:Triaged", timeout: 60,
              predict: "text -> intent: Literal['card_arrival','lost_card','exchange_rate','other'], urgency: int" }
  clean:    { from: support.messages, map: "triage:clean" }
  validate: { from: clean, validate: "triage:Message" }
sinks:
  support.replies: { from: draft }
  support.queue:   { from: branch.rest }
"""
ALL = """
dspex: 1
topology: all
codec: msgpack
retention: 2d
types: { Intent: "triage:Intent" }
sources:
  support.messages: { type: "triage:Message", partitions: 4, on_gap: skip, start: 17 }
  other.>: {}
nodes:
  both:    { from: [support.messages, other.>], merge: {} }
  loud:    { from: support.messages, filter: "triage:loud" }
  split:   { from: loud, branch: ["len(text) > 9", "triage:loud"] }
  longer:  { from: split.0, set: { n: "len(text)" } }
  letter:  { from: longer, render: "Dear {customer}", field: letter }
  checked: { from: both, validate: { type: object, required: [text] }, on_error: skip }
  ask:     { from: checked, chain_of_thought: "text -> intent: Intent", instructions: "Be brief.",
             lm: [big, main], inputs: { text: "upper(text)" }, config: { temperature: 0 }, retry: { attempts: 2 } }
  tools:   { from: split.1, react: "text -> reply", tools: ["shop:find"], max_iters: 3, fallback: "triage:sorry" }
  kind:    { from: tools, through: "triage:polite" }
  part:    { from: split.rest, through: part.yaml }
sinks:
  letters: { from: letter }
  "asked.{intent}": { from: ask, codec: json }
  kind:    { from: kind }
  a:       { from: part.0 }
  b:       { from: part.1 }
"""
PART = """
dspex: 1
nodes:
  clean: { from: input, map: "triage:clean" }
  split: { from: clean, branch: ["customer == 'x'"] }
sinks: {}
output: [split.0, split.rest]
"""


@pytest.fixture
def folder(module, tmp_path: Path) -> Path:
    module("triage", TRIAGE)
    (tmp_path / "part.yaml").write_text(PART)
    return tmp_path


def load(folder: Path, text: str) -> Topology:
    (folder / "t.yaml").write_text(text)
    return Topology.load(folder / "t.yaml")


def problems(folder: Path, nodes: str, more: str = "") -> list[Problem]:
    """Errors of a small topology with these nodes; `nodes` begins in line 6."""
    head = "dspex: 1\ntopology: small\nsources:\n  in: { type: 'triage:Message' }\nnodes:\n"
    return [p for p in load(folder, head + nodes + more).check() if p.level == "error"]


@pytest.mark.parametrize("text", [b"dspex: 1\ntopology: \xed\xa0\x80", b"topology: \xe4", "dspex: 1".encode("utf-16")])
def test_a_file_that_is_no_unicode_text_says_so_and_what_to_do(tmp_path, text):
    (tmp_path / "t.yaml").write_bytes(text)
    with pytest.raises(TopologyError, match=r"t\.yaml is not text in UTF-8: .* at byte \d+") as e:
        Topology.load(tmp_path / "t.yaml")
    assert (e.value.code, e.value.fix) == ("DX222", "save it as UTF-8")


def test_text_with_half_of_a_surrogate_pair_is_refused_in_its_line():
    with pytest.raises(TopologyError, match=r"t\.yaml:2: half of a surrogate pair \('\\ud800'\)"):
        yaml_read.read("dspex: 1\ntopology: \ud800", "t.yaml")


def test_yaml_and_python_give_the_same_graph(folder):
    python, text = Topology.load("triage:topology"), load(folder, YAML)
    assert text.check() == []
    assert text.digest == python.digest
    assert {n.name: n.inputs for n in text.graph.nodes.values()} == {n.name: n.inputs for n in python.graph.nodes.values()}


def test_problems_name_the_line_of_the_yaml_file(folder):
    place = load(folder, YAML).graph.nodes["classify"].place
    assert place == ("t.yaml", 8)


@pytest.mark.parametrize("text", [YAML, ALL], ids=["triage", "all"])
def test_a_topology_written_as_yaml_is_read_back_to_the_same_digest(folder, text):
    first = load(folder, text)
    assert [p for p in first.check() if p.level == "error"] == []
    again = load(folder, first.to_yaml())
    assert again.digest == first.digest
    assert again.to_yaml() == first.to_yaml()


def test_every_operator_can_be_written_in_yaml(folder):
    graph = load(folder, ALL).graph
    assert {n.op for n in graph.nodes.values()} >= {"merge", "filter", "branch", "set", "render", "validate", "react", "map"}
    assert "part/clean" in graph.nodes
    ask = graph.nodes["ask"].call
    assert ask is not None
    assert ask.spec.signature == "text -> intent: Literal['card_arrival', 'lost_card', 'exchange_rate', 'other']"
    assert (ask.spec.instructions, ask.spec.lm, ask.retry.attempts) == ("Be brief.", ("big", "main"), 2)
    assert ask.inputs({"text": "hi"}) == {"text": "HI"}
    tools = graph.nodes["tools"].call
    assert tools is not None
    assert tools.fallback is not None
    assert tools.fallback({}) == {"reply": "Sorry"}


def test_lambdas_and_local_types_cannot_be_written_and_are_named():
    class Local: ...

    t = Topology("t")
    t.source("in").map(lambda x: x, name="double").set({"a": "1"}, into=dict).map(problems).sink("out")
    with pytest.raises(TopologyError, match="double uses <lambda>") as e:
        t.to_yaml()
    assert (e.value.code, e.value.node) == ("DX223", "double")


@pytest.mark.parametrize(
    ("nodes", "code", "node", "line", "message", "fix"),
    [
        ("  a: { from: in, mpa: 'triage:clean' }\n", "DX204", "a", 6, "no operator 'mpa'", "did you mean map?"),
        ("  a: { from: in }\n", "DX204", "a", 6, "has no operator", "one of: branch, filter"),
        ("  a: { from: in, map: 'triage:clean', filter: x }\n", "DX204", "a", 6, "2 operators: map, filter", "one operator"),
        ("  a: 5\n", "DX204", "a", 6, "is a mapping", "from:"),
        ("  a: { map: 'triage:clean' }\n", "DX206", "a", 6, "where its data comes from", "from: NODE"),
        ("  a:\n    map: 'triage:clean'\n    from: inn\n", "DX206", "a", 8, "no 'inn' to take data from", "did you mean in?"),
        ("  a: { from: in, map: 'triage:claen' }\n", "DX221", "a", 6, "triage has no 'claen'", "did you mean clean?"),
        ("  a: { from: in, map: 'clean' }\n", "DX221", "a", 6, "'clean' is not a ref", "pkg.module:name"),
        ("  a: { from: in, map: 5 }\n", "DX221", "a", 6, "names no function", "pkg.module:name"),
        ("  a: { from: in, map: 'triag:clean' }\n", "DX221", "a", 6, "cannot be imported", "path"),
        ("  a:\n    from: in\n    filter: text\n    nam: b\n", "DX204", "a", 9, "has no option 'nam'", "one of"),
        ("  a: { from: in, predict: 'text -> x', pol: y }\n", "DX204", "a", 6, "has no option 'pol'", "did you mean pool?"),
        ("  a: { from: in, predict: 'txt -> x' }\n", "DX207", "a", 6, "the stream has customer: str, text: str", '"text'),
        ("  a: { from: in, predict: 'text -> x: Foo' }\n", "DX209", "a", 6, "unknown type 'Foo'", "types="),
        ("  a: { from: in, filter: 'urgency >' }\n", "DX208", "a", 6, "cannot be read", "syntax"),
        ("  a: { from: in, filter: 'txt > 1' }\n", "DX207", "a", 6, "wants field 'txt'", "did you mean text?"),
        ("  a: { from: in, render: '{text}' }\n", "DX204", "a", 6, "needs the key 'field'", "field:"),
        ("  a: { from: in, program: 'x:Y' }\n", "DX204", "a", 6, "needs the key 'signature'", "signature:"),
        ("  a: { from: in, validate: 'triage:Mesage' }\n", "DX221", "a", 6, "no 'Mesage'", "did you mean Message?"),
        ("  a: { from: in, validate: Strin }\n", "DX209", "a", 6, "unknown type 'Strin'", "types="),
        ("  a: { from: in, branch: x }\n", "DX205", "a", 6, "branch takes a list", "branch: ["),
        ("  a: { from: in, set: [x] }\n", "DX205", "a", 6, "set takes fields", "set: {"),
        ("  a: { from: [in, in], filter: text }\n", "DX206", "a", 6, "takes one input", "merge: {}"),
        ("  a: { from: a, filter: text }\n", "DX213", "a", 6, "a cycle: a -> a", "no cycles"),
        ("  A: { from: in, filter: text }\n", "DX202", "A", 6, "is not a name", "a-z"),
        ("  a: { from: in, through: t.yaml }\n", "DX213", "a", 6, "includes itself", "part of itself"),
    ],
)  # fmt: skip
def test_every_mistake_in_yaml_is_reported_with_node_line_and_fix(folder, nodes, code, node, line, message, fix):
    name = nodes.split(":")[0].strip()
    (found,) = [p for p in problems(folder, nodes, f"sinks: {{ out: {{ from: {name} }} }}\n") if p.code != "DX214"]
    assert (found.code, found.node, found.file, found.line) == (code, node, "t.yaml", line)
    assert message in found.message
    assert fix in found.fix


def test_a_cycle_in_yaml_is_shown_as_a_path(folder):
    nodes = "  a: { from: c, filter: x }\n  b: { from: a, filter: x }\n  c: { from: b, filter: x }\n"
    (found,) = [p for p in problems(folder, nodes, "sinks: { out: { from: c } }\n") if p.code == "DX213"]
    assert "a -> c -> b -> a" in found.message


def test_outlets_in_yaml_have_names_and_unknown_ones_are_reported(folder):
    nodes = "  b: { from: in, branch: [\"text == 'x'\"] }\n"
    sinks = "sinks: { x: { from: b }, y: { from: b.7 }, z: { from: b.1 } }\n"
    found = [p for p in problems(folder, nodes, sinks) if p.code == "DX206"]
    assert [p.node for p in found] == ["x", "y"]
    assert "one of: b.0, b.1, b.rest" in found[0].fix


def test_all_problems_of_a_yaml_file_are_reported_at_once(folder):
    text = "dspex: 2\ntopology: Bad Name\nsorces: {}\ncodec: xml\nretention: soon\n"
    text += "sources: { in: { partitons: 1, type: nope } }\n"
    found = load(folder, text + "nodes: { a: { from: in, mpa: x } }\nsinks: { 'b c': { from: a } }\n").check()
    assert [(p.line, p.code) for p in found if p.level == "error"] == [
        (1, "DX204"), (2, "DX202"), (2, "DX205"), (2, "DX205"), (3, "DX204"), (6, "DX204"), (6, "DX209"), (7, "DX204"),
        (8, "DX217"),
    ]  # fmt: skip


@pytest.mark.parametrize("value", [".inf", "-.inf", ".nan", "-5", "1e300"])
def test_a_retention_that_is_no_time_is_refused(folder, value):
    text = f"dspex: 1\ntopology: t\nretention: {value}\nsources: {{ in: {{}} }}\nsinks: {{ out: {{ from: in }} }}\n"
    (found,) = load(folder, text).check()
    assert (found.code, found.message.startswith("retention cannot be")) == ("DX205", True)


BOMB = "a: &a [x]\nb: &b [*a, *a]\nc: [*b, *b]\n"


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("dspex: 1\nnodes: {}\nnodes: {}\n", 3, "'nodes' is here twice (first in line 2)"),
        ("dspex: 1\nnodes:\n  a: {}\n  a: {}\n", 4, "'a' is here twice"),
        (BOMB, 1, "anchors and aliases"),
        ("a: !!python/object:os.system x\n", 1, "tags (!)"),
        ("a: !custom x\n", 1, "tags (!)"),
        ("[" * 50, 1, "nested deeper than 20"),
        ("a: [1\nb: 2\n", 2, "not YAML"),
        ("a: \x00", 1, "not YAML"),
        ("- 1\n", 1, "a topology is a mapping"),
        ("", 1, "a topology is a mapping"),
        ("1: x\n", 1, "the key 1 is not text"),
        ("a: " + "x" * (1 << 20), 1, "more than a topology may have"),
        ("a:\n" + "- x\n" * 50_000, 49_998, "more values than a topology may have"),
        ("dspex: 1\na: " + "9" * 5_000, 2, "at most 40 digits"),
        ("dspex: 1\na: " + "1" * 20, 2, "at most 64 bits"),
        ("dspex: 1\na: 0x" + "f" * 17, 2, "at most 64 bits"),
        ("a: 1." + "0" * 100, 1, "at most 40 digits"),
    ],
)
def test_yaml_beyond_plain_data_is_refused_with_its_line(folder, text, line, message):
    with pytest.raises(TopologyError) as e:
        load(folder, text)
    assert e.value.code == "DX222"
    assert message in e.value.problems[0].message
    assert (e.value.problems[0].file, e.value.problems[0].line) == ("t.yaml", line)


def test_what_looks_like_a_number_to_base_60_is_text() -> None:
    found = yaml_read.read("time: 10:30\nlong: " + "59:" * 100_000 + "1\nhalf: 1:2.5", "t.yaml")
    assert (found["time"], len(found["long"]), found["half"]) == ("10:30", 300_001, "1:2.5")


def test_a_file_full_of_mistakes_names_the_first_of_them() -> None:
    with pytest.raises(TopologyError) as caught:
        yaml_read.read("a: &a x\n" * 10_000, "t.yaml")
    assert len(caught.value.problems) == 20


@pytest.mark.parametrize("text", [YAML, ALL], ids=["triage", "all"])
def test_the_schema_for_editors_takes_what_the_loader_takes(text):
    schema = jsonschema_rs.validator_for(yaml_schema())
    assert [e.message for e in schema.iter_errors(yaml.safe_load(text))] == []
    assert not schema.is_valid(yaml.safe_load(text.replace("from:", "form:")))


VALUES: Any = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=8)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=6,
)
KEYS = "map flat_map filter branch merge set validate render predict chain_of_thought react program through from into pool lm"
KEYS += " inputs config timeout retry fallback tools max_iters signature state field on_error instructions order priority"


HEAD = "dspex topology codec retention renamed_from drop types sources nodes sinks"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=150)
@given(
    st.dictionaries(st.sampled_from(KEYS.split()), VALUES | st.sampled_from(["in", "a -> b", "x > 1", "triage:polite"])),
    st.dictionaries(st.sampled_from(HEAD.split()), VALUES),
)
def test_any_value_anywhere_in_yaml_gives_problems_and_never_a_crash(folder, node, head):
    document = {"sources": {"in": {}}, "nodes": {"n": {"from": "in", **node}}, "sinks": {"out": {"from": "n", **node}}} | head
    with suppress(TopologyError):  # what is not safe YAML; any other exception fails the test
        load(folder, yaml.safe_dump(document)).check()
