"""JSON Schema: verdicts equal to those of `jsonschema`, all errors at once, and what an untrusted schema cannot do."""

from __future__ import annotations

import datetime
import json
import subprocess
import sys
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from dspex.bus.errors import InvalidInput, TopologyError
from dspex.operators.native.templates.schema import MAX_ERRORS, Schema

ORDER = {
    "type": "object",
    "required": ["id"],
    "properties": {
        "id": {"type": "string", "pattern": "^[a-z]+$"},
        "n": {"type": "integer", "minimum": 1},
        "tags": {"type": "array", "items": {"type": "string"}},
    },
}


def errors(schema: Any, data: Any) -> str:
    try:
        Schema(schema).check(data)
    except InvalidInput as e:
        return e.message
    return ""


def test_data_that_fits_passes():
    assert errors(ORDER, {"id": "abc", "n": 2, "tags": ["a"]}) == ""


def test_a_schema_lists_all_errors_with_their_paths():
    message = errors(ORDER, {"n": 0, "tags": [1, "a", 2]})
    for part in ('data: "id" is a required', "n: 0 is less than the minimum", "tags.0: 1 is not", "tags.2: 2 is not"):
        assert part in message


def test_many_schema_errors_are_counted_and_long_ones_are_cut():
    message = errors({"items": {"type": "string"}}, list(range(1000)))
    assert message.count("is not of type") == MAX_ERRORS
    assert message.endswith(f"and {1000 - MAX_ERRORS} more")
    assert len(errors({"type": "string"}, ["x" * 100_000])) < 500


class Model(BaseModel):
    a: int


def test_an_error_about_any_of_lists_the_reason_of_each_schema():
    assert errors({"properties": {"a": {"anyOf": [{"type": "string"}, {"type": "null"}]}}}, {"a": 5}).endswith(
        'a: 5 is not of type "string"; a: 5 is not of type "null"'
    )


def test_a_schema_checks_dates_and_models_as_json():
    schema = {"properties": {"at": {"type": "string"}, "m": {"required": ["a", "b"]}}}
    assert errors(schema, {"at": datetime.date(2026, 1, 1), "m": Model(a=1)}).endswith('m: "b" is a required property')


def test_changing_the_schema_of_a_caller_does_not_change_the_compiled_one():
    schema: dict[str, Any] = {"type": "string"}
    made = Schema(schema)
    schema["type"] = "integer"
    made.check("a")
    with pytest.raises(InvalidInput):
        made.check(1)


def test_the_schema_that_pydantic_makes_is_taken():
    Schema(Model.model_json_schema()).check({"a": 1})
    with pytest.raises(InvalidInput, match='a: "x" is not of type "integer"'):
        Schema(Model.model_json_schema()).check({"a": "x"})


# -- equal to jsonschema
_json = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-3, 5), st.sampled_from([0.5, 1.0, 2.5]), st.text("ab1é", max_size=3)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.sampled_from("abcd"), inner, max_size=3)),
    max_leaves=6,
)
_types = st.sampled_from(["null", "boolean", "integer", "number", "string", "array", "object"])
_leaf = st.one_of(
    st.booleans(),
    st.builds(lambda t: {"type": t}, st.one_of(_types, st.lists(_types, min_size=1, max_size=3, unique=True))),
    st.builds(lambda v: {"const": v}, _json),
    st.builds(lambda v: {"enum": v}, st.lists(_json, min_size=1, max_size=3)),
    st.builds(
        lambda k, n: {k: n},
        st.sampled_from(["minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"]),
        st.integers(0, 3),
    ),
    st.builds(
        lambda k, n: {k: n}, st.sampled_from(["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"]), st.integers(-2, 3)
    ),
    st.sampled_from(
        [{"multipleOf": 2}, {"uniqueItems": True}, {"pattern": "^[ab]+$"}, {"pattern": "1"}, {"$ref": "#/$defs/d"}]
    ),
    st.builds(lambda v: {"required": v}, st.lists(st.sampled_from("abcd"), max_size=2, unique=True)),
)
_schema: st.SearchStrategy[Any] = st.recursive(
    _leaf,
    lambda inner: st.one_of(
        st.builds(lambda v: {"properties": v}, st.dictionaries(st.sampled_from("abcd"), inner, max_size=3)),
        st.builds(
            lambda k, v: {k: v}, st.sampled_from(["items", "not", "additionalProperties", "propertyNames", "contains"]), inner
        ),
        st.builds(
            lambda k, v: {k: v},
            st.sampled_from(["anyOf", "allOf", "oneOf", "prefixItems"]),
            st.lists(inner, min_size=1, max_size=3),
        ),
        st.builds(lambda a, b, c: {"if": a, "then": b, "else": c}, inner, inner, inner),
        st.builds(lambda v: {"patternProperties": {"^[ab]$": v}}, inner),
        st.builds(lambda v, w: {"prefixItems": [v], "unevaluatedItems": w}, inner, inner),
        st.builds(lambda v, w: {"dependentSchemas": {"a": v}, "unevaluatedProperties": w}, inner, inner),
        st.builds(lambda a, b: a | b if isinstance(a, dict) and isinstance(b, dict) else a, inner, inner),
    ),
    max_leaves=5,
)


@given(
    _schema, st.sampled_from([{"type": "integer"}, {"items": {"$ref": "#/$defs/d"}}]), st.lists(_json, min_size=1, max_size=4)
)
def test_a_schema_accepts_and_refuses_what_jsonschema_does(schema, d, values):
    whole = {"$defs": {"d": d}, **(schema if isinstance(schema, dict) else {"allOf": [schema]})}
    theirs, ours = jsonschema.Draft202012Validator(whole), Schema(whole)
    for value in values:
        found = list(theirs.iter_errors(value))
        message = ""
        try:
            ours.check(value)
        except InvalidInput as e:
            message = e.message
        assert bool(found) == bool(message), (value, found, message)
        assert not message.endswith("schema: ")


# -- untrusted
def nested(count: int, wrap: Any, inner: Any) -> Any:
    for _ in range(count):
        inner = wrap(inner)
    return inner


def chain(count: int, link: Any) -> dict[str, Any]:
    """Definitions each of which refers to the next, as `link` makes it of a reference."""
    links = {f"a{i}": link({"$ref": f"#/$defs/a{i + 1}"}) for i in range(count)}
    return {"$defs": {**links, f"a{count}": {"type": "string"}}, "$ref": "#/$defs/a0"}


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": "strin"}, "not a JSON Schema"),
        ({"minLength": "x"}, "not a JSON Schema"),
        ({"pattern": "(?=a)b"}, "not a JSON Schema"),
        ({"pattern": "(a)\\1"}, "not a JSON Schema"),
        ({"pattern": "((a{100}){100}){100}"}, "not a JSON Schema"),
        ({"x": object()}, "not a JSON Schema"),
        ({"$ref": "#"}, "refers to itself for the same data"),
        ({"anyOf": [{"$ref": "#"}, {"$ref": "#"}]}, "refers to itself for the same data"),
        ({"$dynamicRef": "#x", "$dynamicAnchor": "x"}, "refers to itself for the same data"),
        ({"$ref": "#/$defs/a"}, "which is not in it"),
        ({"$ref": "#/allOf/" + "9" * 5000, "allOf": [{}]}, "which is not in it"),
        ("object", "a JSON Schema is a mapping, and this is a str"),
        ([1], "a JSON Schema is a mapping, and this is a list"),
        ({"$ref": "file:///etc/passwd"}, "which is not in it"),
        ({"$ref": "http://127.0.0.1:1/x.json"}, "which is not in it"),
        ({"$ref": "other.json#/a"}, "which is not in it"),
        ({"$schema": "http://127.0.0.1:1/x"}, "not a JSON Schema"),
        ({"$defs": {"a": {"$id": "http://x/y"}}}, "has an $id"),
        ({"enum": [1] * 2000 + ["a"]}, "an enum has more than"),
        (chain(40, lambda r: {"anyOf": [r, r]}), "parts when its references are written out"),
        (chain(40, lambda r: {"allOf": [{"items": r}, {"items": r}]}), "parts when its references are written out"),
        (chain(40, lambda r: {"properties": {"a": r, "b": r}}), "parts when its references are written out"),
        (chain(5000, lambda r: r), "parts when its references are written out"),
        (nested(5000, lambda s: {"not": s}, {}), "not a JSON Schema"),
        ({"description": "x" * 300_000}, "more than 262144 bytes"),
    ],
)
def test_a_schema_that_cannot_be_checked_in_bounded_time_is_refused(schema, message):
    with pytest.raises(TopologyError) as e:
        Schema(schema)
    assert e.value.code == "DX226"
    assert message in e.value.message
    assert len(e.value.message) < 500


DOUBLING = {"properties": {"c": {"$ref": "#"}}, "allOf": [{"properties": {"c": {"$ref": "#"}}}]}
FIBONACCI = {
    "$defs": {
        "a": {"properties": {"c": {"$ref": "#/$defs/b"}}},
        "b": {"properties": {"c": {"allOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/b"}]}}},
    },
    "$ref": "#/$defs/a",
}


@pytest.mark.parametrize(
    "schema", [DOUBLING, FIBONACCI, {"properties": {"c": {"$ref": "#"}}, "patternProperties": {"c": {"$ref": "#"}}}]
)
def test_a_schema_whose_work_doubles_with_each_level_takes_only_shallow_data(schema):
    made = Schema(schema)
    made.check(nested(10, lambda v: {"c": v}, {}))
    with pytest.raises(InvalidInput, match="nested deeper than 16"):
        made.check(nested(17, lambda v: {"c": v}, {}))


@pytest.mark.parametrize(
    "schema",
    [
        {"properties": {"c": {"$ref": "#"}, "d": {"$ref": "#"}}},
        {"anyOf": [{"type": "integer"}, {"type": "object", "additionalProperties": {"$ref": "#"}}, {"items": {"$ref": "#"}}]},
        {"$defs": {"n": {"type": "object", "properties": {"c": {"$ref": "#/$defs/n"}}}}, "$ref": "#/$defs/n"},
    ],
)
def test_a_schema_that_refers_to_itself_once_per_level_takes_deep_data(schema):
    Schema(schema).check(nested(100, lambda v: {"c": v}, {}))


_UNTRUSTED = """
import json, sys, time, resource
resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))
from dspex.bus.errors import DspexError
from dspex.operators.native.templates.schema import Schema
Schema({"type": "string", "pattern": "a"}).check("a")
seen = []
watched = ("open", "socket.connect", "socket.getaddrinfo", "exec", "compile", "subprocess.Popen", "os.system")
sys.addaudithook(lambda event, args: seen.append([event, repr(args)[:200]]) if event in watched else None)
for schema, data in json.loads(sys.stdin.read()):
    began = time.process_time()
    try:
        Schema(schema).check(data)
        end = "fits"
    except DspexError as e:
        end = e.code
    print(json.dumps([json.dumps(schema)[:80], time.process_time() - began, end]))
print(json.dumps(seen))
"""
_DEEP = nested(300, lambda v: {"c": [v]}, 3)
BOMBS: list[tuple[Any, Any]] = [
    ({"pattern": "^(a+)+$"}, "a" * 100_000 + "b"),
    ({"pattern": "(a|aa)*c"}, "a" * 100_000),
    ({"patternProperties": {"^(a+)+$": {"type": "string"}}}, {"a" * 50_000 + "b": 1}),
    ({"items": {"type": "string"}}, list(range(100_000))),
    ({"items": {"anyOf": [{"type": "string", "minLength": i} for i in range(50)]}}, list(range(100_000))),
    ({"items": {"allOf": [{"type": "string", "minLength": i} for i in range(30)]}}, [[]] * 16_000),
    ({"uniqueItems": True}, [[i, [i]] for i in range(20_000)]),
    ({"items": {"enum": [str(i) for i in range(10_000)]}}, [str(i) for i in range(30_000)]),
    ({"items": {"enum": [*map(str, range(999)), None]}}, ["x"] * 30_000),
    ({"anyOf": [{"type": "integer"}, {"additionalProperties": {"items": {"$ref": "#"}}, "type": "object"}]}, _DEEP),
    ({"unevaluatedProperties": False, "properties": {"c": {"items": {"$ref": "#"}}}}, _DEEP),
    ({"oneOf": [{"properties": {"c": {"items": {"$ref": "#"}}}}, {"type": "null"}]}, _DEEP),
    (chain(12, lambda r: {"anyOf": [r, r]}), 1),
    (chain(3000, lambda r: {"items": r}), [[[1]]]),
    (nested(150, lambda s: {"not": s}, {}), 1),
    (nested(150, lambda s: {"anyOf": [s, {"type": "null"}]}, {"type": "null"}), 1),
    ({"format": "regex", "contentMediaType": "application/json", "multipleOf": 1e-300}, 1e300),
    ({"minLength": 10**30}, "x"),
    ({"properties": {str(i): {"type": "string"} for i in range(5000)}}, {str(i): 1 for i in range(5000)}),
    ({"allOf": [{"required": [str(i)]} for i in range(5000)]}, {}),
    ({"$ref": "file:///etc/passwd"}, 1),
    ({"$schema": "file:///etc/passwd"}, 1),
    ({"$ref": "http://127.0.0.1:1/x"}, 1),
    ({"$id": "file:///etc/passwd", "$ref": "hosts"}, 1),
]


def test_much_data_under_a_large_schema_is_refused_without_a_list_of_errors():
    schema = Schema({"items": {"anyOf": [{"type": "string", "minLength": i} for i in range(50)]}})
    with pytest.raises(InvalidInput, match="too much of it to say where"):
        schema.check(list(range(100_000)))
    with pytest.raises(InvalidInput, match="7: 7 is not of type"):
        schema.check([*["x" * 50] * 7, 7])
    schema.check(["x" * 50] * 100_000)


def test_data_that_is_nested_deeper_than_errors_are_found_in_is_refused_all_the_same():
    deep = 1
    for _ in range(500):
        deep = [deep]
    with pytest.raises(InvalidInput, match="does not fit the schema"):
        Schema({"type": "object", "required": ["a"]}).check({"b": deep})


def test_an_untrusted_schema_takes_bounded_time_and_opens_nothing():
    done = subprocess.run(
        [sys.executable, "-c", _UNTRUSTED], input=json.dumps(BOMBS), capture_output=True, text=True, timeout=50
    )
    assert done.returncode == 0, done.stderr[-2000:]
    *results, seen = [json.loads(line) for line in done.stdout.splitlines()]
    assert seen == []
    assert len(results) == len(BOMBS)
    assert [r for r in results if r[1] > 20] == []
