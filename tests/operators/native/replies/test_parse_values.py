# ruff: noqa: E501, UP007, UP045, RUF005  # the spellings are the point; a corpus is read best in long lines
"""A text becomes the value that DSPy's `parse_value` makes of it: the same value of the same type, or a refusal."""

from __future__ import annotations

import dataclasses
import datetime
import enum
import json
from typing import Any, Literal, NamedTuple, Optional, Union

import pydantic
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from reply_texts import parse_value
from typing_extensions import TypedDict

from dspex.bus.errors import InvalidOutput


class Color(enum.Enum):
    RED = "red"
    GREEN = "GREEN"
    RED2 = "RED"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Auto(enum.Enum):
    ONE = enum.auto()
    TWO = enum.auto()


class Address(pydantic.BaseModel):
    street: str
    zip: int = 0


class Person(pydantic.BaseModel):
    name: str
    age: float | None = None
    tags: list[str] = []
    address: Address | None = None
    friends: list[Person] = []


class Aliased(pydantic.BaseModel):
    inner: int = pydantic.Field(alias="outer")


class Strict(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", strict=True)
    n: int


@dataclasses.dataclass
class Point:
    x: int
    y: float = 1.5


class Movie(TypedDict):
    title: str
    year: int


class Pair(NamedTuple):
    a: int
    b: str


TYPES: list[Any] = [
    str,
    int,
    float,
    bool,
    bytes,
    complex,
    type(None),
    Any,
    list,
    dict,
    tuple,
    set,
    frozenset,
    Optional[str],
    Optional[int],
    Optional[float],
    Optional[bool],
    Union[int, str],
    Union[str, int],
    Union[int, float],
    Union[float, int],
    Union[bool, int, None],
    Union[str, int, None],
    Union[list[int], dict[str, int]],
    int | str,
    str | None,
    int | None,
    list[Union[int, str]],
    list[Union[str, int]],
    Literal["a", "b"],
    Literal[1, 2, 3],
    Literal[True, "yes", None],
    Literal["1", 1],
    Literal["it's", 'say "hi"', ""],
    Optional[Literal["x", "y"]],
    Color,
    Level,
    Auto,
    Optional[Color],
    list[Color],
    list[str],
    list[int],
    list[float],
    list[list[int]],
    list[Any],
    list[Optional[str]],
    dict[str, int],
    dict[str, Any],
    dict[int, str],
    dict[str, list[float]],
    tuple[int, str],
    tuple[int, ...],
    set[int],
    frozenset[str],
    datetime.date,
    datetime.datetime,
    datetime.time,
    datetime.timedelta,
    Person,
    Address,
    Aliased,
    Strict,
    Point,
    Movie,
    Pair,
    list[Person],
    Optional[Person],
    dict[str, Address],
    Union[Address, Point, str],
    list[Literal["a", 1]],
]

WORDS = [
    "", " ", "a", "b", "x", "yes", "no", "Yes", "on", "off", "y", "true", "True", "TRUE", "false", "False", "None", "null", "none", "Null",
    "nan", "NaN", "Infinity", "-Infinity", "inf", "0", "-0", "-0.0", "00", "007", "1", "2", "5.0", "5.5", "+5", "-5", "1_000", "1,000", "1, 2",
    "1e3", "1E400", "-1e400", "1.", ".5", "0x1F", "0b1", "1j", "1+2j", "½", "٣", "５", "১২", "1 000", "99999999999999999", "9007199254740993",
    "18446744073709551616", "-9223372036854775809", "9" * 30, "9" * 400, "9" * 5000, "0." + "3" * 40, "1e-400", "RED", "red", "GREEN", "ONE",
    "LOW", "'a'", '"a"', "`a`", "'a", 'a"', "''", '""', "'''a'''", "b'abc'", "u'abc'", "r'a\\n'", "f'{1}'", "'a' 'b'", "Literal['a']", "Literal[a]",
    "str[a]", "Literal[2]", "Literal['a", "it's", 'say "hi"', "[]", "{}", "()", "set()", "[1]", "(1)", "(1,)", "(1, 'a')", "{1, 2}", "[1, 2", "1, 2]",
    "[1 2]", "[a, b]", "['a', \"b\"]", "- a\n- b", "a, b", "[[1], [2, 3]]", "[1, 2,]", "[1,, 2]", "[NaN]", "[Infinity, -Infinity]", "[1e400]",
    '{"a": 1}', "{'a': 1}", "{a: 1}", '{"a": 1', '{"a": 1}}', '{"a": 1} {"a": 2}', '{"a": 1}, {"a": 2}', '{"a": 1}\n{"b": 2}', '[1] [2]',
    '{"a": 1, "a": 2}', '{"1": "x"}', '{1: "x"}', '{[]: 1}', "{(1, 2): 3}", '{"name": "x"}', '{"name": "x", "age": "3"}', '{"name": 3}',
    '{"name": "x", "friends": [{"name": "y"}]}', '{"street": "s", "zip": "12"}', '{"street": "s", "zip": 1.5}', '{"outer": 1}', '{"inner": 1}',
    '{"n": 1}', '{"n": "1"}', '{"n": 1, "m": 2}', '{"x": 1}', '{"x": 1, "y": 2}', '{"title": "t", "year": 1999}', '{"title": "t"}',
    '```json\n{"a": 1}\n```', '```\n[1, 2]\n```', 'Here: {"a": 1} done', 'see [1, 2] (maybe)', "a # b", "a // b", "# x", "/* c */ 1", "(note) 5",
    "2024-01-02", "2024-01-02T03:04:05Z", "2024-01-02 03:04", "03:04:05", "P1DT2H", "1 day", "86400", "1700000000", "12:30", "2024-13-01",
    "\ud800", '"\ud800"', '"\\ud800"', '"\\ud83d\\ude00"', "\x00", '"\x00"', '"\\u0000"', '"\x01"', "\ufeff1", '"a\nb"', "a\nb", "\t1\t", "\n5\n",
    "\u00a05\u00a0", "\u20285", "\x0b5", "None.", "True.", "not", "- 1", "--1", "~1", "-'a'", "lambda: 1", "__import__('os')", "open('/etc/passwd')",
    "“a”", "«a»", "[“a”, “b”]", '"a', "\\", '"\\', "'\\'", "{", "}", "[", "]", "(", ")", ":", ",", '{"a"', '{"a":', '{"a": "b', '{"a": "b"c"}',
    '{"a": true, "b": False, "c": None}', '[true, false, null]', "[True, None]", "(True, None)", '{"a": [1, {"b": 2}]}', '{"a": 123456789012345678901}',
]  # fmt: skip

plain = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.integers(-(10**25), 10**25),
        st.floats(),
        st.text(max_size=6),
        st.sampled_from(WORDS),
        st.dates().map(str),
        st.datetimes().map(str),
    ),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["a", "b", "name", "x", "street", "1"]), inner, max_size=3)
    ),
    max_leaves=8,
)
rendered = st.one_of(
    plain.map(json.dumps),
    plain.map(lambda v: json.dumps(v, ensure_ascii=False, indent=2)),
    plain.map(repr),
    plain.map(str),
    st.lists(plain, max_size=3).map(tuple).map(repr),
    st.sets(st.integers(), max_size=3).map(repr),
    st.binary(max_size=4).map(repr),
    st.complex_numbers().map(str),
)
NASTY = st.sampled_from(
    list("\"'\\{}[](),:;#/*-+_.0159eE \n\t\r\x00\x0b\u2028`<>“”abTrueNone") + ["\ud800", "\\u", "```", "//", "/*", "*/"]
)


@st.composite
def mutated(draw: st.DrawFn) -> str:
    """A correct text with some damage."""
    text = draw(rendered | st.sampled_from(WORDS))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(text)))
        what = draw(st.sampled_from(["cut", "drop", "insert", "double", "wrap"]))
        if what == "cut":
            text = text[:at] if draw(st.booleans()) else text[at:]
        elif what == "drop":
            text = text[:at] + text[at + draw(st.integers(1, 3)) :]
        elif what == "insert":
            text = text[:at] + draw(NASTY) + text[at:]
        elif what == "double":
            text = text + draw(st.sampled_from(["", " ", "\n", ", "])) + text
        else:
            before, after = draw(
                st.sampled_from(
                    [('"', '"'), ("'", "'"), ("```json\n", "\n```"), ("So: ", " Done."), ("(", ")"), ("[", "]"), (" ", "\n")]
                )
            )
            text = before + text + after
    return text


texts = st.one_of(st.sampled_from(WORDS), rendered, mutated(), st.text(max_size=12))
values = st.one_of(texts, texts, texts, plain)


def outcome(parse: Any, value: Any, annotation: Any) -> Any:
    """What came out with its type, or "refused"."""
    try:
        got = parse(value, annotation)
    except (InvalidOutput, ValueError, TypeError, OverflowError, RecursionError, MemoryError):
        return "refused"
    return type(got), repr(got)


@given(annotation=st.sampled_from(TYPES), value=values)
@example(annotation=list[Union[str, int]], value='[1, "1"]')
@example(annotation=list[Union[int, str]], value='[1, "1"]')
def test_a_value_of_a_reply_is_what_dspy_makes_of_it(dspy: Any, annotation: Any, value: Any) -> None:
    theirs = outcome(dspy.adapters.utils.parse_value, value, annotation)
    assert outcome(parse_value, value, annotation) == theirs


@pytest.mark.parametrize("annotation", TYPES, ids=repr)
def test_every_word_of_the_corpus_is_what_dspy_makes_of_it(dspy: Any, annotation: Any) -> None:
    theirs = [outcome(dspy.adapters.utils.parse_value, word, annotation) for word in WORDS]
    ours = [outcome(parse_value, word, annotation) for word in WORDS]
    assert [(w, o, t) for w, o, t in zip(WORDS, ours, theirs, strict=True) if o != t] == []
