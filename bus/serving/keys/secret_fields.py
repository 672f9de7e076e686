"""Fields that signatures mark secret: what they hold is stored sealed or not at all, and is not shown.

Where payloads are sealed, all that is stored is (keyring.py). Where they are not, nothing is stored that somebody would have to
read again: neither a durable call nor a turn of a session nor a body for the object store. What is stored only to be looked at,
the record of an interactive call, has `SECRET` in the place of each value.

A value is found by the name of its field, at any depth, and by its text wherever else that stands: an operator may have put it
under another name, and an error may quote it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any, Final, cast

from dspex.bus import codecs
from dspex.bus.codecs.arrow import is_columnar
from dspex.bus.errors import ConfigError
from dspex.bus.port import Bus
from dspex.bus.records import CallRecord, CallRequest
from dspex.bus.serving.call_spec import CallSpec
from dspex.bus.serving.keys.clear_text import SETTING

SECRET: Final = "(secret)"
"""Stands for a value that is secret."""
_SHORTEST: Final = 4  # characters of a value that is looked for in other texts: a shorter one stands in too many of them
_DEPTH: Final = 60  # of data that are looked through


def need_key(bus: Bus, spec: CallSpec, what: str, node: str = "") -> None:
    """Raise ConfigError (DX127) where something is to be stored in clear text that is marked secret. `what` it is."""
    if error := refused(bus, spec, what, node):
        raise error


def refused(bus: Bus, spec: CallSpec, what: str, node: str = "") -> ConfigError | None:
    """The error that `need_key` raises; None where it raises none."""
    return in_clear_text(spec.secrets, what, node) if spec.secrets and in_clear(bus) else None


def in_clear(bus: Bus) -> bool:
    """Whether what is stored can be read by others than those with a key."""
    return bus.sealing is None and not bus.passing


def in_clear_text(names: Collection[str], what: str, node: str = "") -> ConfigError:
    """The error of what would be stored in clear text, and is secret."""
    why = f"{', '.join(sorted(names))}: marked secret, and {what} is stored in clear text here"
    return ConfigError(why, code="DX127", fix=f'seal what is stored: {SETTING} = "NAME"', node=node or None)


class Secrets:
    """What is secret of some data. `names` of fields; their values are learned as they come."""

    def __init__(self, names: Collection[str]) -> None:
        self.names = frozenset(names)
        self._texts: set[str] = set()

    def __bool__(self) -> bool:
        return bool(self.names)

    def __or__(self, other: Secrets) -> Secrets:
        """What is secret by either."""
        both = Secrets(self.names | other.names)
        both._texts = self._texts | other._texts
        return both

    def learn(self, data: object, within: bool = False, depth: int = 0) -> None:
        """Take the texts of all secret values in data. `within`: all of it is one."""
        if depth > _DEPTH or not self.names:
            return
        if isinstance(data, Mapping):
            for name, value in cast("Mapping[object, object]", data).items():
                self.learn(value, within or name in self.names, depth + 1)
        elif is_columnar(data):
            self.learn(_columns(data), within, depth + 1)
        elif isinstance(data, (list, tuple)):
            for value in cast("Collection[object]", data):
                self.learn(value, within, depth + 1)
        elif within and isinstance(data, (str, int, float)) and len(text := str(data)) >= _SHORTEST and text != SECRET:
            self._texts.add(text)

    def masked(self, data: Any, depth: int = 0) -> Any:
        """The data with `SECRET` in the place of each secret value; and in that of bytes, tables and arrays that have one."""
        if not self.names:
            return data
        if depth > _DEPTH:
            return SECRET
        if isinstance(data, Mapping):
            known = cast("Mapping[object, object]", data)
            return {n: SECRET if n in self.names and v is not None else self.masked(v, depth + 1) for n, v in known.items()}
        if isinstance(data, (list, tuple)):
            return [self.masked(value, depth + 1) for value in cast("Collection[object]", data)]
        if isinstance(data, (int, float)) and not isinstance(data, bool):
            return SECRET if str(data) in self._texts else data
        if isinstance(data, (bytes, bytearray)) or is_columnar(data):
            return SECRET if self._stands_in(data) else data
        return self.text(data) if isinstance(data, str) else data

    def hide(self, data: Any) -> Any:
        """The data of an event without what is secret. Of what could not be read nobody can tell what is in it."""
        return SECRET if self.names and isinstance(data, bytes) else self.masked(data)

    def lost(self, data: Any, name: str = "data", depth: int = 0) -> set[str]:
        """The names of values that `hide` takes away and that are no text, for which nothing can stand. `name`: of the data."""
        if isinstance(data, Mapping) and depth <= _DEPTH:
            known = cast("Mapping[object, object]", data)
            gone = {str(n) for n, value in known.items() if n in self.names and not isinstance(value, (str, type(None)))}
            return gone.union(*(self.lost(v, str(n), depth + 1) for n, v in known.items() if n not in self.names))
        if isinstance(data, (list, tuple)) and depth <= _DEPTH:
            return set[str]().union(*(self.lost(one, name, depth + 1) for one in cast("Collection[object]", data)))
        return {name} if not isinstance(data, str) and self.hide(data) is SECRET else set()

    def _stands_in(self, data: Any) -> bool:
        """Whether bytes, a table or an array have something that is secret."""
        columns = _columns(data) if is_columnar(data) else {}
        raw = bytes(data) if isinstance(data, (bytes, bytearray)) else codecs.encode(data, "arrow")[0]
        return not self.names.isdisjoint(columns) or any(one.encode() in raw for one in self._texts)

    def text(self, text: str) -> str:
        """A text without the secret values that are known."""
        for one in sorted(self._texts, key=len, reverse=True):
            text = text.replace(one, SECRET)
        return text


def _columns(data: Any) -> Mapping[str, object]:
    """The columns of a table; of an array none: whoever has one has given it a name of its own."""
    table = codecs.decode(codecs.encode(data, "arrow")[0], codecs.ARROW)
    return table.to_pydict() if hasattr(table, "to_pydict") else {}


def shown(spec: CallSpec, text: str) -> str:
    """What a program says of a call, as logs have it."""
    return SECRET if spec.secrets else text


def kept(bus: Bus, record: CallRecord, request: CallRequest, packed: bytes | None) -> tuple[CallRecord, bytes | None]:
    """The record as it is kept to be looked at: in clear text without what is secret. `packed`: it, if it is so already."""
    if not in_clear(bus) or not request.spec.secrets:
        return record, packed
    secrets = Secrets(request.spec.secrets)
    secrets.learn(request.inputs)
    secrets.learn(record.outputs)
    outputs = None if record.outputs is None else secrets.masked(record.outputs)
    error = None if record.error is None else secrets.masked(record.error)
    return replace(record, outputs=outputs, error=error, warning=secrets.text(record.warning)), None
