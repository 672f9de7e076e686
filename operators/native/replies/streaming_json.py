"""The fields of a JSON object in a text that arrives in pieces."""

from __future__ import annotations

import re
from collections.abc import Callable

from dspex.operators.native.replies.streaming import FieldSplitter, end_of

_SPACE = re.compile(r"[ \t\r\n]*+")
_PLAIN = re.compile(r'[^"\\]*+')
_SCALAR = re.compile(r"[^,}\s]*+")
_OUTSIDE = re.compile(r'[^"{}\[\]]*+')
_HEX = re.compile(r"[0-9a-fA-F]{4}\Z").match
_ESCAPED = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
Scan = Callable[[str, int], int]


class JsonScanner:
    """Follows the first `{` that begins an object. Strings are decoded, other values are given as they are written."""

    __slots__ = ("_depth", "_escape", "_fields", "_first", "_high", "_key", "_state", "_string_in")

    def __init__(self, fields: FieldSplitter) -> None:
        self._fields = fields
        self._state: Scan = self._before
        self._key: list[str] | None = None  # while the name of a field is read
        self._escape = ""  # the part of an escape that has arrived
        self._high = 0  # a high surrogate that waits for its low surrogate; 0 for none
        self._depth = 0  # of nested lists and objects in a value
        self._string_in = False  # whether in a string within a nested value
        self._first = True  # whether no field has come yet

    def feed(self, piece: str) -> None:
        at = 0
        while at < len(piece):
            at = self._state(piece, at)

    def finish(self) -> None:
        if self._state == self._in_string:
            self._flush_high_surrogate()

    # Each state reads from `at` on and returns the index up to which it has read.
    def _before(self, piece: str, at: int) -> int:
        found = piece.find("{", at)
        if found < 0:
            return len(piece)
        self._state, self._first = self._before_key, True
        return found + 1

    def _before_key(self, piece: str, at: int) -> int:
        at = end_of(_SPACE, piece, at)
        if at == len(piece):
            return at
        if piece[at] == '"':
            self._key, self._state, self._first = [], self._in_string, False
            return at + 1
        self._state = (
            self._before if self._first else self._over
        )  # a `{` in the text before the object; or the end of the object
        return at

    def _before_colon(self, piece: str, at: int) -> int:
        return self._expect({":": self._before_value}, piece, at)

    def _before_value(self, piece: str, at: int) -> int:
        at = end_of(_SPACE, piece, at)
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

    def _expect(self, wanted: dict[str, Scan], piece: str, at: int) -> int:
        at = end_of(_SPACE, piece, at)
        if at == len(piece):
            return at
        self._state = wanted.get(piece[at], self._over)
        return at + 1

    def _over(self, piece: str, at: int) -> int:  # `at` is there because it is a Scan
        return len(piece)

    def _in_scalar(self, piece: str, at: int) -> int:
        end = end_of(_SCALAR, piece, at)
        self._fields.exact(piece[at:end])
        if end < len(piece):
            self._end_value()
        return end

    def _in_nested(self, piece: str, at: int) -> int:
        if self._string_in:
            return self._skip_string(piece, at)
        end = end_of(_OUTSIDE, piece, at)
        if end < len(piece):
            self._string_in = piece[end] == '"'
            self._depth += {"{": 1, "[": 1, "}": -1, "]": -1}.get(piece[end], 0)
            end += 1
        self._fields.exact(piece[at:end])
        if not self._depth:
            self._end_value()
        return end

    def _skip_string(self, piece: str, at: int) -> int:
        if self._escape:
            self._escape, end = "", at + 1
        else:
            end = end_of(_PLAIN, piece, at)
            if end < len(piece):
                self._string_in = piece[end] != '"'
                self._escape = "\\" if piece[end] == "\\" else ""
                end += 1
        self._fields.exact(piece[at:end])
        return end

    def _end_value(self) -> None:
        self._fields.open(None)
        self._state = self._after_value

    # -- strings: names of fields, and values
    def _in_string(self, piece: str, at: int) -> int:
        if self._escape:
            return self._in_escape(piece, at)
        end = end_of(_PLAIN, piece, at)
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
        if not _HEX(escape, 2):  # int() would take "-123" and "1_23" too
            self._decoded(escape)
            return
        code = int(escape[2:], 16)
        if self._high and 0xDC00 <= code < 0xE000:
            pair = 0x10000 + ((self._high - 0xD800) << 10) + (code - 0xDC00)
            self._high = 0
            self._decoded(chr(pair))
        elif 0xD800 <= code < 0xDC00:
            self._flush_high_surrogate()
            self._high = code
        else:
            self._decoded(chr(code))

    def _decoded(self, text: str) -> None:
        self._flush_high_surrogate()
        if self._key is None:
            self._fields.exact(text)
        else:
            self._key.append(text)

    def _flush_high_surrogate(self) -> None:
        """A high surrogate without a low one stays a lone surrogate, as in Python's json."""
        if self._high:
            lone, self._high = chr(self._high), 0
            self._decoded(lone)

    def _end_string(self) -> None:
        self._flush_high_surrogate()
        if self._key is None:
            self._end_value()
        else:
            self._fields.open("".join(self._key))
            self._key, self._state = None, self._before_colon


SCANNER = JsonScanner
