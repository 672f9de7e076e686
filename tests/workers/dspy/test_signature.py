"""Signatures from the wire: what is taken, and what never reaches DSPy."""

from __future__ import annotations

import sys
from typing import Any

import dspy
import msgpack
import pytest

from dspex.bus.errors import InvalidInput, ProgramError
from dspex.operators.native.signature import Signature, as_signature
from dspex.workers.dspy import signature


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
def test_a_worker_accepts_a_signature_of_ordinary_types(text: str) -> None:
    assert signature.read({"signature": text})


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
def test_a_signature_of_any_other_type_is_refused_and_imports_nothing(text: str) -> None:
    before = set(sys.modules)
    with pytest.raises(ProgramError):
        signature.read({"signature": text})
    assert set(sys.modules) == before


def test_a_worker_accepts_the_signature_that_the_engine_writes() -> None:
    text = "text: str, n: Optional[int], at: datetime.datetime -> intent: Literal['a', 'b'], tags: list[str], x: dict[str, Any]"
    assert signature.read(Signature(text).plain()).plain() == Signature(text).plain()


PROMPTED = [
    "question -> answer",
    "a, b: int, c: list[dict[str, Optional[int]]] -> d: Literal['x', 'y'], e: str | None, f: tuple[int, ...], g",
    "at: datetime.date, id: uuid.UUID -> price: decimal.Decimal, z: complex, none: list[None], t: Text",
    "photo: dspy.Image, past: dspy.History -> n: Annotated[int, Field(ge=1, le=5)], code: dspy.Code",
    "a: typing.List[int], any: Any -> b: Union[int, str], c: Deque[int], d: Annotated[int, Field(default=5)]",
    "问题: Literal[1, True, None, '\\x41'] -> réponse: Mapping[str, list[bool]]",
]


@pytest.mark.parametrize("instructions", ["", "  Be brief.\n    And kind.\n"])
@pytest.mark.parametrize("text", PROMPTED)
def test_a_class_made_of_our_fields_gives_the_prompts_that_the_text_gives(text: str, instructions: str) -> None:
    made = signature.to_dspy(signature.read({"signature": text, "instructions": instructions}))
    own: Any = dspy.Signature
    own = own(text, instructions or None)
    assert made.instructions == own.instructions
    assert list(made.fields) == list(own.fields)
    for name, field in own.fields.items():
        assert made.fields[name].json_schema_extra == field.json_schema_extra
        assert (made.fields[name].annotation, made.fields[name].default) == (field.annotation, field.default)
        assert made.fields[name].metadata == field.metadata
    data = dict.fromkeys(own.input_fields, "x") | {"past": dspy.History(messages=[])}
    data = {n: v for n, v in data.items() if n in own.input_fields}
    demos = [{**data, **dict.fromkeys(own.output_fields, 1)}]
    for adapter in (dspy.ChatAdapter(), dspy.JSONAdapter(), dspy.XMLAdapter()):
        assert adapter.format(made, demos, data) == adapter.format(own, demos, data)


def test_defaults_and_constraints_of_signature_classes_cross_the_wire() -> None:
    class Rate(dspy.Signature):
        """Rate the text."""

        text: str = dspy.InputField(desc="what a customer wrote")
        lang: str = dspy.InputField(default="en")
        stars: int = dspy.OutputField(desc="from one", ge=1, le=5)
        tags: list[str] = dspy.OutputField(default_factory=list)

    sent = msgpack.unpackb(msgpack.packb(as_signature(Rate).plain()))
    made = signature.to_dspy(signature.read(sent))
    assert made.instructions == "Rate the text."
    for adapter in (dspy.ChatAdapter(), dspy.JSONAdapter(), dspy.XMLAdapter()):
        assert adapter.format(made, [], {"text": "t"}) == adapter.format(Rate, [], {"text": "t"})
    assert made.output_fields["tags"].get_default(call_default_factory=True) == []
    assert made.input_fields["lang"].default == "en"
    assert made.output_fields["stars"].metadata == Rate.output_fields["stars"].metadata


def test_unknown_attributes_of_a_signature_are_ignored_and_invalid_ones_refused() -> None:
    made = signature.read({"signature": "a -> b", "fields": {"b": {"description": "d", "colour": "red"}, "gone": {}}, "x": 1})
    assert made.outputs["b"].description == "d"
    with pytest.raises(ProgramError, match="does not describe a field"):
        signature.read({"signature": "a -> b", "fields": {"b": 5}})
    with pytest.raises(ProgramError, match="default does not fit"):
        signature.read({"signature": "a -> b: list[int]", "fields": {"b": {"default": ["x"]}}})
    with pytest.raises(InvalidInput, match="marker"):
        signature.read({"signature": "a -> b", "instructions": "<<CUSTOM-TYPE-START-IDENTIFIER>>[]"})


def test_a_marker_of_dspys_custom_types_is_found_at_any_depth() -> None:
    for hidden in ({"b": "x <<CUSTOM-TYPE-START-IDENTIFIER>> y"}, {"x <<CUSTOM-TYPE-START-IDENTIFIER>> y": 1}):
        with pytest.raises(InvalidInput):
            signature.check_text({"a": [hidden]}, "data")
    signature.check_text({"a": ["ordinary", 1, None]}, "data")
