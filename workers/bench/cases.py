"""What `dspex bench native` measures: operations as data, for whoever does them (we, a peer, a worker that has the peer).

`data` is what a caller would hand over for each operation, as plain data: to a worker it travels over the bus.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from pydantic import BaseModel

GROUPS = ("signature", "format", "parse", "template", "schema", "metrics", "predict")
Operation: TypeAlias = Callable[[Any], Any]
"""An operation, made ready: from the data of its case to the side's own kind of result."""

Inputs: TypeAlias = Mapping[str, object]
AsyncOperation: TypeAlias = Callable[[Inputs], Awaitable[object]]
"""A call of a model: from inputs to outputs."""

PEERS = {"jinja2": "jinja2", "sandbox": "jinja2, sandboxed", "jsonschema": "jsonschema", "dspy": "DSPy"}


@dataclass(frozen=True)
class Case:
    """One operation.

    Attributes:
        name: for people, and of the row.
        group: one of GROUPS.
        kind: what is done; both sides have a way to do it.
        data: what it is done with.
        target: how many times as fast as the peer it is to be; None: no number was promised.
        peer: who else does it, a key of PEERS.
        options: what is fixed beforehand: the signature, the adapter, examples.
        note: how to read the figures.
    """

    name: str
    group: str
    kind: str
    data: Any
    target: float | None = None
    peer: str = "dspy"
    options: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""


class Line(BaseModel):
    """A position of a report."""

    name: str
    amount: float


class Report(BaseModel):
    """An output with parts of its own."""

    title: str
    lines: list[Line]
    tags: dict[str, int]


TYPES: Mapping[str, type] = {"Report": Report}
SHORT = "question -> answer"
TYPED = "question, context: list[str] -> answer, score: float"
NESTED = "text -> report: Report"

_QUESTION = {"question": "What is the capital of France?"}
_INPUTS = {**_QUESTION, "context": ["Paris is the capital of France.", "Berlin is the capital of Germany."]}
_DEMO = {**_INPUTS, "answer": "Paris", "score": 0.9}
_REPORT = {"title": "March", "lines": [{"name": "rent", "amount": 900.5}, {"name": "food", "amount": 310.0}], "tags": {"a": 1}}
_FIELDS = '{"answer": "Paris", "score": 0.9}'
_SENTENCE = "The Eiffel Tower is a wrought-iron lattice tower on the Champ de Mars, in Paris; it is an icon of France. "
_REPLY = "[[ ## answer ## ]]\nParis\n\n[[ ## score ## ]]\n0.9\n\n[[ ## completed ## ]]"
_ONCE = "of a prompt and a parser, dspex makes once what depends on the signature alone; here that is made each time"
_NO_CACHE = "DSPy keeps no signatures: its figure is that of a new one"


def _signatures() -> list[Case]:
    with_words = {"instructions": "Answer from the context, in one word."}
    question_and_reply = {"inputs": _INPUTS, "text": _REPLY}
    return [
        Case("signature, 4 fields, cold", "signature", "signature", TYPED, 30),
        Case("signature with instructions, cold", "signature", "signature", TYPED, 30, options=with_words),
        Case("signature, prompt and parse, all new", "signature", "all new", question_and_reply, 10, note=_ONCE),
        Case("signature, 4 fields, cached", "signature", "cached signature", TYPED, 300, note=_NO_CACHE),
    ]


def _formats() -> list[Case]:
    def case(name: str, signature: str, data: object, adapter: str = "chat", demos: int = 0) -> Case:
        options = {"signature": signature, "adapter": adapter, "demos": [_DEMO] * demos}
        return Case(f"format {name}", "format", "format", data, 10, options=options)

    return [
        case("chat, 1 → 1", SHORT, _QUESTION),
        case("chat, 4 fields", TYPED, _INPUTS),
        case("chat, 4 demos", TYPED, _INPUTS, demos=4),
        case("chat, 16 demos", TYPED, _INPUTS, demos=16),
        case("chat, nested pydantic", NESTED, {"text": "Rent was 900.50, food 310."}),
        case("json, 4 fields", TYPED, _INPUTS, "json"),
        case("xml, 4 fields", TYPED, _INPUTS, "xml"),
    ]


def _parses() -> list[Case]:
    def case(name: str, signature: str, text: str, adapter: str, target: float) -> Case:
        options = {"signature": signature, "adapter": adapter}
        return Case(f"parse {adapter}, {name}", "parse", "parse", text, target, options=options)

    def sections(**values: str) -> str:
        return "\n\n".join([*(f"[[ ## {k} ## ]]\n{v}" for k, v in values.items()), "[[ ## completed ## ]]"])

    long = "\n".join(f"line {i:03} of a long answer." for i in range(400))
    return [
        case("1 str", SHORT, sections(answer="Paris"), "chat", 10),
        case("str + float", TYPED, sections(answer="Paris", score="0.9"), "chat", 10),
        case("400 lines", SHORT, sections(answer=long), "chat", 10),
        case("nested pydantic", NESTED, sections(report=json.dumps(_REPORT)), "chat", 10),
        case("1 str", SHORT, '{"answer": "Paris"}', "json", 15),
        case("str + float", TYPED, _FIELDS, "json", 15),
        case("fenced", TYPED, f"```json\n{_FIELDS}\n```", "json", 15),
        case("broken", TYPED, "{\"answer\": 'Paris', score: 0.9,", "json", 15),
        case("in prose", TYPED, f"Here is the answer: {_FIELDS} I hope it helps.", "json", 15),
        case("str + float", TYPED, "<answer>\nParis\n</answer>\n\n<score>\n0.9\n</score>", "xml", 10),
    ]


def _templates() -> list[Case]:
    text = (
        "Dear {{ name | upper }},\n{% for item in items %}- {{ item.title }}: {{ item.price }}\n{% endfor %}"
        "{% if total > 10 %}Thank you.{% else %}Come again.{% endif %}"
    )
    data = {"name": "Ada", "items": [{"title": f"thing {i}", "price": i} for i in range(5)], "total": 10}
    return [
        Case(f"template, {what}{suffix}", "template", kind, data, peer=peer, options={"text": text})
        for what, kind in (("rendered", "template"), ("compiled and rendered", "new template"))
        for peer, suffix in (("jinja2", ""), ("sandbox", ", in a sandbox"))
    ]


def _schemas() -> list[Case]:
    schema = Report.model_json_schema()
    wrong = {"title": 1, "lines": [{"name": "rent"}, {"name": "food", "amount": "310"}], "tags": {"a": 1}}
    return [
        Case("schema, fits", "schema", "schema", _REPORT, peer="jsonschema", options={"schema": schema}),
        Case("schema, 3 errors", "schema", "schema", wrong, peer="jsonschema", options={"schema": schema}),
        Case("schema, compiled and fits", "schema", "new schema", _REPORT, peer="jsonschema", options={"schema": schema}),
    ]


def _metrics() -> list[Case]:
    short = {"actual": "The Eiffel Tower!", "expected": "eiffel tower of paris"}
    kilobyte = {"actual": _SENTENCE * 9, "expected": f"{_SENTENCE * 8} It was built in 1889."}
    passages = {"actual": [_SENTENCE * 5, _SENTENCE[:60] * 8, "Nothing of the kind. " * 24], "expected": "Gustave Eiffel"}
    equal = {"actual": short["actual"], "expected": "eiffel  tower"}  # a match takes longest: all has to be looked at
    long_equal = {"actual": kilobyte["actual"], "expected": kilobyte["actual"].upper()}
    singles: list[tuple[str, object, str]] = [
        ("exact_match", equal, ", same"),
        ("exact_match", short, ", not the same"),
        ("exact_match", long_equal, ", same, 1 KB"),
        ("f1", short, ""),
        ("f1", kilobyte, ", 1 KB"),
        ("hotpot_f1", short, ""),
        ("precision", short, ""),
        ("passage_match", passages, ", 3 × 500 B"),
    ]
    cases = [Case(f"{name}{size}", "metrics", "metric", data, 4, options={"metric": name}) for name, data, size in singles]
    cases += [
        Case("normalize_text, 17 B", "metrics", "normalize", short["actual"], 4),
        Case("normalize_text, 1 KB", "metrics", "normalize", kilobyte["actual"], 4),
    ]
    return cases + [_batch(name, rows) for name in ("exact_match", "f1") for rows in (1000, 10_000)]


def _batch(name: str, rows: int) -> Case:
    words = _SENTENCE.split()
    actual = [" ".join(words[i % 7 : i % 7 + 3 + i % 5]) + (f" {i}" if i % 3 else "") for i in range(rows)]
    expected = [" ".join(words[i % 7 : i % 7 + 3 + i % 4]).lower() for i in range(rows)]
    data = {"actual": actual, "expected": expected}
    return Case(f"{name}, {rows:,} rows", "metrics", "batch", data, 10, options={"metric": name})


def cases() -> list[Case]:
    """All operations but those of Predict, which need a model's server (`predict.py`)."""
    return [*_signatures(), *_formats(), *_parses(), *_templates(), *_schemas(), *_metrics()]


def places(errors: str) -> list[str]:
    """Where the errors of `place: message; place: message` are: the words differ between libraries."""
    return sorted(error.partition(": ")[0] for error in errors.split("; ") if error)


def same(ours: object, theirs: object) -> bool:
    """Whether two results are equal to the last bit: 5 is not 5.0."""
    return _text(ours) == _text(theirs)


def _text(value: object) -> str:
    from pydantic_core import to_jsonable_python

    return json.dumps(to_jsonable_python(value), sort_keys=True)
