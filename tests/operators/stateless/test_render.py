from __future__ import annotations

import pytest
import yaml
from pydantic import BaseModel

from dspex import Signature, Topology
from dspex.bus.errors import ExpressionError, InvalidInput, TopologyError
from dspex.engine.cli.topology.show import text as text_of
from dspex.operators.expressions import template
from dspex.operators.formats.schema import yaml_schema
from dspex.operators.native.templates.schema import Schema
from dspex.operators.stateless import render


class Customer(BaseModel):
    name: str


def test_render_fills_in_fields_and_keeps_the_data(run):
    data = {"customer": {"name": "Ann"}, "items": ["pen"]}
    assert run(render.build("Dear {customer.name}, {items[0]}!", "mail"), data) == [{**data, "mail": "Dear Ann, pen!"}]


def test_double_braces_render_as_single_braces(run):
    assert run(render.build('{{"a": {a}}}', "t"), {"a": 1})[0]["t"] == '{"a": 1}'


@pytest.mark.parametrize(("value", "text"), [("x", "x"), (True, "true"), (None, "null"), (1.5, "1.5"), ([1, "a"], '[1,"a"]')])
def test_render_inserts_text_unchanged_and_everything_else_as_json(value, text):
    assert template.as_text(value) == text


def test_a_model_inside_the_data_goes_in_as_json(run):
    assert run(render.build("{c}", "t"), {"c": Customer(name="Ann")})[0]["t"] == '{"name":"Ann"}'


def test_text_of_the_data_is_never_a_template(run):
    assert run(render.build("{a}", "t"), {"a": "{b} {{c}}"})[0]["t"] == "{b} {{c}}"


def test_render_names_a_missing_field(run):
    with pytest.raises(ExpressionError, match="no field 'nam'") as e:
        run(render.build("{nam}", "t"), {"name": 1})
    assert "did you mean 'name'" in e.value.fix


@pytest.mark.parametrize(
    "text", ["{a!r}", "{a:>1000000000}", "{}", "{0}", "{a.__class__}", "{a.b()}", "{a", "a}", "{a[x]}", "{a b}"]
)
def test_render_refuses_anything_but_field_names_in_braces(text):
    with pytest.raises(TopologyError) as e:
        render.build(text, "t")
    assert e.value.code in ("DX225", "DX208")


# -- Jinja
ORDER = {"customer": {"name": "Ann"}, "items": [{"title": "pen"}, {"title": "ink"}]}


def test_a_jinja_template_may_use_loops_and_filters(run):
    text = "{{ customer.name|upper }}:{% for i in items %} {{ i.title }}{% endfor %}"
    assert run(render.build(text, "mail", syntax="jinja"), ORDER) == [{**ORDER, "mail": "ANN: pen ink"}]


def test_a_jinja_template_reads_the_fields_of_a_model(run):
    assert run(render.build("{{ name }}", "t", syntax="jinja"), Customer(name="Ann")) == [{"name": "Ann", "t": "Ann"}]


def test_a_field_that_jinja_misses_is_named(run):
    with pytest.raises(ExpressionError, match=r"wants 'customer\.nam', which is not there in line 1") as e:
        run(render.build("{{ customer.nam }}", "t", syntax="jinja"), ORDER)
    assert e.value.fix == "did you mean 'name'?"


class Shop(BaseModel):
    customer: Customer
    items: list[str]


def problems(make) -> list[tuple[str, str]]:
    topology = Topology("t")
    make(topology.source("a.b", Shop)).sink("c.d")
    return [(p.code, p.message) for p in topology.check()]


def test_a_field_that_a_template_reads_must_be_in_the_stream():
    def jinja(text):
        return problems(lambda s: s.render(text, field="t", syntax="jinja"))

    assert jinja("{{ customer.name }}{% for i in items %}{{ i }}{% endfor %}{{ x|default(1) }}") == []
    ((code, message),) = jinja("{{ custmer.name }}")
    assert code == "DX207"
    assert "'custmer'" in message
    assert [c for c, _ in jinja("{{ x")] == ["DX225"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"syntax": "mustache"}, "syntax cannot be 'mustache'"),
        ({"field": 5}, "field cannot be 5"),
        ({"adapter": "x"}, "adapter"),
    ],
)
def test_render_refuses_a_wrong_option_at_build(arguments, message):
    found = problems(lambda s: s.render("{items}", **{"field": "t", **arguments}))
    assert [(code, message in text) for code, text in found] == [("DX205", True)]


# -- signatures
ASK = Signature("question -> answer, score: float", instructions="Be brief.")


@pytest.mark.parametrize("adapter", ["chat", "json", "xml"])
def test_a_signature_becomes_the_messages_that_dspy_sends(run, adapter):
    data = {"question": "Why?", "other": 1}
    (result,) = run(render.build(ASK, "messages", adapter=adapter), data)
    assert result == {**data, "messages": ASK.messages(data, adapter=adapter)}
    assert [m["role"] for m in result["messages"]] == ["system", "user"]
    assert "Be brief." in result["messages"][0]["content"]


def test_the_inputs_of_a_signature_must_be_there():
    found = problems(lambda s: s.render(Signature("question -> answer"), field="m"))
    assert [code for code, _ in found] == ["DX207"]
    assert problems(lambda s: s.render(Signature("items: list[str] -> answer"), field="m").set({"n": "len(m)"})) == []


YAML = """
dspex: 1
topology: t
sources:
  a.b: {}
nodes:
  mail: { from: a.b, render: "Dear {{ name }}", syntax: jinja, field: mail }
  ask:  { from: mail, render: { signature: "name -> answer: int", instructions: Be brief., adapter: json }, field: m }
sinks:
  c.d: { from: ask }
"""


def test_render_in_yaml_and_python_gives_the_same_graph(tmp_path):
    topology = Topology("t")
    mail = topology.source("a.b").render("Dear {{ name }}", syntax="jinja", field="mail", name="mail")
    signature = Signature("name -> answer: int", instructions="Be brief.")
    mail.render(signature, adapter="json", field="m", name="ask").sink("c.d")
    (tmp_path / "t.yaml").write_text(YAML)
    loaded = Topology.load(tmp_path / "t.yaml")
    assert loaded.check() == []
    assert loaded.digest == topology.digest
    (tmp_path / "again.yaml").write_text(topology.to_yaml())
    assert Topology.load(tmp_path / "again.yaml").digest == topology.digest


def test_the_schema_for_editors_knows_parse_render_and_score(tmp_path):
    check = Schema(yaml_schema()).check
    check(yaml.safe_load(YAML))
    parse = "{ from: a.b, parse: '-> a', field: b, adapter: pairs }"
    score = "{ from: a.b, score: f1, expected: a, actual: b, field: c }"
    for node in (parse, score):
        check(yaml.safe_load(YAML.replace("sinks:", f"  more: {node}\nsinks:")))
    for wrong in (
        parse.replace("pairs", "yaml"),
        score.replace("actual", "actul"),
        "{ from: a.b, render: x, field: y, syntax: z }",
    ):
        with pytest.raises(InvalidInput, match="more"):
            check(yaml.safe_load(YAML.replace("sinks:", f"  more: {wrong}\nsinks:")))


def test_the_topology_is_shown_with_its_templates_and_signatures(tmp_path):
    (tmp_path / "t.yaml").write_text(YAML)
    topology = Topology.load(tmp_path / "t.yaml")
    shown = text_of(topology.graph)
    assert "Dear {{ name }}" in shown
    assert '{"signature":"name -> answer: int"' in shown
    assert {n.name: n.fields for n in topology.describe().nodes}["ask"] is None
    assert "ask<br/>render" in topology.to_mermaid()


@pytest.mark.parametrize(
    ("main", "message"),
    [
        ("{ signatur: a }", "has no key 'signatur'"),
        ("{}", "needs a signature"),
        ("{ signature: '-> a: Foo' }", "unknown type 'Foo'"),
    ],
)
def test_render_refuses_an_invalid_signature_in_yaml(tmp_path, main, message):
    (tmp_path / "t.yaml").write_text(YAML.replace('"Dear {{ name }}", syntax: jinja', main))
    assert [message in p.message for p in Topology.load(tmp_path / "t.yaml").check()] == [True]


def test_each_way_of_rendering_gives_another_digest():
    def digest(make):
        topology = Topology("t")
        make(topology.source("a.b")).sink("c.d")
        return topology.digest

    ways = [
        lambda s: s.render("{a}", field="t"),
        lambda s: s.render("{a}", field="t", syntax="jinja"),
        lambda s: s.render(Signature("a -> b"), field="t"),
        lambda s: s.render(Signature("a -> b"), field="t", adapter="xml"),
        lambda s: s.render(Signature("a -> b", instructions="x"), field="t"),
    ]
    assert len({digest(w) for w in ways}) == len(ways)


def test_a_signature_is_not_rendered_without_its_inputs(run):
    with pytest.raises(InvalidInput, match="the signature wants q; there is z"):
        run(render.build(Signature("q, more: int | None -> a"), "messages"), {"z": 1})


def test_options_that_belong_to_another_kind_of_template_are_refused():
    with pytest.raises(TopologyError, match="adapter cannot be 'json'"):
        render.build("q -> a", "t", adapter="json")
    with pytest.raises(TopologyError, match="syntax cannot be 'jinja'"):
        render.build(Signature("q -> a"), "t", syntax="jinja")
