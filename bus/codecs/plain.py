"""What JSON and MessagePack share: how a value becomes plain data, and what is wrong with one that cannot.

Both convert in the same way what is not plain data by nature: models, dataclasses, named tuples and other mappings become
maps; sets become sorted lists (an unsorted one would differ from process to process, and a replay from its run); times are
RFC 3339 text, UTC where they name no zone; enums are their values; a timedelta is seconds; Decimal, UUID and paths are text.
Bytes stay bytes in MessagePack and are refused in JSON.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import math
import uuid
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from decimal import Decimal
from enum import Enum
from pathlib import PurePath
from typing import Any, cast

import orjson

from dspex.bus.codecs import arrow, media
from dspex.bus.errors import InvalidInput

OPTIONS = orjson.OPT_NAIVE_UTC | orjson.OPT_PASSTHROUGH_DATACLASS  # natively it would write cached properties too
EXCERPT = 30  # bytes or characters of broken data that an error shows
INTEGERS = range(-(1 << 63), 1 << 64)


def simpler(value: Any) -> object:
    """`value` one step nearer to plain data. Raises TypeError where there is no such step."""
    if hasattr(type(value), "model_dump"):  # pydantic; importing it to find out would cost every process 50 ms
        return _whole(value, media.model_step(value)) if KEEPS_MORE else media.model_step(value)
    if isinstance(value, Enum):
        return value.value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if isinstance(value, (dt.datetime, dt.date, dt.time, uuid.UUID)):
        return orjson.dumps(value, option=OPTIONS).decode().strip('"')
    if isinstance(value, dt.timedelta):
        return value.total_seconds()
    if isinstance(value, (Decimal, PurePath)):
        return str(value)
    if isinstance(value, tuple):
        names: tuple[str, ...] | None = getattr(value, "_fields", None)  # of a named tuple
        return dict(zip(names, value)) if names else list(value)
    if isinstance(value, AbstractSet):
        return _sorted(value)
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, (bytearray, memoryview)):
        return bytes(value)
    return _base(value)


KEEPS_MORE: set[object] = set()
"""Types with whose values fields are kept that they do not name: pydantic leaves those out again when it writes a model."""


def _whole(value: Any, dumped: Any) -> Any:
    """What pydantic wrote of a value, with the fields that its types do not name."""
    if isinstance(dumped, dict) and hasattr(type(value), "model_dump"):
        named = {name: _whole(value.__dict__[name], item) for name, item in dumped.items() if name in value.__dict__}
        return {**dumped, **named, **(value.__pydantic_extra__ or {})}
    if isinstance(dumped, (list, tuple)) and isinstance(value, (list, tuple)) and len(dumped) == len(value):
        return [_whole(v, d) for v, d in zip(value, dumped)]
    if isinstance(dumped, dict) and isinstance(value, dict) and dumped.keys() == value.keys():
        return {key: _whole(value[key], item) for key, item in dumped.items()}
    return dumped


def _base(value: Any) -> object:
    """A value of a type made from str, int, float or list as that, and one of NumPy's as Python's own."""
    if arrow.is_numpy(value):
        return value.tolist()
    kinds: tuple[Callable[[Any], object], ...] = (str, int, float, list)
    for kind in kinds:
        if kind in type(value).__mro__[1:]:
            return kind(value)
    raise TypeError(f"{type(value).__name__} cannot be encoded")


def _sorted(values: AbstractSet[Any]) -> list[object]:
    if not any(map(_holds_set, values)):
        try:
            return sorted(values)
        except TypeError:  # of several types
            pass
    return sorted(values, key=lambda v: (type(v).__name__, repr(_ordered(v))))


def _holds_set(value: object) -> bool:
    """Sets compare as subsets, so that sorting a set of sets leaves it as it was, and says nothing."""
    return isinstance(value, AbstractSet) or (isinstance(value, tuple) and any(map(_holds_set, value)))


def _ordered(value: Any) -> object:
    """`value` as something of which the text is the same in every process."""
    if isinstance(value, AbstractSet):
        return _sorted(value)
    if isinstance(value, (list, tuple)):
        return [_ordered(v) for v in value]
    if isinstance(value, dict):
        return {key: _ordered(v) for key, v in value.items()}
    try:
        return value if isinstance(value, (str, int, float, bytes, type(None))) else _ordered(simpler(value))
    except TypeError:
        return type(value).__name__  # it cannot be encoded, which is said later


def _plain(value: Any, path: str, binary: bool) -> object:
    """`value` as plain data, in which everything can be encoded. Raises InvalidInput naming the place of what cannot.

    It is slow, and used only to find out what is wrong, or for keys that are not text.
    """
    kind = type(value)
    if value is None or kind is bool or (kind is bytes and binary):
        return value
    if kind is str:
        return _text(value, path)
    if kind is int:
        if value not in INTEGERS:
            raise InvalidInput(
                f"{path} is an int of {value.bit_length() + (value < 0)} bits: an integer has 64 at most",
                fix="write it as text",
            )
        return value
    if kind is float:
        if not binary and not math.isfinite(value):
            raise InvalidInput(f"{path} is {value}, and JSON has no such number", fix='write None, or use codec="msgpack"')
        return value
    if kind is dict:
        return _plain_map(value, path, binary)
    if kind is list:
        return [_plain(v, f"{path}[{i}]", binary) for i, v in enumerate(value)]
    if kind is bytes:
        raise InvalidInput(f"{path} is bytes, and JSON has none", fix='use codec="msgpack" or "auto", or write it as text')
    try:
        step = simpler(value)
    except TypeError as e:
        fix = "make it a dict, a dataclass or a pydantic model, or register_codec(..., types=[...])"
        raise InvalidInput(f"{path} is a {kind.__name__}, which cannot be encoded", fix=fix) from e
    return _plain(step, path, binary)


def _plain_map(value: Mapping[object, object], path: str, binary: bool) -> dict[str, object]:
    result = {_key(k, path): _plain(v, f"{path}.{k}", binary) for k, v in value.items()}
    if len(result) < len(value):
        raise InvalidInput(f"{path} has two keys that are the same as text", fix="use keys of one type")
    return result


def _key(key: object, path: str) -> str:
    """A key as text, as JSON writes the value: 1, true, 2026-01-01."""
    if type(key) is str:
        return _text(key, path)
    simple = _plain(key, f"a key of {path}", binary=False)
    return simple if isinstance(simple, str) else orjson.dumps(simple).decode()


def _text(value: str, path: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError as e:
        raise InvalidInput(f"{path} is not valid text: {e.reason}", fix="clean it, or send it as bytes") from e
    return value


def checked(data: object, binary: bool, name: str = "data") -> object:
    """The data as plain data, in which everything can be encoded. Raises InvalidInput naming the place of what cannot."""
    try:
        return _plain(data, name, binary)
    except RecursionError as e:
        raise InvalidInput(f"{name} is nested too deeply, or contains itself", fix="make it flatter") from e


def unwritable(value: object, path: str) -> str | None:
    """Why plain data cannot be written as JSON, but for bytes; None where it can."""
    if isinstance(value, float) and not math.isfinite(value):
        return f"{path} is {value}, and JSON has no such number"
    if isinstance(value, (list, tuple)):
        inner = (unwritable(one, f"{path}[{n}]") for n, one in enumerate(cast("Sequence[object]", value)))
        return next(filter(None, inner), None)
    if not isinstance(value, dict):
        return None
    items = cast("dict[object, object]", value)
    if (wrong := next((key for key in items if not isinstance(key, str)), None)) is not None or None in items:
        return f"{path} has the key {wrong!r}, which is no text"
    return next(filter(None, (unwritable(one, f"{path}.{key}") for key, one in items.items())), None)


def check_writable(data: object, name: str) -> None:
    """Raise InvalidInput for plain data with NaN, or with a key that is no text: it can be sent, and few can read it."""
    if (why := unwritable(data, name)) is not None:
        raise InvalidInput(why, fix="write it as text, or None")


def finite(value: Any) -> bool:
    """Whether `value` surely holds no NaN or Infinity; False where only `checked` can say."""
    kind = type(value)
    if kind is str or kind is int or value is None or kind is bool or kind is dt.datetime:
        return True
    if kind is float:
        return math.isfinite(value)
    if kind is dict:
        return all(map(finite, value.values()))
    return kind is list and all(map(finite, value))
