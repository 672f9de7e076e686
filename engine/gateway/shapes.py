"""What a call takes and gives, by what is deployed now; and how a conversation becomes the inputs of a call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from dspex.bus.errors import InvalidInput
from dspex.engine.client.resolve import Resolved
from dspex.operators.native.signature import Signature

HISTORY: Final = "history"
_REASONING: Final = "reasoning"
_HISTORY: Final[Mapping[str, Any]] = {  # of DSPy's own type a signature does not say what it is
    "type": "object",
    "required": ["messages"],
    "properties": {"messages": {"type": "array", "items": {"type": "object", "additionalProperties": {"type": "string"}}}},
    "additionalProperties": False,
}


class CallShape(NamedTuple):
    """The fields of a call. `inputs` and `outputs`: JSON Schemas of objects; `text`, `said`: the input that a message of a user
    goes to, and the output that is the answer; "" where there is none. `history`: whether it takes what was said before.
    """

    inputs: Mapping[str, Any]
    outputs: Mapping[str, Any]
    text: str = ""
    said: str = ""
    history: bool = False

    @classmethod
    def of(cls, asked: Resolved[Any]) -> CallShape:
        """That of what is called; of a function that enriches, any object."""
        if not asked.spec.signature:
            return cls({"type": "object"}, {"type": "object"})
        signature = Signature.from_plain(asked.spec.plain())
        inputs, outputs = signature.json_schema("inputs"), signature.json_schema("outputs")
        texts = [name for name in _of_text(inputs) if name != HISTORY]
        answers = [name for name in _of_text(outputs) if name != _REASONING]
        if history := HISTORY in inputs.get("properties", {}):
            inputs = {**inputs, "properties": {**inputs["properties"], HISTORY: _HISTORY}}
        return cls(inputs, outputs, texts[0] if texts else "", answers[-1] if answers else "", history)

    def asked(self, turns: Sequence[tuple[str, str]], more: Mapping[str, Any]) -> dict[str, Any]:
        """The inputs of a call that goes on with a conversation.

        Args:
            turns: who said what, "user" or "assistant"; what comes behind the last user is left out.
            more: other inputs, which are taken as they are.

        Raises InvalidInput.
        """
        last = max((place for place, (role, _) in enumerate(turns) if role == "user"), default=None)
        if last is None:
            raise InvalidInput("no message is of a user", fix='{"role": "user", "content": "…"}')
        if not self.text:
            raise InvalidInput("this call takes no text, and so no messages", fix="call it by its fields: POST /v1/call/…")
        found = {**more, self.text: more.get(self.text, turns[last][1])}
        if self.history and HISTORY not in more:
            found[HISTORY] = {"messages": self._before(turns[:last])}
        return found

    def _before(self, turns: Sequence[tuple[str, str]]) -> list[dict[str, str]]:
        said: list[dict[str, str]] = []
        for role, text in turns:
            if role == "user":
                said.append({self.text: text})
            elif said and self.said:
                last = said[-1]
                last[self.said] = f"{last[self.said]}\n{text}" if self.said in last else text
        return [turn for turn in said if self.said in turn]

    def answer(self, outputs: Mapping[str, Any]) -> str:
        """The text of an answer."""
        return str(outputs.get(self.said, "")) if self.said else ""


def _of_text(schema: Mapping[str, Any]) -> list[str]:
    return [name for name, one in schema.get("properties", {}).items() if one.get("type") == "string"]
