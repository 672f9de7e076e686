"""The words of test files: steps, their options, and what they may name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import datetime
from typing import Any, Final, get_args

from dspex.bus import errors
from dspex.engine.graph.approvals import AcceptOrReject

CRASHES: Final = ("engine", "workers", "all")
DECISIONS: Final[tuple[str, ...]] = get_args(AcceptOrReject)
FAILURES: Final = {
    name: found
    for name in errors.__all__
    if isinstance(found := getattr(errors, name), type) and issubclass(found, errors.CallError)
}
"""What `fail` may name."""
LOOKS: Final = ("approvals", "calls", "dead_letters", "state")
"""What `expect` may name besides subjects."""
STEPS: Final[Mapping[str, tuple[tuple[str, ...], str]]] = {
    "answer": (("after",), "answer: { NODE: { FIELD: VALUE } }"),
    "fail": (("times", "message"), "fail: { NODE: RateLimited }"),
    "publish": (("id", "key", "session", "at", "after"), "publish: { SUBJECT: { FIELD: VALUE } }"),
    "decide": (("edit", "note"), "decide: { NODE: accept }"),
    "advance": ((), "advance: 2m"),
    "crash": ((), "crash: engine"),
    "expect": ((), "expect: { SUBJECT: [ { FIELD: VALUE } ], calls: { NODE: 1 }, dead_letters: [] }"),
}
"""Verb → its options, and how it is written."""
OPTIONS: Final[Mapping[str, tuple[Callable[[Any], bool], str]]] = {
    "times": (lambda v: isinstance(v, int) and not isinstance(v, bool) and v > 0, "times: 2"),
    "edit": (lambda v: isinstance(v, dict), "edit: { FIELD: VALUE }"),
    "note": (lambda v: isinstance(v, str), "note: not for us"),
    "message": (lambda v: isinstance(v, str), 'message: "slow down"'),
    "id": (lambda v: isinstance(v, str), "id: m1"),
    "key": (lambda v: isinstance(v, str), "key: c1"),
    "session": (lambda v: isinstance(v, str), "session: s1"),
    "at": (lambda v: isinstance(v, datetime), "at: 2026-01-01T12:00:00Z"),
}


def countable(value: object) -> bool:
    """Whether it says what a list should be: its items, how many they are, or nothing yet (for --update)."""
    return isinstance(value, list | int | None) and not isinstance(value, bool)


def time_of(text: str) -> datetime | str:
    """The time that a text is; the text where it is none."""
    with suppress(ValueError):
        return datetime.fromisoformat(text)
    return text
