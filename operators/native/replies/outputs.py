"""The part that the parsers of all adapters share: texts by field become typed outputs, or one error with all problems."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING

from dspex.bus.errors import InvalidOutput
from dspex.operators.native.fields.fields import MISSING, Values
from dspex.operators.native.replies.parse_values import REFUSED, constrained, converter, excerpt, fallback, why
from dspex.operators.native.replies.repair import RepairBudget, of_reply

if TYPE_CHECKING:
    from dspex.operators.native.signature import Signature

_PROBLEMS = 2_000  # characters of the list of problems
_REPLY = 200  # characters of the reply in an error


class OutputFields:
    """The output fields of a signature with their converters and defaults."""

    __slots__ = ("converters", "fallbacks")

    def __init__(self, signature: Signature) -> None:
        fields = signature.outputs.values()
        self.converters = {f.name: constrained(f, converter(f.annotation)) for f in fields}
        self.fallbacks = {f.name: x for f in fields if (x := fallback(f)) is not MISSING}

    @classmethod
    def of(cls, signature: Signature) -> OutputFields:
        """The outputs of the signature, made once."""
        return signature.compiled("outputs", cls)

    def typed(self, found: Mapping[str, object], reply: str) -> Values:
        """All outputs in the order of the signature.

        Args:
            found: by field, a text or a value from JSON. Names of no output are left out.
            reply: the model's reply, for the error.

        Raises InvalidOutput: a field is missing that may not be None and has no default, or does not fit its type.
        """
        done: Values = {}
        token = of_reply.set(RepairBudget())
        try:
            for name, convert in self.converters.items():
                done[name] = convert(found[name])
        except (KeyError, *REFUSED):
            return self._with_all_problems(found, reply)
        finally:
            of_reply.reset(token)
        return done

    @staticmethod
    def shown(value: object) -> str:
        """The value that was found for a field, as an error shows it."""
        return excerpt(value)

    def _with_all_problems(self, found: Mapping[str, object], reply: str) -> Values:
        done: Values = {}
        problems: list[str] = []
        for name, convert in self.converters.items():
            if name in found:
                try:
                    done[name] = convert(found[name])
                except REFUSED as e:
                    problems.append(f"{name}: {why(e)} (got {self.shown(found[name])})")
            elif name in self.fallbacks:
                done[name] = copy.deepcopy(self.fallbacks[name])
            else:
                problems.append(f"no {name}")
        if problems:
            raise unfit("; ".join(problems), reply)
        return done


def unfit(what: str, reply: str) -> InvalidOutput:
    """The error for a reply; it shows the beginning of the reply."""
    what = excerpt(what, _PROBLEMS, quote=False)
    return InvalidOutput(f"the reply of the model does not fit: {what}. It begins: {excerpt(reply, _REPLY)}")
