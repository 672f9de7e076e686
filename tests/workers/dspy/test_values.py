# ruff: noqa: UP007, UP045  # the spellings are the point
"""Values of DSPy's own types on their way to a program and back: plain data on the wire, objects where DSPy wants them."""

from __future__ import annotations

import json
from typing import Any, Optional, Union

import dspy
import msgpack
import pytest
import tickets
from dspy.adapters import json_adapter
from dspy.signatures.signature import make_signature
from dspy_cases import AUDIO, CASES, FILE, IMAGE, JAVA, OTHER_IMAGE, PNG, Case

from dspex.bus.codecs.json import json_bytes
from dspex.bus.codecs.msgpack import msgpack_bytes
from dspex.bus.errors import InvalidInput, ProgramError, TopologyError
from dspex.operators.native.lm.response_format import response_format
from dspex.operators.native.signature import Signature, as_signature
from dspex.operators.recorded.calls import predict, program
from dspex.workers.answerers.attempt import plain
from dspex.workers.dspy import signature, values
from dspex.workers.dspy.versions.installed import ADAPTERS


def given(kind: Any, value: Any) -> Any:
    """The input that a program gets for an input of the wire."""
    made = signature.to_dspy(signature.read(as_signature(Case({"thing": (kind, value)}).signature()).plain()))
    return values.Filler(made).inputs({"thing": value})["thing"]


@pytest.mark.filterwarnings("ignore:Field name .schema. in:UserWarning")  # plain DSPy warns of it
@pytest.mark.parametrize("name", [n for n in CASES if not n.startswith("answer")])
def test_messages_with_values_of_every_type_are_those_of_plain_dspy(name: str) -> None:
    own = CASES[name].signature()
    call = predict(own).to_call()
    data = {"text": "t", **{n: v for n, (_, v) in CASES[name].inputs.items()}}
    made = signature.to_dspy(signature.read(msgpack.unpackb(msgpack.packb(as_signature(own).plain()))))
    sent = msgpack.unpackb(msgpack.packb(call.inputs(data)))
    for adapter in ADAPTERS.values():
        assert adapter().format(made, [], values.Filler(made).inputs(sent)) == adapter().format(own, [], data)


@pytest.mark.parametrize(
    "value", [IMAGE, [IMAGE, OTHER_IMAGE], {"a": AUDIO}, {"a": (FILE, 1)}, tickets.Photo(image=IMAGE)], ids=repr
)
@pytest.mark.parametrize("encode", [json_bytes, msgpack_bytes])
def test_objects_of_dspy_in_an_event_are_their_fields(value: Any, encode: Any) -> None:
    assert b"CUSTOM-TYPE" not in encode({"data": value})


def test_an_image_in_an_event_or_an_output_is_its_address() -> None:
    photo = {"image": {"url": PNG}, "more": [], "caption": ""}
    assert json.loads(json_bytes(tickets.Photo(image=IMAGE))) == photo
    assert plain("photo", tickets.Photo(image=IMAGE)) == photo
    assert plain("photos", [IMAGE, None, {"a": FILE}]) == [
        {"url": PNG}, None, {"a": {"file_data": "data:application/pdf;base64,JVBERg==", "filename": "ü.pdf"}}
    ]  # fmt: skip
    calls = dspy.ToolCalls(tool_calls=[dspy.ToolCalls.ToolCall(id="1", name="f", args={"x": 1})])
    assert plain("calls", calls) == {"tool_calls": [{"id": "1", "name": "f", "args": {"x": 1}}]}
    assert plain("code", [dspy.Code(code="x"), JAVA(code="y")]) == ["x", "y"]


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (dspy.Image, {"url": PNG}),
        (Optional[dspy.Image], {"url": PNG}),
        (Union[dspy.Image, str], {"url": PNG}),
        (Union[str, dspy.Image], {"url": PNG}),
        (Union[dspy.Audio, dspy.Image, None], {"url": PNG}),
    ],
)
def test_data_becomes_an_image_where_the_signature_says_so(kind: Any, value: Any) -> None:
    assert given(kind, value) == IMAGE


def test_data_stays_data_where_no_type_of_dspy_is_named() -> None:
    assert given(dict, {"url": PNG}) == {"url": PNG}
    assert given(Union[dspy.Image, str], "text") == "text"
    assert given(tickets.Photo, {"image": {"url": PNG}, "caption": "c"}) == {"image": IMAGE, "caption": "c"}
    assert given(list[tickets.Photo], [{"image": {"url": PNG}, "more": [{"url": PNG}]}]) == [{"image": IMAGE, "more": [IMAGE]}]
    history = given(dspy.History, {"messages": [{"answer": 1, "text": "t"}]})
    assert history == dspy.History(messages=[{"answer": 1, "text": "t"}])


def test_turns_of_a_history_have_the_types_of_the_fields() -> None:
    case = Case({"past": (dspy.History, None), "photos": (list[dspy.Image], None)})
    made = signature.to_dspy(signature.read(as_signature(case.signature()).plain()))
    found = values.Filler(made).inputs({"past": {"messages": [{"photos": [{"url": PNG}], "answer": "a"}]}, "photos": []})
    assert found["past"].messages == [{"photos": [IMAGE], "answer": "a"}]


@pytest.mark.parametrize(
    ("kind", "value", "why"),
    [
        (dspy.Image, "https://example.org/a.png", "thing: str is no dspy.Image"),
        (Optional[dspy.Image], "a text", "thing: str is no dspy.Image"),
        (Union[dspy.Image, int], "a text", "thing: str is no dspy.Image"),
        (list[dspy.Image], [{"url": PNG}, "x"], r"thing\[1\]: str is no dspy.Image"),
        (dspy.Image, {"url": "/etc/passwd"}, "no dspy.Image"),
        (dspy.Image, {"url": {"url": {"url": 5}}}, "no dspy.Image"),
        (dspy.Image, {"url": "http://169.254.169.254/", "download": True}, "no dspy.Image"),
        (dspy.Image, {}, "no dspy.Image"),
        (dspy.Image, b"PNG", "bytes is no dspy.Image"),
        (dspy.Audio, {"data": "x"}, "no dspy.Audio"),
        (dspy.File, {"path": "/etc/passwd"}, "no dspy.File"),
        (dspy.File, "data:text/plain,x", "str is no dspy.File"),
        (dspy.History, {"messages": ["x"]}, "no dspy.History"),
        (dspy.History, [], "list is no dspy.History"),
        (dspy.Code, {"x": 1}, "no dspy.Code"),
        (dspy.ToolCalls, {"x": 1}, "no dspy.ToolCalls"),
        (dspy.Image, {"url": "<<CUSTOM-TYPE-START-IDENTIFIER>>"}, "DSPy's marker"),
    ],
)
def test_a_value_that_a_type_of_dspy_does_not_take_is_an_invalid_input(kind: Any, value: Any, why: str) -> None:
    with pytest.raises(InvalidInput, match=why) as e:
        given(kind, value)
    assert e.value.fix is not None or "marker" in why


def test_a_tool_is_refused_where_it_is_named_and_where_it_arrives() -> None:
    for text in ("tools: list[dspy.Tool] -> answer", "text -> tool: Optional[dspy.Tool]"):
        for make in (lambda text=text: predict(text), lambda text=text: program("tickets:Closes", text)):
            with pytest.raises(TopologyError, match=r"a dspy\.Tool is code") as e:
                make()
            assert e.value.code == "DX211"
    made = signature.to_dspy(signature.read({"signature": "tool: dspy.Tool -> answer"}))
    with pytest.raises(InvalidInput, match=r"tool: a dspy\.Tool is code"):
        values.Filler(made).inputs({"tool": {"name": "f", "func": "os.system"}})
    with pytest.raises(InvalidInput, match="Tool"):
        json_bytes({"tool": dspy.Tool(len)})


def test_a_type_that_formats_itself_is_refused() -> None:
    class Event(dspy.Type):
        name: str

        def format(self) -> str:
            return self.name

    with pytest.raises(TopologyError, match="Event is formatted by code of its own"):
        predict(Signature("a -> b").with_updated_fields("b", type=list[Event]))


def test_the_language_of_code_travels() -> None:
    made = signature.to_dspy(signature.read(as_signature(Case({"thing": (JAVA, None)}).signature()).plain()))
    assert made.input_fields["thing"].annotation.language == "java"


class Asks(dspy.Signature):
    """Answer."""

    text: str = dspy.InputField()
    lang: str = dspy.InputField(default="en")
    hint: Optional[str] = dspy.InputField()
    tags: list[str] = dspy.InputField(default_factory=lambda: ["a"])
    weight: float = dspy.InputField()
    answer: str = dspy.OutputField()
    parts: list[str] = dspy.OutputField(default_factory=list)
    note: str = dspy.OutputField(default="none")


@pytest.mark.parametrize("data", [{"weight": 5}, {"weight": "5", "hint": None}, {"weight": True, "lang": "de", "tags": ["b"]}])
@pytest.mark.parametrize("route", ["worker", "native"])
def test_inputs_are_sent_as_they_were_given_with_the_defaults_that_dspy_fills_in(data: dict[str, Any], route: str) -> None:
    made = signature.to_dspy(signature.read(as_signature(Asks).plain()))
    sent = predict(Asks).to_call().inputs({"text": "t", **data})
    filled = {"lang": "en", "text": "t", **data}  # as dspy.Predict calls an adapter
    for name, adapter in ADAPTERS.items():
        expected = adapter().format(Asks, [], filled)
        if route == "native":
            assert Signature.from_plain(as_signature(Asks).plain()).messages(sent, adapter=name) == expected  # type: ignore[arg-type]
        else:
            assert adapter().format(made, [], values.Filler(made).inputs(sent)) == expected


def test_a_program_gets_typed_inputs_and_every_default() -> None:
    sent = program("tickets:Closes", as_signature(Asks)).to_call().inputs({"text": "t", "weight": "5"})
    assert sent == {"text": "t", "lang": "en", "hint": None, "tags": ["a"], "weight": 5.0}


def test_a_request_for_json_shows_the_defaults_that_dspy_shows() -> None:
    own = json_adapter._get_structured_outputs_response_format(Asks).model_json_schema()
    made = signature.to_dspy(signature.read(as_signature(Asks).plain()))
    assert json_adapter._get_structured_outputs_response_format(made).model_json_schema() == own
    here = response_format(as_signature(Asks))["json_schema"]["schema"]["properties"]
    assert {n: p.get("default") for n, p in here.items()} == {"answer": None, "parts": None, "note": "none"}
    assert made.output_fields["parts"].get_default(call_default_factory=True) == []


@pytest.mark.parametrize("text", ["text -> x: float, y", "text -> x: list[float], y", "text -> x: dict[str, float], y"])
def test_numbers_that_json_has_not_are_shown_in_examples_as_in_dspy(text: str) -> None:
    inf, nan = float("inf"), float("nan")
    shown = {"text -> x: f": -inf, "text -> x: l": [inf, nan], "text -> x: d": {"a": nan}}[text[:12]]
    demo, own = {"text": "t", "x": shown, "y": inf}, make_signature(text)
    for name, adapter in ADAPTERS.items():
        found = Signature(text).messages({"text": "u"}, adapter=name, demos=[demo])  # type: ignore[arg-type]
        assert found == adapter().format(own, [demo], {"text": "u"})


def test_a_type_that_grows_when_it_is_written_out_is_refused_where_an_adapter_does_that() -> None:
    fields = [{n: {"$ref": f"#/$defs/T{i + 1}"} for n in "xy"} if i < 30 else {} for i in range(31)]
    definitions = {
        f"T{i}": {"reference": f"m.T{i}:{i}", "schema": {"type": "object", "properties": f}} for i, f in enumerate(fields)
    }
    classes = {"T": {"kind": "model", "name": "T", "schema": {"$ref": "#/$defs/T0"}}}
    plain = {"signature": "a -> b: T", "types": {"classes": classes, "definitions": definitions}}
    with pytest.raises(ProgramError, match="b: its type has more than 20,000 parts"):
        signature.refuse_large(signature.to_dspy(signature.read(plain)))


@pytest.mark.parametrize(
    "text", ["text -> kind: Literal['dspy.Image', 'x']", "schema, prediction -> answer", "text -> schema, prediction"]
)
def test_native_calls_cover_texts_that_only_look_like_types_of_dspy(text: str) -> None:
    assert predict(text, route="native").to_call().spec.route == "native"


@pytest.mark.parametrize("text", ["p: list[dspy.Image] -> answer", "p -> x: dict[str, dspy.File]"])
def test_what_only_dspy_can_answer_is_refused_for_the_native_route(text: str) -> None:
    with pytest.raises(TopologyError) as e:
        predict(text, route="native")
    assert e.value.code == "DX236"
