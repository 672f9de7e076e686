"""The chat adapter's `[[ ## field ## ]]` headers in a text that arrives in pieces."""

from __future__ import annotations

import re

from dspex.operators.native.replies.streaming import FieldSplitter, end_of

_BREAKS = "\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"  # where str.splitlines ends a line
_BREAK = re.compile(f"[{_BREAKS}]")
_INDENT = re.compile(rf"[^\S{_BREAKS}]*+")
_WORD = re.compile(r"\w*+")
_OPEN, _CLOSE = "[[ ## ", " ## ]]"


class ChatScanner:
    """Holds back text that may be a header, from the first bracket of a line on, and nothing else."""

    __slots__ = ("_after_cr", "_below_header", "_fields", "_indent", "_matched", "_name", "_state")

    def __init__(self, fields: FieldSplitter) -> None:
        self._fields = fields
        self._state = self._indented
        self._indent = 0  # characters of space before a possible header
        self._matched = 0  # characters of _OPEN or _CLOSE that matched so far
        self._name: list[str] = []
        self._below_header = True  # False in the rest of the line that has a header
        self._after_cr = False

    def feed(self, piece: str) -> None:
        at = 0
        while at < len(piece):
            if self._after_cr and piece[at] == "\n":  # "\r\n" is one line break
                at += 1
            self._after_cr = False
            if at < len(piece):
                at = self._state(piece, at)

    def finish(self) -> None:
        self._no_header()

    # Each state reads from `at` on and returns the index up to which it has read.
    def _indented(self, piece: str, at: int) -> int:
        end = end_of(_INDENT, piece, at)
        self._indent += end - at
        self._fields.text(piece[at:end])
        if end < len(piece):
            self._state = self._opening if piece[end] == "[" else self._in_line
        return end

    def _in_line(self, piece: str, at: int) -> int:
        found = _BREAK.search(piece, at)
        if not found:
            self._fields.text(piece[at:])
            return len(piece)
        self._fields.text(piece[at : found.start()])
        if not self._below_header:  # the rest of a line with a header is stripped by itself
            self._fields.forget_space()
            self._below_header = True
        self._fields.text("\n")
        self._after_cr = found.group() == "\r"
        self._state, self._indent = self._indented, 0
        return found.end()

    def _opening(self, piece: str, at: int) -> int:
        at = self._match(_OPEN, piece, at)
        if self._matched == len(_OPEN):
            self._matched = 0
            self._state = self._naming
        return at

    def _naming(self, piece: str, at: int) -> int:
        end = end_of(_WORD, piece, at)
        self._name.append(piece[at:end])
        if end < len(piece):
            self._state = self._closing
            if not any(self._name):
                self._no_header()
        return end

    def _closing(self, piece: str, at: int) -> int:
        at = self._match(_CLOSE, piece, at)
        if self._matched == len(_CLOSE):
            self._header()
        return at

    def _match(self, marker: str, piece: str, at: int) -> int:
        while at < len(piece) and self._matched < len(marker):
            if piece[at] != marker[self._matched]:
                self._no_header()
                return at
            self._matched += 1
            at += 1
        return at

    def _no_header(self) -> None:
        """The text that was held back is no header: it belongs to the field."""
        name = "".join(self._name)
        if self._state == self._opening:
            self._fields.text(_OPEN[: self._matched])
        elif self._state in (self._naming, self._closing):
            self._fields.text(_OPEN + name + _CLOSE[: self._matched])
        self._reset()

    def _header(self) -> None:
        name = "".join(self._name)
        marker = f"{_OPEN}{name}{_CLOSE}"
        self._fields.open(name)
        # An indented header leaves as many of its characters in the value as it is indented: see parse_chat.
        self._fields.text(marker[max(0, len(marker) - self._indent) :])
        self._reset()
        self._below_header = False

    def _reset(self) -> None:
        self._name.clear()
        self._matched = 0
        self._state = self._in_line


SCANNER = ChatScanner
