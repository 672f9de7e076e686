"""Kinds of parameters that are plain values: they read nothing and hold no code."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar, cast, get_args

from dspex.bus.errors import ConfigError, TopologyError
from dspex.bus.settings.duration import seconds
from dspex.bus.settings.not_built import TOPOLOGY_CODE
from dspex.operators.native.fields.fields import JsonSchema
from dspex.operators.native.problems import problem, wrong
from dspex.operators.parameters.parameter import Arguments, Parameter
from dspex.operators.typing.shape import Shape
from dspex.operators.typing.stream_checks import wrong_field

TEXT: JsonSchema = {"type": "string"}


@dataclass(frozen=True)
class TextParameter(Parameter):
    """A text that is not empty. `fix`: what to write, for the message."""

    _: KW_ONLY
    fix: str = "a text"

    @property
    def kind(self) -> str:
        return self.fix

    def check(self, name: str, value: object) -> object:
        if value is not self.default and (not isinstance(value, str) or not value):
            raise wrong(name, value, self.fix)
        return value

    def schema(self) -> JsonSchema:
        return dict(TEXT)


@dataclass(frozen=True)
class FieldNameParameter(TextParameter):
    """The name of a field. `holds`: the type that this field of the stream must have; None for a field that is written."""

    _: KW_ONLY
    fix: str = "the name of a field"
    holds: type | None = None

    def misfits(self, operator: str, value: object, shape: Shape, others: Arguments) -> Iterator[TopologyError]:
        if self.holds is not None:
            yield from wrong_field(str(value), self.holds, operator, shape)


@dataclass(frozen=True)
class FieldNamesParameter(Parameter):
    """Names of fields that the stream has. Checked, they are a tuple."""

    noun: ClassVar[str] = 'names of fields: `["amount", "customer"]`'
    form: ClassVar[JsonSchema] = {"type": "array", "items": TEXT, "minItems": 1}

    def check(self, name: str, value: object) -> object:
        names = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else []
        if not names or not all(isinstance(n, str) and n for n in names):
            raise wrong(name, value, f'a list of fields: {name}=["amount"]')
        return tuple(names)

    def plain(self, value: object, others: Arguments) -> object:
        return list(cast("Sequence[object]", value))

    def misfits(self, operator: str, value: object, shape: Shape, others: Arguments) -> Iterator[TopologyError]:
        for field in cast("Sequence[str]", value):
            yield from wrong_field(field, object, operator, shape)


@dataclass(frozen=True)
class IntegerParameter(Parameter):
    """A whole number from `least` to `most`."""

    _: KW_ONLY
    least: int = 1
    most: int | None = None

    @property
    def kind(self) -> str:
        return f"a whole number from {self.least}" + ("" if self.most is None else f" to {self.most}")

    def check(self, name: str, value: object) -> object:
        if not isinstance(value, int) or isinstance(value, bool) or not self.least <= value <= (self.most or value):
            raise wrong(name, value, self.kind)
        return value

    def schema(self) -> JsonSchema:
        return {"type": "integer", "minimum": self.least} | ({} if self.most is None else {"maximum": self.most})


@dataclass(frozen=True)
class BooleanParameter(Parameter):
    """Yes or no."""

    noun: ClassVar[str] = "`true` or `false`"
    form: ClassVar[JsonSchema] = {"type": "boolean"}

    def check(self, name: str, value: object) -> object:
        if not isinstance(value, bool):
            raise wrong(name, value, "True or False")
        return value


@dataclass(frozen=True)
class DurationParameter(Parameter):
    """A duration; checked, it is in seconds. `zero`: whether it may be 0."""

    _: KW_ONLY
    zero: bool = True

    noun: ClassVar[str] = '`"10s"`, `"1m30s"`, or seconds'
    form: ClassVar[JsonSchema] = {"type": ["string", "number"], "description": '"10s", "1m30s", or seconds'}

    def check(self, name: str, value: object) -> object:
        return in_seconds(name, value, zero=self.zero)


def in_seconds(name: str, value: Any, *, zero: bool = True) -> int | float:
    """A duration in seconds, whole where it is. Raises TopologyError (DX205)."""
    try:
        found = seconds(value)
    except ConfigError as e:
        raise wrong(name, value, e.fix) from e
    if found == 0 and not zero:
        raise wrong(name, value, "more than 0")
    return int(found) if found.is_integer() else found


@dataclass(frozen=True)
class ChoiceParameter(Parameter):
    """One of a few words. `of`: the Literal that lists them. `not_built`: words that are documented and do nothing yet."""

    _: KW_ONLY
    of: object = None
    not_built: tuple[str, ...] = ()

    @property
    def words(self) -> tuple[str, ...]:
        return get_args(self.of)

    @property
    def kind(self) -> str:
        return ", ".join(f'`"{w}"`' for w in self.words)

    def check(self, name: str, value: object) -> object:
        if value not in self.words:
            fix = f"one of: {', '.join(self.words)}"
            if value in self.not_built:
                raise problem(TOPOLOGY_CODE, f"{name}={value!r} is not built in this version", fix)
            raise wrong(name, value, fix)
        return value

    def schema(self) -> JsonSchema:
        return {"enum": list(self.words)}


@dataclass(frozen=True)
class NothingParameter(Parameter):
    """No argument at all; YAML writes `{}`."""

    noun: ClassVar[str] = "nothing: `{}` in YAML"
    form: ClassVar[JsonSchema] = {"type": "object", "maxProperties": 0}

    def check(self, name: str, value: object) -> object:
        if value not in (None, True) and value != {}:
            raise wrong(name, value, f"it takes nothing, {name}: {{}}; options stand beside it: {name}: {{}}, name: value")
        return value

    def plain(self, value: object, others: Arguments) -> object:
        return {}


def mapping(value: object) -> Mapping[str, Any] | None:
    """The value where it is a mapping."""
    return value if isinstance(value, Mapping) else None  # pyright: ignore[reportUnknownVariableType]
