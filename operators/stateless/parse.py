"""parse: read a model's reply, which is text in a field, into the outputs of a signature."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, TypeAlias, cast, get_args

from dspex.bus.errors import InvalidInput, InvalidOutput
from dspex.engine.graph.context import Build
from dspex.operators.native.adapters import Adapter
from dspex.operators.native.problems import nearest
from dspex.operators.native.replies import free_text
from dspex.operators.native.replies.free_text import FreeText
from dspex.operators.native.signature import Signature, as_signature
from dspex.operators.operator import Operator
from dspex.operators.parameters import INTO, ChoiceParameter, FieldNameParameter, SignatureParameter
from dspex.operators.stateless.adding import adding
from dspex.operators.typing.shape import record_of

ParseAs: TypeAlias = Literal[Adapter, FreeText]


def build(signature: object, field: str, adapter: ParseAs = "chat", into: object = None) -> Build:
    """The step makes `{**data, **outputs}`, typed by `into` where that is given."""
    read = reader(as_signature(signature), adapter)
    return adding(lambda data, ctx: read(_text(record_of(data), field)), into)


def reader(signature: Signature, adapter: ParseAs) -> Callable[[str], dict[str, Any]]:
    """text → outputs. It raises InvalidInput: text that is there already does not get better by being read again."""
    if adapter in get_args(FreeText):
        parse = free_text.reader(signature, cast("FreeText", adapter))
    else:
        parse = partial(signature.parse, adapter=cast("Adapter", adapter))

    def read(text: str) -> dict[str, Any]:
        try:
            return parse(text)
        except InvalidOutput as e:
            raise InvalidInput(e.message, fix="correct the text, or the signature, or name the right adapter") from e

    return read


def _text(record: dict[str, Any], field: str) -> str:
    if field not in record:
        near = nearest(field, record)
        raise InvalidInput(f"there is no field {field!r} to parse", fix=f"did you mean {near!r}?" if near else None)
    text = record[field]
    if not isinstance(text, str):
        raise InvalidInput(f"the field {field!r} should hold the reply as text, and holds {type(text).__name__}")
    return text


OPERATOR = Operator(
    "parse",
    main=SignatureParameter(),
    options={
        "field": FieldNameParameter(holds=str, doc="holds the reply"),
        "adapter": ChoiceParameter("chat", of=ParseAs, doc="how the reply is written"),
        "into": INTO,
    },
    build=build,
    shape=lambda shape, o: shape.plus(o["parse"].annotations("outputs")),
)
