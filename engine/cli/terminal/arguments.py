"""Data on the command line: `k=v` text, `k:=json`, `@file`, `-` for JSON lines on stdin."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

import orjson

from dspex.bus.errors import ConfigError

_PAIR = re.compile(r"([^=:\s]+)(:?=)(.*)", re.DOTALL)
_FIX = "write field=text, field:=json, @file.json, or - for JSON lines on stdin"


def records(arguments: Sequence[str], stdin: TextIO) -> Iterator[object]:
    """The data that the arguments describe: one datum, or with `-` one a line of `stdin`, read as they are needed.

    Fields given beside `-` or `@file` are laid over each datum. Raises ConfigError (DX120).
    """
    fields = dict(_pair(a) for a in arguments if a != "-" and not a.startswith("@"))
    files = [a[1:] for a in arguments if a.startswith("@")]
    if "-" in arguments:
        for number, line in enumerate(stdin, 1):
            if line.strip():
                yield _laid_over(_json(line, f"line {number} of stdin"), fields)
        return
    data = [_json(_read(file), file) for file in files]
    datum = data.pop(0) if data else {}
    for more in (*data, fields):
        datum = _laid_over(datum, more)
    yield datum


def pairs(arguments: Sequence[str]) -> dict[str, object]:
    """`k=v` and `k:=json` as a map. Raises ConfigError (DX120)."""
    return dict(_pair(a) for a in arguments)


def _pair(argument: str) -> tuple[str, object]:
    if not (match := _PAIR.fullmatch(argument)):
        raise ConfigError(f"{argument!r} is not data", code="DX120", fix=_FIX)
    name, sign, text = match.groups()
    return name, text if sign == "=" else _json(text, argument)


def _json(text: str, where: str) -> object:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as e:
        raise ConfigError(f"{where} is not JSON: {e}", code="DX120", fix=_FIX) from e


def _read(file: str) -> str:
    try:
        return Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise ConfigError(f"cannot read {file}: {e}", code="DX120", fix="correct the path after @") from e


def _laid_over(datum: object, fields: object) -> object:
    if not fields:
        return datum
    if isinstance(datum, dict) and isinstance(fields, dict):
        return {**datum, **fields}
    raise ConfigError("fields can be added to a JSON object only", code="DX120", fix="leave the fields out, or the file")
