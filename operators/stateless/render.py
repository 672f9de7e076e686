"""render: fill a template with the data and put the text in a field; or a signature, and put the messages there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dspex.bus.errors import InvalidInput, TopologyError
from dspex.engine.graph.graph import Build, Context, Handler
from dspex.operators.expressions import template
from dspex.operators.native.adapters import ADAPTERS
from dspex.operators.native.signature import Signature
from dspex.operators.native.templates.template import Template
from dspex.operators.problems import wrong
from dspex.operators.stateless.parse import signature_option
from dspex.operators.typing.shape import record_of, validator

SYNTAXES = ("fields", "jinja")
Fill = Callable[[Any, Context], Any]


def build(what: str | Signature, field: str, into: Any = None, *, syntax: str = "fields", adapter: str = "chat") -> Build:
    """The step makes `{**data, field: what was rendered}`, typed by `into` where that is given."""
    if not isinstance(field, str) or not field:  # pyright: ignore[reportUnnecessaryIsInstance]  # YAML may give anything
        raise wrong("field", field, "the name of the field that takes the text")
    if syntax not in SYNTAXES:
        raise wrong("syntax", syntax, f"one of: {', '.join(SYNTAXES)}")
    if adapter not in ADAPTERS:
        raise wrong("adapter", adapter, f"one of: {', '.join(ADAPTERS)}")
    if isinstance(what, Signature) and syntax != "fields":
        raise wrong("syntax", syntax, "leave it out: a signature is no template text")
    if adapter != "chat" and not isinstance(what, Signature):
        raise wrong("adapter", adapter, 'give a Signature: render(Signature("text -> answer"), …); this is a template')
    fill = _fill(what, syntax, adapter)
    accept = None if into is None else validator(into)

    def make(outlets: Sequence[Handler]) -> Handler:
        (out,) = outlets

        def step(data: Any, ctx: Context) -> None:
            result = {**record_of(data), field: fill(data, ctx)}
            out(result if accept is None else accept(result), ctx)

        return step

    return make


def _fill(what: Any, syntax: str, adapter: Any) -> Fill:
    if isinstance(what, Signature):
        return _messages(what, adapter)
    if syntax == "jinja":
        jinja = Template(what).render
        return lambda data, ctx: jinja(record_of(data))
    return template.renderer(template.parse(what), template.as_text)


def _messages(signature: Signature, adapter: Any) -> Fill:
    needed = [f.name for f in signature.inputs.values() if f.required]

    def fill(data: Any, ctx: Context) -> Any:
        record = record_of(data)
        if missing := [n for n in needed if n not in record]:  # DSPy would ask without, and get an answer to half a question
            has = ", ".join(record) or "nothing"
            raise InvalidInput(f"the signature wants {', '.join(missing)}; there is {has}", fix=f"give {missing[0]}")
        return signature.messages(record, adapter=adapter)

    return fill


def fields(what: Any, syntax: str) -> list[str]:
    """What a template reads, as expressions over the data; none where it cannot be read (`build` tells why)."""
    if isinstance(what, Signature):
        return []
    if syntax != "jinja":
        return template.fields(what)
    try:
        return sorted(Template(what).required)
    except TopologyError:
        return []


def option(what: Any, adapter: str) -> Any:
    """A template as it stands in a node's options."""
    if not isinstance(what, Signature):
        return what
    extra: Mapping[str, Any] = {"instructions": what.instructions, "adapter": "" if adapter == "chat" else adapter}
    return {"signature": signature_option(what), **{k: v for k, v in extra.items() if v}}
