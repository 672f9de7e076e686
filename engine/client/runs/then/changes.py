"""The changes of the forks that a run comes from: whoever does it again makes them again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal, NamedTuple

CODE: Final = "code"


class KeptChange(NamedTuple):
    """A change. What was changed of the event, or decided, stands in the run itself, and is none of these.

    Attributes:
        node: where; `ordinal`: in that step of a native operator; `asked`: in the calls that were asked this. None: in all.
        key: of a native operator behind a hop, whose steps `ordinal` counts; None: those of all keys.
        what: a profile, a saved state, what goes in, what comes out; or other code, which is not kept. value: the new one.
    """

    node: str
    ordinal: int | None
    asked: dict[str, Any] | None
    what: Literal["lm", "program", "inputs", "outputs", "code"]
    value: str | dict[str, Any] | None
    key: str | None = None

    @property
    def given(self) -> Mapping[str, Any]:
        """As an argument of a fork."""
        return {self.what: self.value}
