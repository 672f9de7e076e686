"""What is left of a journal for the attempt that has claimed it, and what cannot be marked as a tool."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from dspex.bus.errors import ConfigError, DecodeError
from dspex.bus.records import Usage
from dspex.workers import tool
from dspex.workers.journal.entries import JournalEntry, JournalPart, kept, unpack_entry

PART = JournalPart("a", work=1, number=7, try_number=1)
CLAIM = replace(PART, attempt="b", work=2, try_number=2)


def model(digest: str, tokens: int = 1) -> JournalEntry:
    return JournalEntry("model", digest, 1, answer=digest, usage={"input_tokens": tokens})


def used(digest: str, **more: Any) -> JournalEntry:
    return JournalEntry("tool", digest, 1, "pay", **more)


def left(*entries: JournalEntry, claim: JournalPart = CLAIM, **of: Any) -> list[JournalEntry]:
    return kept([replace(PART, entries=entries, **of)], claim).entries


def test_the_last_entry_of_a_request_counts() -> None:
    assert left(used("x", begun=True), model("y"), used("x", answer=1)) == [model("y"), used("x", answer=1)]


def test_an_unfit_answer_costs_the_last_answer_of_a_model_once() -> None:
    unfit = replace(CLAIM, invalid=1)
    assert left(model("x"), model("y"), used("z", answer=1), claim=unfit) == [model("x"), used("z", answer=1)]
    again = replace(unfit, attempt="c")
    parts = [replace(PART, entries=[model("x"), model("y")]), replace(unfit, entries=[model("y", 2)])]
    assert kept(parts, again).entries == [model("x"), model("y", 2)]


def test_what_an_earlier_life_of_a_call_left_does_not_count() -> None:
    assert left(model("x"), number=6) == []


def test_only_executions_of_the_same_try_are_inherited() -> None:
    parts = [replace(PART, entries=[model("x", 5)]), replace(CLAIM, attempt="x", entries=[model("y", 3), model("z", 4)])]
    assert kept(parts, CLAIM).spent == Usage(input_tokens=7)


@pytest.mark.parametrize("wrong", [{"usage": {"input_tokens": "7"}}, {"kind": "robot"}, {"occurrence": math.pi}, {"digest": 1}])
def test_what_is_no_entry_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(DecodeError):
        unpack_entry(model("x")._replace(**wrong).pack())


@pytest.mark.parametrize(
    ("marks", "said"),
    [({"once": True, "effect": False}, "about an effect"), ({"once": True, "record": False}, "about an effect")],
)
def test_a_tool_that_runs_once_has_an_effect_that_is_recorded(marks: dict[str, bool], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        tool(**marks)


def test_only_functions_are_marked() -> None:
    with pytest.raises(ConfigError, match="tool marks functions"):
        tool(object())  # type: ignore[type-var]
