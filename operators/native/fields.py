"""One field of a signature, as everything in this room sees it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, Literal

Role = Literal["input", "output"]
Side = Literal["inputs", "outputs"]
NOTHING: Mapping[str, Any] = MappingProxyType({})


class Missing:
    """Stands for "has no default"; None is a default."""

    def __repr__(self) -> str:
        return "MISSING"


MISSING: Final = Missing()


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a signature.

    Attributes:
        name: a Python name. role: "input" or "output".
        type: as written ("str" where the text has none); with `Annotated[…]` around it where there are constraints.
        description: for the model; "" for none.
        constraints: of pydantic (`ge`, `max_length`, …), enforced on outputs, unlike in DSPy.
        required: None will not do, and there is no default.
        annotation: the type as an object; without constraints.
        typed: False where the text gave no type.
        default: what a missing output becomes; MISSING for none.
    """

    name: str
    role: Role
    type: str
    description: str = ""
    constraints: Mapping[str, Any] = field(default_factory=lambda: NOTHING)
    required: bool = True
    annotation: Any = field(default=str, compare=False, repr=False)
    typed: bool = True
    default: Any = field(default=MISSING, repr=False)

    @property
    def text(self) -> str:
        """As a signature writes it: `name: type`, or `name`."""
        return f"{self.name}: {self.type}" if self.typed else self.name
