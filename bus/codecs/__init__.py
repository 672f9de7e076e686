"""Codecs by content type: JSON by default, MessagePack where bytes are, Arrow for arrays and tables. Never pickle."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, Literal, NamedTuple, TypeAlias

import orjson

from dspex.bus.codecs import arrow, cloud_events
from dspex.bus.codecs.json import json_bytes as json_bytes
from dspex.bus.codecs.json import load_json, simpler_json
from dspex.bus.codecs.msgpack import load_msgpack
from dspex.bus.codecs.msgpack import msgpack_bytes as msgpack_bytes
from dspex.bus.codecs.plain import EXCERPT, OPTIONS, checked
from dspex.bus.errors import ConfigError, DecodeError, InvalidInput

Codec: TypeAlias = Literal["json", "msgpack", "arrow", "auto"]

__all__ = ["ARROW", "JSON", "MSGPACK", "Codec", "decode", "encode", "register_codec"]  # what `dspex.codecs` has

JSON: Final = "application/json"
MSGPACK: Final = "application/msgpack"
ARROW: Final = "application/vnd.apache.arrow.stream"


_ALIASES = {"text/json": JSON, "application/x-msgpack": MSGPACK, "application/vnd.msgpack": MSGPACK}


class _Known(NamedTuple):
    media_type: str
    encode: Callable[[Any], bytes]
    decode: Callable[[bytes], Any]


_BUILT_IN = {
    JSON: _Known(JSON, json_bytes, load_json),
    MSGPACK: _Known(MSGPACK, msgpack_bytes, load_msgpack),
    ARROW: _Known(ARROW, arrow.encode, arrow.decode),
}
_BY_NAME: dict[str, _Known] = {"json": _BUILT_IN[JSON], "msgpack": _BUILT_IN[MSGPACK], "arrow": _BUILT_IN[ARROW]}
_known: dict[str, _Known] = dict(_BUILT_IN)
_of_type: dict[type, _Known] = {}
PLAIN: set[type] = {dict, list, str, int, float, bool, type(None)}
"""Types whose data JSON has by nature, and for which no other codec is registered."""


def register_codec(
    media_type: str,
    *,
    encode: Callable[[Any], bytes],
    decode: Callable[[bytes], Any],
    types: Sequence[type] = (),
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
        raise ConfigError(f"{name} is built in", code="DX105", fix="register another content type for your own form")
    if name.count("/") != 1 or ";" in name or any(c.isspace() for c in name):
        raise ConfigError(f"{media_type!r} is not a content type", code="DX105", fix="write type/subtype")
    _known[name] = _Known(name, encode, decode)
    _of_type.update(dict.fromkeys(types, _known[name]))
    PLAIN.difference_update([t for t in PLAIN if any(base in _of_type for base in t.__mro__)])


def encode(data: object, codec: Codec = "json") -> tuple[bytes, str]:
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
        raise ConfigError(f"unknown codec {codec!r}", code="DX105", fix=f"use one of {', '.join(_BY_NAME)}, auto")
    chosen = _BY_NAME[codec]
    return chosen.encode(data), chosen.media_type


def _own(codec: _Known, data: object) -> bytes:
    try:
        return codec.encode(data)
    except (ValueError, TypeError, LookupError) as e:
        raise InvalidInput(f"data is a {type(data).__name__}; {codec.media_type} cannot encode it: {e}") from e


def _choice(data: object) -> Codec:
    if arrow.is_columnar(data):
        return "arrow"
    try:
        orjson.dumps(data, simpler_json, OPTIONS)
    except TypeError:
        return "msgpack" if _has_bytes(checked(data, binary=True)) else "json"
    return "json"


def _has_bytes(plain: object) -> bool:
    inner: Iterator[object] = iter(())
    if isinstance(plain, dict):
        inner = iter(plain.values())
    elif isinstance(plain, list):
        inner = iter(plain)
    return isinstance(plain, bytes) or any(map(_has_bytes, inner))


def media_type(content_type: str) -> str:
    """A content type without its parameters (`; charset=…`), in lower case."""
    return content_type.partition(";")[0].strip().lower()


def read_as(name: str) -> str:
    """The content type whose codec reads a media type: `application/vnd.shop.order+json` is JSON (RFC 6839).

    A CloudEvent is not: its data is a part of it.
    """
    if name in _known or cloud_events.is_structured(name):
        return name
    return JSON if name.endswith("+json") else _ALIASES.get(name, name)


def decode(data: bytes, content_type: str | None = None) -> Any:
    """The data in bytes of that content type; JSON where it is None or empty. Parameters (`; charset=…`) are ignored. Of a
    CloudEvent in the JSON format it is what that has as its data.

    Raises DecodeError for bytes that are not what the type says, and for a type that is not known.
    """
    if not content_type or content_type == JSON:
        return load_json(data)
    if content_type == MSGPACK:
        return load_msgpack(data)
    if (event := cloud_events.read(content_type, {}, data)) is not None:
        return decode(event.data, event.content_type)
    name = read_as(media_type(content_type))
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
        raise DecodeError(f"not {name}: {e}; {len(data)} bytes, beginning {data[:EXCERPT]!r}") from e
