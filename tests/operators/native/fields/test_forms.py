"""Signatures as models, dataclasses, TypedDicts and JSON Schemas, and back; what they say when data is checked; edits."""

from __future__ import annotations

import copy
import dataclasses
import datetime
import pickle
import typing
from decimal import Decimal
from enum import Enum
from typing import Annotated, Any, Literal, NotRequired

import pydantic
import pytest
from annotated_types import Ge
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel
from signature_texts import annotated, types
from typing_extensions import TypedDict

from dspex.bus.errors import InvalidInput, InvalidOutput, TopologyError
from dspex.bus.serving.call_spec import CallSpec
from dspex.operators.native.fields.constraints import misfit
from dspex.operators.native.fields.fields import MISSING
from dspex.operators.native.signature import Signature, as_signature

PLAIN = (
    "text, n: int, lang: Annotated[str, Field(default='en', description='of the text')] -> "
    "urgency: Annotated[int, Field(ge=1, le=5)], tags: list[str], note: str | None, kind: Literal['a', 'b']"
)


def said(s: Signature) -> list[Any]:
    """What a signature says of each field, apart from how its type is spelt."""
    return [
        (
            f.name,
            f.role,
            f.annotation,
            f.description,
            dict(f.constraints),
            f.required,
            None if f.default is MISSING else f.default,
        )
        for f in s.fields
    ]


# -- class forms ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("form", ["to_model", "to_dataclass"])
def test_a_signature_becomes_classes_and_is_made_of_them_again(form):
    s = Signature(PLAIN, instructions="Be brief.")
    inputs, outputs = getattr(s, form)("inputs"), getattr(s, form)("outputs")
    assert said(Signature.of(inputs, outputs)) == said(s)
    made = outputs(urgency=1, tags=["x"], kind="a")
    assert (made.urgency, made.note) == (1, None)
    assert inputs(text="t", n=1).lang == "en"


def test_a_signature_becomes_typed_dicts_which_have_no_defaults():
    s = Signature(PLAIN)
    again = Signature.of(s.to_typed_dict("inputs"), s.to_typed_dict("outputs"))
    assert said(again.with_updated_fields("text", description="")) == [(*field[:6], None) for field in said(s)]
    assert again.outputs["urgency"].constraints == {"ge": 1, "le": 5}
    assert again.inputs["lang"].description == "of the text"


@settings(max_examples=settings().max_examples // 4)
@given(types | annotated)
def test_any_type_survives_as_a_model_and_as_plain_data(text):
    s = Signature(f"a -> b: {text}")
    assert Signature.from_plain(s.plain()) == s
    assert s.plain()["fields"] == {}  # a text says all of a signature that was a text
    assert said(Signature.of(s.to_model("inputs"), s.to_model("outputs"))) == said(s)


def test_class_forms_keep_descriptions_constraints_defaults_and_show_the_constraints():
    class In(BaseModel):
        text: str = pydantic.Field(description="what the customer wrote", max_length=9)
        langs: list[str] = pydantic.Field(default_factory=lambda: ["en"])

    @dataclasses.dataclass
    class Out:
        stars: Annotated[int, Ge(1), pydantic.Field(le=5, description="how good")]
        tags: list[str] = dataclasses.field(default_factory=list)
        note: str = "none"

    s = Signature.of(In, Out)
    assert str(s) == (
        "text: Annotated[str, Field(max_length=9)], langs: list[str] -> "
        "stars: Annotated[int, Field(ge=1, le=5)], tags: list[str], note: str"
    )
    assert [f.default for f in s.fields] == [MISSING, ["en"], MISSING, [], "none"]
    assert [f.required for f in s.fields] == [True, False, True, False, False]
    assert (s.outputs["stars"].description, s.outputs["stars"].limits) == (
        "how good",
        "greater than or equal to: 1, less than or equal to: 5",
    )
    assert Signature.from_plain(s.plain()) == s != Signature(str(s))
    assert "Constraints: maximum length: 9" in s.messages({"text": "t"})[0]["content"]


def test_optional_keys_of_a_typed_dict_stay_optional_in_another_process():
    class Out(TypedDict):
        urgency: Annotated[int, pydantic.Field(ge=1)]
        note: NotRequired[Annotated[str, pydantic.Field(description="why")]]

    class In(TypedDict):
        text: str

    s = Signature.of(In, Out)
    assert (s.outputs["note"].required, s.outputs["note"].description) == (False, "why")
    assert Signature.from_plain(s.plain()) == s
    assert s.check_outputs({"urgency": 1}) == {"urgency": 1, "note": None}


def test_a_default_factory_that_gives_different_values_is_refused():
    counter = iter(range(9))

    class In(BaseModel):
        n: int = pydantic.Field(default_factory=lambda: next(counter))

    with pytest.raises(TopologyError, match="another one each time"):
        Signature.of(In, In)


def test_a_type_that_no_text_can_carry_is_refused_for_a_worker():
    class Color(Enum):
        RED = "red"

    class In(BaseModel):
        color: Literal[Color.RED]
        when: Annotated[datetime.date, pydantic.Field(ge=datetime.date(2026, 1, 1))]
        ok: Decimal

    class Out(BaseModel):
        a: str

    for bad in ("color", "when"):
        with pytest.raises(TopologyError, match=f"{bad}: no signature can write the type") as e:
            Signature.of(In, Out).delete("when" if bad == "color" else "color").plain()
        assert e.value.code == "DX211"


def test_a_dspy_signature_class_becomes_a_signature_with_all_its_attributes(dspy):
    class Rate(dspy.Signature):
        """Rate the text.

        Be kind.
        """

        text: str = dspy.InputField(desc="what a customer wrote")
        lang: str = dspy.InputField(default="en")
        stars: int = dspy.OutputField(desc="one to five", ge=1, le=5)
        why: str | None = dspy.OutputField(description="a reason")
        tags: list[str] = dspy.OutputField(default_factory=list)

    s = as_signature(Rate.append("photo", dspy.OutputField(), dspy.Image | None))
    assert s.instructions == "Rate the text.\n\nBe kind."
    assert [f.description for f in s.fields] == ["what a customer wrote", "", "one to five", "a reason", "", ""]
    assert [f.default for f in s.fields] == [MISSING, "en", MISSING, MISSING, [], MISSING]
    assert s.outputs["stars"].limits == "greater than or equal to: 1, less than or equal to: 5"
    assert str(s).endswith("why: str | None, tags: list[str], photo: dspy.Image | None")
    assert s.described.plain == {}
    assert as_signature(dspy.Signature("a -> b")) == Signature("a -> b: str")


# -- JSON Schema ----------------------------------------------------------------------------------------------------
JSON_TEXTS = [
    "a -> b: Literal['x', 1, True, None], c: list[int] | None, d: dict[str, list[bool]], e: Any, f: NoneType",
    "a: datetime.date, b: datetime.timedelta, c: uuid.UUID, d: bytes -> e: tuple[int, str], f: set[int], g: list, h: dict",
    "a: Annotated[str, Field(min_length=1, pattern='^a')] -> b: Annotated[float, Field(gt=0, lt=1)]",
    "a -> b: Annotated[list[int], Field(max_length=3)]",
    PLAIN,
]


@pytest.mark.parametrize("text", JSON_TEXTS)
def test_a_signature_becomes_json_schemas_and_is_made_of_them_again(text):
    s = Signature(text)
    again = Signature.from_json_schema(s.json_schema("inputs"), s.json_schema("outputs"))
    assert said(again) == said(s)
    assert (again.json_schema("inputs"), again.json_schema("outputs")) == (s.json_schema("inputs"), s.json_schema("outputs"))


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        ({"$ref": "#/$defs/A"}, "$ref"),
        ({"type": "object", "properties": {"x": {"type": "integer"}}}, "properties"),
        ({"allOf": [{"type": "string"}]}, "allOf"),
        ({"type": "array", "items": {"type": "integer", "minimum": 1}}, "ge of an inner value"),
        ({"type": "string", "format": "email"}, "the format email"),
        ({"type": "decimal"}, "the type 'decimal'"),
        ({"enum": [1.5]}, "Literal"),
        ({"enum": []}, "Literal"),
        ({"anyOf": []}, "a choice of nothing"),
        ({"not": {}}, "not"),
        (False, "False"),
        (5, "5"),
        ({"type": "integer", "minLength": 1}, "min_length does not fit int"),
    ],
)
def test_a_json_schema_that_a_signature_cannot_express_is_refused(schema, why):
    with pytest.raises(TopologyError) as e:
        Signature.from_json_schema({"type": "object", "properties": {}}, {"type": "object", "properties": {"b": schema}})
    assert why in f"{e.value.message} {e.value.fix}"


def test_a_json_schema_of_no_object_or_nested_too_deep_makes_no_signature():
    with pytest.raises(TopologyError, match="not one of an object"):
        Signature.from_json_schema({"type": "string"}, {})
    deep: dict[str, Any] = {"type": "integer"}
    for _ in range(5000):
        deep = {"type": "array", "items": deep}
    with pytest.raises(TopologyError):
        Signature.from_json_schema({}, {"properties": {"b": deep}})


# -- data -----------------------------------------------------------------------------------------------------------
TYPES: list[Any] = [int, float, str, bytes, bool, complex, Decimal, list[int], dict, int | None, int | float, int | str, Any]
TYPES += [Literal[1], set[int], tuple[int, ...], datetime.date, typing.Deque[int], typing.Mapping[str, int], list[int] | str]  # noqa: UP006
CONSTRAINTS: list[dict[str, Any]] = [{"gt": 1.5}, {"ge": 2}, {"ge": 2.0}, {"multiple_of": 2}, {"multiple_of": 1.5}]
CONSTRAINTS += [{"min_length": 1}, {"max_length": 5}, {"pattern": "a"}]
VALUES = [3, 4.5, "aa", b"ab", [1], {"a": 1}, {1, 2}, (1, 2), Decimal(4), True, datetime.date(2026, 1, 1)]


@pytest.mark.parametrize("constraint", CONSTRAINTS, ids=str)
@pytest.mark.parametrize("tp", TYPES, ids=str)
def test_pydantic_can_check_every_constraint_that_a_signature_takes(tp, constraint):
    if misfit(tp, constraint):
        return
    adapter: Any = pydantic.TypeAdapter(Annotated[tp, pydantic.Field(**constraint)])
    taken = 0
    for value in VALUES:
        try:
            taken += adapter.validate_python(value) is not None
        except pydantic.ValidationError:
            continue
    assert taken


def test_a_missing_output_is_filled_as_dspy_fills_it(dspy):
    from dspy.adapters.utils import apply_output_field_defaults

    class Rate(dspy.Signature):
        text: str = dspy.InputField()
        stars: int = dspy.OutputField()
        tags: list[str] = dspy.OutputField(default_factory=list)
        why: str | None = dspy.OutputField()
        lang: str | None = dspy.OutputField(default="en")
        none: int = dspy.OutputField(default=None)

    s = as_signature(Rate)
    assert s.check_outputs({"stars": 1}) == apply_output_field_defaults(Rate, {"stars": 1})
    first = s.check_outputs({"stars": 1})
    first["tags"].append("x")
    assert s.check_outputs({"stars": 1})["tags"] == []
    with pytest.raises(InvalidOutput, match="stars: Field required"):
        s.check_outputs({})


def test_one_error_lists_all_wrong_fields_and_values_keep_the_order_of_the_signature():
    s = Signature(PLAIN)
    with pytest.raises(InvalidOutput) as e:
        s.check_outputs({"urgency": 9, "kind": "c"})
    for part in (
        "urgency: Input should be less than or equal to 5",
        "tags: Field required",
        "kind: Input should be 'a' or 'b'",
    ):
        assert part in e.value.message
    with pytest.raises(InvalidInput, match="n: Field required"):
        s.check_inputs({"text": "t"})
    assert list(s.check_outputs({"kind": "a", "note": "n", "tags": [], "urgency": 1, "more": 1})) == list(s.outputs)
    assert s.check_inputs({"n": 1, "text": "t"}) == {"text": "t", "n": 1, "lang": "en"}


def test_a_reply_that_breaks_a_constraint_is_refused():
    s = Signature("text -> urgency: Annotated[int, Field(ge=1, le=5)]")
    assert s.parse("[[ ## urgency ## ]]\n5") == {"urgency": 5}
    with pytest.raises(InvalidOutput):
        s.parse("[[ ## urgency ## ]]\n6")


def test_types_of_dspy_take_any_value_without_dspy():
    s = Signature("photo: dspy.Image, past: dspy.History | None -> b: list[dspy.Tool]")
    assert s.check_inputs({"photo": {"url": "u"}}) == {"photo": {"url": "u"}, "past": None}
    assert s.json_schema("outputs")["properties"]["b"]["type"] == "array"


# -- a signature never changes ----------------------------------------------------------------------------------------
def test_the_same_text_is_the_same_object_and_cannot_be_changed():
    s = Signature("question -> answer")
    assert Signature("question -> answer") is s
    assert Signature("question -> answer", instructions="Be brief.") is not s
    assert Signature("a -> b: T", types={"T": int}) is not Signature("a -> b: T", types={"T": str})
    with pytest.raises(AttributeError, match="never changes"):
        s.instructions = "other"
    with pytest.raises(AttributeError, match="never changes"):
        del s.fields
    assert copy.deepcopy(s) is copy.copy(s) is s
    assert pickle.loads(pickle.dumps(Signature(PLAIN, instructions="x"))) == Signature(PLAIN, instructions="x")
    assert repr(Signature("a -> b", instructions="x")) == "Signature('a -> b', instructions='x')"


def test_compiled_parts_of_a_signature_are_cached_with_it():
    s, calls = Signature("compiled -> once"), []
    assert s.compiled("key", lambda s: calls.append(s) or len(calls)) == 1
    assert s.compiled("key", lambda s: calls.append(s) or len(calls)) == 1
    assert s.compiled(("key", 2), lambda s: "other") == "other"
    assert calls == [s]


def test_equality_sees_types_descriptions_defaults_and_instructions():
    s = Signature("a -> b: int")
    others = [
        Signature("a -> b"),
        Signature("a -> c: int"),
        s.with_instructions("x"),
        s.with_updated_fields("b", description="d"),
        Signature("a -> b: Annotated[int, Field(default=1)]"),
        s.append("c", "output", default=1),
        s.append("c", "output", default=2),
    ]
    assert len({s, *others}) == 8
    assert s != "a -> b: int"


def test_edits_make_new_signatures_and_keep_the_sentence_about_the_old_fields_as_dspy_does():
    s = Signature("question -> answer")
    edited = (
        s.prepend("reasoning", "output", description="think").insert(1, "n", "input", "int").append("tags", "output", list[str])
    )
    assert str(edited) == "question, n: int -> reasoning: str, answer, tags: list[str]"
    assert edited.instructions == "Given the fields `question`, produce the fields `answer`."
    assert str(s) == "question -> answer"
    assert str(edited.delete("n").delete("no such")) == "question -> reasoning: str, answer, tags: list[str]"
    limited = s.with_updated_fields("answer", type="Annotated[int, Field(ge=1)]", description="one or more")
    assert (limited.outputs["answer"].constraints, limited.outputs["answer"].description) == ({"ge": 1}, "one or more")
    assert s.append_instructions("Be brief.").objective.endswith("`answer`.\n\nBe brief.")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda s: s.with_updated_fields("anser", type=int), "no field 'anser'"),
        (lambda s: s.insert(5, "x", "input"), "no place 5"),
        (lambda s: s.insert(-3, "x", "input"), "no place -3"),
        (lambda s: s.append("question", "output"), "has question twice"),
        (lambda s: s.append("copy", "output"), "the name 'copy'"),
        (lambda s: s.append("x", "output", "Intent"), "unknown type 'Intent'"),
        (lambda s: s.append("x", "output", "int, y: str"), "cannot be a type"),
        (lambda s: s.delete("answer"), "has no output"),
    ],
)
def test_an_impossible_edit_of_a_signature_is_refused(edit, message):
    with pytest.raises(TopologyError) as e:
        edit(Signature("question -> answer"))
    assert message in e.value.message


@given(st.text(max_size=40))
def test_instructions_lose_their_indentation_as_in_dspy(dspy, text):
    made = dspy.Signature("a -> b", text or None)
    assert Signature("a -> b", instructions=text).objective == made.instructions


def test_a_field_that_is_secret_is_so_in_every_form_and_in_another_process() -> None:
    mark: Any = {"secret": True}

    class Account(BaseModel):
        iban: str = pydantic.Field(json_schema_extra=mark)

    class Asked(BaseModel):
        text: str
        pin: int = pydantic.Field(json_schema_extra=mark, ge=1)
        account: Account

    class Answered(BaseModel):
        reply: str
        code: str = pydantic.Field(json_schema_extra=mark)

    made = Signature.of(Asked, Answered)
    assert [f.name for f in made.fields if f.secret] == ["pin", "code"]
    again = Signature.of(made.to_dataclass("inputs"), made.to_typed_dict("outputs"))
    assert (
        again == made == Signature.of(made.to_model("inputs"), made.to_model("outputs")) == Signature.from_plain(made.plain())
    )
    schema = Signature.from_json_schema(Signature("a -> b").json_schema("inputs"), made.json_schema("outputs"))
    assert schema.outputs["code"].secret
    assert made.with_updated_fields("code", type="int").outputs["code"].secret
    assert made != Signature.of(Asked, made.delete("code").to_model("outputs")).append("code", "output", "str")
    said = {name: value for name, value in made.plain().items() if name != "instructions"}
    assert CallSpec("predict", said["signature"], **said).secrets == {"pin", "code", "iban"}
    nested = {"type": "array", "items": {"type": "string", "secret": True}}
    with pytest.raises(TopologyError, match="secret"):
        Signature.from_json_schema({"properties": {"a": nested}}, {"properties": {"b": {"type": "string"}}})
