"""Templates: what they render, which fields they read, and what their errors tell."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel

from dspex.bus.errors import ExpressionError, TopologyError
from dspex.operators.native.templates.template import Template

ORDER = {
    "customer": {"name": "Ann"},
    "items": [{"title": "pen", "price": 2}, {"title": "ink", "price": 7}],
    "note": None,
    "paid": True,
}


def rendered(text: str, data: Any = ORDER) -> str:
    return Template(text).render(data)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Dear {{ customer.name }}", "Dear Ann"),
        ("{% for i in items %}{{ loop.index }}. {{ i.title|upper }}\n{% endfor %}", "1. PEN\n2. INK\n"),
        ("{% if paid %}thanks{% else %}pay{% endif %}", "thanks"),
        ("{{ items|map(attribute='title')|join(', ') }}", "pen, ink"),
        ("{% for k, v in customer.items() %}{{ k }}={{ v }}{% endfor %}", "name=Ann"),
        ("{% set total = items|sum(attribute='price') %}{{ total * 100 }}", "900"),
        ("{{ items|tojson }}", '[{"title": "pen", "price": 2}, {"title": "ink", "price": 7}]'),
        ("{% raw %}{{ x }}{% endraw %}{# {{ y }} #}", "{{ x }}"),
        ("{{ missing|default('none') }}{{ 'x' if missing is defined }}", "none"),
        ("{{ note }} {{ paid }} {{ 1.5 }} {{ '<b>' }}", "None True 1.5 <b>"),
        ("a\n", "a"),
        ("", ""),
    ],
)
def test_a_template_renders_its_data(text, expected):
    assert rendered(text) == expected


def test_a_template_lists_the_fields_that_it_must_have():
    template = Template("{{ a.b }}{% for c in d %}{{ c }}{{ e|default('') }}{% endfor %}{% set f = 1 %}{{ f }}{{ range(3) }}")
    assert template.required == {"a", "d"}
    assert Template("{{ a[0:2] }}{{ b is not defined }}{{ c|int(default=d) }}{{ 'e' }}{# f #}").required == {"a", "c", "d"}


class Order(BaseModel):
    name: str


def test_a_template_sees_models_and_dates_as_json():
    assert rendered("{{ o.name }}", {"o": Order(name="Ann")}) == "Ann"
    with pytest.raises(ExpressionError, match=r"wants 'o.model_dump'"):
        rendered("{{ o.model_dump }}", {"o": Order(name="Ann")})


@pytest.mark.parametrize(
    ("text", "message", "fix"),
    [
        ("a\n{{ custmer.name }}", "wants 'custmer', which is not there in line 2", "did you mean 'customer'?"),
        ("{{ customer.nam }}", "wants 'customer.nam', which is not there in line 1", "did you mean 'name'?"),
        ("{% for i in items %}{{ i.titel }}{% endfor %}", "wants 'i.titel'", "did you mean 'title'?"),
        ("{{ customer.items }}", "wants '.items'", "guard it"),
        ("{{ customer['keys'] }}", "wants '.keys'", "guard it"),
        ("{{ items.count }}", "wants 'items.count'", "guard it"),
        ("é{% for c in 'ab' %}{{ loop.length }}{% endfor %}", "wants 'loop.length'", "guard it"),
        ("{{ 1 / 0 }}", "failed in line 1: unable to calculate 1 / 0", "correct"),
        ("{{ customer + 1 }}", "failed in line 1", "correct"),
    ],
)
def test_a_missing_field_or_a_wrong_value_in_a_template_is_named(text, message, fix):
    with pytest.raises(ExpressionError) as e:
        rendered(text)
    assert message in e.value.message
    assert fix in e.value.fix


@pytest.mark.parametrize(
    ("text", "message", "fix"),
    [
        ("a\n{{ x", "in line 2 of the template a tag cannot be read", "close it: }}"),
        ("{% if x %}", "cannot be read: unexpected end of input", "correct"),
        ("{{ x|uper }}", "no filter 'uper'", "did you mean upper?"),
        ("{{ x is strng }}", "no test 'strng'", "did you mean string?"),
        ("{% fro x in y %}{% endfor %}", "{% fro %}", "did you mean for?"),
        ("{{ x.upper() }}", "the method .upper() is called", "{{ x|upper }}"),
        ("{{ price * count }}", "two fields are multiplied", "compute it before"),
        ("{{ {'a': 1}}}", "stands inside brackets", "} }}"),
        (5, "a template is text, and this is 5", "write"),
        ("x" * 70_000, "longer than", "split"),
    ],
)
def test_a_template_that_cannot_be_read_or_is_not_allowed_is_refused_with_its_line(text, message, fix):
    with pytest.raises(TopologyError) as e:
        Template(text)
    assert e.value.code == "DX225"
    assert message in e.value.message
    assert fix in e.value.fix


def test_a_list_of_thousands_is_rendered():
    rows = [{"id": i, "text": "some words"} for i in range(3000)]
    lines = rendered("{% for r in rows %}{{ r.id }}: {{ r.text|upper }};{% endfor %}", {"rows": rows}).split(";")
    assert len(lines) == 3001
    assert lines[2999] == "2999: SOME WORDS"
