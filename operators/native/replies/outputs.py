"""What the parsers of all adapters share: texts by field become typed outputs, or one error that lists all that is wrong."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dspex.bus.errors import InvalidOutput
from dspex.operators.native.fields.fields import MISSING
from dspex.operators.native.replies.parse_values import REFUSED, constrained, converter, excerpt, fallback, why
from dspex.operators.native.replies.repair import Work, of_reply

if TYPE_CHECKING:
    from dspex.operators.native.signature import Signature

_PROBLEMS = 2_000  # characters about them all
_REPLY = 200  # characters of the reply in an error


class Outputs:
    """The output fields of a signature, made ready for parsing."""

    __slots__ = ("converters", "fallbacks")

    def __init__(self, signature: Signature) -> None:
        fields = signature.outputs.values()
        self.converters = {f.name: constrained(f, converter(f.annotation)) for f in fields}
        self.fallbacks = {f.name: x for f in fields if (x := fallback(f)) is not MISSING}

    @classmethod
    def of(cls, signature: Signature) -> Outputs:
        """Those of the signature, made once."""
        made: Outputs = signature.compiled("outputs", cls)
        return made

    def typed(self, found: Mapping[str, Any], reply: str) -> dict[str, Any]:
        """All outputs in the order of the signature.

        Args:
            found: a text, or a value out of JSON, by field. Names of no output are left out.
            reply: what the model said, for the error.

        Raises InvalidOutput: a field is missing that may not be None and has no default, or does not fit its type.
        """
        done: dict[str, Any] = {}
        token = of_reply.set(Work())
        try:
            for name, convert in self.converters.items():
                done[name] = convert(found[name])
        except (KeyError, *REFUSED):
            return self._slowly(found, reply)
        finally:
            of_reply.reset(token)
        return done

    @staticmethod
    def shown(value: Any) -> str:
        """What was found for a field, as an error shows it."""
        return excerpt(value)

    def _slowly(self, found: Mapping[str, Any], reply: str) -> dict[str, Any]:
        done: dict[str, Any] = {}
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
    """The error about a reply, with its beginning."""
    what = excerpt(what, _PROBLEMS, quote=False)
    return InvalidOutput(f"the reply of the model does not fit: {what}. It begins: {excerpt(reply, _REPLY)}")
