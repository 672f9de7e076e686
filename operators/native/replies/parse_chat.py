"""Replies in the format of DSPy's ChatAdapter, `[[ ## field ## ]]` above each field, as typed outputs."""

from __future__ import annotations

import re
from collections.abc import Container
from typing import TYPE_CHECKING

from dspex.operators.native.adapters import Parser
from dspex.operators.native.fields.fields import Values
from dspex.operators.native.replies.outputs import OutputFields
from dspex.operators.native.replies.parse_values import REFUSED

if TYPE_CHECKING:
    from dspex.operators.native.signature import Signature

_OPEN, _CLOSE = "[[ ## ", " ## ]]"
_COMPLETED = f"{_OPEN}completed{_CLOSE}"
_MARKER = re.compile(re.escape(_OPEN))
_HEADER = re.compile(r"\[\[ ## (\w+) ## \]\]")


def parser(signature: Signature) -> Parser:
    """A function that reads a reply's outputs as DSPy's ChatAdapter does. Replies in exactly the requested form take a
    shorter way.

    A header is at the start of a line of its own; the first header of a name counts; text before the first header, and below
    headers of other names, is left out. The function raises InvalidOutput that lists every field that is missing or wrong.
    """
    outputs = OutputFields.of(signature)
    headers = [(name, f"{_OPEN}{name}{_CLOSE}\n", convert) for name, convert in outputs.converters.items()]

    def parse_text(text: str) -> Values:
        done: Values = {}
        end = 0
        try:
            for name, header, convert in headers:
                if not text.startswith(header, end):
                    break
                start = end + len(header)
                end = text.find("[", start)
                if not text.startswith(_OPEN, end):  # first one character: str.find takes 20 times as long for a word
                    marker = _MARKER.search(text, end) if end >= 0 else None
                    end = marker.start() if marker else -1
                if end < 0 or text[end - 1] != "\n":
                    break
                value = text[start:end].strip()
                if not value.isprintable() and _has_breaks(value):
                    break
                done[name] = value if convert is str else convert(value)
            else:
                if text.startswith(_COMPLETED, end):
                    return done
        except REFUSED:
            pass  # `typed` below lists it with all other problems
        return outputs.typed(sections(text, outputs.converters), text)

    return parse_text


def sections(text: str, wanted: Container[str]) -> dict[str, str]:
    """The text below the header of each wanted field, stripped."""
    before, *parts = text.split(_OPEN)
    found: dict[str, str] = {}
    for part in parts:
        if before and before[-1] != "\n":  # in the middle of a line, indented, or below an odd line break
            return _by_lines(text, wanted)
        name, _, body = part.partition(_CLOSE)
        if name in wanted:
            if body and body[0] != "\n":
                return _by_lines(text, wanted)
            value = body.strip()
            if not value.isprintable() and _has_breaks(value):
                return _by_lines(text, wanted)
            found.setdefault(name, value)
        elif name != "completed":
            return _by_lines(text, wanted)
        before = part
    return found


def _has_breaks(s: str) -> bool:
    """Whether a line of `s` ends with another character than "\\n": str.splitlines ends lines at more of them.

    Nine searches take a tenth of the time of one regular expression.
    """
    return (
        "\r" in s
        or "\x0b" in s
        or "\x0c" in s
        or "\x1c" in s
        or "\x1d" in s
        or "\x1e" in s
        or "\x85" in s
        or "\u2028" in s
        or "\u2029" in s
    )


def _by_lines(text: str, wanted: Container[str]) -> dict[str, str]:
    """`sections` for every text, as DSPy does it, line by line."""
    found: dict[str, str] = {}
    lines: list[str] | None = None  # lines of the current section; None: the section is not wanted
    name = ""
    for line in text.splitlines():
        header = _HEADER.match(line.strip())
        if not header:
            if lines is not None:
                lines.append(line)
            continue
        if lines is not None:
            found[name] = "\n".join(lines).strip()
        name = header.group(1)
        # header.end() is an index into the stripped line. DSPy uses it as an index into the line itself, so that an indented
        # header leaves some of its brackets in the value. dspex keeps this, so that both routes give the same value.
        rest = line[header.end() :].strip()
        lines = ([rest] if rest else []) if name in wanted and name not in found else None
    if lines is not None:
        found[name] = "\n".join(lines).strip()
    return found
