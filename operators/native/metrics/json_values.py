"""JSON values as `json_match` compares them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import NoReturn, cast

NO_JSON = object()


def json_value(value: object) -> object:
    """The value of a JSON text; NO_JSON for text that is no JSON or is nested too deeply. Other values are unchanged."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value, parse_constant=_no_number)
    except (ValueError, RecursionError):
        return NO_JSON


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")  # NaN, Infinity


def same_json(one: object, other: object) -> bool:
    """Whether both are the same JSON value. Without recursion: a value may be nested deeply."""
    pairs = [(one, other)]
    while pairs:
        a, b = pairs.pop()
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            ours, theirs = cast("Mapping[object, object]", a), cast("Mapping[object, object]", b)
            if ours.keys() != theirs.keys():
                return False
            pairs += [(ours[key], theirs[key]) for key in ours]
        elif isinstance(a, list | tuple) and isinstance(b, list | tuple):
            items, others = cast("Sequence[object]", a), cast("Sequence[object]", b)
            if len(items) != len(others):
                return False
            pairs += zip(items, others)
        elif isinstance(a, bool) or isinstance(b, bool):
            if a is not b:
                return False
        elif a != b:
            return False
    return True
