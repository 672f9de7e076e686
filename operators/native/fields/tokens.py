"""The text of a signature as tokens, which are those of Python, and the place of each token.

It does not use `ast`, which takes half of the time that a whole signature may take, and reads more than a signature may have.
"""

from __future__ import annotations

import ast
import re
import unicodedata
import warnings

from dspex.bus.errors import TopologyError
from dspex.operators.native.problems import problem

MAX_TEXT = 65_536
MAX_NAME = 200  # characters of a name that is not all ASCII
_SHOWN = 200  # characters of a text in an error
_AROUND = 60  # characters before and after the place of an error

# The first alternative that matches counts. The last one takes the rest of the text, so that a wrong text takes one attempt.
# No part can match the same characters in two ways, so none backtracks.
_SPACE = r"(?:[ \t\f\n\r]|\#[^\n\r]*+|\\(?:\r\n|[\n\r]))*+"
# A class that is said by what is not in it, and a dot, are compiled a hundred times as fast as one that spans all of Unicode.
_NAME = r"[^\x00-@\[-^`{-\x7f][^\x00-/:-@\[-^`{-\x7f]*+(?!['\"])"  # letters, digits, _, and all that is not ASCII
_ANY = r"(?s:.)"
_ESCAPE = rf"\\(?:\r\n|{_ANY})"
_TEXT = "|".join(
    (
        rf"'''(?:[^'\\]|{_ESCAPE}|'(?!''))*+'''",
        rf'"""(?:[^"\\]|{_ESCAPE}|"(?!""))*+"""',
        rf"'(?!'')(?:[^'\\\n\r]|{_ESCAPE})*+'",
        rf'"(?!"")(?:[^"\\\n\r]|{_ESCAPE})*+"',
    )
)
_NUMBER = r"(?:[0-9]|\.[0-9])(?:[eE][+\-](?=[0-9])|[0-9A-Za-z_.])*+"
_TOKENS = re.compile(rf"{_SPACE}({_NAME}|[:,\[\]()|=*/\-]|[rRuU]?(?:{_TEXT})|\.\.\.|{_NUMBER}|\.|\Z|{_ANY}++)", re.ASCII)
_ODD = re.compile(r"[\x00\ud800-\udfff]")  # characters that no Python source may have
_ESCAPED = re.compile(rf"\\({_ANY})")
_SIMPLE = re.compile(r"'[^'\\\n\r]*'\Z|\"[^\"\\\n\r]*\"\Z").match
_KNOWN_ESCAPES = frozenset("\n\r\\'\"abfnrtv01234567xuUN")

FORM = 'write "inputs -> outputs": "text -> answer"'
FIELDS = 'fields are "name" or "name: type", with commas between them'


def sides(text: str) -> tuple[str, str]:
    """The text before and after the arrow. Raises TopologyError unless there is exactly one, or if the text is too long."""
    if len(text) > MAX_TEXT:
        raise problem("DX210", f"the signature has {len(text)} characters, more than {MAX_TEXT}", "say less in one signature")
    if text.count("->") != 1:
        raise problem("DX210", f"the signature {shown(text)!r} needs exactly one '->'", FORM)
    left, _, right = text.partition("->")
    return left, right


def tokens(side: str) -> list[str]:
    """The tokens of one side; the last one is "". Text that is no token makes one token with everything after it."""
    return _TOKENS.findall(side)


def refuse_odd(text: str) -> None:
    """Raise TopologyError for characters that no Python source may have."""
    odd = _ODD.search(text)
    if odd:
        raise broken(text, odd.start(), f"the character {odd[0]!r} cannot be in a signature", "leave it out")


def refuse_open_comment(text: str, start: int, side: str) -> None:
    """Raise TopologyError where a comment hides the end of a side, which begins at `start`."""
    end = max((m.end() for m in _TOKENS.finditer(side) if m[1]), default=0)
    line = max(side.rfind("\n", end), side.rfind("\r", end)) + 1
    at = side.find("#", max(line, end))
    if at >= 0:
        raise broken(text, start + at, "the comment hides what follows", "end the line after a comment")


def place(side: str, number: int) -> int:
    """The place where the token of this number begins."""
    for i, match in enumerate(_TOKENS.finditer(side)):
        if i == number:
            return match.start(1)
    return len(side)


def broken(text: str, at: int, what: str, fix: str, *, code: str = "DX210") -> TopologyError:
    """The error about one place of a text. It shows the line, with a mark below the place."""
    return problem(code, f"{what}\n{mark(text, at)}", fix)


def mark(text: str, at: int) -> str:
    """The line of the text with this place, and a mark below the place."""
    start = max(text.rfind("\n", 0, at), text.rfind("\r", 0, at)) + 1
    end = min((i for i in (text.find("\n", at), text.find("\r", at)) if i >= 0), default=len(text))
    first, last = max(start, at - _AROUND), min(end, at + _AROUND)
    line = "".join(c if c.isprintable() else " " for c in text[first:last])
    more = "…" if first > start else ""
    width = sum(_width(c) for c in line[: at - first]) + len(more)
    return f"  {more}{line}{'…' if last < end else ''}\n  {' ' * width}^"


def _width(character: str) -> int:
    """The number of columns that a character takes in a terminal."""
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def shown(text: str) -> str:
    """A text for an error message, cut if it is long."""
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"


def name_of(token: str) -> str:
    """The name that a token is, as Python reads it; "" for another token."""
    if not token.isidentifier():
        return ""
    if token.isascii():
        return token
    return unicodedata.normalize("NFKC", token) if len(token) <= MAX_NAME else ""  # NFKC is quadratic in combining marks


def text_of(token: str) -> str | None:
    """The text that a token is; None for another token."""
    if token[-1:] not in ("'", '"'):
        return None
    if _SIMPLE(token):
        return token[1:-1]
    known = token if token[0] in "rR" else _ESCAPED.sub(_escaped, token)
    value = _value(known)
    return value if isinstance(value, str) else None


def _escaped(match: re.Match[str]) -> str:
    """A known escape unchanged. Before another character the backslash is doubled: Python only warns about it."""
    return match[0] if match[1] in _KNOWN_ESCAPES else "\\" + match[0]


def number_of(token: str) -> int | float | None:
    """The number that a token is; None for another token, and for infinity and numbers that are too long."""
    if token.isdecimal() and token.isascii() and len(token) <= 20 and (token[0] != "0" or len(token) == 1):
        return int(token)
    if not (token[:1].isdecimal() or token[:1] == ".") or not token.isascii() or len(token) > 40:
        return None
    value = _value(token)
    return value if isinstance(value, int) or (isinstance(value, float) and value - value == 0) else None


def _value(token: str) -> object:
    """The constant that a token is, read by Python; None where Python does not read it as a constant."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.literal_eval(token)
    except (ValueError, SyntaxError, MemoryError):
        return None
