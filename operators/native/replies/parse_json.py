"""A reply in the manner of DSPy's JSONAdapter, one JSON object, as typed outputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import orjson

from dspex.operators.native.replies.outputs import Outputs, unfit
from dspex.operators.native.replies.parse_values import REFUSED, why
from dspex.operators.native.replies.repair import first_object, is_exact, loads, only_object

if TYPE_CHECKING:
    from dspex.operators.native.signature import Signature


def parser(signature: Signature) -> Callable[[str], dict[str, Any]]:
    """A function that reads a reply's outputs as DSPy's JSONAdapter does. An object just as asked for takes a shorter way.

    Broken JSON is repaired; fences and words around it are left out; of several objects the last counts, of equal keys too.
    It raises InvalidOutput that lists all that is missing or does not fit.
    """
    outputs = Outputs.of(signature)
    converters = list(outputs.converters.items())

    def parse_text(text: str) -> dict[str, Any]:
        try:
            fields = orjson.loads(text if text[:1] == "{" else only_object(text) or "")
            done: dict[str, Any] = {}
            for name, convert in converters:
                value = fields[name]
                if type(value) is str:
                    done[name] = value if convert is str else convert(value)
                elif is_exact(value):
                    done[name] = convert(value)
                else:
                    break
            else:
                return done
        except (KeyError, IndexError, *REFUSED):
            pass  # read again with more patience; all problems are said there
        return outputs.typed(_object(text), text)

    return parse_text


def _object(text: str) -> dict[str, Any]:
    try:
        fields = loads(text)
        if not isinstance(fields, dict) and (inner := first_object(text)) is not None:
            fields = loads(inner)
    except REFUSED as e:
        raise unfit(why(e), text) from e
    if isinstance(fields, dict):
        return fields  # pyright: ignore[reportUnknownVariableType]
    raise unfit("there is no JSON object in it", text)
