"""What is read out of a model's free text, and what is not."""

from __future__ import annotations

import doctest
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspex.operators.native.replies import responses
from dspex.operators.native.replies.responses import code_blocks, items, key_values, numbers


def test_the_examples_in_docstrings_are_correct() -> None:
    assert doctest.testmod(responses).failed == 0


@pytest.mark.parametrize(
    ("text", "blocks"),
    [
        ("no code", []),
        ("```\nx\n```", [("", "x")]),
        ("```py\nx\n\ny\n```\nand\n~~~sh\nls\n~~~\n", [("py", "x\n\ny"), ("sh", "ls")]),
        ("````md\n```py\nx\n```\n````", [("md", "```py\nx\n```")]),
        ("```python title=a.py\nx = '```'\n", [("python", "x = '```'\n")]),
        ("```\n```", [("", "")]),
        ("use ```x``` inline", []),
        ("- item:\n  ```js\n  a()\n  ```", [("js", "  a()")]),
    ],
)
def test_code_is_taken_out_of_fences(text: str, blocks: list[tuple[str, str]]) -> None:
    assert code_blocks(text) == blocks


@pytest.mark.parametrize(
    ("text", "pairs"),
    [
        ("a: 1\nb = 2", {"a": "1", "b": "2"}),
        ("* **Topic:** billing: late\n1. `size`: 3", {"Topic": "billing: late", "size": "3"}),
        ("Topic: a\nTopic: b", {"Topic": "a"}),
        ("see https://example.org/x", {}),
        ("x == y", {}),
        ("empty:\nnext: 1", {"empty": "", "next": "1"}),
        ("just words", {}),
        ("12:30 is the time", {"12": "30 is the time"}),
        ("two words: v\r\nÜmlaut: ü", {"two words": "v", "Ümlaut": "ü"}),
    ],
)
def test_pairs_are_read_line_by_line(text: str, pairs: dict[str, str]) -> None:
    assert key_values(text) == pairs


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("1,234,567 and 1,23", [1234567]),
        ("-5 +6 −7", [-5, 6, -7]),
        ("1e3, 2.5E-1.", [1000.0, 0.25]),
        ("50% of 3.5 %", [0.5, 0.035]),
        ("B2B v1.2.3 2024-01-02 12:30", []),
        ("(42) $3 7.", [42, 3, 7]),
        ("0.1 .5", [0.1]),
        ("9" * 500, []),
        ("12345678901234567890", [12345678901234567890]),
        ("3-4, GPT-4, 3 - 4, x=-5", [3, 4, -5]),
    ],
)
def test_numbers_are_read_as_they_are_written(text: str, found: list[float]) -> None:
    got = numbers(text)
    assert got == found
    assert [type(x) for x in got] == [type(x) for x in found]


@given(
    st.lists(st.integers(-(10**12), 10**12) | st.floats(allow_nan=False, allow_infinity=False, min_value=-1e15, max_value=1e15))
)
def test_every_number_that_python_writes_is_read_back(values: list[float]) -> None:
    assert numbers("; ".join(f"{v:,}" if isinstance(v, int) else repr(v) for v in values)) == values


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("- a\n* b\n• c\n+ d", ["a", "b", "c", "d"]),
        ("1. a\n2) b\n(3) c\na) d", ["a", "b", "c", "d"]),
        ("intro\n\n- a\n  more\n\n  and more\nout\n  not", ["a more and more"]),
        ("-no space\n1.5 is no item", []),
        ("- a\n  - b", ["a", "b"]),
        ("**bold** text", []),
    ],
)
def test_items_are_those_of_lists(text: str, found: list[str]) -> None:
    assert items(text) == found


@pytest.mark.no_cover  # a budget of time
@pytest.mark.parametrize(
    "bit",
    [
        "[",
        "{",
        "```\n",
        "~",
        "a ",
        "a" * 90 + " ",
        "1,",
        "1.",
        "123,",
        "- ",
        "*",
        "**a",
        "  ",
        "1e",
        "\n",
        "a=",
        "`",
        "-",
        "9",
        "(",
        " \t",
    ],
)
def test_a_long_free_text_is_read_within_seconds(bit: str) -> None:
    text = (bit * 300_000)[:300_000]
    started = time.process_time()
    for read in (code_blocks, key_values, numbers, items):
        read(text)
    assert time.process_time() - started < 20
