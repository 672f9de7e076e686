"""render: fill a template with the data and put the text in a field; or a signature, and put the messages there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeAlias

from dspex.bus.errors import InvalidInput, TopologyError
from dspex.engine.graph.context import Build, Context
from dspex.operators.expressions import template
from dspex.operators.native.adapters import ADAPTERS, Adapter
from dspex.operators.native.fields.fields import JsonSchema
from dspex.operators.native.problems import listed, problem, wrong
from dspex.operators.native.signature import Signature
from dspex.operators.native.templates.template import Template
from dspex.operators.operator import Operator
from dspex.operators.parameters import INTO, Arguments, ChoiceParameter, FieldNameParameter, Parameter, Types
from dspex.operators.parameters.typed import signature_option
from dspex.operators.parameters.values import TEXT, mapping
from dspex.operators.stateless.adding import adding
from dspex.operators.typing.shape import Shape, record_of
from dspex.operators.typing.stream_checks import missing_inputs

Syntax: TypeAlias = Literal["fields", "jinja"]
Fill = Callable[[object, Context], object]


def build(
    what: str | Signature, field: str, into: object = None, *, syntax: Syntax = "fields", adapter: Adapter = "chat"
) -> Build:
    """The step makes `{**data, field: what was rendered}`, typed by `into` where that is given."""
    if isinstance(what, Signature) and syntax != "fields":
        raise wrong("syntax", syntax, "leave it out: a signature is no template text")
    if adapter != "chat" and not isinstance(what, Signature):
        raise wrong("adapter", adapter, 'give a Signature: render(Signature("text -> answer"), …); this is a template')
    fill = _fill(what, syntax, adapter)
    return adding(lambda data, ctx: {field: fill(data, ctx)}, into)


def _fill(what: str | Signature, syntax: Syntax, adapter: Adapter) -> Fill:
    if isinstance(what, Signature):
        return _messages(what, adapter)
    if syntax == "jinja":
        jinja = Template(what).render
        return lambda data, ctx: jinja(record_of(data))
    return template.renderer(template.parse(what), template.as_text)


def _messages(signature: Signature, adapter: Adapter) -> Fill:
    needed = [f.name for f in signature.inputs.values() if f.required]

    def fill(data: object, ctx: Context) -> object:
        record = record_of(data)
        if missing := [n for n in needed if n not in record]:  # DSPy would send the request without it
            has = listed(record) or "nothing"
            raise InvalidInput(f"the signature wants {', '.join(missing)}; there is {has}", fix=f"give {missing[0]}")
        return signature.messages(record, adapter=adapter)

    return fill


@dataclass(frozen=True)
class TemplateParameter(Parameter):
    """A template, or a Signature whose inputs are fields. YAML: text, or a mapping of a signature and its adapter."""

    noun: ClassVar[str] = 'a template: `"Dear {customer.name}"`, or Jinja; or a Signature'

    def plain(self, value: object, others: Arguments) -> object:
        if not isinstance(value, Signature):
            return value
        adapter = others.get("adapter", "chat")
        extra: Mapping[str, object] = {"instructions": value.instructions, "adapter": "" if adapter == "chat" else adapter}
        return {"signature": signature_option(value), **{k: v for k, v in extra.items() if v}}

    def load(self, name: str, value: object, types: Types, others: MutableMapping[str, object]) -> object:
        keys = mapping(value)
        if keys is None:
            return value
        unknown = next((k for k in keys if k not in _KEYS), None)
        text = keys.get("signature")
        if unknown is not None or not isinstance(text, str):
            what = "needs a signature" if unknown is None else f"has no key {unknown!r}"
            fix = 'render: { signature: "text -> answer", adapter: chat }'
            raise problem("DX204", f"render {what}: {value!r}", fix)
        others["adapter"] = keys.get("adapter", "chat")
        return Signature(text, instructions=str(keys.get("instructions", "")), types=types)

    def schema(self) -> JsonSchema:
        keys = {"type": "object", "properties": dict(_KEYS), "required": ["signature"], "additionalProperties": False}
        return {"oneOf": [dict(TEXT), keys]}

    def reads(self, value: object, others: Arguments) -> Iterable[str]:
        if isinstance(value, Signature):
            return []
        if others.get("syntax") != "jinja":
            return template.fields(value)
        try:
            return sorted(Template(str(value)).required)
        except TopologyError:  # `build` says why it cannot be read
            return []

    def misfits(self, operator: str, value: object, shape: Shape, others: Arguments) -> Iterator[TopologyError]:
        yield from super().misfits(operator, value, shape, others)
        if isinstance(value, Signature):
            yield from missing_inputs(value, shape)


_KEYS: Mapping[str, JsonSchema] = {"signature": TEXT, "instructions": TEXT, "adapter": {"enum": list(ADAPTERS)}}


def _rendered(o: Arguments) -> object:
    return list[dict[str, Any]] if isinstance(o["render"], Signature) else str


OPERATOR = Operator(
    "render",
    main=TemplateParameter(),
    options={
        "field": FieldNameParameter(doc="takes the text or the messages"),
        "syntax": ChoiceParameter("fields", of=Syntax, doc="of a template"),
        "adapter": ChoiceParameter("chat", of=Adapter, key=False, doc="of a Signature; in YAML a key beside `signature`"),
        "into": INTO,
    },
    build=build,
    shape=lambda shape, o: shape.plus({o["field"]: _rendered(o)}),
)
