# ruff: noqa: UP045  # the spellings are the point
"""Types that another process knows: stand-ins that prompts and requests show as the types themselves."""

from __future__ import annotations

import enum
import json
import sys
from typing import Any, Optional

import pytest
from pydantic import BaseModel, Field, TypeAdapter

from dspex.bus.errors import InvalidOutput, TopologyError
from dspex.operators.native.signature import Signature
from dspex.operators.native.user_types.described import MAX_SIZE


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Part(BaseModel):
    part_no: str = Field(alias="partNo", description="on its back")
    parts: list[Part] = []


class Car(BaseModel):
    """What somebody drives."""

    color: Color
    parts: dict[str, Part] = {}


TYPES = {"Car": Car, "Part": Part, "Color": Color}
TEXT = "text: str, old: Optional[Car] -> cars: list[Car], part: Part, color: Color"


def there(signature: Signature) -> Signature:
    """The signature as another process reads it."""
    return Signature.from_plain(json.loads(json.dumps(signature.plain())))


@pytest.mark.parametrize("adapter", ["chat", "json", "xml"])
def test_prompts_and_requests_of_stand_ins_are_those_of_the_types(adapter: Any) -> None:
    from dspex.operators.native.lm.response_format import response_format

    here = Signature(TEXT, types=TYPES)
    assert there(here).messages({"text": "x"}, adapter=adapter) == here.messages({"text": "x"}, adapter=adapter)
    assert json.dumps(response_format(there(here))) == json.dumps(response_format(here))


@pytest.mark.parametrize("annotation", [Car, list[Car], Optional[Part], dict[str, Color], tuple[Car, Part]])
@pytest.mark.parametrize("by_alias", [True, False])
def test_the_json_schema_of_a_stand_in_is_that_of_the_type(annotation: Any, by_alias: bool) -> None:
    here = Signature("a -> b").with_updated_fields("b", type=annotation)
    made = TypeAdapter(there(here).outputs["b"].annotation).json_schema(by_alias=by_alias)
    assert json.dumps(made) == json.dumps(TypeAdapter(annotation).json_schema(by_alias=by_alias))


def test_a_reply_is_read_elsewhere_and_checked_where_the_type_is_known() -> None:
    here = Signature("a -> cars: list[Car], color: Color | None", types=TYPES)
    found = there(here).parse('[[ ## cars ## ]]\n[{"color": "red"}]\n\n[[ ## color ## ]]\nblue')
    assert here.check_outputs(found) == {"cars": [Car(color=Color.RED)], "color": Color.BLUE}
    with pytest.raises(InvalidOutput, match=r"cars\.0\.color"):
        here.check_outputs(there(here).parse('[[ ## cars ## ]]\n[{"color": "pink"}]\n\n[[ ## color ## ]]\nblue'))


def test_an_enum_is_read_by_value_and_by_name() -> None:
    here = Signature("a -> color: Color", types=TYPES)
    for said in ("red", "RED"):
        found = there(here).parse(f"[[ ## color ## ]]\n{said}")
        assert here.check_outputs({"color": found["color"].value}) == {"color": Color.RED}


def test_a_reply_in_xml_has_the_names_of_fields_in_place_of_aliases() -> None:
    here = Signature("a -> part: Part", types=TYPES)
    found = there(here).parse("<part><part_no>7</part_no></part>", adapter="xml")
    assert here.check_outputs(found) == {"part": Part(partNo="7")}


def test_the_description_of_a_signature_survives_a_second_process() -> None:
    once = there(Signature(TEXT, types=TYPES))
    assert once.outputs["color"].annotation.__members__.keys() == {"RED", "BLUE"}
    assert str(once) == "text: str, old: Car | None -> cars: list[Car], part: Part, color: Color"


# -- untrusted ------------------------------------------------------------------------------------------------------
def wire(classes: Any = None, definitions: Any = None, **options: Any) -> dict[str, Any]:
    known = {"kind": "other", "name": "T", "schema": {"type": "object"}, **options}
    return {
        "signature": "a -> b: T",
        "types": {"classes": {"T": known} if classes is None else classes, "definitions": definitions or {}},
    }


_NODE = {"reference": "m.N:0", "schema": {"properties": {"a": {"$ref": "#/$defs/N"}}, "type": "object"}}


def _doubling(count: int) -> dict[str, Any]:
    """Types that each refer to the next one twice."""
    fields = [{n: {"$ref": f"#/$defs/T{i + 1}"} for n in "xy"} if i < count else {} for i in range(count + 1)]
    return {f"T{i}": {"reference": f"m.T{i}:{i}", "schema": {"type": "object", "properties": f}} for i, f in enumerate(fields)}


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (wire(kind="code", language=5), "its language is not a text"),
        (wire(kind="module"), "of the kind 'module'"),
        (wire(name="x" * 1001), "not a text of up to 1000"),
        (wire(name="a\nb"), "not a text of up to 1000"),
        (wire(schema=[]), "has no JSON Schema"),
        (wire(schema={"$ref": "#/$defs/N"}), "which is not there"),
        (wire(schema={"$ref": "https://example.org/s"}), "not one of its types"),
        (wire(schema={"$ref": 7}), "not one of its types"),
        (wire(schema={"description": "x" * MAX_SIZE}), "more than 65,536 characters"),
        (wire(schema=json.loads('{"items":' * 70 + "1" + "}" * 70)), "more than 60 levels"),
        (wire(kind="enum", members=[["__class__", "x"]]), "not the name of a member"),
        (wire(kind="enum", members=[["mro", "x"]]), "not the name of a member"),
        (wire(kind="enum", members=[["a.b", "x"]]), "not the name of a member"),
        (wire(kind="enum", members=[["A", [1]]]), "neither text nor a number"),
        (wire(kind="enum", members=[["A", 1], ["A", 2]]), "T is no enum"),
        (wire(kind="flag", members=[["A", "x"]]), "T is no enum"),
        (wire(kind="enum", members=[]), "has not 1 to 1000 members"),
        (wire(kind="enum", members=[[f"m{i}", i] for i in range(1001)]), "has not 1 to 1000 members"),
        (wire(classes={"os.system": {"kind": "other", "name": "x", "schema": {}}}), "'os.system' is not a name"),
        (wire(classes={f"C{i}": {"kind": "other", "name": "x", "schema": {}} for i in range(301)}), "more than 300"),
        (wire(classes=[]), "classes is no mapping"),
        (wire(definitions={"N": {"schema": {}}}), "its reference is not a text"),
        ({"signature": "a -> b: T", "types": 5}, "types is no mapping"),
    ],
)
def test_a_description_that_is_none_is_refused_and_nothing_is_imported(given: Any, why: str) -> None:
    with pytest.raises(TopologyError):
        Signature.from_plain(wire(kind="module"))  # what a refusal needs is imported with the first one
    before = set(sys.modules)
    with pytest.raises(TopologyError, match=why) as e:
        Signature.from_plain(given)
    assert e.value.code == "DX210"
    assert set(sys.modules) == before


def test_no_pattern_of_a_schema_is_ever_run() -> None:
    made = Signature.from_plain(wire(schema={"type": "string", "pattern": "^(a+)+$"}))
    assert made.check_outputs({"b": "a" * 64 + "!"}) == {"b": "a" * 64 + "!"}


def test_types_that_grow_when_they_are_written_out_are_refused_where_an_adapter_does_that() -> None:
    from dspex.operators.native.lm.response_format import response_format

    made = Signature.from_plain(wire(kind="model", schema={"$ref": "#/$defs/T0"}, definitions=_doubling(30)))
    assert "T30" in made.messages({"a": "x"})[0]["content"], "the chat adapter shows every type once"
    for ask in (lambda: made.messages({"a": "x"}, adapter="xml"), lambda: response_format(made)):
        with pytest.raises(TopologyError, match="more than 20,000 parts"):
            ask()


def test_a_type_that_refers_to_itself_ends() -> None:
    made = Signature.from_plain(wire(kind="model", schema={"$ref": "#/$defs/N"}, definitions={"N": _NODE}))
    for adapter in ("chat", "json", "xml"):
        assert made.messages({"a": "x"}, adapter=adapter)  # type: ignore[arg-type]
