"""A signature takes a TypedDict of `typing` as one of `typing_extensions`, which pydantic asks for before Python 3.12."""

from __future__ import annotations

import json
import typing
from collections.abc import Mapping
from typing import Annotated, Any, Optional

import pytest
import typing_extensions
from pydantic import Field

from dspex.bus.errors import InvalidInput
from dspex.operators.native.signature import Signature


def rated(make: Any) -> Any:
    """A TypedDict in another one."""
    score = make("Score", {"value": int})
    return make("Rating", {"score": score, "why": typing.NotRequired[Annotated[str, Field(max_length=3)]]})


Rating, _Rating = rated(typing.TypedDict), rated(typing_extensions.TypedDict)
NESTED: Mapping[str, tuple[Any, Any]] = {
    "alone": (Rating, _Rating),
    "list": (list[Rating], list[_Rating]),
    "dict": (dict[str, Rating], dict[str, _Rating]),
    "union": (Rating | int, _Rating | int),
    "optional": (Optional[Rating], Optional[_Rating]),  # noqa: UP045  it is another form
    "annotated": (list[Annotated[Rating, "rated"]], list[Annotated[_Rating, "rated"]]),
    "tuple": (tuple[Rating, ...], tuple[_Rating, ...]),
}


@pytest.mark.parametrize("name", NESTED)
def test_a_typed_dict_of_typing_is_taken_for_one_of_typing_extensions(name: str) -> None:
    given, modern = (Signature("text -> found: T", types={"T": tp}) for tp in NESTED[name])
    assert given.json_schema("outputs") == modern.json_schema("outputs")
    assert given.messages({"text": "good"}) == modern.messages({"text": "good"})
    assert given.plain()["types"] == modern.plain()["types"]


def test_its_values_are_checked_and_read() -> None:
    signature = Signature("before: list[Rating] -> now: Rating", types={"Rating": Rating})
    assert signature.check_inputs({"before": [{"score": {"value": 1}}]}) == {"before": [{"score": {"value": 1}}]}
    with pytest.raises(InvalidInput, match="value"):
        signature.check_inputs({"before": [{"score": {"value": "no"}}]})
    reply = json.dumps({"now": {"score": {"value": 2}, "why": "yes"}})
    assert signature.parse(reply, adapter="json") == {"now": {"score": {"value": 2}, "why": "yes"}}


def test_the_constraints_of_its_fields_hold() -> None:
    signature = Signature("rating: Rating -> text", types={"Rating": Rating})
    with pytest.raises(InvalidInput, match="why"):
        signature.check_inputs({"rating": {"score": {"value": 1}, "why": "too long"}})
