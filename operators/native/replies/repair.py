"""JSON in a model's text, broken or not, read as DSPy reads it (json_repair, then Python literals), within a limit of work.

json_repair takes quadratic time or more on text like `["{"{"{"…`, and Python's parser of literals can overflow the stack. The
work is counted and not timed, so that a text is either read on every machine or on none.
"""

from __future__ import annotations

import ast
import json
import re
from contextvars import ContextVar
from typing import Any, SupportsIndex

import orjson

MAX_BROKEN = 100_000  # characters of a text that is to be repaired; json_repair joins strings a character at a time
MAX_WORK = 600_000  # reads of a character; an ordinary text takes 3 or 4 for each of its characters
MAX_DEPTH = 200  # nested lists and objects; orjson writes at most 254 levels, and an event adds some around the value
MAX_LITERAL = 20_000  # characters of a Python literal
_UNCOUNTED = 200  # characters: the work of a shorter text is estimated, because counting doubles the time

# json_repair has bugs that raise these, on text like '{"```json\n[1]'.
_BUGS = (AssertionError, AttributeError, IndexError, KeyError, TypeError)

_STRUCTURE = re.compile(r"[{}\[(#/]")
_NO_LITERAL = re.compile(r"[ \t]*(?!(?:True|False|None|set)\b)[A-Za-z_]\w*+(?!['\"])")
_BRACE = re.compile(r"[{}]")
_LONG = 9e18  # orjson reads integers beyond this as floats


class TooHard(Exception):
    """The text is nested too deep, or too broken, to be read within the limits. Not a ValueError: json_repair catches those."""


class RepairBudget:
    """The work that all repairs of one reply may take together: many slightly broken fields take as much as one."""

    __slots__ = ("left",)

    def __init__(self) -> None:
        self.left = MAX_WORK

    def spend(self, reads: int) -> None:
        """Count reads of a character. Raises TooHard when there are more than MAX_WORK."""
        self.left -= reads
        if self.left < 0:
            raise TooHard("the text is too broken to be repaired")


# The work of the reply that is being read. Outside of a reply, each text has a limit of its own.
of_reply: ContextVar[RepairBudget | None] = ContextVar("work of a reply", default=None)


class _Counted(str):
    """Text that counts how many of its characters are read."""

    __slots__ = ("work",)
    work: RepairBudget

    def __getitem__(self, key: SupportsIndex | slice) -> str:
        found = str.__getitem__(self, key)
        self.work.spend(1 + len(found) // 16)  # a long slice takes time in proportion
        return found


def loads(text: str) -> object:
    """The value that `json_repair.loads` returns: of the JSON in `text`, repaired; "" where there is none.

    Raises TooHard or ValueError for a text that is nested too deep or takes too long.
    """
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        return _repaired(text)
    return value if is_exact(value) else _checked(json.loads(text))


def is_exact(value: Any) -> bool:
    """Whether each number that orjson read is what Python reads: orjson reads integers over 64 bits as floats.

    Raises TooHard where lists and objects are nested too deep.
    """
    kind = type(value)
    if kind is dict or kind is list:
        return _all_exact(value, 1)
    return kind is not float or -_LONG < value < _LONG


def _all_exact(value: Any, depth: int) -> bool:
    if depth > MAX_DEPTH:
        raise TooHard(f"the JSON is nested over {MAX_DEPTH} deep")
    for item in value.values() if type(value) is dict else value:
        kind = type(item)
        if kind is str or kind is int:
            continue
        if kind is float:
            if not -_LONG < item < _LONG:
                return False
        elif (kind is dict or kind is list) and not _all_exact(item, depth + 1):
            return False
    return True


def _checked(value: object) -> object:
    """The value, unchanged. Raises TooHard if it is nested too deep."""
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [x for v in level if isinstance(v, (dict, list)) for x in (v.values() if isinstance(v, dict) else v)]
        if not level:
            return value
    raise TooHard(f"the JSON is nested over {MAX_DEPTH} deep")


def _repaired(text: str) -> object:
    inner = only_object(text)
    if inner is not None:
        try:
            value = orjson.loads(inner)
            if is_exact(value):
                return value
        except orjson.JSONDecodeError:
            pass
    try:
        return _checked(json.loads(text))
    except RecursionError as e:
        raise TooHard(f"the JSON is nested over {MAX_DEPTH} deep") from e
    except ValueError:
        pass
    if not _STRUCTURE.search(text):
        return ""
    if len(text) > MAX_BROKEN:
        raise TooHard(f"broken JSON of over {MAX_BROKEN} characters is not repaired")
    import json_repair

    work = of_reply.get() or RepairBudget()
    if len(text) > _UNCOUNTED:
        text = _Counted(text)
        text.work = work
    else:
        work.spend(8 * len(text))
    try:
        return _checked(json_repair.loads(text, skip_json_loads=True))
    except _BUGS as e:
        raise TooHard("the text is too broken to be repaired") from e


_BEFORE = re.compile(r"[^{\[(#/\"'“”]*+\{")
_AFTER = re.compile(r"[{\[(#/]")


def only_object(text: str) -> str | None:
    """The `{…}` of a text in which json_repair would read nothing else: alone, in a fence, or with words around it."""
    start = _BEFORE.match(text)
    end = text.rfind("}") + 1
    if not start or end <= start.end() or _AFTER.search(text, end) or text[end:].lstrip()[:1] == ",":
        return None
    return text[start.end() - 1 : end]


def first_object(text: str) -> str | None:
    """The first `{…}` with balanced braces; braces in strings count too, as in DSPy."""
    opened: list[int] = []
    first: tuple[int, int] | None = None
    for brace in _BRACE.finditer(text):
        if brace.group() == "{":
            opened.append(brace.start())
        elif opened:
            start = opened.pop()
            if first is None or start < first[0]:
                first = start, brace.end()
            if not opened:
                break
    return text[slice(*first)] if first else None


def value_of(text: str) -> object:
    """The value that DSPy reads from a text: JSON, else a Python literal, else the text itself. Raises what `loads` raises."""
    candidate = loads(text)
    if candidate != "" or text == "" or len(text) > MAX_LITERAL or _NO_LITERAL.match(text):
        return text if candidate == "" else candidate
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
    except (RecursionError, MemoryError) as e:
        raise TooHard("the text is nested too deep") from e
