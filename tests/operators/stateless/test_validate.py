from __future__ import annotations

import typing
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest
import typing_extensions
from pydantic import BaseModel, Field

from dspex.bus.codecs import decode, json_bytes
from dspex.bus.errors import InvalidInput, TopologyError
from dspex.engine.testing.driver import Driver
from dspex.operators.stateless import validate
from dspex.operators.topology import Topology


class Model(BaseModel):
    text: str = Field(min_length=1)
    n: int


class Wider(Model):
    more: str = "m"


@dataclass
class Data:
    text: str
    n: int


class Typed(typing_extensions.TypedDict):
    text: str
    n: typing_extensions.NotRequired[int]


class OldTyped(typing.TypedDict):
    text: str
    n: typing.NotRequired[typing.Annotated[int, Field(ge=1)]]


@pytest.mark.parametrize(
    ("tp", "data", "value"),
    [
        (Model, {"text": "a", "n": 1}, Model(text="a", n=1)),
        (Model, Wider(text="a", n=1), Wider(text="a", n=1)),
        (Wider, Model(text="a", n=1), Wider(text="a", n=1)),
        (Data, {"text": "a", "n": 1}, Data("a", 1)),
        (Typed, {"text": "a"}, {"text": "a"}),
        (OldTyped, {"text": "a"}, {"text": "a"}),
        (dict, Data("a", 1), {"text": "a", "n": 1}),
        (str, "a", "a"),
        (int, 1, 1),
        (list[int], [1], [1]),
    ],
)
def test_data_that_fits_becomes_the_typed_value(run, tp, data, value):
    (result,) = run(validate.build(tp), data)
    assert (type(result), result) == (type(value), value)


@pytest.mark.parametrize(
    ("tp", "data", "message"),
    [
        (Model, {"text": ""}, "does not fit Model: text: String should have at least 1 character; n: Field required"),
        (Data, {"text": 1, "n": "x"}, "does not fit Data: text: .*; n: "),
        (Typed, {}, "does not fit Typed: text: Field required"),
        (OldTyped, {"text": "a", "n": 0}, "does not fit OldTyped: n: Input should be greater than or equal to 1"),
        (str, 5, "should be str, and is int"),
        (dict, "x", "should be dict, and is str"),
        (list[int], ["x"], r"does not fit list\[int\]: 0: "),
    ],
)
def test_every_field_that_does_not_fit_is_named(run, tp, data, message):
    with pytest.raises(InvalidInput, match=message):
        run(validate.build(tp), data)


SCHEMA = {
    "type": "object",
    "required": ["id"],
    "properties": {"n": {"type": "integer", "minimum": 1}, "tags": {"type": "array", "items": {"type": "string"}}},
}


def test_a_json_schema_lets_fitting_data_through_untouched(run):
    data = {"id": 1, "n": 2, "other": None}
    assert run(validate.build(SCHEMA), data)[0] is data


def test_a_json_schema_lists_every_error(run):
    with pytest.raises(InvalidInput) as e:
        run(validate.build(SCHEMA), {"n": 0, "tags": [1, "a", 2]})
    for part in ('"id" is a required property', "n: 0 is less than the minimum of 1", "tags.0: 1 is not", "tags.2: 2 is not"):
        assert part in e.value.message


def test_on_error_skip_drops_what_does_not_fit(run):
    assert run(validate.build(Model, "skip"), {"text": ""}, {"text": "a", "n": 1}) == [Model(text="a", n=1)]


def test_skip_does_not_hide_an_error_of_a_later_operator(run):
    def later(data: object, ctx: object) -> None:
        raise InvalidInput("of the next operator")

    with pytest.raises(InvalidInput, match="next operator"):
        validate.build(Model, "skip")([later])({"text": "a", "n": 1}, None)  # type: ignore[arg-type]


def test_a_bad_schema_is_refused_at_build():
    with pytest.raises(TopologyError, match="not a JSON Schema") as e:
        validate.build({"type": "strin"})
    assert e.value.code == "DX226"


def test_a_schema_is_never_fetched_from_the_network():
    asked: list[str] = []

    class Schemas(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"type": "object"}')

        def log_message(self, *args: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Schemas) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            with pytest.raises(TopologyError, match="which is not in it"):
                validate.build({"$ref": f"http://127.0.0.1:{server.server_port}/schema.json"})
        finally:
            server.shutdown()
            thread.join()
    assert asked == []


def test_a_type_that_cannot_be_checked_is_refused_at_build():
    class Plain: ...

    with pytest.raises(TopologyError, match="cannot be checked against Plain"):
        validate.build(Plain)


@pytest.mark.parametrize("into", [{"": {}}, {"type": "object"}, {}, "Model", 5, [dict]], ids=str)
def test_a_value_is_no_type_to_make_of_outputs(into):
    topology = Topology("wrong")
    topology.source("in").predict("a -> b", name="ask", into=into).sink("out")
    assert [p.code for p in topology.check()] == ["DX226"]


class Inner(BaseModel):
    a: int


class Outer(BaseModel):
    x: int
    inner: Inner


class Strict(BaseModel, extra="forbid"):
    x: int


MORE = {"x": 1, "inner": {"a": 2, "b": 3}, "y": 4}


@pytest.mark.parametrize(
    ("tp", "extra", "kept"),
    [
        (Outer, None, {"x": 1, "inner": {"a": 2}}),
        (Outer, "drop", {"x": 1, "inner": {"a": 2}}),
        (Outer, "keep", MORE),
        (Strict, "drop", {"x": 1}),
        (list[Outer], "keep", [MORE]),
        (Typed, "keep", {"text": "a", **MORE}),
        (Typed, "drop", {"text": "a"}),
    ],
)
def test_fields_that_the_type_does_not_name_are_dropped_or_kept_at_every_level(run, tp, extra, kept):
    data = [MORE] if tp == list[Outer] else {"text": "a", **MORE} if tp is Typed else MORE
    (result,) = run(validate.build(tp, extra=extra), data)
    assert decode(json_bytes(result)) == kept


@pytest.mark.parametrize(("tp", "extra"), [(Outer, "refuse"), (Typed, "refuse"), (Data, "refuse"), (Strict, None)])
def test_fields_that_the_type_does_not_name_are_refused_with_their_names(run, tp, extra):
    with pytest.raises(InvalidInput, match="y: "):
        run(validate.build(tp, extra=extra), {"text": "a", "n": 1, **MORE})


@pytest.mark.parametrize(
    ("tp", "extra", "why"),
    [({"type": "object"}, "refuse", "additionalProperties"), (int, "drop", "leave it out"), (Data, "keep", "TypedDict")],
)
def test_an_extra_that_could_not_be_kept_or_would_do_nothing_is_refused(tp, extra, why):
    with pytest.raises(TopologyError) as e:
        validate.build(tp, extra=extra)
    assert e.value.code == "DX205"
    assert why in e.value.fix


def test_a_field_that_is_kept_can_be_read_behind_it_and_one_that_is_dropped_cannot():
    def topology(extra):
        made = Topology("shop")
        made.source("in").validate(Outer, extra=extra).filter("y == 4").sink("out")
        return made

    topology("keep").freeze()
    with pytest.raises(TopologyError, match="y"):
        topology("drop").freeze()
    with Driver(topology("keep")) as d:
        d.publish("in", MORE)
        assert d.outputs("out") == [MORE]
