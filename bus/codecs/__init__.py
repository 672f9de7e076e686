"""Codecs by content type: JSON by default, MessagePack where bytes are, Arrow for arrays and tables. Never pickle.

What is not JSON by nature is converted, the same way for JSON and MessagePack: models, dataclasses, named tuples and other
mappings become maps; sets become sorted lists (an unsorted one would differ from process to process, and a replay from its
run); times are RFC 3339 text, UTC where they name no zone; enums are their values; a timedelta is seconds; Decimal, UUID and
paths are text. Bytes stay bytes in MessagePack and are refused in JSON.

JSON has no NaN and no Infinity (RFC 8259), and orjson would write null for them: a value that changes without a word. So a
result that has `null` in it is looked at again. The search costs about as much as the encoding (0.3 µs for 280 bytes); the
second look costs about five times that, and only data with a None (or the word null in a text) pays for it.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import math
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from decimal import Decimal
from enum import Enum
from pathlib import PurePath
from typing import Any, Final, Literal, NamedTuple, TypeAlias, cast

import msgpack
import orjson

from dspex.bus.codecs import arrow
from dspex.bus.errors import ConfigError, DecodeError, InvalidInput

Codec: TypeAlias = Literal["json", "msgpack", "arrow", "auto"]

__all__ = ["ARROW", "JSON", "MSGPACK", "Codec", "decode", "encode", "register_codec"]  # what `dspex.codecs` has

JSON: Final = "application/json"
MSGPACK: Final = "application/msgpack"
ARROW: Final = "application/vnd.apache.arrow.stream"

_OPTIONS = orjson.OPT_NAIVE_UTC | orjson.OPT_PASSTHROUGH_DATACLASS  # natively it would write cached properties too
_INTEGERS = range(-(1 << 63), 1 << 64)
_EXCERPT = 30  # characters on either side


class _Known(NamedTuple):
    media_type: str
    encode: Callable[[Any], bytes]
    decode: Callable[[bytes], Any]


# -- what becomes of a value -----------------------------------------------------------------------------------------
def _simpler(value: Any) -> Any:
    """`value` one step nearer to plain data. Raises TypeError where there is no such step."""
    if hasattr(type(value), "model_dump"):  # pydantic; importing it to ask would cost every process 50 ms
        return value.model_dump()
    if isinstance(value, Enum):
        return value.value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if isinstance(value, (dt.datetime, dt.date, dt.time, uuid.UUID)):
        return orjson.dumps(value, option=_OPTIONS).decode().strip('"')
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


def _base(value: Any) -> Any:
    """A value of a type made from str, int, float or list as that, and one of NumPy's as Python's own."""
    if arrow.is_numpy(value):
        return value.tolist()
    kinds: tuple[Callable[[Any], Any], ...] = (str, int, float, list)
    for kind in kinds:
        if kind in type(value).__mro__[1:]:
            return kind(value)
    raise TypeError(f"{type(value).__name__} cannot be encoded")


def _sorted(values: AbstractSet[Any]) -> list[Any]:
    try:
        return sorted(values)
    except TypeError:  # of several types
        return sorted(values, key=lambda v: (type(v).__name__, repr(v)))


def _simpler_json(value: Any) -> Any:
    simpler = _simpler(value)
    if isinstance(simpler, bytes):
        raise TypeError("bytes")
    return simpler


def _plain(value: Any, path: str, binary: bool) -> Any:
    """`value` as plain data, in which everything can be encoded. Raises InvalidInput naming the place of what cannot.

    The slow way: taken only to find out what is wrong, or for keys that are not text.
    """
    kind = type(value)
    if value is None or kind is bool or (kind is bytes and binary):
        return value
    if kind is str:
        return _text(value, path)
    if kind is int:
        if value not in _INTEGERS:
            raise InvalidInput(
                f"{path} is an int of {value.bit_length()} bits: an integer has 64 at most", fix="write it as text"
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
        simpler = _simpler(value)
    except TypeError as e:
        fix = "make it a dict, a dataclass or a pydantic model, or register_codec(..., types=[...])"
        raise InvalidInput(f"{path} is a {kind.__name__}, which cannot be encoded", fix=fix) from e
    return _plain(simpler, path, binary)


def _plain_map(value: Mapping[Any, Any], path: str, binary: bool) -> dict[str, Any]:
    result = {_key(k, path): _plain(v, f"{path}.{k}", binary) for k, v in value.items()}
    if len(result) < len(value):
        raise InvalidInput(f"{path} has two keys that are the same as text", fix="use keys of one type")
    return result


def _key(key: Any, path: str) -> str:
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


def _checked(data: Any, binary: bool) -> Any:
    try:
        return _plain(data, "data", binary)
    except RecursionError as e:
        raise InvalidInput("data is nested too deeply, or contains itself", fix="make it flatter") from e


def _finite(value: Any) -> bool:
    """Whether `value` surely holds no NaN or Infinity; False where that takes a closer look."""
    kind = type(value)
    if kind is str or kind is int or value is None or kind is bool:
        return True
    if kind is float:
        return math.isfinite(value)
    if kind is dict:
        return all(map(_finite, value.values()))
    return kind is list and all(map(_finite, value))


# -- JSON ------------------------------------------------------------------------------------------------------------
def json_bytes(data: Any) -> bytes:
    """`data` as JSON. Raises InvalidInput naming the type and the place of what cannot be encoded."""
    try:
        result = orjson.dumps(data, _simpler_json, _OPTIONS)
    except TypeError:
        return _dump_plain(_checked(data, binary=False))
    if result.find(b"null") >= 0 and not _finite(data):
        _checked(data, binary=False)
    return result


def _dump_plain(plain: Any) -> bytes:
    try:
        return orjson.dumps(plain)
    except TypeError as e:
        raise InvalidInput(f"data cannot be written as JSON: {e}", fix="make it flatter") from e


def _load_json(data: bytes) -> Any:
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError as e:
        near = data.decode("utf-8", "replace")[max(e.pos - _EXCERPT, 0) : e.pos + _EXCERPT]
        raise DecodeError(f"not JSON at line {e.lineno}, column {e.colno}: {e.msg}, near {near!r}") from e


# -- MessagePack -----------------------------------------------------------------------------------------------------
def msgpack_bytes(data: Any) -> bytes:
    """`data` as MessagePack. Raises InvalidInput naming the type and the place of what cannot be encoded."""
    try:
        return _pack(data)
    except (TypeError, ValueError, OverflowError):
        plain = _checked(data, binary=True)
    try:
        return _pack(plain)
    except (TypeError, ValueError, OverflowError) as e:
        raise InvalidInput(f"data cannot be written as MessagePack: {e}", fix="make it flatter") from e


def _pack(data: Any) -> bytes:
    # strict: else a named tuple would be packed as a list, and an enum of text by its own str()
    return cast(bytes, msgpack.packb(data, default=_simpler, strict_types=True))


def _load_msgpack(data: bytes) -> Any:
    try:
        return msgpack.unpackb(data, strict_map_key=False, timestamp=3, ext_hook=_no_extension)
    except (ValueError, TypeError, OverflowError, msgpack.exceptions.UnpackException) as e:
        why = f"{type(e).__name__} {e}".strip()
        raise DecodeError(f"not MessagePack: {why}; {len(data)} bytes, beginning {data[:_EXCERPT]!r}") from e


def _no_extension(code: int, data: bytes) -> Any:
    raise ValueError(f"extension type {code} is not known")


# -- by content type -------------------------------------------------------------------------------------------------
_BUILT_IN = {
    JSON: _Known(JSON, json_bytes, _load_json),
    MSGPACK: _Known(MSGPACK, msgpack_bytes, _load_msgpack),
    ARROW: _Known(ARROW, arrow.encode, arrow.decode),
}
_BY_NAME: dict[str, _Known] = {"json": _BUILT_IN[JSON], "msgpack": _BUILT_IN[MSGPACK], "arrow": _BUILT_IN[ARROW]}
_known: dict[str, _Known] = dict(_BUILT_IN)
_of_type: dict[type[Any], _Known] = {}


def register_codec(
    media_type: str,
    *,
    encode: Callable[[Any], bytes],
    decode: Callable[[bytes], Any],
    types: Sequence[type[Any]] = (),
) -> None:
    """Make a content type known, in this process.

    Args:
        media_type: as in the `Content-Type` header; registered again, the later one counts.
        encode, decode: what cannot be encoded or decoded should raise ValueError, TypeError or LookupError.
        types: data of these types (or made from them) is encoded with it, whatever the topology's codec is.

    Raises ConfigError for a content type of dspex's own, or one that is not `type/subtype`.
    """
    name = media_type.strip().lower()
    if name in _BUILT_IN:
        raise ConfigError(f"{name} is built in", code="DX104", fix="register another content type for your own form")
    if name.count("/") != 1 or ";" in name or any(c.isspace() for c in name):
        raise ConfigError(f"{media_type!r} is not a content type", code="DX104", fix="write type/subtype")
    _known[name] = _Known(name, encode, decode)
    _of_type.update(dict.fromkeys(types, _known[name]))


def encode(data: Any, codec: Codec = "json") -> tuple[bytes, str]:
    """`data` as bytes, and their content type.

    `auto` takes Arrow for arrays and tables, MessagePack where there are bytes, else JSON. Raises InvalidInput naming the
    type and the place of what cannot be encoded; ConfigError for an unknown codec, or where a package is missing.
    """
    own = next((_of_type[t] for t in type(data).__mro__ if t in _of_type), None) if _of_type else None
    if own is not None:
        return _own(own, data), own.media_type
    if codec == "auto":
        codec = _choice(data)
    if codec not in _BY_NAME:
        raise ConfigError(f"unknown codec {codec!r}", code="DX104", fix=f"use one of {', '.join(_BY_NAME)}, auto")
    chosen = _BY_NAME[codec]
    return chosen.encode(data), chosen.media_type


def _own(codec: _Known, data: Any) -> bytes:
    try:
        return codec.encode(data)
    except (ValueError, TypeError, LookupError) as e:
        raise InvalidInput(f"data is a {type(data).__name__}; {codec.media_type} cannot encode it: {e}") from e


def _choice(data: Any) -> Codec:
    if arrow.is_columnar(data):
        return "arrow"
    try:
        orjson.dumps(data, _simpler_json, _OPTIONS)
    except TypeError:
        return "msgpack" if _has_bytes(_checked(data, binary=True)) else "json"
    return "json"


def _has_bytes(plain: Any) -> bool:
    inner: Iterator[Any] = iter(())
    if isinstance(plain, dict):
        inner = iter(plain.values())
    elif isinstance(plain, list):
        inner = iter(plain)
    return isinstance(plain, bytes) or any(map(_has_bytes, inner))


def decode(data: bytes, content_type: str | None = None) -> Any:
    """The data in bytes of that content type; JSON where it is None or empty. Parameters (`; charset=…`) are ignored.

    Raises DecodeError for bytes that are not what the type says, and for a type that is not known.
    """
    if not content_type or content_type == JSON:
        return _load_json(data)
    name = content_type.partition(";")[0].strip().lower()
    codec = _known.get(name)
    if codec is None:
        raise DecodeError(
            f"content type {name!r} is not known; known are {', '.join(sorted(_known))}",
            fix="publish one of these, or make it known: dspex.codecs.register_codec",
        )
    if name in _BUILT_IN:
        return codec.decode(data)
    try:
        return codec.decode(data)
    except (ValueError, TypeError, LookupError) as e:
        raise DecodeError(f"not {name}: {e}; {len(data)} bytes, beginning {data[:_EXCERPT]!r}") from e
