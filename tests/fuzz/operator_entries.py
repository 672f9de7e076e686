"""What native operators make of the data of an event, whoever published it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fuzzing import MOST_MESSAGE, Bug, Entry
from mutations import Case
from pydantic import BaseModel

from dspex.bus import codecs
from dspex.bus.errors import DspexError
from dspex.engine.graph.context import Build, EventContext
from dspex.operators.native.metrics.metrics import METRICS
from dspex.operators.stateless import branch, filter, parse, render, score, set, validate


class Ticket(BaseModel):
    text: str
    urgency: int
    tags: list[str] = []


SCHEMA = {
    "type": "object",
    "required": ["text"],
    "properties": {
        "text": {"type": "string", "minLength": 1, "pattern": "^[a-z ]+$"},
        "tags": {"type": "array", "uniqueItems": True, "items": {"type": "string"}},
        "customer": {"type": "object", "additionalProperties": {"type": "string", "format": "email"}},
    },
}
FIELDS = {
    "twice": "urgency * 2 + len(tags)",
    "loud": "upper(text)",
    "who": "customer.name + str(n)",
    "first": "tags[0]",
    "less": "round(x, 2) - urgency % 7",
    "number": "int(text)",
    "most": "max(tags[0], urgency)",
    "all": "it",
    "same": "it == it and tags < tags",
    "as_text": "str(it)",
    "has": "contains(tags, customer)",
    "or": "coalesce(q.w, it)",
}
TEMPLATE = "{{ text|upper }} {% for t in tags %}{{ t }}{{ customer.name }}{% endfor %} {{ n|round }} {{ it|tojson }}"
SIGNATURE = "question -> label: str, n: int, tags: list[str]"
STEPS: Mapping[str, Build] = {
    "filter": filter.build("urgency >= 4 and text in ['a', 'b'] or has(customer.name)"),
    "branch": branch.build(["matches(text, '^(a|b)+$')", "tags in customer", "not n"]),
    **{f"set {name}": set.build({name: text}) for name, text in FIELDS.items()},
    "validate a schema": validate.build(SCHEMA),
    "validate a type": validate.build(Ticket),
    "render": render.build("{text} {customer.name} {tags[0]}", "made"),
    "render jinja": render.build(TEMPLATE, "made", syntax="jinja"),
    **{f"parse {adapter}": parse.build(SIGNATURE, "text", adapter) for adapter in ("chat", "json", "xml")},
    **{f"score {name}": score.build(name, expected="tags", actual="text") for name in METRICS},
}


def _seeds() -> list[Case]:
    replies = (
        "hello a", '{"label": "x", "n": 3, "tags": ["a"]}', "<label>x</label><n>3</n><tags>[]</tags>",
        "[[ ## label ## ]]\nx\n\n[[ ## n ## ]]\n3\n\n[[ ## tags ## ]]\n[]",
    )  # fmt: skip
    found: list[dict[str, Any]] = [
        {"text": text, "urgency": 4, "tags": ["a", "the b"], "customer": {"name": "ann"}, "n": 10**18, "x": 1.5}
        for text in replies
    ]
    wide = {"text": "word " * 120, "tags": ["b"] * 120, **{f"urgenc{n}": n for n in range(120)}}  # and no field urgency
    return [Case(codecs.json_bytes(data)) for data in (*found, wide)]


def _take(case: Case) -> object:
    """What all of them give. One that refuses the data says so in a few words, as each of them is asked."""
    data, found, outs = codecs.decode(case.data), dict[str, object](), list[object]()
    for name, build in STEPS.items():
        step = build([lambda value, ctx: outs.append(value)] * (4 if name == "branch" else 1))
        try:
            step(data, EventContext("fuzz"))
        except DspexError as e:
            if len(e.message) > MOST_MESSAGE:
                raise Bug(f"{name}: an error of {len(e.message)} characters: {e.message[:200]}") from None
        found[name] = outs[-1] if outs else None
        outs.clear()
    return list(found)


ENTRIES = [Entry("operators", _seeds, lambda: _take, "json", slice=60, refused=("",))]
