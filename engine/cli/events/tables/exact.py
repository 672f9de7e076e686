"""JSON that loses nothing: what a JSON reader would round, or drop without a word, is refused."""

from __future__ import annotations

import json
import re
from typing import Any, Final

import orjson

_LONG: Final = re.compile(rb"\d{19}")
_64_BITS: Final = range(-(1 << 63), 1 << 64)


def exact_json(text: bytes | str) -> Any:
    """The datum. Raises ValueError that says where it is not JSON; that a key of an object comes twice; or that a number is an
    integer that dspex cannot carry.
    """
    raw = text.encode() if isinstance(text, str) else text
    try:
        found = orjson.loads(raw)
    except orjson.JSONDecodeError as e:
        place = f" (line {e.lineno})" if e.lineno > 1 else ""
        raise ValueError(f"not JSON: {e.msg} at column {e.colno}{place}") from e
    if not (type(found) is dict and raw.count(b":") == len(found)) or _LONG.search(raw):  # the slow way is three times as slow
        try:
            json.loads(raw, object_pairs_hook=_once, parse_int=_checked)
        except RecursionError as e:
            raise ValueError("nested too deeply") from e
    return found


def _once(pairs: list[tuple[str, Any]]) -> None:
    keys = {key for key, _ in pairs}
    if len(keys) < len(pairs):
        twice = next(key for number, (key, _) in enumerate(pairs) if key in {k for k, _ in pairs[:number]})
        raise ValueError(f"the key {twice!r} comes twice in one object")


def _checked(text: str) -> None:
    if len(text) > 25 or int(text) not in _64_BITS:
        shown = text if len(text) < 40 else f"{text[:30]}…"
        raise ValueError(f"the integer {shown} has more than 64 bits: write it as text")
