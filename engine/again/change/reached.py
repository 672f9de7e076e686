"""How far a change came: whether the run came to the operator, and what that keeps since."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, cast

from dspex.bus.errors import ConfigError, InvalidInput, RunNotFound

SIDES: Final = ("left", "right")
"""What the two of a pair are called, as `join` gives them."""


@dataclass
class Reached:
    """Of the change of one operator.

    Attributes:
        times: how often something was changed. problem: why it could not be.
        woken: the step that is meant was woken by a timer, so that nothing went in.
        keeps: what an operator with state keeps of the key behind the event, as it would be and as it is; None where several
            events were changed, or nothing tells.
    """

    times: int = 0
    problem: InvalidInput | None = None
    keeps: tuple[Any, Any] | None = None
    woken: bool = False

    @property
    def keeps_other(self) -> bool:
        """Whether the operator keeps something else now."""
        return self.keeps is not None and self.keeps[0] != self.keeps[1]

    def merged(self, data: Any, fields: Mapping[str, Any]) -> Any:
        """Data with these fields in the place of its own, counted. Raises InvalidInput."""
        try:
            found = merged(data, fields)
        except InvalidInput as error:
            self.problem = error
            raise
        self.times += 1
        return found

    def add(self, other: Reached) -> None:
        """What came of it elsewhere, too."""
        self.times, self.woken = self.times + other.times, self.woken or other.woken
        self.problem = self.problem or other.problem

    def check(self, run: str, node: str, what: str) -> None:
        """Raise ConfigError (DX105) where it could not be made, RunNotFound where nothing was there to be changed.

        `what`: "inputs" or "outputs".
        """
        if self.problem is not None:
            raise ConfigError(f"{node}: {self.problem.message}", code="DX105", fix=self.problem.fix or "see dspex runs show")
        if self.times:
            return
        if what == "inputs" and self.woken:
            why = f"{node} was woken by a timer in run {run}, so that nothing went in"
            raise RunNotFound(why, run=run, fix="change what it gives then: --set k=v")
        if what == "inputs":
            raise RunNotFound(f"the event of run {run} did not come to {node}", run=run, fix="see dspex runs show")
        fix = "change what goes in (--input); what a window or a batch gives is known once it has closed"
        raise RunNotFound(f"{node} gave nothing in run {run} that can be changed", run=run, fix=fix)


def merged(data: Any, fields: Mapping[str, Any]) -> Any:
    """Data with these fields in the place of its own. Raises InvalidInput where it has none, or they do not fit its type.

    Of a pair they are called `left.FIELD` and `right.FIELD`, of a list `0.FIELD` and so on.
    """
    if isinstance(data, (tuple, list)):
        return _merged_items(cast("Sequence[Any]", data), fields)
    try:
        if isinstance(data, Mapping):
            return {**data, **fields}
        if (copied := getattr(data, "model_copy", None)) is not None:
            return type(data).model_validate({**copied().model_dump(), **fields})
        if hasattr(data, "__dataclass_fields__"):
            return replace(data, **fields)
    except (ValueError, TypeError) as error:  # of the type's own: ValidationError is a ValueError
        said = " ".join(str(error).split())
        raise InvalidInput(f"it does not fit {type(data).__name__}: {said}", fix="as the type has it: k:=JSON") from error
    raise InvalidInput(f"its data is {type(data).__name__}, and has no fields to change", fix="fork it at another operator")


def _merged_items(data: Sequence[Any], fields: Mapping[str, Any]) -> Sequence[Any]:
    names: Sequence[str] = SIDES if len(data) == len(SIDES) else [str(at) for at in range(len(data))]
    changed = list(data)
    for name, value in fields.items():
        item, mark, field = name.partition(".")
        at = names.index(item) if item in names else int(item) if item.isdecimal() else len(data)
        if not mark or at >= len(data):
            fix = f"{names[0]}.FIELD to {names[-1]}.FIELD" if data else "fork it at another operator"
            raise InvalidInput(f"its data is a list of {len(data)}, and has no {name!r}", fix=fix)
        changed[at] = merged(changed[at], {field: value})
    return tuple(changed) if isinstance(data, tuple) else changed
