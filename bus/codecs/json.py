"""JSON, the default form of data.

JSON has no NaN and no Infinity (RFC 8259), and orjson would silently write null for them. So a result that contains `null`
is checked again. Searching for `null` costs about as much as the encoding (0.3 µs for 280 bytes); the check costs about five
times that, and only data with a None (or the word null in a text) pays for it.

JSON has integers of any size, and orjson reads those of more than 64 bits as floats: two order numbers of 21 digits become one.
MessagePack and orjson cannot write them either, so they are refused wherever they would come in.
"""

from __future__ import annotations

import re
from typing import Any, Final

import orjson

from dspex.bus.codecs.plain import EXCERPT, INTEGERS, OPTIONS, checked, finite, simpler
from dspex.bus.errors import DecodeError, InvalidInput


def json_bytes(data: object) -> bytes:
    """`data` as JSON. Raises InvalidInput naming the type and the place of what cannot be encoded."""
    try:
        result = orjson.dumps(data, simpler_json, OPTIONS)
    except TypeError:
        return _dump_plain(checked(data, binary=False))
    if result.find(b"null") >= 0 and not finite(data):
        checked(data, binary=False)
    return result


def _dump_plain(plain: object) -> bytes:
    try:
        return orjson.dumps(plain)
    except TypeError as e:
        raise InvalidInput(f"data cannot be written as JSON: {e}", fix="make it flatter") from e


_LONG: Final = 19  # digits of the shortest integer that may need more than 64 bits
ZEROS: Final = bytes(48 if 48 <= byte <= 57 else 0 for byte in range(256))
"""Makes each digit a 0."""
EVERY: Final = slice(3, None, 4)
"""The bytes that are looked at: of 19 digits in a row at least four are among them."""
LONG_RUN: Final = b"0" * 4
"""What a run of 19 digits has become then. That there is none is found out in 0.5 µs."""
_RUN = b"0" * _LONG  # of `ZEROS`: looking for that is twenty times as fast as a pattern
_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|(-?[0-9]++)(\.[0-9]++)?([eE][-+]?[0-9]++)?', re.DOTALL)


def load_json(data: bytes) -> Any:
    """The data of JSON text. Raises DecodeError with the place and an excerpt, also for an integer of more than 64 bits."""
    try:
        found = orjson.loads(data)
    except orjson.JSONDecodeError as e:
        near = data.decode("utf-8", "replace")[max(e.pos - EXCERPT, 0) : e.pos + EXCERPT]
        raise DecodeError(f"not JSON at line {e.lineno}, column {e.colno}: {e.msg}, near {near!r}") from e
    if data[EVERY].translate(ZEROS).find(LONG_RUN) >= 0:
        _check_integers(data)
    return found


def _check_integers(data: bytes) -> None:
    if data.translate(ZEROS).find(_RUN) < 0:
        return
    for token in _TOKEN.finditer(data):
        digits, fraction, exponent = token.groups()
        if digits is None or fraction or exponent or len(digits) < _LONG:
            continue
        if len(digits) > _LONG + 2 or int(digits) not in INTEGERS:
            line, column = data.count(b"\n", 0, token.start()) + 1, token.start() - data.rfind(b"\n", 0, token.start())
            shown = digits.decode() if len(digits) <= EXCERPT else f"{digits[:EXCERPT].decode()}…"
            raise DecodeError(
                f"the integer {shown} at line {line}, column {column}: an integer has 64 bits at most",
                fix="write it as text, in quotes",
            )


def simpler_json(value: object) -> object:
    """`value` one step nearer to JSON, for `orjson.dumps`. Raises TypeError where there is no such step."""
    step = simpler(value)
    if isinstance(step, bytes):
        raise TypeError("bytes")
    return step
