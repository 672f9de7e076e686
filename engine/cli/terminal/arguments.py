"""Words on the command line. Of data: `k=v` text, `k:=json`, `{"k": "v"}`, `@file`, `-` for JSON lines on stdin."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import TextIO

from dspex.bus.errors import ConfigError
from dspex.engine.cli.events.tables.exact import exact_json

_WHOLE = ("@", "{", "[")  # how a whole datum begins: of a file, or as it is
_PAIR = re.compile(r"([^=:\s]+)(:?=)(.*)", re.DOTALL)
_FIX = "write field=text, field:=json, JSON in quotes, @file.json, or - for JSON lines on stdin"


def records(arguments: Sequence[str], stdin: TextIO) -> Iterator[object]:
    """The data that the arguments describe: one datum, or with `-` one a line of `stdin`, read as they are needed.

    Fields given beside them are laid over each datum. Raises ConfigError (DX120).
    """
    whole = [a for a in arguments if a.startswith(_WHOLE)]
    fields = pairs([a for a in arguments if a != "-" and a not in whole])
    if "-" in arguments:
        if whole:
            raise ConfigError("the data come from one place", code="DX120", fix="-, @file or JSON, and only one of them")
        for number, line in enumerate(stdin, 1):
            text = line.removeprefix("\ufeff") if number == 1 else line
            if text.strip():
                yield _laid_over(_json(text, f"line {number} of stdin"), fields)
        return
    data = [_json(_read(a[1:]), a[1:]) if a.startswith("@") else _json(a, _shown(a)) for a in whole]
    datum = data.pop(0) if data else {}
    for more in (*data, fields):
        datum = _laid_over(datum, more)
    yield datum


def pairs(arguments: Sequence[str]) -> dict[str, object]:
    """`k=v` and `k:=json` as a map. Raises ConfigError (DX120)."""
    found: dict[str, object] = {}
    for name, value in map(_pair, arguments):
        if name in found:
            raise ConfigError(f"the field {name!r} is given twice", code="DX120", fix=f"one of them, or a list: {name}:='[…]'")
        found[name] = value
    return found


def parted(argument: str) -> tuple[str, str, str] | None:
    """Name, sign (`=` or `:=`) and text of `name=text`, by the first sign: a text may have others. None for what is none."""
    match = _PAIR.fullmatch(argument)
    return (match[1], match[2], match[3]) if match is not None else None


def _pair(argument: str) -> tuple[str, object]:
    if (found := parted(argument)) is None:
        raise ConfigError(f"{argument!r} is not data", code="DX120", fix=_FIX)
    if not argument.isascii() and any("\ud800" <= c <= "\udfff" for c in argument):  # bytes that the shell handed on
        raise ConfigError(
            f"{_shown(argument)} is not text in UTF-8", code="DX120", fix="put it into a file: -f FILE --encoding …"
        )
    name, sign, text = found
    return name, text if sign == "=" else _json(text, argument)


def _json(text: str | bytes, where: str) -> object:
    try:
        return exact_json(text)
    except ValueError as e:
        said = str(e)
        told = f"{where} is {said}" if said.startswith("not JSON") else f"{where}: {said}"
        raise ConfigError(told, code="DX120", fix=_FIX) from e


def _shown(argument: str) -> str:
    return repr(argument if len(argument) <= 40 else f"{argument[:40]}…")


def _read(file: str) -> bytes:
    """The text of a file, in UTF-8, whatever encoding it has. Raises ConfigError (DX120)."""
    from dspex.engine.cli.events.tables.content import opened
    from dspex.engine.cli.events.tables.text import as_utf8

    with ExitStack() as stack:
        found, _ = as_utf8(file, opened(file, stack), None, stack)
        found.seek(0)
        return found.read()


def _laid_over(datum: object, fields: object) -> object:
    if not fields:
        return datum
    if isinstance(datum, dict) and isinstance(fields, dict):
        return {**datum, **fields}
    raise ConfigError("fields can be added to a JSON object only", code="DX120", fix="leave the fields out, or the file")


def headers(given: Sequence[str]) -> dict[str, str]:
    """Headers of `Name=value`. Raises ConfigError (DX105)."""
    pairs = [h.partition("=") for h in given]
    if wrong := next((h for h, (name, sign, _) in zip(given, pairs) if not name or not sign), None):
        raise ConfigError(f"{wrong!r} is no header", code="DX105", fix="--header Name=value")
    return {name: value for name, _, value in pairs}


def until(at: str | None, after: str | None) -> str | None:
    """The header of an event that waits. Raises ConfigError (DX102, DX105)."""
    from dspex.bus.codecs.times import moment
    from dspex.engine.client.publish import waiting

    try:
        return waiting(None, moment(at) if at is not None else None, after)
    except (ValueError, OverflowError) as e:
        raise ConfigError(f"{at!r} is no time", code="DX105", fix="--at 2026-01-31T09:00:00+01:00, or --after 2h") from e


def per_second(rate: str | None) -> float | None:
    """Events a second of `100/s`, `600/min` or `50/h`. Raises ConfigError (DX105)."""
    if rate is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(?:/(s|min|h))?", rate)
    if not match or not float(match[1]):
        raise ConfigError(f"{rate!r} is not a rate", code="DX105", fix="--rate 100/s, 600/min or 50/h")
    return float(match[1]) / {"s": 1, "min": 60, "h": 3600}[match[2] or "s"]
