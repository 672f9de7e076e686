"""The fields of a JSON object in a text that comes in pieces."""

from __future__ import annotations

import re
from collections.abc import Callable

from dspex.operators.native.replies.streaming import FieldSplitter

_SPACE = re.compile(r"[ \t\r\n]*+")
_PLAIN = re.compile(r'[^"\\]*+')
_SCALAR = re.compile(r"[^,}\s]*+")
_OUTSIDE = re.compile(r'[^"{}\[\]]*+')
_HEX = re.compile(r"[0-9a-fA-F]{4}\Z").match
_ESCAPED = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
State = Callable[[str, int], int]


class Scanner:
    """Follows the first `{` that begins an object. Strings come decoded, other values as they are written."""

    __slots__ = ("_depth", "_escape", "_first", "_high", "_key", "_sink", "_state", "_string_in")

    def __init__(self, sink: FieldSplitter) -> None:
        self._sink = sink
        self._state: State = self._before
        self._key: list[str] | None = None  # while the name of a field is read
        self._escape = ""  # an escape that is not whole yet
        self._high = 0  # the first half of a character that is written as two
        self._depth = 0  # of lists and objects in a value
        self._string_in = False  # in a string in those
        self._first = True  # no field yet

    def feed(self, piece: str) -> None:
        at = 0
        while at < len(piece):
            at = self._state(piece, at)

    def finish(self) -> None:
        if self._state == self._in_string:
            self._flush_half()

    # Each state reads from `at` on, and says how far it came.
    def _before(self, piece: str, at: int) -> int:
        found = piece.find("{", at)
        if found < 0:
            return len(piece)
        self._state, self._first = self._before_key, True
        return found + 1

    def _before_key(self, piece: str, at: int) -> int:
        at = _end(_SPACE, piece, at)
        if at == len(piece):
            return at
        if piece[at] == '"':
            self._key, self._state, self._first = [], self._in_string, False
            return at + 1
        self._state = self._before if self._first else self._over  # `{` in words; `}`
        return at

    def _before_colon(self, piece: str, at: int) -> int:
        return self._expect({":": self._before_value}, piece, at)

    def _before_value(self, piece: str, at: int) -> int:
        at = _end(_SPACE, piece, at)
        if at == len(piece):
            return at
        char = piece[at]
        if char == '"':
            self._state = self._in_string
            return at + 1
        self._state = self._in_nested if char in "{[" else self._in_scalar
        return at

    def _after_value(self, piece: str, at: int) -> int:
        return self._expect({",": self._before_key}, piece, at)

    def _expect(self, wanted: dict[str, State], piece: str, at: int) -> int:
        at = _end(_SPACE, piece, at)
        if at == len(piece):
            return at
        self._state = wanted.get(piece[at], self._over)
        return at + 1

    def _over(self, piece: str, at: int) -> int:  # a state takes both
        return len(piece)

    def _in_scalar(self, piece: str, at: int) -> int:
        end = _end(_SCALAR, piece, at)
        self._sink.exact(piece[at:end])
        if end < len(piece):
            self._end_value()
        return end

    def _in_nested(self, piece: str, at: int) -> int:
        if self._string_in:
            return self._skip_string(piece, at)
        end = _end(_OUTSIDE, piece, at)
        if end < len(piece):
            self._string_in = piece[end] == '"'
            self._depth += {"{": 1, "[": 1, "}": -1, "]": -1}.get(piece[end], 0)
            end += 1
        self._sink.exact(piece[at:end])
        if not self._depth:
            self._end_value()
        return end

    def _skip_string(self, piece: str, at: int) -> int:
        if self._escape:
            self._escape, end = "", at + 1
        else:
            end = _end(_PLAIN, piece, at)
            if end < len(piece):
                self._string_in = piece[end] != '"'
                self._escape = "\\" if piece[end] == "\\" else ""
                end += 1
        self._sink.exact(piece[at:end])
        return end

    def _end_value(self) -> None:
        self._sink.open(None)
        self._state = self._after_value

    # -- strings: names of fields, and values
    def _in_string(self, piece: str, at: int) -> int:
        if self._escape:
            return self._in_escape(piece, at)
        end = _end(_PLAIN, piece, at)
        if end > at:
            self._decoded(piece[at:end])
        if end == len(piece):
            return end
        if piece[end] == "\\":
            self._escape = "\\"
        else:
            self._end_string()
        return end + 1

    def _in_escape(self, piece: str, at: int) -> int:
        whole = 6 if (self._escape + piece[at])[1] == "u" else 2
        end = at + whole - len(self._escape)
        self._escape += piece[at:end]
        if len(self._escape) == whole:
            escape, self._escape = self._escape, ""
            if whole == 2:
                self._decoded(_ESCAPED.get(escape[1], escape[1]))
            else:
                self._code(escape)
        return min(end, len(piece))

    def _code(self, escape: str) -> None:
        if not _HEX(escape, 2):  # int() takes "-123" and "1_23" too
            self._decoded(escape)
            return
        code = int(escape[2:], 16)
        if self._high and 0xDC00 <= code < 0xE000:
            both = 0x10000 + ((self._high - 0xD800) << 10) + (code - 0xDC00)
            self._high = 0
            self._decoded(chr(both))
        elif 0xD800 <= code < 0xDC00:
            self._flush_half()
            self._high = code
        else:
            self._decoded(chr(code))

    def _decoded(self, text: str) -> None:
        self._flush_half()
        if self._key is None:
            self._sink.exact(text)
        else:
            self._key.append(text)

    def _flush_half(self) -> None:
        """A first half without a second stays what it is, as for Python's json."""
        if self._high:
            half, self._high = chr(self._high), 0
            self._decoded(half)

    def _end_string(self) -> None:
        self._flush_half()
        if self._key is None:
            self._end_value()
        else:
            self._sink.open("".join(self._key))
            self._key, self._state = None, self._before_colon


def _end(pattern: re.Pattern[str], text: str, at: int) -> int:
    found = pattern.match(text, at)
    return found.end() if found else at
