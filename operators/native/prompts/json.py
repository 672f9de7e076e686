"""Prompts as DSPy's JSONAdapter makes them: inputs below headers, outputs as one JSON object."""

from __future__ import annotations

import json
from collections.abc import Callable
from json.encoder import encode_basestring, encode_basestring_ascii
from math import isfinite
from typing import TYPE_CHECKING, Any

from dspex.bus.errors import InvalidInput
from dspex.operators.native.prompts.chat import INTRODUCTION, MISSING, ChatPrompt, Demo, note, type_hint
from dspex.operators.native.prompts.values import PLAIN, jsonable

if TYPE_CHECKING:
    from dspex.operators.native.signature import Signature

_INPUTS = "Inputs will have the following structure:"
_OUTPUTS = "Outputs will be a JSON object with the following fields."
_WRITTEN_AS_THEY_ARE = PLAIN | {str}


class JsonPrompt(ChatPrompt):
    """As `ChatPrompt`, with outputs as JSON."""

    def structure(self, signature: Signature) -> str:
        outputs = {f.name: note(f, self.version) for f in signature.outputs.values()}
        shown = json.dumps(outputs, indent=2, ensure_ascii=not self.version.letters)
        inputs = self._shown(map(self.input_place, signature.inputs.values()))
        return "\n\n".join([INTRODUCTION, _INPUTS, inputs, _OUTPUTS, shown]).strip()

    def reminder(self, signature: Signature) -> str:
        names = ", then ".join(f"`{f.name}`{type_hint(f, self.version)}" for f in signature.outputs.values())
        return f"Respond with a JSON object in the following order of fields: {names}."

    def answer(self, demo: Demo) -> str:
        values = {name: demo.get(name, MISSING) for name, *_ in self._outputs}
        quote = encode_basestring if self.version.letters else encode_basestring_ascii
        try:
            plain = all(type(v) in _WRITTEN_AS_THEY_ARE and not (type(v) is float and not isfinite(v)) for v in values.values())
            return _indented(values if plain else jsonable(values, self.version), quote)
        except (ValueError, RecursionError) as e:
            raise InvalidInput(f"an example's {', '.join(values)} cannot be shown to a model: {e}") from e


def _indented(value: Any, quote: Callable[[str], str], margin: str = "\n") -> str:
    """The text of `json.dumps(value, indent=2)`, in a quarter of the time: with an indent, json does not use its C code.

    `value`: JSON data.
    """
    if isinstance(value, str):
        return quote(value)
    if isinstance(value, (dict, list)) and value:
        inner = f"{margin}  "
        if isinstance(value, list):
            return f"[{inner}{f',{inner}'.join([_indented(v, quote, inner) for v in value])}{margin}]"
        items = [f"{quote(k)}: {_indented(v, quote, inner)}" for k, v in value.items()]
        return f"{{{inner}{f',{inner}'.join(items)}{margin}}}"
    if type(value) is int or (type(value) is float and isfinite(value)):
        return repr(value)
    return json.dumps(value)


PROMPT = JsonPrompt
