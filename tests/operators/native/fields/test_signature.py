from __future__ import annotations

import datetime
import json
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from typing import Any, Literal, NotRequired, Optional

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field
from typing_extensions import TypedDict

from dspex.bus.errors import InvalidInput, InvalidOutput, TopologyError
from dspex.operators.native.signature import Signature, as_signature

TRIAGE = "text -> intent: Literal['lost_card', 'other'], urgency: Annotated[int, Field(ge=1, le=5)], note: str | None"


def test_fields_have_name_role_type_and_constraints_in_order():
    s = Signature("text, n: int -> tags: list[str], score: Annotated[float, Field(gt=0)], why: str | None")
    assert list(s.inputs) == ["text", "n"]
    assert [(f.name, f.role, f.type, f.required) for f in s.outputs.values()] == [
        ("tags", "output", "list[str]", True),
        ("score", "output", "Annotated[float, Field(gt=0)]", True),
        ("why", "output", "str | None", False),
    ]
    assert s.outputs["score"].constraints == {"gt": 0}
    assert s.inputs["text"].type == "str"


def test_the_text_is_canonical_and_so_is_the_digest():
    loose, tight = Signature(' a ,b:int->  c : Literal["x","y"] '), Signature("a, b: int -> c: Literal['x', 'y']")
    assert str(loose) == str(tight) == "a, b: int -> c: Literal['x', 'y']"
    assert loose == tight
    assert loose.digest == tight.digest != Signature("a, b: int -> c").digest
    assert tight != Signature(str(tight), instructions="Be brief.")


def test_the_text_of_a_signature_has_the_meaning_of_given_type_names():
    s = Signature("a -> b: Intent, c: list[Intent]", types={"Intent": Literal["x", "y"]})
    assert str(s) == "a -> b: Literal['x', 'y'], c: list[Literal['x', 'y']]"
    assert s.described.plain == {}


def test_types_that_only_this_process_knows_are_described():
    class Color(Enum):
        RED = "red"

    s = Signature("a -> b: list[Color] | None", types={"Color": Color})
    assert s.described.known == {"Color": Color}
    assert s.check_outputs({"b": ["red"]}) == {"b": [Color.RED]}


@pytest.mark.parametrize(
    ("text", "code", "message", "fix"),
    [
        ("a", "DX210", "exactly one '->'", "text -> answer"),
        ("a -> b: Literal['->']", "DX210", "exactly one '->'", "text -> answer"),
        ("a ->", "DX210", "has no output", "text -> answer"),
        ("a -> b: Intent", "DX209", "unknown type 'Intent' in \"a -> b: Intent\"", 'types={"Intent": Intent}'),
        ("a -> b: Strng", "DX209", "unknown type 'Strng'", 'types={"Strng": Strng}'),
        ("a -> b: Literl['x']", "DX209", "unknown type 'Literl'", "did you mean Literal?"),
        ("a -> b: os.path", "DX209", "unknown type 'os.path'", "types="),
        ("a -> b: __import__('os')", "DX210", "cannot be a type", "X[...]"),
        ("a, a -> b", "DX210", "has a twice", "name of its own"),
        ("a -> a", "DX210", "has a twice", "name of its own"),
        ("*a -> b", "DX210", "DSPy drops silently", "commas"),
        ("a, / -> b", "DX210", "DSPy drops silently", "commas"),
        ("a, *, c -> b", "DX210", "DSPy drops silently", "commas"),
        ("a -> b=5", "DX210", "DSPy drops silently", "commas"),
        ("copy -> b", "DX210", "the name 'copy' has a meaning of its own", "another name"),
        ("a -> json", "DX210", "the name 'json' has a meaning of its own", "another name"),
        ("a -> copy", "DX210", "the name 'copy'", "another name"),
        ("config -> b", "DX210", "the name 'config'", "another name"),
        ("model_x -> b", "DX210", "the name 'model_x'", "another name"),
        ("_a -> b", "DX210", "cannot be a field", "another name"),
        ("a -> b: Literal[1.5]", "DX210", "cannot be a type", "whole numbers"),
        ("a -> b: dict[str]", "DX210", "cannot be a type", "wrong number"),
        ("a -> b: 'text'", "DX210", "cannot be a type", "X[...]"),
        ("a -> b: list[Annotated[int, Field(gt=0)]]", "DX210", "cannot be a type", "whole field"),
        ("a -> b: Annotated[int, Field(default_factory=list)]", "DX210", "cannot be a type", "ge"),
        ("a): pass\nimport os\ndef g(x -> b", "DX210", "not a list of fields", "commas"),
        ("1q -> b", "DX210", "cannot be read", "commas"),
    ],
)
def test_a_text_that_is_not_a_signature_is_refused_with_a_fix(text, code, message, fix):
    with pytest.raises(TopologyError) as e:
        Signature(text)
    assert e.value.code == code
    assert message in e.value.message
    assert fix in e.value.fix


def test_an_error_about_inputs_lists_every_wrong_field():
    s = Signature("text: str, n: int, day: datetime.date, hint: str | None, any -> a")
    good = {"text": "t", "n": 1, "day": "2026-01-02", "any": {"x": 1}, "extra": 5}
    assert s.check_inputs(good) == {"text": "t", "n": 1, "day": datetime.date(2026, 1, 2), "hint": None, "any": {"x": 1}}
    with pytest.raises(InvalidInput) as e:
        s.check_inputs({"text": 5, "n": "x", "day": "2026-01-02"})
    for part in ("text: Input should be a valid string", "n: Input should be a valid integer", "any: Field required"):
        assert part in e.value.message


def test_outputs_are_checked_with_their_constraints():
    s = Signature(TRIAGE)
    assert s.check_outputs({"intent": "other", "urgency": 5}) == {"intent": "other", "urgency": 5, "note": None}
    with pytest.raises(InvalidOutput) as e:
        s.check_outputs({"intent": "lost", "urgency": 9})
    assert "intent: Input should be 'lost_card' or 'other'; urgency: Input should be less than or equal to 5" in e.value.message
    assert e.value.retryable


def test_a_field_may_have_the_name_of_a_method():
    assert Signature("a -> items: list[int], values, name").check_outputs({"items": [1], "values": "v", "name": "n"})


def test_a_signature_gives_json_schemas_of_its_inputs_and_of_its_outputs():
    assert Signature(TRIAGE).json_schema("outputs") == {
        "type": "object",
        "properties": {
            "intent": {"title": "Intent", "type": "string", "enum": ["lost_card", "other"]},
            "urgency": {"title": "Urgency", "type": "integer", "minimum": 1, "maximum": 5},
            "note": {"title": "Note", "anyOf": [{"type": "string"}, {"type": "null"}]},
        },
        "required": ["intent", "urgency"],
        "additionalProperties": False,
    }


def test_a_signature_can_be_made_of_two_types():
    class In(BaseModel):
        text: str = Field(description="what the customer wrote")
        lang: Optional[str] = None  # noqa: UP045  # as users write it

    class Out(BaseModel):
        urgency: int = Field(ge=1, le=5)

    s = Signature.of(In, Out, instructions="Be brief.")
    assert str(s) == "text: str, lang: str | None -> urgency: Annotated[int, Field(ge=1, le=5)]"
    assert s.inputs["text"].description == "what the customer wrote"
    assert (s.inputs["lang"].required, s.instructions) == (False, "Be brief.")
    with pytest.raises(InvalidOutput):
        s.check_outputs({"urgency": 6})


def test_dataclasses_and_typed_dicts_make_a_signature_too():
    @dataclass
    class In:
        text: str
        lang: str = "en"

    class Out(TypedDict):
        urgency: int
        note: NotRequired[str]

    s = Signature.of(In, Out)
    assert str(s) == "text: str, lang: str -> urgency: int, note: str"
    assert [f.required for f in (*s.inputs.values(), *s.outputs.values())] == [True, False, True, False]
    with pytest.raises(TopologyError, match="int has no fields"):
        Signature.of(In, int)
    with pytest.raises(TopologyError, match="has lang, text twice"):
        Signature.of(In, In)


SAME = [
    "question -> answer",
    "a: str, b: int, c: float -> d: bool",
    "a -> b: list[str], c: dict[str, int], d: tuple[int, str]",
    "a -> b: Literal['x', 'y'], c: Literal[1, True, None]",
    "a -> b: str | None, c: Optional[int], d: Union[int, str], e: int | float | None",
    "a: datetime.date -> b: datetime.datetime",
    "a -> b: typing.List[int], c: list[dict[str, list[int]]]",
    "a -> b: Annotated[int, Field(ge=1, le=5)]",
    "a: Any -> b: list[Any]",
    "问题 -> réponse",
]
DSPY = """
import json, sys, warnings
warnings.simplefilter("ignore")
import dspy
for text in json.load(sys.stdin):
    s = dspy.Signature(text)
    print(json.dumps([[n, str(f.annotation)] for n, f in s.input_fields.items()]
                   + [[n, str(f.annotation)] for n, f in s.output_fields.items()]))
"""


def test_dspy_reads_the_canonical_text_to_the_same_fields_and_types():
    pytest.importorskip("dspy")
    ours = [Signature(t) for t in SAME]
    sent = json.dumps([str(s) for s in ours])
    out = subprocess.run([sys.executable, "-c", DSPY], input=sent, capture_output=True, text=True, check=True).stdout
    for s, line in zip(ours, out.splitlines(), strict=True):
        mine = {**s.annotations("inputs"), **s.annotations("outputs")}
        assert [[n, str(t)] for n, t in mine.items()] == json.loads(line)


def test_a_signature_class_of_dspy_is_taken_without_importing_dspy():
    class Info:
        """What `dspy.Signature` shows of a field: pydantic's FieldInfo."""

        def __init__(self, annotation: Any, **extra: Any) -> None:
            self.annotation, self.json_schema_extra, self.description, self.metadata = annotation, extra, None, []

        def is_required(self) -> bool:
            return True

    class Rate:
        """Rate the text."""

        input_fields = {"text": Info(str, desc="${text}")}
        output_fields = {"stars": Info(int, desc="one to five")}
        instructions = "Rate the text."

    s = as_signature(Rate)
    assert str(s) == "text: str -> stars: int"
    assert (s.inputs["text"].description, s.outputs["stars"].description) == ("", "one to five")
    assert s.instructions == "Rate the text."


@given(st.text(alphabet="abc ->:,[]|()'\"*/=_.\\n{}lambda0LiteralOptionalstrimport", max_size=60))
def test_a_signature_of_any_text_is_read_or_refused(text):
    with suppress(TopologyError):  # any other exception fails the test
        s = Signature(text)
        assert Signature(str(s)) == s


def test_the_fields_of_a_signature_are_read_only():
    signature = Signature("a -> b, c: int")
    for side in (signature.inputs, signature.outputs):
        with pytest.raises(TypeError):
            del side["c"]
    assert list(Signature("a -> b, c: int").outputs) == ["b", "c"]


def test_a_field_with_an_unknown_role_is_refused():
    with pytest.raises(TopologyError, match="'out' is no role of a field"):
        Signature("a -> b").append("c", "out", "str")


@pytest.mark.parametrize(
    ("spec", "whole"),
    [
        ("text -> a: My-Type", "My-Type is not a name"),
        ("text -> a: list[My-Type]", "My-Type is not a name"),
        ("my-text -> a", "my-text is not a name"),
        ("text -> a: 'x, y'", "'x, y' cannot be a type"),
        ("text -> a: dict['a,b', int]", "'a,b' cannot be a type"),
        ("text -> a: Mod.Klass", "unknown type 'Mod.Klass'"),
    ],
)
def test_an_error_shows_the_whole_of_what_it_is_about(spec: str, whole: str) -> None:
    with pytest.raises(TopologyError) as caught:
        Signature(spec)
    assert whole in caught.value.message
