"""One field of a signature, as everything in this room sees it."""

from __future__ import annotations

import re
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, Literal, TypeAlias

Role = Literal["input", "output"]
Side = Literal["inputs", "outputs"]
Annotation: TypeAlias = (
    Any  # a type as an object: a class, `int | None`, `Literal["a"]`. Python has no static type for all of them
)
Values: TypeAlias = dict[str, Any]  # values of fields by name. The signature says their types, which are known at run time only
JsonSchema: TypeAlias = dict[str, Any]  # a JSON Schema, or a part of one
Constraints: TypeAlias = Mapping[str, Any]  # by the name that pydantic gives them: `ge`, `max_length`, `pattern`
get_origin: Callable[[Annotation], Annotation] = typing.get_origin  # mypy cannot choose among its overloads for an Annotation
SECRET: Final = "secret"  # how a field is marked that is never stored in clear text: json_schema_extra={"secret": True}
NOTHING: Mapping[str, Any] = MappingProxyType({})

# Where DSPy splits a name into words: before a capital with lower-case letters, between lower case and capital, around digits.
_CUTS = (
    ("(.)([A-Z][a-z]+)", r"\1_\2"),
    ("([a-z0-9])([A-Z])", r"\1_\2"),
    (r"([a-zA-Z])(\d)", r"\1_\2"),
    (r"(\d)([a-zA-Z])", r"\1_\2"),
)


class Missing:
    """The class of MISSING, which means "has no default": None can be a default."""

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
        required: whether the field must have a value that is not None: it takes no None and has no default.
        annotation: the type as an object, without constraints.
        typed: False where the text gave no type.
        default: the value of a missing field; MISSING for none.
        limits: the constraints as a prompt describes them; "" for none. DSPy describes those of class forms only.
        factory: whether a function makes the default, so that no prompt and no request shows it, as in DSPy.
        secret: what it holds is never stored in clear text, nor shown.
        own_prefix: the prefix that a class form gave; "" for the one that DSPy derives from the name.
    """

    name: str
    role: Role
    type: str
    description: str = ""
    constraints: Constraints = field(default_factory=lambda: NOTHING)
    required: bool = True
    annotation: Annotation = field(default=str, compare=False, repr=False)
    typed: bool = True
    default: object = field(default=MISSING, repr=False)
    limits: str = ""
    own_prefix: str = field(default="", repr=False)
    factory: bool = field(default=False, repr=False)
    secret: bool = False

    @property
    def text(self) -> str:
        """The field as a signature writes it: `name: type`, or `name`."""
        return f"{self.name}: {self.type}" if self.typed else self.name

    @property
    def prefix(self) -> str:
        """The name of the field in programs that DSPy stored: `Text 2 Number:` for `text2number`. No prompt shows it."""
        return self.own_prefix or infer_prefix(self.name) + ":"


def infer_prefix(name: str) -> str:
    """A name split into words: `HTMLParser` is "HTML Parser"."""
    for cut, between in _CUTS:
        name = re.sub(cut, between, name)
    return " ".join(w if w.isupper() else w.capitalize() for w in name.split("_"))
