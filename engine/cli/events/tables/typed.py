"""`--types`: cells of CSV, which are text, as numbers, truth values or JSON."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Final

from dspex.bus.errors import ConfigError
from dspex.engine.cli.events.tables.exact import exact_json
from dspex.engine.cli.events.tables.row import CODE

CellReader = Callable[[str], object]
_64_BITS: Final = range(-(1 << 63), 1 << 64)
_TRUTH: Final = {"true": True, "false": False, "1": True, "0": False}
_PAIR: Final = re.compile(r"\s*([^:=]*[^:=\s])\s*[:=]\s*(\w+)\s*")


def _int(text: str) -> int:
    if not re.fullmatch(r"\s*[+-]?[0-9]{1,25}\s*", text) or (number := int(text)) not in _64_BITS:
        raise ValueError("is no integer of 64 bits")
    return number


def _float(text: str) -> float:
    if not re.fullmatch(r"\s*[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?\s*", text) or math.isinf(number := float(text)):
        raise ValueError("is no number, with a point before its decimals")
    return number


def _bool(text: str) -> bool:
    if (found := _TRUTH.get(text.strip().lower())) is None:
        raise ValueError("is none of true, false, 1 and 0")
    return found


_READERS: Final[Mapping[str, CellReader]] = {"str": str, "int": _int, "float": _float, "bool": _bool, "json": exact_json}


def readers(given: Sequence[str]) -> dict[str, CellReader]:
    """What `--types "age: int, price: float"` says. Raises ConfigError (DX120)."""
    found: dict[str, CellReader] = {}
    for part in (part for text in given for part in text.split(",") if part.strip()):
        match = _PAIR.fullmatch(part)
        if match is None or match[2] not in _READERS:
            fix = f'--types "FIELD: TYPE, …"; a type is one of {", ".join(_READERS)}'
            raise ConfigError(f"--types {part.strip()!r} names no type of a field", code=CODE, fix=fix)
        found[match[1]] = _READERS[match[2]]
    return found


def need_column(column: str, columns: Collection[str], option: str, name: str) -> None:
    """Raise ConfigError (DX120) where a file has no such column."""
    if column not in columns:
        close = difflib.get_close_matches(column, columns, n=1)
        fix = f"did you mean {close[0]!r}?" if close else f"{option} takes the name of a column"
        shown = ", ".join(map(repr, list(columns)[:20]))
        raise ConfigError(f"{name} has no column {column!r} for {option}; it has {shown}", code=CODE, fix=fix)


def typed(row: dict[str, object], types: Mapping[str, CellReader]) -> dict[str, object]:
    """The row with its cells read. An empty cell is null, unless it is text. Raises ValueError."""
    for column, read in types.items():
        text = str(row[column])
        try:
            row[column] = text if read is str else read(text) if text.strip() else None
        except ValueError as e:
            raise ValueError(f"{column}: {text[:40]!r} {e}") from e
    return row
