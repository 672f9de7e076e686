"""Two values beside each other: whether they are the same, and where they differ, as people read it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any, Final

import orjson

from dspex.bus import codecs
from dspex.bus.codecs.arrow import is_columnar
from dspex.bus.errors import InvalidInput

NOTHING: Final = "nothing"
"""Stands for a step, or a field, that one of the two has not got."""
_WIDE: Final = 40  # characters of a value in a line; of a longer one what differs is shown
_AROUND: Final = 3  # words of what is the same on each side
_MANY: Final = 2000  # words; of more it is told where they begin to differ


@dataclass(frozen=True)
class StepDiff:
    """One difference.

    Attributes:
        step: its id: `node#ordinal`; of a sink `subject#ordinal`.
        field: of the inputs `in.name`, of the outputs or of data the name; "lm", "program" or "error"; None: one of the runs
            has no such step.
        a, b: what the two runs have there; `NOTHING` where that is not there.
    """

    step: str
    field: str | None
    a: Any
    b: Any

    def __reduce__(self) -> tuple[Any, ...]:
        """What is not there is told by what stands for it, and is that in another process, too."""
        return _step_of, (self.step, self.field, self.a, self.b, self.a is NOTHING, self.b is NOTHING)


def _step_of(step: str, field: str | None, a: Any, b: Any, no_a: bool, no_b: bool) -> StepDiff:
    return StepDiff(step, field, NOTHING if no_a else a, NOTHING if no_b else b)


def same(a: Any, b: Any) -> bool:
    """Whether two values are the same: arrays and tables by what is in them, and a number that is none as itself."""
    if is_columnar(a) or is_columnar(b):
        return type(a) is type(b) and codecs.encode(a, "auto") == codecs.encode(b, "auto")
    try:
        return bool(a == b) or codecs.msgpack_bytes(a) == codecs.msgpack_bytes(b)
    except InvalidInput:  # of a codec that was registered
        return False


def text(value: Any) -> str:
    """A value as it is written; what is no text, as JSON."""
    if isinstance(value, str | bytes):
        return value if isinstance(value, str) else repr(value)
    try:
        return orjson.dumps(value, default=str, option=orjson.OPT_NON_STR_KEYS | orjson.OPT_SERIALIZE_NUMPY).decode()
    except TypeError:  # nested deeper than it writes
        return repr(value)


def cut(value: str) -> str:
    """As much of a text as a line has room for."""
    return value if len(value) <= 2 * _WIDE else f"{value[: 2 * _WIDE - 1]}…"


def change(a: Any, b: Any) -> str:
    """Two values, in a line; of long ones the words that differ."""
    x, y = text(a), text(b)
    if max(len(x), len(y)) <= _WIDE or NOTHING in (x, y):
        return f"{cut(x)} → {cut(y)}"
    return " ".join(_marked(what, *words) for what, *words in _pieces(x, y))


def _pieces(a: str, b: str) -> Iterator[tuple[str, str, str]]:
    """Two texts in pieces: what became of each, then and now. Of what is "equal" a few words on each side are told."""
    x, y = a.split(), b.split()
    if x == y or max(len(x), len(y)) > _MANY:  # what is between the words differs, or it would take long
        yield "replace", *_apart(a, b)
        return
    for what, i, j, k, m in SequenceMatcher(None, x, y, autojunk=False).get_opcodes():
        then, now = x[i:j], y[k:m]
        if what == "equal" and len(then) > 2 * _AROUND:
            then = now = [*then[:_AROUND], "…", *then[-_AROUND:]]
        one, other = " ".join(then), " ".join(now)
        yield what, *(_apart(one, other) if what == "replace" else (cut(one), cut(other)))


def _apart(a: str, b: str) -> tuple[str, str]:
    """Two texts that differ, each no longer than fits: from a little before where they do."""
    if max(len(a), len(b)) <= 2 * _WIDE:
        return a, b
    begin = max(0, next((n for n, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b))) - _WIDE // 4)
    return (f"{'…' * (begin > 0)}{cut(a[begin:])}", f"{'…' * (begin > 0)}{cut(b[begin:])}")


def _marked(what: str, then: str, now: str) -> str:
    """[-gone-] and {+new+}."""
    if what == "equal":
        return then
    return " ".join([*([f"[-{then}-]"] if then else []), *([f"{{+{now}+}}"] if now else [])])


def cells(a: Any, b: Any) -> str:
    """Two cells of a table: of long values what differs, with some of what is around it."""
    x, y = text(a), text(b)
    if NOTHING in (x, y):
        x, y = cut(x), cut(y)
    elif max(len(x), len(y)) > _WIDE:
        pieces = list(_pieces(x, y))
        x, y = (" ".join(piece[side] for piece in pieces if piece[side]) for side in (1, 2))
    return " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in (x, y))
