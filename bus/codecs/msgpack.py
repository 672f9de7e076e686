"""MessagePack, for data that contains bytes."""

from __future__ import annotations

from functools import partial
from typing import Any, cast

import msgpack

from dspex.bus.codecs.plain import EXCERPT, checked, simpler
from dspex.bus.errors import DecodeError, InvalidInput


def msgpack_bytes(data: object) -> bytes:
    """`data` as MessagePack. Raises InvalidInput naming the type and the place of what cannot be encoded."""
    compound: list[bool] = []
    try:
        packed = _pack(data, compound)
        if compound:
            unpacked(packed)  # a tuple that is a key would be written as a list, and no reader takes a list as a key
        return packed
    except (TypeError, ValueError, OverflowError):
        plain = checked(data, binary=True)
    try:
        return _pack(plain, compound)
    except (TypeError, ValueError, OverflowError) as e:
        raise InvalidInput(f"data cannot be written as MessagePack: {e}", fix="make it flatter") from e


def _pack(data: object, compound: list[bool]) -> bytes:
    # strict: else a named tuple would be packed as a list, and an enum of text by its own str()
    return cast(bytes, msgpack.packb(data, default=partial(_simpler, compound), strict_types=True))


def _simpler(compound: list[bool], value: object) -> object:
    """`value` made simpler; `compound` gets an item where it may be a key and becomes a list or a map."""
    made = simpler(value)
    if isinstance(made, (list, dict)) and type(value).__hash__ is not None:
        compound.append(True)
    return made


def load_msgpack(data: bytes) -> Any:
    """The data of MessagePack bytes. Raises DecodeError with an excerpt."""
    try:
        return unpacked(data)
    except (ValueError, TypeError, OverflowError, msgpack.exceptions.UnpackException) as e:
        why = f"{type(e).__name__} {e}".strip()
        raise DecodeError(f"not MessagePack: {why}; {len(data)} bytes, beginning {data[:EXCERPT]!r}") from e


def _no_extension(code: int, data: bytes) -> object:
    raise ValueError(f"extension type {code} is not known")


unpacked = partial(msgpack.unpackb, strict_map_key=False, timestamp=3, ext_hook=_no_extension)
"""The data of MessagePack bytes, for whoever asks `load_msgpack` why they cannot be read. Raises what msgpack raises."""
