"""parse: read a model's reply, which is text in a field, into the outputs of a signature."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, TypeAlias, cast, get_args

from dspex.bus.errors import InvalidInput, InvalidOutput, TopologyError
from dspex.engine.graph.graph import Build, Context, Handler
from dspex.operators.native.adapters import Adapter
from dspex.operators.native.replies import free_text
from dspex.operators.native.replies.free_text import FreeText
from dspex.operators.native.signature import Signature, as_signature
from dspex.operators.native.suggestions import nearest
from dspex.operators.problems import wrong
from dspex.operators.typing.refs import Local
from dspex.operators.typing.shape import record_of, validator

ParseAs: TypeAlias = Literal["chat", "json", "xml", "code", "pairs", "numbers", "list"]


def readable(signature: Any) -> Signature | None:
    """The signature; None where it cannot be read (`build` tells why)."""
    try:
        return as_signature(signature)
    except TopologyError:
        return None


def signature_option(signature: Signature) -> str:
    """A signature as its text; a `Local` where text cannot say all of it: types of the user's, descriptions."""
    text = str(signature)
    try:
        same = Signature(text, instructions=signature.instructions) == signature
    except TopologyError:
        same = False
    return text if same else Local(f"<{text}>")


def build(signature: Any, field: str, adapter: str = "chat", into: Any = None) -> Build:
    """The step makes `{**data, **outputs}`, typed by `into` where that is given."""
    if not isinstance(field, str) or not field:  # pyright: ignore[reportUnnecessaryIsInstance]  # YAML may give anything
        raise wrong("field", field, "the name of the field that holds the reply")
    read = reader(as_signature(signature), adapter)
    accept = None if into is None else validator(into)

    def make(outlets: Sequence[Handler]) -> Handler:
        (out,) = outlets

        def step(data: Any, ctx: Context) -> None:
            record = record_of(data)
            result = {**record, **read(_text(record, field))}
            out(result if accept is None else accept(result), ctx)

        return step

    return make


def reader(signature: Signature, adapter: str) -> Callable[[str], dict[str, Any]]:
    """text → outputs. It raises InvalidInput: text that is there already does not get better by being read again."""
    if adapter not in get_args(ParseAs):
        raise wrong("adapter", adapter, f"one of: {', '.join(get_args(ParseAs))}")
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
