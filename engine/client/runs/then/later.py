"""What a fork has led to in other runs, as its file keeps it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from dspex.bus.codecs.checking import checked
from dspex.engine.client.runs.judged.beside import change

_WHAT: Final = "what follows in other runs"
_MOST: Final = 20  # differences that are printed


class LaterDiff(NamedTuple):
    """Something that another run gives otherwise. `step`: a subject, an operator that calls, or a letter. Else as StepDiff."""

    run: str
    step: str
    field: str | None
    a: Any
    b: Any


class LaterOutput(NamedTuple):
    """What another run would send to a sink, and has not sent."""

    run: str
    subject: str
    data: Any


@dataclass(frozen=True)
class Later:
    """What follows in other runs, with everything else as it is recorded.

    `open`: what is not known of it, such as answers that nobody gave, and what is not as it was at the end of the log. None:
    behind it all is as it was. `outputs`: what is delivered of it.
    """

    diffs: tuple[LaterDiff, ...] = ()
    open: tuple[str, ...] = ()
    outputs: tuple[LaterOutput, ...] = ()

    def lines(self) -> Iterator[str]:
        """As people read it."""
        if self.diffs:
            yield "later, in other runs:"
        for one in self.diffs[:_MOST]:
            what = f"{one.step} {one.field}" if one.field is not None else one.step
            yield f"     …{one.run[-8:]}  {what:<16} {change(one.a, one.b)}"
        if len(self.diffs) > _MOST:
            yield f"     … and {len(self.diffs) - _MOST:,} more"
        yield from (f"later: {why}" for why in self.open)

    def as_dict(self) -> dict[str, Any]:
        """As `--json` has it."""
        return {"diffs": [one._asdict() for one in self.diffs], "open": list(self.open)}

    def row(self) -> dict[str, Any]:
        """As a file has it."""
        return {**self.as_dict(), "outputs": [one._asdict() for one in self.outputs]}

    @classmethod
    def read(cls, row: Any) -> Later:
        """That of a file. Raises DecodeError, TypeError."""
        said = checked(dict[str, list[Any]], _WHAT, row)
        diffs, open, outputs = (said.get(name, []) for name in ("diffs", "open", "outputs"))
        texts = tuple(checked(list[str], _WHAT, open))
        return cls(tuple(checked(list[LaterDiff], _WHAT, diffs)), texts, tuple(checked(list[LaterOutput], _WHAT, outputs)))
