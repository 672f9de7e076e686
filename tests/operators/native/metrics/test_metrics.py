"""Metrics of one text: what they promise by themselves. test_fidelity.py compares them with DSPy."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
import unicodedata
from contextlib import suppress
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dspex import metrics
from dspex.bus.errors import InvalidInput

OF_TEXTS = sorted(set(metrics.METRICS) - {"json_match"})


def test_every_metric_is_listed_by_its_name() -> None:
    assert {"normalize_text", "batch", "METRICS", *metrics.METRICS} == {n for n in vars(metrics) if not n.startswith("_")}
    assert all(getattr(metrics, name) is function for name, function in metrics.METRICS.items())


@pytest.mark.parametrize(
    ("metric", "actual", "expected", "score"),
    [
        ("exact_match", "The Eiffel Tower!", "eiffel  tower", 1.0),
        ("exact_match", "The Eiffel Tower", ["Louvre", "Eiffel Tower"], 1.0),
        ("exact_match", "paris", "Paris, France", 0.0),
        ("f1", "Eiffel Tower is in Paris", ["Paris", "Rome"], 1 / 3),
        ("f1", "", "", 0.0),
        ("hotpot_f1", "yes", "yes it is", 0.0),
        ("hotpot_f1", "Yes!", "yes", 1.0),
        ("hotpot_f1", "yes it", "yes it is", 0.8),
        ("precision", "eiffel tower in paris", "eiffel tower", 0.5),
        ("recall", "eiffel tower in paris", "eiffel tower", 1.0),
        ("recall", "eiffel", "eiffel eiffel", 0.5),
        ("jaccard", "a b c c", "b c d", 2 / 3),
        ("jaccard", "", "", 0.0),
        ("passage_match", ["Nothing.", "The Eiffel Tower is in Paris."], ["Louvre", "eiffel tower"], 1.0),
        ("passage_match", "The Eiffel Towers", "eiffel tower", 0.0),
        ("passage_match", [], "eiffel", 0.0),
        ("passage_match", "eiffel", [], 0.0),
        ("passage_match", "eiffel", "the", 1.0),
        ("fuzzy", "The cat", "cat!", 1.0),
        ("fuzzy", "abcd", ["abce", "zzzz"], 0.75),
        ("fuzzy", "", "", 1.0),
        ("token_sort", "tower eiffel", "Eiffel Tower", 1.0),
        ("token_set", "tower of eiffel", "Eiffel", 1.0),
    ],
)
def test_a_metric_gives_the_score_of_two_texts(metric: str, actual: Any, expected: Any, score: float) -> None:
    found = metrics.METRICS[metric](actual, expected)
    assert type(found) is float
    assert found == pytest.approx(score)


def test_exact_match_with_frac_below_one_is_a_threshold_of_f1() -> None:
    assert metrics.exact_match("the eiffel tower", "eiffel", frac=0.5) == 1.0
    assert metrics.exact_match("the eiffel tower", "eiffel", frac=0.7) == 0.0
    assert metrics.exact_match("the eiffel tower", "eiffel") == 0.0


@pytest.mark.parametrize("metric", OF_TEXTS)
@pytest.mark.parametrize("wrong", [None, 1, b"text", {"a": 1}, ["text", None], [["text"]], object()])
def test_values_that_are_not_text_are_invalid_input(metric: str, wrong: Any) -> None:
    with pytest.raises(InvalidInput, match="text"):
        metrics.METRICS[metric](wrong, "text")
    with pytest.raises(InvalidInput, match="text"):
        metrics.METRICS[metric]("text", wrong)
    with pytest.raises(InvalidInput, match="must be text"):
        metrics.normalize_text(wrong)


@pytest.mark.parametrize("metric", sorted(set(OF_TEXTS) - {"passage_match"}))
def test_no_reference_is_invalid_input(metric: str) -> None:
    with pytest.raises(InvalidInput, match="no reference"):
        metrics.METRICS[metric]("text", [])
    with pytest.raises(InvalidInput, match="text"):  # several answers are one too many
        metrics.METRICS[metric](["text"], "text")


@pytest.mark.parametrize("metric", OF_TEXTS)
def test_the_best_reference_counts_in_whatever_sequence(metric: str) -> None:
    function = metrics.METRICS[metric]
    references = ("tower", "eiffel tower", "louvre")
    best = max(function("Eiffel Tower", r) for r in references)
    assert function("Eiffel Tower", references) == function("Eiffel Tower", list(references)) == best


class Name(str):
    __slots__ = ()


@pytest.mark.parametrize("metric", sorted(metrics.METRICS))
def test_metrics_take_subclasses_of_str(metric: str) -> None:
    assert metrics.METRICS[metric](Name('"x"'), Name('"x"')) == 1.0


# -- JSON ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("actual", "expected", "score"),
    [
        ('{"a": 1, "b": [1, 2]}', '{"b": [1, 2], "a": 1.0}', 1.0),
        ('{"a": 1}', {"a": 1}, 1.0),
        ({"a": (1, 2)}, {"a": [1, 2]}, 1.0),
        ("[1, 2]", "[2, 1]", 0.0),
        ("[1]", "[1, 1]", 0.0),
        ("true", "1", 0.0),
        ('{"a": 0}', {"a": False}, 0.0),
        ("null", None, 1.0),
        ('"1"', "1", 0.0),
        ('{"a": 1', {"a": 1}, 0.0),
        ("no json", "{}", 0.0),
        ("NaN", "0", 0.0),
        ("12345678901234567890123", "12345678901234567890124", 0.0),
        ("1e400", "1e401", 1.0),  # both are beyond what a float holds
        ("9" * 5000, "1", 0.0),
        ("[" * 200_000, "[]", 0.0),
        ("{}", "[]", 0.0),
        ('{"a": 1}', '{"b": 1}', 0.0),
    ],
)
def test_json_match_compares_values(actual: Any, expected: Any, score: float) -> None:
    assert metrics.json_match(actual, expected) == score


@pytest.mark.parametrize("wrong", ["no json", "", "{", "NaN", "[" * 200_000])
def test_a_reference_that_is_not_json_is_invalid_input(wrong: str) -> None:
    with pytest.raises(InvalidInput, match="no JSON"):
        metrics.json_match("{}", wrong)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def turned(value: Any) -> Any:
    """The same with its keys in the opposite order."""
    if isinstance(value, dict):
        return {k: turned(value[k]) for k in reversed(value)}
    return [turned(v) for v in value] if isinstance(value, list) else value


def canonical(value: Any) -> Any:
    """Equal for the same JSON value only: Python's own equality takes True for 1."""
    if isinstance(value, dict):
        return {k: canonical(v) for k, v in value.items()}
    if isinstance(value, list):
        return [canonical(v) for v in value]
    return (type(value), value) if isinstance(value, bool | str | None) else Fraction(value)


@settings(max_examples=settings().max_examples // 4)
@given(VALUES, VALUES)
def test_json_match_is_equality_up_to_the_order_of_keys(one: Any, other: Any) -> None:
    assert metrics.json_match(json.dumps(turned(one)), json.dumps(one)) == 1.0
    same = float(canonical(one) == canonical(other))
    assert metrics.json_match(json.dumps(one), json.dumps(other)) == same
    assert metrics.json_match(json.dumps([one]), [other]) == same


def test_json_nested_deeper_than_python_recurses_is_compared() -> None:
    one: Any = []
    other: Any = []
    for _ in range(100_000):
        one, other = [one], [other]
    assert metrics.json_match(one, other) == 1.0
    assert metrics.json_match(one, [other]) == 0.0
    while one:  # taken apart by hand: Python's own way is as deep
        one = one.pop()
    while other:
        other = other.pop()


# -- cost ----------------------------------------------------------------------------------------------------------
SIZE = 300_000  # characters of an untrusted text
UNTRUSTED = {
    "one word": "a" * SIZE,
    "articles": "the a an " * (SIZE // 9),
    "spaces": " " * SIZE,
    "punctuation": "." * SIZE,
    "almost articles": "tha ant " * (SIZE // 8),
    "marks": "\u0301" * (SIZE // 8),
    "marks out of order": "a" + "\u0300\u0316" * ((SIZE // 8) // 2),
    "marks out of order behind dots": ("\u0300" * 200 + "." + "\u0316" * 200 + ".") * ((SIZE // 8) // 402),
    "marks made of marks": "a" + "\u0344\u0f73\u0316" * ((SIZE // 8) // 3),
    "words": " ".join(map(str, range(SIZE // 7))),
    "controls": "a\x01the\x02" * (SIZE // 6),
    "half found": "x " * (SIZE // 2) + "y",
}


@pytest.mark.no_cover  # a budget of time
@pytest.mark.timeout(180)
@pytest.mark.parametrize("kind", UNTRUSTED)
def test_metrics_of_untrusted_texts_are_computed_within_seconds(kind: str) -> None:
    """The limit is hundreds of times what it takes; a search that backtracks would take hours."""
    text = UNTRUSTED[kind]
    start = time.process_time()
    for name in ("exact_match", "f1", "hotpot_f1", "jaccard", "passage_match", "precision", "recall", "json_match"):
        if name != "json_match":
            assert 0.0 <= metrics.METRICS[name](text, text[: SIZE // 2] + " b") <= 1.0
        else:
            assert metrics.METRICS[name](text, "{}") == 0.0
    assert time.process_time() - start < 50


_MARKS = st.text(st.sampled_from("\u0300\u0316\u0344\u0f73\u0f71\u3099\u0345\u05b0\u0301"), min_size=1, max_size=9)


@settings(max_examples=settings().max_examples // 10)
@given(st.lists(st.tuples(st.sampled_from(["", "a", "é", "ệ", "각", "x "]), _MARKS, st.integers(1, 400)), max_size=5))
def test_long_runs_of_marks_are_normalized_as_unicode_says(pieces: list[tuple[str, str, int]]) -> None:
    text = "".join(base + marks * times for base, marks, times in pieces)
    assert metrics.normalize_text(text) == " ".join(
        re.sub(r"\b(a|an|the)\b", " ", unicodedata.normalize("NFD", text).lower()).split()
    )


@pytest.mark.parametrize("metric", ["fuzzy", "token_sort", "token_set"])
def test_texts_too_long_to_compare_by_letters_are_refused(metric: str) -> None:
    long = "word " * 40_000
    with pytest.raises(InvalidInput, match="too long"):
        metrics.METRICS[metric](long, long)
    assert metrics.METRICS[metric](long, "word") <= 1.0


@pytest.mark.parametrize("metric", OF_TEXTS)
def test_as_many_references_as_an_event_holds_do_not_stop_an_engine(metric: str) -> None:
    """A publisher chooses both: with a long answer each of so many references would take milliseconds."""
    started = time.process_time()
    for actual, expected in (
        ("word " * 80_000, ["b"] * 150_000),
        ("ab" * 120_000, ["ba" * 9_000] * 30),
        ("x y", ["b c"] * 50_000),
    ):
        with suppress(InvalidInput):
            assert metrics.METRICS[metric](actual, expected) < 1.0
    assert time.process_time() - started < 10
    assert metrics.METRICS[metric]("a long answer " * 50, ["short", "a long answer " * 50] * 100) == 1.0


def test_metrics_import_no_large_library() -> None:
    code = "import sys\nfrom dspex import metrics\nmetrics.f1('a b', 'b')\nmetrics.passage_match('a b', 'b')\n"
    code += "print(sorted({'dspy', 'pydantic', 'pyarrow', 'numpy', 'rapidfuzz', 'regex', 'asyncio'} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out == "[]\n"
