"""How far a change came: whether the run came to the operator, and what that keeps since."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from dspex.bus.errors import ConfigError, InvalidInput, RunNotFound


@dataclass
class Reached:
    """Of the change of one operator.

    Attributes:
        times: how often something was changed. problem: why it could not be.
        keeps: what an operator with state keeps of the key behind the event, as it would be and as it is; None where several
            events were changed, or nothing tells.
    """

    times: int = 0
    problem: InvalidInput | None = None
    keeps: tuple[Any, Any] | None = None

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

    def check(self, run: str, node: str, what: str) -> None:
        """Raise ConfigError (DX105) where it could not be made, RunNotFound where nothing was there to be changed.

        `what`: "inputs" or "outputs".
        """
        if self.problem is not None:
            raise ConfigError(f"{node}: {self.problem.message}", code="DX105", fix=self.problem.fix or "see dspex runs show")
        if self.times:
            return
        if what == "inputs":
            raise RunNotFound(f"the event of run {run} did not come to {node}", run=run, fix="see dspex runs show")
        fix = "change what goes in (--input): what a window or a batch gives comes of many events, and is none of their runs"
        raise RunNotFound(f"{node} gave nothing in run {run} that can be changed", run=run, fix=fix)


def merged(data: Any, fields: Mapping[str, Any]) -> Any:
    """Data with these fields in the place of its own. Raises InvalidInput where it has none, or they do not fit its type."""
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
