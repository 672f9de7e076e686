"""What an operator takes, declared once: a parameter is of a kind, and the kind knows everything about such values.

The checks of a topology, its YAML in both directions, the JSON Schema for editors, the lint and docs/operators.md all ask the
kind. The obvious alternative, a table for each of these purposes, meant that one new option was written in six places.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, TypeAlias

from dspex.bus.errors import TopologyError
from dspex.bus.settings.not_built import TOPOLOGY_CODE
from dspex.operators.native.fields.fields import JsonSchema
from dspex.operators.native.problems import did_you_mean, problem
from dspex.operators.typing.shape import Shape
from dspex.operators.typing.stream_checks import missing_fields

Types: TypeAlias = Mapping[str, Any]
"""The names of `types:` in a YAML file, and what they stand for."""

REQUIRED: Final = object()


class NotGiven(KeyError):
    """An argument is not known, because it was left out or refused; the problem is reported already."""


class Arguments(dict[str, Any]):
    """The arguments of one operator by name, in the form that `build` takes. The main one has the operator's name."""

    def __missing__(self, name: str) -> Any:
        raise NotGiven(name)


@dataclass(frozen=True)
class Parameter:
    """One argument of an operator. Subclasses are the kinds; this one takes anything.

    Attributes:
        default: what it is where it is left out, which YAML and the digest leave out too. REQUIRED: it cannot be left out.
        doc: what it means, for docs/operators.md.
        key: whether it stands in YAML under its name; False where the main argument holds it, or where there is no YAML for it.
        noun: what a value is, for docs/operators.md. form: what YAML may say, as a JSON Schema. A kind whose values depend on
            its own settings overrides `kind` and `schema` instead.
        variadic: whether a main argument of this kind is any number of arguments in Python, and a list in YAML.
    """

    noun: ClassVar[str] = "any value"
    form: ClassVar[JsonSchema] = {}
    variadic: ClassVar[bool] = False
    default: object = REQUIRED
    doc: str = field(default="", kw_only=True)
    key: bool = field(default=True, kw_only=True)

    @property
    def kind(self) -> str:
        """What a value is, for docs/operators.md."""
        return self.noun

    def check(self, name: str, value: object) -> object:
        """The value as `build` takes it. Raises TopologyError where it is wrong. `name`: what the user calls it."""
        return value

    def plain(self, value: object, others: Arguments) -> object:
        """The checked value as plain data: for the digest, for YAML and for `dspex show`. A `Local` where none can say it."""
        return value

    def load(self, name: str, value: object, types: Types, others: MutableMapping[str, object]) -> object:
        """The value as Python code would give it, from what YAML says. Raises TopologyError.

        `others`: the other keys of the node. A kind takes out those that belong to it, and may put in an argument.
        """
        return value

    def schema(self) -> JsonSchema:
        """What YAML may say."""
        return dict(self.form)

    def reads(self, value: object, others: Arguments) -> Iterable[str]:
        """The expressions over the data that it holds."""
        return ()

    def misfits(self, operator: str, value: object, shape: Shape, others: Arguments) -> Iterator[TopologyError]:
        """Every way in which the value does not fit the stream's data, as far as that is known before it runs."""
        for text in self.reads(value, others):
            yield from missing_fields(text, shape)

    def automatic_name(self, value: object, operator: str) -> str:
        """The name of an operator with this main argument, where the user gave none."""
        return operator


def checked(
    parameters: Mapping[str, Parameter],
    given: Mapping[str, object],
    *,
    has: str = "there is",
    options: Iterable[str] | None = None,
    not_built: Iterable[str] = (),
) -> tuple[Arguments, list[TopologyError]]:
    """The given arguments in the form that `build` takes, and what is wrong with the others.

    `has`: how the message about an unknown one begins. `options`: the names that it offers; None: all.
    `not_built`: names that are documented and do nothing yet.
    """
    offered = parameters if options is None else options
    arguments, errors = Arguments(), [unknown(name, offered, has, not_built) for name in given if name not in parameters]
    for name, parameter in parameters.items():
        if name in given:
            left_out = given[name] is None and parameter.default is None  # as who hands on what is the default writes it
            try:
                arguments[name] = None if left_out else parameter.check(name, given[name])
            except TopologyError as e:
                errors.append(e)
    return arguments, errors


def unknown(name: str, known: Iterable[str], has: str = "there is", not_built: Iterable[str] = ()) -> TopologyError:
    """The error for an option that does not exist, or that is not built: accepted and ignored, it would be false safety."""
    if name in not_built:
        return problem(TOPOLOGY_CODE, f"the option {name!r} is not built in this version, and would do nothing", "leave it out")
    return problem("DX204", f"{has} no option {name!r}", did_you_mean(name, known))
