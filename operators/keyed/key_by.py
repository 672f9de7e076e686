"""key_by: events of one key go on in one partition, one after another."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from dspex.bus.errors import InvalidInput
from dspex.engine.graph.nodes import Hop
from dspex.operators.expressions.predicate import predicate
from dspex.operators.operator import Operator
from dspex.operators.parameters import TestParameter

MOST: Final = 512  # characters of a key: it stands in the headers of all that follows
_LAST: Final = re.compile(r"[a-z][a-z0-9_-]*\Z")


@dataclass(frozen=True)
class KeyParameter(TestParameter):
    """What gives the key of an event: as a test, but for what it gives and for the name."""

    noun: ClassVar[str] = "an expression, or a function of the data, that gives a text"

    def automatic_name(self, value: object, operator: str) -> str:
        """`by_<field>`. A function's key has none: where events lie depends on it, so it must be given."""
        last = _LAST.search(value) if isinstance(value, str) else None
        return f"by_{last[0]}" if last else "by_key" if isinstance(value, str) else ""


def key_text(found: object, operator: str) -> str:
    """What an operator was given as a key. Raises InvalidInput for what is none."""
    if not isinstance(found, str):
        raise InvalidInput(
            f"a key is a text, and this one is {type(found).__name__}", fix=f'make it one: {operator}("str(order)")'
        )
    if not found or len(found) > MOST or not found.isprintable():
        what = f"{len(found):,} characters" if len(found) > MOST else repr(found)
        why = f"a key has 1 to {MOST} printable characters, and this one is {what}"
        raise InvalidInput(why, fix="filter such events out before, or give them another key")
    return str(found)


def build(key: str | Callable[[Any], Any]) -> Hop:
    """Where events of a key go on."""
    function, with_context = predicate(key, "key_by")

    def key_of(data: Any, ctx: Any) -> str:
        found = function(data, ctx) if with_context else function(data)
        return key_text(found, "key_by")

    return Hop(key_of)


OPERATOR = Operator("key_by", main=KeyParameter(), build=build)
