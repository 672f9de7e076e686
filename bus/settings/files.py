"""The settings file: which one it is, and what it says with the line of each value.

tomllib keeps no line numbers and no maintained TOML library does; `_lines` finds them by looking at the text, and lets
tomllib read each key so that quoting is never parsed here.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dspex.bus.errors import ConfigError
from dspex.bus.settings.layers import Layer, SettingPath, flatten

_KEY = re.compile(r"""\s*((?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*')(?:\s*\.\s*(?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*'))*)\s*=""")
_TABLE = re.compile(r"\s*\[([^\[\]]+)\]\s*(?:#.*)?$")
_LONG_TEXT = re.compile(r'"""(?:.|\n)*?"""|' + r"'''(?:.|\n)*?'''")


def find_file(start: Path) -> Path | None:
    """dspex.toml, or a pyproject.toml with [tool.dspex], nearest upwards from `start`."""
    for folder in (start, *start.parents):
        if (own := folder / "dspex.toml").is_file():
            return own
        shared = folder / "pyproject.toml"
        if shared.is_file() and b"[tool.dspex" in shared.read_bytes():
            return shared
    return None


def file_layer(path: Path) -> Layer:
    """What the file says. Raises ConfigError (DX106) where it cannot be read as TOML."""
    shown = _relative(path)
    try:
        text = path.read_text(encoding="utf-8")
        whole: dict[str, Any] = tomllib.loads(text)
    except OSError as e:
        raise ConfigError(f"cannot read {shown}: {e.strerror}", code="DX106", fix="name another file with --config") from e
    except UnicodeDecodeError as e:
        what = f"{shown} is not text in UTF-8: {e.reason} at byte {e.start}"
        raise ConfigError(what, code="DX106", fix="save it as UTF-8") from e
    except (ValueError, RecursionError) as e:  # those of tomllib are ValueErrors, and so is that of a number of 4300 digits
        raise ConfigError(f"{shown} is not TOML: {e}", code="DX106", fix="correct the line that the message names") from e
    table: SettingPath = ("tool", "dspex") if path.name == "pyproject.toml" else ()
    data = whole
    for name in table:
        data = data.get(name, {})
    lines = {key[len(table) :]: line for key, line in _lines(text, whole).items() if key[: len(table)] == table}
    layer = Layer()
    for key, value in flatten(data):
        if key:
            layer.add(key, value, f"{shown}:{_line_of(key, lines)}")
    return layer


def _relative(path: Path) -> str:
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)


def _lines(text: str, data: Mapping[str, Any]) -> dict[SettingPath, int]:
    """Where the tables and keys of `data` stand in its text. What only looks like one, in a list of several lines, is none."""
    found: dict[SettingPath, int] = {}
    table: SettingPath = ()
    short = _LONG_TEXT.sub(lambda m: "\n" * m[0].count("\n"), text)
    for number, line in enumerate(short.splitlines(), 1):
        if match := _TABLE.match(line):
            path = _parsed_key(f"[{match[1]}]")
            table = path if _is_in(data, path) else table
        elif match := _KEY.match(line):
            path = (*table, *_parsed_key(f"{match[1]} = 0"))
        else:
            continue
        if _is_in(data, path):
            found.setdefault(path, number)
    return found


def _parsed_key(text: str) -> SettingPath:
    """Empty where it is no key."""
    try:
        return next(flatten(tomllib.loads(text)))[0]
    except (tomllib.TOMLDecodeError, RecursionError):
        return ()


def _is_in(data: Any, path: SettingPath) -> bool:
    for name in path:
        if not isinstance(data, Mapping) or name not in data:
            return False
        data = data[name]
    return bool(path)


def _line_of(key: SettingPath, lines: Mapping[SettingPath, int]) -> int:
    return next((lines[key[:n]] for n in range(len(key), 0, -1) if key[:n] in lines), 1)
