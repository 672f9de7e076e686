"""Signatures from the wire: what is taken, and what never reaches DSPy."""

from __future__ import annotations

import sys

import pytest

from dspex.bus.errors import InvalidInput, ProgramError
from dspex.operators.native.signature import Signature
from dspex.workers import signature


@pytest.mark.parametrize(
    "text",
    [
        "question -> answer",
        "a, b: int, c: list[dict[str, Optional[int]]] -> d: Literal['x', -1], e: str | None, f: tuple[int, ...]",
        "at: datetime.date, when: datetime -> due: timedelta",
        "photo: dspy.Image, past: dspy.History -> n: Annotated[int, Field(ge=1, le=5)]",
        "a: typing.List[int] -> b: Union[int, str]",
    ],
)
def test_ordinary_types_are_taken(text: str) -> None:
    signature.check(text)


@pytest.mark.parametrize(
    "text",
    [
        "q -> a: this",
        "q: os -> a",
        "q -> a: os.system",
        "q -> a: dspy.LM",
        "q -> a: datetime.sys",
        "q -> a: list[antigravity]",
        "q -> a: __import__('os')",
        "q -> a: (lambda: 1)",
        "q -> a: typing.sys.modules",
        "q -> a: Annotated[int, open('x')]",
        "q -> a: Field(default_factory=exit)",
        "q): pass\nimport os\ndef g(x -> a",
        "q -> a -> b",
        "q",
        "config -> a",
        "lm -> a",
    ],
)
def test_everything_else_is_refused_and_imports_nothing(text: str) -> None:
    before = set(sys.modules)
    with pytest.raises(ProgramError):
        signature.check(text)
    assert set(sys.modules) == before


def test_what_the_engine_writes_is_taken() -> None:
    text = "text: str, n: Optional[int], at: datetime.datetime -> intent: Literal['a', 'b'], tags: list[str], x: dict[str, Any]"
    signature.check(str(Signature(text)))


def test_a_marker_is_found_however_deep_it_is() -> None:
    with pytest.raises(InvalidInput):
        signature.check_text({"a": [{"b": "x <<CUSTOM-TYPE-START-IDENTIFIER>> y"}]}, "data")
    signature.check_text({"a": ["ordinary", 1, None]}, "data")
