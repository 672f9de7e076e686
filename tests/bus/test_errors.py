"""The error tree: every class says what it is, what to do, and survives the wire."""

from __future__ import annotations

import json
import pickle
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspex.bus import errors
from dspex.bus.errors import (
    BusError,
    CallError,
    ConfigError,
    DataError,
    DspexError,
    Problem,
    Reject,
    RetryLater,
    RunError,
    Saturated,
    TopologyError,
    by_name,
    from_dict,
)

JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=4,
)
CLASSES = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, DspexError)]
ids = pytest.mark.parametrize("cls", CLASSES, ids=lambda c: c.__name__)
FIRST_DIGIT = {ConfigError: "1", TopologyError: "2", BusError: "4", DataError: "5", CallError: "6"}


@ids
def test_every_error_class_has_a_code_a_fix_and_a_docstring(cls: type[DspexError]) -> None:
    assert re.fullmatch(r"DX\d{3}", vars(cls)["code"])
    assert vars(cls)["fix"]
    assert cls.__doc__
    assert cls.__doc__ != (cls.__base__ or cls).__doc__
    for base, digit in FIRST_DIGIT.items():
        if issubclass(cls, base):
            assert cls.code[2] == digit


def test_no_two_error_classes_share_a_code() -> None:
    codes = [c.code for c in CLASSES]
    assert sorted(set(codes)) == sorted(codes)


@ids
def test_the_drawn_tree_shows_every_error_class_below_its_base(cls: type[DspexError]) -> None:
    tree = (errors.__doc__ or "").split("A class says")[0]
    assert re.search(rf"\b{cls.__name__}\b", tree)
    branch = next(c for c in reversed(cls.__mro__) if c in CLASSES and c is not DspexError) if cls is not DspexError else cls
    start = tree.index(f"{branch.__name__} ")
    end = tree.find("\n    ├──", start) if "\n    ├──" in tree[start:] else len(tree)
    assert re.search(rf"\b{cls.__name__}\b", tree[start : end if end > 0 else None])


@ids
def test_an_error_survives_the_wire(cls: type[DspexError]) -> None:
    error = cls("what", code="DX999", fix="do this", node="n", run="r", **({} if cls is RetryLater else {"retry_after": 2.5}))
    again = from_dict(json.loads(json.dumps(error.as_dict())))
    assert type(again) is cls
    assert again.as_dict() == error.as_dict()
    assert (str(again), again.retryable, again.exit_code) == ("what", cls.retryable, error.exit_code)


@ids
def test_an_error_survives_pickling_between_processes_of_a_test_run(cls: type[DspexError]) -> None:
    error = cls("what", node="n")
    assert pickle.loads(pickle.dumps(error)).as_dict() == error.as_dict()


def test_an_error_takes_code_and_fix_from_its_class_when_none_are_given() -> None:
    error = Saturated("full")
    assert (error.code, error.fix) == (Saturated.code, Saturated.fix)
    assert error.as_dict() == {
        "type": "Saturated",
        "code": "DX601",
        "message": "full",
        "fix": Saturated.fix,
        "node": None,
        "run": None,
        "retryable": True,
        "retry_after": None,
    }


@pytest.mark.parametrize("after", [0.0, 0.5, 60.0])
def test_retry_later_keeps_its_delay(after: float) -> None:
    again = from_dict(RetryLater(after=after).as_dict())
    assert isinstance(again, RetryLater)
    assert again.retry_after == after


def test_retry_later_without_a_delay_waits_a_second() -> None:
    assert RetryLater().retry_after == 1.0
    assert from_dict({"type": "RetryLater"}).retry_after == 1.0


@pytest.mark.parametrize("retryable", [True, False])
def test_an_error_of_a_newer_version_is_a_call_error_with_its_own_policy(retryable: bool) -> None:
    error = from_dict({"type": "FromTheFuture", "message": "m", "code": "DX699", "retryable": retryable})
    assert type(error) is CallError
    assert (error.code, error.message, error.retryable) == ("DX699", "m", retryable)


@pytest.mark.parametrize("data", [{}, {"type": None}, {"message": 5, "type": 7}])
def test_an_incomplete_description_of_an_error_gives_a_call_error(data: dict[str, object]) -> None:
    error = from_dict(data)
    assert type(error) is CallError
    assert not error.retryable


def test_a_users_own_class_goes_over_the_wire_as_the_one_it_is_made_from() -> None:
    class TooShort(Reject):
        def __init__(self, length: int) -> None:
            super().__init__(f"only {length} characters")

    again = from_dict(TooShort(3).as_dict())
    assert type(again) is Reject
    assert again.message == "only 3 characters"


def test_a_users_class_does_not_take_the_place_of_ours() -> None:
    impostor = type("Saturated", (RunError,), {})
    assert by_name("Saturated") is Saturated
    assert type(from_dict(impostor("x").as_dict())) is RunError


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("DspexError", 1),
        ("ConfigError", 2),
        ("TopologyError", 3),
        ("Unreachable", 4),
        ("Fenced", 4),
        ("NotStored", 4),
        ("Saturated", 5),
        ("CallTimeout", 5),
        ("Divergence", 6),
        ("Reject", 1),
    ],
)
def test_the_exit_code_follows_the_tree(name: str, code: int) -> None:
    assert by_name(name)("x").exit_code == code


def test_a_topology_error_has_all_problems_with_their_places() -> None:
    def problem(node: str | None, file: str | None, line: int | None) -> Problem:
        return Problem("DX203", "error", "t", node, file, line, "m", "f")

    problems = [problem("n", "t.py", 24), problem(None, "t.yaml", None), problem("n", None, None), problem(None, None, 3)]
    error = TopologyError("4 problems", problems=problems)
    assert [p.place for p in error.problems] == ["n (t.py:24)", "t (t.yaml)", "n", "t"]


@given(
    name=st.sampled_from([*(c.__name__ for c in CLASSES), "Unknown"]),
    field=st.sampled_from(["type", "message", "code", "fix", "node", "run", "retry_after", "retryable", "problems"]),
    junk=JUNK,
)
def test_an_error_from_the_wire_is_rebuilt_whatever_it_holds(name: str, field: str, junk: object) -> None:
    error = from_dict({"type": name, "message": "no", field: junk})
    assert isinstance(error, DspexError)
    assert error.retry_after is None or 0 <= error.retry_after < 1e10
    assert isinstance(error.as_dict()["message"], str)


@pytest.mark.parametrize("after", [-1, float("nan"), float("inf"), "5s", None])
def test_run_again_later_takes_seconds_and_nothing_else(after: object) -> None:
    with pytest.raises(ValueError, match="after is seconds"):
        RetryLater(after=after)  # type: ignore[arg-type]
