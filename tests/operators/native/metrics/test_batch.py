"""Metrics over columns: the numbers of the single functions for every row, whatever the column is made of."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import metric_texts as hard
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dspex import metrics
from dspex.bus.errors import InvalidInput
from dspex.operators.native.metrics import columns

OF_TEXTS = sorted(set(metrics.METRICS) - {"json_match"})
OF_ONE = sorted(set(OF_TEXTS) - {"passage_match"})
ROWS = st.lists(hard.pairs(surrogates=False) | st.just((None, "x")) | st.just(("x", None)), max_size=8)


def one_by_one(metric: str, actual: list[Any], expected: list[Any]) -> list[float | None]:
    function = metrics.METRICS[metric]
    return [None if a is None or b is None else function(a, b) for a, b in zip(actual, expected)]


@settings(max_examples=settings().max_examples // 4)
@given(metric=st.sampled_from(OF_TEXTS), rows=ROWS)
def test_a_column_gives_the_numbers_of_its_rows(metric: str, rows: list[tuple[Any, Any]]) -> None:
    actual, expected = [a for a, _ in rows], [b for _, b in rows]
    found = metrics.batch(metric, actual, expected)
    assert found.type == pa.float64()
    assert found.to_pylist() == one_by_one(metric, actual, expected)


REFERENCES = st.lists(hard.texts(surrogates=False), min_size=1, max_size=3)


@settings(max_examples=settings().max_examples // 4)
@given(
    metric=st.sampled_from(OF_TEXTS),
    rows=st.lists(st.tuples(hard.texts(surrogates=False), REFERENCES | st.none()), max_size=6),
    own=st.booleans(),
)
def test_a_column_of_lists_has_several_references_a_row(metric: str, rows: list[tuple[Any, Any]], own: bool) -> None:
    actual = [a for a, _ in rows]
    # or no reference of a row would ever match
    expected = [b if b is None or not own else [*b, f"{a} the"] for a, b in rows]
    column = pa.array(expected, pa.list_(pa.string()))
    assert metrics.batch(metric, actual, column).to_pylist() == one_by_one(metric, actual, expected)


LISTS = st.lists(hard.texts(surrogates=False), max_size=3)


@settings(max_examples=settings().max_examples // 4)
@given(rows=st.lists(st.tuples(LISTS | st.none(), LISTS | st.none()), max_size=6))
def test_passages_and_answers_may_both_be_lists(rows: list[tuple[Any, Any]]) -> None:
    actual, expected = [a for a, _ in rows], [b for _, b in rows]
    kind = pa.list_(pa.string())
    found = metrics.batch("passage_match", pa.array(actual, kind), pa.array(expected, kind))
    assert found.to_pylist() == one_by_one("passage_match", actual, expected)


# -- kinds of columns ----------------------------------------------------------------------------------------------
ACTUAL = ["The Eiffel Tower!", None, "", "yes", "café", "a\x00the b", "eiffel tower", "\x00word", "noanswers", "abcdefgh1"]
EXPECTED = ["eiffel  tower", "x", "", "yes it is", "CAFE\u0301", "\x00 b", None, "word", "noanswers cat", "abcdefgh2"]
COLUMNS: dict[str, Callable[[list[Any]], Any]] = {
    "sequence": list,
    "string": lambda v: pa.array(v, pa.string()),
    "large string": lambda v: pa.array(v, pa.large_string()),
    "dictionary": lambda v: pa.array(v, pa.string()).dictionary_encode(),
    "slice": lambda v: pa.array(["x", *v, "y"])[1:-1],
    "chunks": lambda v: pa.chunked_array([v[:3], [], v[3:4], v[4:]], pa.string()),
    "slice of chunks": lambda v: pa.chunked_array([["x", v[0]], v[1:]], pa.string())[1:],
    "chunks of dictionaries": lambda v: pa.chunked_array(
        [pa.array(v[:4]).dictionary_encode(), pa.array(v[4:]).dictionary_encode()]
    ),
    "table": lambda v: pa.table({"c": v})["c"],
}


@pytest.mark.parametrize("kind", COLUMNS)
@pytest.mark.parametrize("metric", OF_TEXTS)
def test_every_kind_of_arrow_column_gives_the_same_numbers(metric: str, kind: str) -> None:
    made = COLUMNS[kind]
    assert metrics.batch(metric, made(ACTUAL), made(EXPECTED)).to_pylist() == one_by_one(metric, ACTUAL, EXPECTED)


@pytest.mark.parametrize(
    "kind",
    [pa.list_(pa.string()), pa.large_list(pa.large_string()), pa.list_(pa.string(), 2)],
    ids=["list", "large list", "fixed"],
)
def test_every_kind_of_arrow_list_gives_the_same_numbers(kind: Any) -> None:
    actual = ["cat", "dog", None, "bird"]
    references = [["the cat", "x"], None, ["y", "z"], ["a bird", "b"]]
    column = pa.array([["cut", "off"], *references], kind)[1:]
    for metric in OF_ONE:
        assert metrics.batch(metric, actual, column).to_pylist() == one_by_one(metric, actual, references)
    chunks = pa.chunked_array([column[:1], column[1:]])
    assert metrics.batch("f1", actual, chunks).to_pylist() == one_by_one("f1", actual, references)


@pytest.mark.parametrize("metric", sorted(metrics.METRICS))
def test_scores_of_an_empty_column_are_empty_and_those_of_nulls_are_null(metric: str) -> None:
    assert metrics.batch(metric, [], []).to_pylist() == []
    assert metrics.batch(metric, pa.chunked_array([], pa.string()), []).to_pylist() == []
    assert metrics.batch(metric, [None, None], ["x", None]).to_pylist() == [None, None]
    assert metrics.batch(metric, pa.array([None]), pa.array(["x"])).null_count == 1


def test_every_ascii_character_is_normalized_in_a_column_as_in_a_row() -> None:
    """Between an article and a word, where it matters whether it ends a word."""
    actual = [f"a{chr(c)}the {chr(c)}b {chr(c)}" for c in range(128)]
    for metric in OF_TEXTS:
        for expected in ("b", "the b", "a\x0ethe b"):
            column = [expected] * len(actual)
            assert metrics.batch(metric, actual, column).to_pylist() == one_by_one(metric, actual, column), metric


def test_json_match_compares_the_values_of_a_column() -> None:
    found = metrics.batch("json_match", ['{"a": 1}', "broken", None], ['{"a": 1.0}', "{}", "{}"])
    assert found.to_pylist() == [1.0, 0.0, None]


def test_rows_are_the_same_in_blocks_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [t for t in hard.CORPUS if t.isprintable()] * 3
    others = [*texts[5:], *texts[:5]]
    whole = {metric: metrics.batch(metric, texts, others).to_pylist() for metric in OF_TEXTS}
    monkeypatch.setattr(columns, "ROWS", 3)
    assert {metric: metrics.batch(metric, texts, others).to_pylist() for metric in OF_TEXTS} == whole
    monkeypatch.setattr(columns, "BYTES", 1)
    assert {metric: metrics.batch(metric, texts, others).to_pylist() for metric in OF_TEXTS} == whole


def test_a_huge_row_among_many_is_scored_like_the_others() -> None:
    actual = [f"row {i} of the many" for i in range(5_000)]
    actual[2_500] = "huge " * 200_000
    expected = [f"Row {i}!" for i in range(5_000)]
    found = metrics.batch("recall", actual, expected).to_pylist()
    assert found[2_500] == 0.0
    assert found[:2_500] + found[2_501:] == [1.0] * 4_999


@pytest.mark.no_cover  # a budget of time
@pytest.mark.parametrize(
    "text", ["x" * 500_000, "the " * 100_000, "é" * 100_000, "a\x00" * 100_000, " ".join(map(str, range(50_000)))]
)
def test_metrics_of_a_column_of_untrusted_texts_are_computed_within_seconds(text: str) -> None:
    start = time.process_time()
    for metric in ("exact_match", "f1", "passage_match"):
        metrics.batch(metric, [text, "x"], [text + " y", "y"])
    assert time.process_time() - start < 50


# -- errors --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("metric", "actual", "expected", "words"),
    [
        ("exactmatch", ["x"], ["x"], "did you mean exact_match"),
        ("f1", ["x"], ["x", "y"], "actual has 1 rows, expected has 2"),
        ("f1", [1], ["x"], "actual must be a column of text.*int64"),
        ("f1", ["x"], [b"x"], "expected must be a column of text.*binary"),
        ("f1", "text", ["x"], "one text is no column"),
        ("f1", ["x"], [1, "x"], "expected must be a column of text"),
        ("f1", 5, ["x"], "actual must be a column of text"),
        ("f1", ["\ud800"], ["x"], "actual must be a column of text"),
        ("f1", [["x"]], ["x"], "not of lists"),
        ("f1", ["x"], [[]], "no reference"),
        ("exact_match", ["x", "y"], [["x"], []], "no reference"),
        ("fuzzy", ["x", "y"], [["x"], []], "no reference"),
        ("f1", ["x"], [["x", None]], "has a null in it"),
        ("f1", ["x"], [[1]], "expected must be a column of text"),
        ("json_match", ["{}"], ["no json"], "no JSON"),
    ],
)
def test_values_that_are_not_a_column_of_text_are_invalid_input(metric: str, actual: Any, expected: Any, words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        metrics.batch(metric, actual, expected)


def test_bytes_that_are_not_utf8_are_invalid_input() -> None:
    offsets = pa.py_buffer(b"\0\0\0\0\2\0\0\0")
    broken = pa.StringArray.from_buffers(1, offsets, pa.py_buffer(b"\xff\xfe"))
    with pytest.raises(InvalidInput, match="UTF8"):
        metrics.batch("f1", broken, ["x"])


def test_without_pyarrow_the_error_names_the_extra() -> None:
    code = """
import sys
sys.modules["pyarrow"] = None  # what an import of it finds where it is not installed
from dspex import errors, metrics
assert metrics.f1("a cat", "cat") == 1.0
try:
    metrics.batch("f1", ["x"], ["x"])
except errors.ConfigError as e:
    print(e.message, "|", e.fix)
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "needs pyarrow" in out
    assert "dspex[arrow]" in out
