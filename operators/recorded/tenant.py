"""The option `tenant`: on whose behalf a call is made, as an expression over the data."""

from __future__ import annotations

from collections.abc import Callable

from dspex.bus.errors import InvalidInput
from dspex.operators.expressions import language as expressions

MOST_TENANT = 200  # characters of the name of a tenant


def tenant_of(text: str | None) -> Callable[[object], str | None] | None:
    """data → on whose behalf. Raises InvalidInput, ExpressionError."""
    if text is None:
        return None
    read = expressions.compile(text).function

    def tenant(data: object) -> str | None:
        found = read(data)
        if found is None or isinstance(found, str):
            said: str | None = found
        elif isinstance(found, int) and not isinstance(found, bool):
            said = str(found)
        else:
            raise InvalidInput(f"tenant is a text or a whole number, and {text!r} gives {type(found).__name__}")
        if said is not None and not 0 < len(said) <= MOST_TENANT:
            raise InvalidInput(f"tenant has {len(said):,} characters, of which 1 to {MOST_TENANT} are allowed")
        return said

    return tenant
