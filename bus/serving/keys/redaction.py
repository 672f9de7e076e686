"""What `telemetry.redact` takes out of what is kept or sent on only to be looked at. What a call needs to go on stays."""

from __future__ import annotations

import json
import pkgutil
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, Final, cast

import structlog

from dspex.bus.errors import ConfigError

REDACTED: Final = "(redacted)"
"""Stands for a value that is taken out."""
_DEPTH: Final = 60  # of data that are looked through
_SHORTEST: Final = 4  # characters of a value that is looked for in other texts
_SECTION: Final = re.compile(r"(\[\[ ## ([^\n]*?) ## \]\]\n)(.*?)(?=\n+\[\[ ## |\Z)", re.DOTALL)  # as chat prompts have fields
_ELEMENT: Final = re.compile(r"(<(\w+)>)(.*?)(?=</\2>)", re.DOTALL)  # as XML prompts do
_FUNCTION: Final = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
_log = structlog.get_logger("dspex.telemetry")


class Redaction:
    """Takes out what fields hold whose names fit: "customer" at any depth, "*.iban" by the whole way to it.

    A value is found by its name in data, in the sections of prompts and replies, and by its text wherever else that stands.

    Args:
        patterns: names of fields, and functions `module:name`, which get each text and give what may be seen of it.

    Raises:
        ConfigError: DX105, there is no such function.
    """

    def __init__(self, patterns: Collection[str]) -> None:
        self._names = tuple(one for one in patterns if ":" not in one)
        self._functions = [_function(one) for one in patterns if ":" in one]

    def __bool__(self) -> bool:
        return bool(self._names or self._functions)

    def of(self, *known: object) -> Callable[[Any], Any]:
        """What takes it out of data, where `known` are data that have the values that texts may repeat."""
        texts = set[str]()
        for one in known:
            self._learn(one, (), texts)
        return lambda data: self._masked(data, (), sorted(texts, key=len, reverse=True))

    def _fits(self, way: Sequence[str]) -> bool:
        whole = ".".join(way)
        return any(fnmatchcase(whole if "." in one else way[-1], one) for one in self._names)

    def _learn(self, data: object, way: tuple[str, ...], texts: set[str], *, within: bool = False) -> None:
        if len(way) > _DEPTH:
            return
        if isinstance(data, Mapping):
            for name, value in cast("Mapping[object, object]", data).items():
                further = (*way, str(name))
                self._learn(value, further, texts, within=within or self._fits(further))
        elif isinstance(data, (list, tuple)):
            for value in cast("Sequence[object]", data):
                self._learn(value, way, texts, within=within)
        elif within and isinstance(data, (str, int, float)) and len(text := str(data)) >= _SHORTEST:
            texts.add(text)

    def _masked(self, data: Any, way: tuple[str, ...], texts: Sequence[str]) -> Any:
        if data is None or isinstance(data, bool):
            return data
        if isinstance(data, str):
            return self._text(data, texts)
        if isinstance(data, (int, float)):
            return REDACTED if str(data) in texts else data
        if isinstance(data, Mapping) and len(way) < _DEPTH:
            found = {}
            for name, value in cast("Mapping[object, Any]", data).items():
                further = (*way, str(name))
                found[name] = REDACTED if value is not None and self._fits(further) else self._masked(value, further, texts)
            return found
        if isinstance(data, (list, tuple)) and len(way) < _DEPTH:
            return [self._masked(value, way, texts) for value in cast("Sequence[Any]", data)]
        return REDACTED  # bytes, tables and arrays: nobody can tell what is in them

    def _text(self, text: str, texts: Sequence[str]) -> str:
        if self._names:
            text = self._json(text, texts)
            for form in (_SECTION, _ELEMENT):
                text = form.sub(lambda m: m[1] + (REDACTED if self._named(m[2]) else m[3]), text)
        for one in texts:
            text = text.replace(one, REDACTED)
        for function in self._functions:
            text = _called(function, text)
        return text

    def _named(self, field: str) -> bool:
        """Whether a field of a prompt fits. It is at the top there, so of a way only the end counts."""
        return any(fnmatchcase(field, one.rpartition(".")[2]) for one in self._names)

    def _json(self, text: str, texts: Sequence[str]) -> str:
        if not text.lstrip().startswith(("{", "[")):
            return text
        try:
            data = json.loads(text)
        except (ValueError, RecursionError):
            return text
        plain = Redaction(self._names)  # functions get the text as a whole
        masked = plain._masked(data, (), texts)
        return text if masked == data else json.dumps(masked, ensure_ascii=False)


def check_pattern(text: str) -> str:
    """The name of a field, or of a function. Raises ConfigError (DX105)."""
    if not text.strip() or (":" in text and not _FUNCTION.fullmatch(text)):
        fix = 'the name of a field, "customer" or "*.iban", or a function "module:name" that takes a text and gives one'
        raise ConfigError(f"{text!r} says nothing to take out", code="DX105", node="telemetry.redact", fix=fix)
    return text


def _function(named: str) -> Callable[[str], object]:
    try:
        found = pkgutil.resolve_name(named)
    except (ImportError, AttributeError, ValueError) as e:
        raise ConfigError(
            f"{named} cannot be found: {e}", code="DX105", node="telemetry.redact", fix="name a function in a module of `path`"
        ) from e
    if not callable(found):
        raise ConfigError(f"{named} is no function", code="DX105", node="telemetry.redact", fix="name a function")
    return cast("Callable[[str], object]", found)


def _called(function: Callable[[str], object], text: str) -> str:
    """What a function leaves of a text; nothing where it fails, since then nobody has said what may be seen."""
    try:
        found = function(text)
    except Exception as e:  # noqa: BLE001  the user's function, which may raise anything
        _log.error("a function of telemetry.redact failed, and nothing of the text is shown", why=repr(e))
        return REDACTED
    return found if isinstance(found, str) else REDACTED
