"""One field of a signature, as everything in this room sees it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, Literal

Role = Literal["input", "output"]
Side = Literal["inputs", "outputs"]
NOTHING: Mapping[str, Any] = MappingProxyType({})

# where DSPy cuts a name into words: before a capital and its small letters, between small and capital, around digits
_CUTS = (
    ("(.)([A-Z][a-z]+)", r"\1_\2"),
    ("([a-z0-9])([A-Z])", r"\1_\2"),
    (r"([a-zA-Z])(\d)", r"\1_\2"),
    (r"(\d)([a-zA-Z])", r"\1_\2"),
)


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
        default: what a missing field becomes; MISSING for none.
        limits: the constraints in words, as a prompt shows them; "" where it shows none: DSPy does for class forms only.
        own_prefix: the prefix that a class form gave; "" for the one that DSPy makes of the name.
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
    limits: str = ""
    own_prefix: str = field(default="", repr=False)

    @property
    def text(self) -> str:
        """As a signature writes it: `name: type`, or `name`."""
        return f"{self.name}: {self.type}" if self.typed else self.name

    @property
    def prefix(self) -> str:
        """What DSPy calls the field in stored programs: `Text 2 Number:` for `text2number`. No prompt shows it."""
        return self.own_prefix or infer_prefix(self.name) + ":"


def infer_prefix(name: str) -> str:
    """A name as words: `HTMLParser` is "HTML Parser"."""
    for cut, between in _CUTS:
        name = re.sub(cut, between, name)
    return " ".join(w if w.isupper() else w.capitalize() for w in name.split("_"))
