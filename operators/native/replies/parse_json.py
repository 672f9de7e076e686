"""Replies in the format of DSPy's JSONAdapter, one JSON object, as typed outputs."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import orjson

from dspex.operators.native.adapters import Parser
from dspex.operators.native.fields.fields import Values
from dspex.operators.native.replies.outputs import OutputFields, unfit
from dspex.operators.native.replies.parse_values import REFUSED, why
from dspex.operators.native.replies.repair import first_object, is_exact, loads, only_object

if TYPE_CHECKING:
    from dspex.operators.native.signature import Signature


def parser(signature: Signature) -> Parser:
    """A function that reads a reply's outputs as DSPy's JSONAdapter does. An object in exactly the requested form takes a
    shorter way.

    Broken JSON is repaired; fences and text around it are left out; of several objects the last counts, and so it does of
    equal keys. The function raises InvalidOutput that lists every field that is missing or wrong.
    """
    outputs = OutputFields.of(signature)
    converters = list(outputs.converters.items())

    def parse_text(text: str) -> Values:
        try:
            fields = orjson.loads(text if text[:1] == "{" else only_object(text) or "")
            done: Values = {}
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
            pass  # `typed` below repairs the JSON and lists all problems
        return outputs.typed(_object(text), text)

    return parse_text


def _object(text: str) -> Values:
    try:
        fields = loads(text)
        if not isinstance(fields, dict) and (inner := first_object(text)) is not None:
            fields = loads(inner)
    except REFUSED as e:
        raise unfit(why(e), text) from e
    if isinstance(fields, dict):
        return cast("Values", fields)
    raise unfit("there is no JSON object in it", text)
