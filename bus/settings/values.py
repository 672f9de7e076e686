"""Values of settings as they are written, and as they are kept: durations in seconds, sizes in bytes."""

from __future__ import annotations

import re
from functools import partial
from typing import Annotated, Final, Literal, Self, TypeAlias, TypeVar, cast, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from dspex.bus import subjects
from dspex.bus.errors import ConfigError
from dspex.bus.records import MOST_PROCESSES
from dspex.bus.settings import duration
from dspex.bus.settings.log_levels import log_levels
from dspex.bus.settings.not_built import CODE

T = TypeVar("T")
SHORTEST: Final = 0.001  # seconds: what is shorter is a mistake, and nobody measures it


def custom_error(e: ConfigError) -> PydanticCustomError:
    """The error as pydantic collects it, with our code and fix."""
    return PydanticCustomError("dspex", "{message}", {"message": e.message, "code": e.code, "fix": e.fix})


def _seconds(value: object) -> float:
    if isinstance(value, str) and re.fullmatch(r"\d+(\.\d+)?", value):
        value = float(value)  # a number that came as text, as every variable does
    try:
        return duration.seconds(cast("duration.Duration", value))  # raises for what is none
    except ConfigError as e:
        raise custom_error(e) from None


def _positive(value: object) -> float:
    found = _seconds(value)
    if found == 0:
        e = ConfigError("must be more than 0", code="DX102", fix='write "10s", "1m" or seconds')
        raise custom_error(e)
    if found < SHORTEST:
        raise custom_error(ConfigError("is less than a millisecond", code="DX102", fix='write "10ms", "10s" or seconds'))
    return found


def _size(value: object) -> int:
    try:
        return duration.size(cast("str | int", value))  # raises for what is none
    except ConfigError as e:
        raise custom_error(e) from None


def _positive_size(value: object) -> int:
    found = _size(value)
    if found == 0:
        raise custom_error(ConfigError("must be more than 0", code="DX103", fix='write "512MiB", or leave it out for no limit'))
    return found


def _rate(value: object, money: bool) -> str:
    try:
        much, _ = duration.rate(cast("str", value), money=money)  # raises for what is none
    except ConfigError as e:
        raise custom_error(e) from None
    _one_fits(much, money)
    return str(value)


def _amount(value: object, money: bool) -> float:
    try:
        much = duration.amount(cast("str | float", value), money=money)  # raises for what is none
    except ConfigError as e:
        raise custom_error(e) from None
    return _one_fits(much, money)


def _one_fits(much: float, money: bool) -> float:
    if much < 1 and not money:
        said = "is less than one, so no call would ever be made"
        raise custom_error(ConfigError(said, code="DX105", fix='write 1 at least, in a longer time: "30/h"'))
    return much


def least(number: float, why: str) -> AfterValidator:
    """A setting that is so much at least."""
    return AfterValidator(partial(_within, number, None, why))


def most(number: float, why: str) -> AfterValidator:
    """A setting that is so much at most."""
    return AfterValidator(partial(_within, None, number, why))


def _within(low: float | None, high: float | None, why: str, value: T) -> T:
    number = cast("float | None", value)
    if number is not None and low is not None and number < low:
        raise custom_error(ConfigError(f"{number:,} is too little: {why}", code="DX105", fix=f"write {low:,} or more"))
    if number is not None and high is not None and number > high:
        raise custom_error(ConfigError(f"{number:,} is too much: {why}", code="DX105", fix=f"write {high:,} or less"))
    return value


def _name(value: str) -> str:
    if not re.fullmatch(r"\S{1,100}", value):
        raise custom_error(
            ConfigError(f"{value[:100]!r} is no name", code="DX105", fix="write 1 to 100 characters without spaces")
        )
    return value


def _pattern(value: str) -> str:
    module, colon, name = value.partition(":")
    if not (module and colon and name) or ":" in name or any(map(str.isspace, value)):
        said = f"{value!r} names no program"
        raise custom_error(ConfigError(said, code="DX105", fix='write "module:name", or "module:*" for all of a module'))
    return value


def _log(value: object) -> str:
    try:
        log_levels(str(value))
    except ConfigError as e:
        raise custom_error(e) from None
    return str(value)


def host_port(text: str) -> tuple[str, int]:
    """Where to listen: "127.0.0.1:9464", or ":9464" for all addresses of this machine. Raises ConfigError (DX105)."""
    host, _, port = text.rpartition(":")
    if not (port.isascii() and port.isdigit() and 0 < int(port) < 1 << 16):
        raise ConfigError(f"{text!r} is no address to listen on", code="DX105", fix='":9464", or "127.0.0.1:9464"')
    return host.strip("[]") or "0.0.0.0", int(port)


def _host_port(value: object) -> str:
    try:
        host_port(str(value))
    except ConfigError as e:
        raise custom_error(e) from None
    return str(value)


def without_effect(name: str, why: str) -> PydanticCustomError:
    """The error for a setting that would be accepted and ignored."""
    return custom_error(ConfigError(f"{name} has no effect here: {why}", code=CODE, fix=f"leave {name} out"))


def _environment(value: dict[str, str]) -> dict[str, str]:
    for name, text in value.items():
        if not name or "=" in name or "\0" in name + text:
            said = f"no process can be given the variable {name!r}: a name has no '=', and nothing in it is a NUL"
            raise custom_error(ConfigError(said, code="DX105", fix='write NAME = "value"'))
    return value


def _app(value: object) -> str:
    try:
        return subjects.application(str(value))
    except ConfigError as e:
        raise custom_error(e) from None


def _pool(value: object) -> str:
    try:
        return subjects.token(str(value), "pool")
    except ConfigError as e:
        raise custom_error(e) from None


def interval(value: object) -> float | Literal["always"]:
    """Seconds, more than 0, or "always"."""
    return "always" if value == "always" else _positive(value)


def number(value: object) -> object:
    """A whole number that came as text, as every variable does; anything else is left as it is."""
    return int(value) if isinstance(value, str) and re.fullmatch("[0-9]{1,9}", value) else value


def listed(value: object) -> object:
    """`a,b` from a variable as a list; anything but text is left as it is."""
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


Seconds: TypeAlias = Annotated[float, BeforeValidator(_seconds)]
PositiveSeconds: TypeAlias = Annotated[float, BeforeValidator(_positive)]
Size: TypeAlias = Annotated[int, BeforeValidator(_size)]
PositiveSize: TypeAlias = Annotated[int, BeforeValidator(_positive_size)]
Rate: TypeAlias = Annotated[str, BeforeValidator(lambda value: _rate(value, money=False))]
"""An amount in a time, as `duration.rate` reads it."""
MoneyRate: TypeAlias = Annotated[str, BeforeValidator(lambda value: _rate(value, money=True))]
Amount: TypeAlias = Annotated[float, BeforeValidator(lambda value: _amount(value, money=False))]
Money: TypeAlias = Annotated[float, BeforeValidator(lambda value: _amount(value, money=True))]
LogLevels: TypeAlias = Annotated[str, BeforeValidator(_log)]
HostPort: TypeAlias = Annotated[str, BeforeValidator(_host_port)]
"""As `host_port` reads it."""
AppName: TypeAlias = Annotated[str, BeforeValidator(_app)]
PoolName: TypeAlias = Annotated[str, BeforeValidator(_pool)]
NotEmpty: TypeAlias = Annotated[str, Field(min_length=1)]
Environment: TypeAlias = Annotated[dict[str, str], AfterValidator(_environment)]
Variables: TypeAlias = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*(,[A-Za-z_][A-Za-z0-9_]*)*$")]
"""Names of variables, with commas between them."""
Texts: TypeAlias = Annotated[tuple[NotEmpty, ...], BeforeValidator(listed)]
ProgramPatterns: TypeAlias = Annotated[tuple[Annotated[str, AfterValidator(_pattern)], ...], BeforeValidator(listed)]
"""Patterns of refs, as `refs.allows` reads them."""
ProfileName: TypeAlias = Annotated[str, AfterValidator(_name)]
"""Of a language model, or of a budget."""


class SettingsTable(BaseModel):
    """A table of the file: unknown keys are errors, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_values(cls, value: object, info: ValidationInfo) -> object:
        """Pydantic takes `size = true` for 1."""
        declared = cls.model_fields[info.field_name or ""].annotation
        if declared is bool or bool in get_args(declared):
            return value
        if isinstance(value, bool) or (
            isinstance(value, list) and any(isinstance(v, bool) for v in cast("list[object]", value))
        ):
            raise ValueError("this setting is not true or false")
        return value


class ScaleSettings(SettingsTable):
    """The size of a pool follows its backlog: `min` to `max` processes, on all machines together. It shrinks when less was
    enough for `cooldown` seconds.
    """

    min: Annotated[int, Field(ge=0)] = 1
    max: Annotated[int, Field(ge=1), most(MOST_PROCESSES, "a pool has no more workers, on all machines together")]
    cooldown: PositiveSeconds = 60.0

    @model_validator(mode="after")
    def _least_is_not_over_most(self) -> Self:
        if self.min > self.max:
            said = f"min, {self.min}, is more than max, {self.max}"
            raise custom_error(ConfigError(said, code="DX105", fix="lower min, or raise max"))
        return self
