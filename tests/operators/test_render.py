from __future__ import annotations

import pytest
from pydantic import BaseModel

from dspex.bus.errors import ExpressionError, TopologyError
from dspex.operators import render, template


class Customer(BaseModel):
    name: str


def test_fields_are_filled_in_and_the_data_kept(run):
    data = {"customer": {"name": "Ann"}, "items": ["pen"]}
    assert run(render.build("Dear {customer.name}, {items[0]}!", "mail"), data) == [{**data, "mail": "Dear Ann, pen!"}]


def test_double_braces_are_braces(run):
    assert run(render.build('{{"a": {a}}}', "t"), {"a": 1})[0]["t"] == '{"a": 1}'


@pytest.mark.parametrize(("value", "text"), [("x", "x"), (True, "true"), (None, "null"), (1.5, "1.5"), ([1, "a"], '[1,"a"]')])
def test_text_goes_in_as_it_is_and_everything_else_as_json(value, text):
    assert template.as_text(value) == text


def test_a_model_inside_the_data_goes_in_as_json(run):
    assert run(render.build("{c}", "t"), {"c": Customer(name="Ann")})[0]["t"] == '{"name":"Ann"}'


def test_text_of_the_data_is_never_a_template(run):
    assert run(render.build("{a}", "t"), {"a": "{b} {{c}}"})[0]["t"] == "{b} {{c}}"


def test_a_missing_field_is_named(run):
    with pytest.raises(ExpressionError, match="no field 'nam'") as e:
        run(render.build("{nam}", "t"), {"name": 1})
    assert "did you mean 'name'" in e.value.fix


@pytest.mark.parametrize(
    "text", ["{a!r}", "{a:>1000000000}", "{}", "{0}", "{a.__class__}", "{a.b()}", "{a", "a}", "{a[x]}", "{a b}"]
)
def test_anything_but_field_names_is_refused_at_build(text):
    with pytest.raises(TopologyError) as e:
        render.build(text, "t")
    assert e.value.code in ("DX225", "DX208")
