"""Codecs: what goes in comes out, what cannot go in says where, and no bytes from outside do any harm."""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
import math
import os
import subprocess
import sys
from collections import OrderedDict, deque
from collections.abc import Hashable
from decimal import Decimal
from enum import IntEnum, StrEnum
from functools import cached_property
from pathlib import PurePosixPath
from types import MappingProxyType
from typing import Any, NamedTuple
from uuid import UUID

import numpy
import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from dspex.bus.codecs import ARROW, JSON, MSGPACK, Codec, decode, encode, json_bytes
from dspex.bus.errors import ConfigError, DecodeError, InvalidInput

texts = st.text(st.characters(exclude_categories=["Cs"]))
integers = st.integers(-(1 << 63), (1 << 64) - 1)
floats = st.floats(allow_nan=False, allow_infinity=False)
scalars = st.none() | st.booleans() | integers | floats | texts
plain = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(texts, inner), max_leaves=20)
with_bytes = st.recursive(scalars | st.binary(), lambda inner: st.lists(inner) | st.dictionaries(texts, inner), max_leaves=20)


class Level(IntEnum):
    LOW = 1


class Color(StrEnum):
    RED = "red"


class Point(NamedTuple):
    x: int
    y: int


class Model(BaseModel):
    name: str
    at: dt.datetime
    tags: set[str] = set()
    inner: Model | None = None


@dataclasses.dataclass
class Record:
    name: str
    _hidden: int = 2

    @cached_property
    def derived(self) -> int:
        return 3


class Text(str):
    pass


NOON = dt.datetime(2026, 5, 4, 12, 0, 0, 5000, tzinfo=dt.UTC)
ID = UUID("01890000-0000-7000-8000-000000000000")

CONVERTED: list[tuple[Any, Any]] = [
    (Model(name="m", at=NOON, tags={"b", "a"}),
     {"name": "m", "at": "2026-05-04T12:00:00.005000+00:00", "tags": ["a", "b"], "inner": None}),
    (Record("r"), {"name": "r", "_hidden": 2}),
    (Point(1, 2), {"x": 1, "y": 2}),
    ((1, (2,)), [1, [2]]),
    (NOON, "2026-05-04T12:00:00.005000+00:00"),
    (NOON.astimezone(dt.timezone(dt.timedelta(hours=2))), "2026-05-04T14:00:00.005000+02:00"),
    (dt.datetime(2026, 5, 4), "2026-05-04T00:00:00+00:00"),
    (dt.date(2026, 5, 4), "2026-05-04"),
    (dt.time(1, 2, 3), "01:02:03"),
    (dt.timedelta(minutes=1.5), 90.0),
    (ID, str(ID)),
    (Decimal("1.10"), "1.10"),
    (PurePosixPath("a/b"), "a/b"),
    (Color.RED, "red"),
    (Level.LOW, 1),
    ({3, 1, 2}, [1, 2, 3]),
    (frozenset({"b", 1}), [1, "b"]),
    (Text("t"), "t"),
    (OrderedDict(a=1), {"a": 1}),
    (MappingProxyType({"a": Point(1, 2)}), {"a": {"x": 1, "y": 2}}),
    (numpy.float32(0.5), 0.5),
    (numpy.float64(0.5), 0.5),
    (numpy.int8(3), 3),
    (numpy.bool_(True), True),
    ({"a": numpy.array([[1, 2], [3, 4]])}, {"a": [[1, 2], [3, 4]]}),
]  # fmt: skip


@given(plain)
def test_plain_data_comes_back_from_json(data: Any) -> None:
    encoded, content_type = encode(data)
    assert content_type == JSON
    assert decode(encoded, content_type) == data
    assert json_bytes(data) == encoded
    json.loads(encoded)


@given(with_bytes)
def test_plain_data_and_bytes_come_back_from_messagepack(data: Any) -> None:
    encoded, content_type = encode(data, "msgpack")
    assert content_type == MSGPACK
    assert decode(encoded, content_type) == data


@given(with_bytes)
def test_auto_takes_messagepack_only_where_there_are_bytes(data: Any) -> None:
    encoded, content_type = encode(data, "auto")
    assert decode(encoded, content_type) == data
    assert content_type == (MSGPACK if holds_bytes(data) else JSON)


def holds_bytes(data: Any) -> bool:
    if isinstance(data, dict):
        data = list(data.values())
    return isinstance(data, bytes) or (isinstance(data, list) and any(map(holds_bytes, data)))


@pytest.mark.parametrize("codec", ["json", "msgpack", "auto"])
@pytest.mark.parametrize(("data", "expected"), CONVERTED, ids=lambda v: type(v).__name__)
def test_every_codec_converts_values_that_are_not_plain_data_alike(codec: Codec, data: Any, expected: Any) -> None:
    for value, result in ((data, expected), ([data], [expected]), ({"k": data}, {"k": expected})):
        assert decode(*encode(value, codec)) == result


def test_a_property_of_a_class_is_not_sent_with_its_fields() -> None:
    record = Record("r")
    assert record.derived == 3
    assert decode(*encode(record)) == {"name": "r", "_hidden": 2}


NESTED = [
    "{*'abcdefgh', 3, 1.5}",
    "{frozenset(c) for c in ('ab', 'c', 'd', 'ef')}",
    "{(frozenset(c), 1) for c in ('ab', 'c', 'd', 'ef')}",
    "{dataclass(frozen=True)(type('P', (), {'__annotations__': {'s': frozenset}}))(frozenset(c)) for c in ('ad', 'bc')}",
]


@pytest.mark.parametrize("value", NESTED)
def test_a_set_is_sent_in_the_same_order_by_every_process(value: str) -> None:
    program = f"from dataclasses import dataclass; from dspex.bus.codecs import json_bytes; print(json_bytes({value}).decode())"
    runs = {
        subprocess.run(
            [sys.executable, "-c", program], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in "123"
    }
    assert len(runs) == 1, runs


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: {"a": [None, {"b": x}]}, lambda x: Point(x, 1), numpy.float64])
def test_json_refuses_nan_and_infinity(number: float, wrap: Any) -> None:
    with pytest.raises(InvalidInput, match=str(number)):
        json_bytes(wrap(number))
    with pytest.raises(InvalidInput, match=str(number)):
        encode(wrap(number), "auto")


def test_json_names_the_place_of_nan_or_infinity() -> None:
    with pytest.raises(InvalidInput, match=r"data\.rows\[1\]\.score is nan"):
        json_bytes({"rows": [{"score": None}, {"score": math.nan}]})


@given(plain)
def test_json_keeps_none_and_the_word_null(data: Any) -> None:
    wrapped = {"null": data, "none": None, "text": "null"}
    assert decode(json_bytes(wrapped)) == wrapped


def test_messagepack_keeps_nan_and_infinity() -> None:
    assert math.isnan(decode(*encode({"x": math.nan}, "msgpack"))["x"])


class Opaque:
    pass


@pytest.mark.parametrize(
    ("data", "place"),
    [
        ({"a": [1, Opaque()]}, r"data\.a\[1\] is a Opaque"),
        (Opaque(), r"data is a Opaque"),
        ({"a": {"b": 1 << 64}}, r"data\.a\.b is an int of 65 bits"),
        ({"a": -(1 << 63) - 1}, r"data\.a is an int of 65 bits"),  # with its sign
        ({"a": "\ud800"}, r"data\.a is not valid text"),
        ({"\ud800": 1}, r"data is not valid text"),
        ({1: 1, "1": 2, "x": Opaque()}, r"Opaque|two keys"),
        ({"d": deque([1])}, r"data\.d is a deque"),
        ({"f": lambda: 0}, r"data\.f is a function"),
        ({"t": Record}, r"data\.t is a type"),
        ({"t": pyarrow.table({"a": [1]})}, r"data\.t is a Table"),
        ({"e": ValueError("x")}, r"data\.e is a ValueError"),
    ],
)
@pytest.mark.parametrize("codec", ["json", "msgpack", "auto"])
def test_a_value_that_cannot_be_encoded_is_named_with_its_place(codec: Codec, data: Any, place: str) -> None:
    with pytest.raises(InvalidInput, match=place) as caught:
        encode(data, codec)
    assert caught.value.fix


def test_json_refuses_bytes_and_names_the_codec_that_carries_them() -> None:
    with pytest.raises(InvalidInput, match=r"data\.image is bytes") as caught:
        json_bytes({"image": b"\x00"})
    assert "msgpack" in caught.value.fix


def test_keys_that_are_not_text_become_text_in_json() -> None:
    data = {1: "a", None: "b", False: "c", ID: "d", dt.date(2026, 5, 4): "e", Color.RED: "f"}
    expected = {"1": "a", "null": "b", "false": "c", str(ID): "d", "2026-05-04": "e", "red": "f"}
    assert decode(json_bytes(data)) == expected
    with pytest.raises(InvalidInput, match="same as text"):
        json_bytes({1: "a", "1": "b"})


def test_data_that_contains_itself_is_refused() -> None:
    loop: list[Any] = []
    loop.append(loop)
    for codec in ("json", "msgpack", "auto"):
        with pytest.raises(InvalidInput):
            encode(loop, codec)


@pytest.mark.parametrize("content_type", [None, "", JSON, "application/json; charset=utf-8", "Application/JSON ;x=y"])
def test_json_is_the_default_and_parameters_are_allowed(content_type: str | None) -> None:
    assert decode(b'{"a": 1}', content_type) == {"a": 1}


def test_bytes_that_are_not_json_are_shown_at_the_place_and_bounded() -> None:
    data = b'{"text": "' + b"x" * 100_000 + b'", "broken" 1}'
    with pytest.raises(DecodeError) as caught:
        decode(data)
    message = caught.value.message
    assert "column 100023" in message
    assert '"broken" 1}' in message
    assert len(message) < 300


@pytest.mark.parametrize("data", [b"", b"NaN", b'{"a": Infinity}', b"\xff\xfe", b"[" * 5000, b'{"a": 1} x', b"'a'"])
def test_bytes_that_are_not_json_are_refused(data: bytes) -> None:
    with pytest.raises(DecodeError):
        decode(data)


@pytest.mark.parametrize("data", [b"", b"\xc1", b"\x92\x01", b"\x01\x01", b"\xc7\x01\x05x", b"\x81\x90\x01", b"\x91" * 5000])
def test_bytes_that_are_not_messagepack_are_refused(data: bytes) -> None:
    with pytest.raises(DecodeError) as caught:
        decode(data, MSGPACK)
    assert len(caught.value.message) < 400


@given(st.binary(), st.sampled_from([JSON, MSGPACK, ARROW]))
def test_bytes_from_outside_give_data_or_a_decode_error(data: bytes, content_type: str) -> None:
    caught: list[DecodeError] = []
    try:
        decode(data, content_type)
    except DecodeError as e:
        caught.append(e)
    assert all(len(e.message) < 1000 for e in caught)


def test_a_messagepack_timestamp_is_decoded() -> None:
    assert decode(b"\xd6\xff\x00\x00\x00\x01", MSGPACK) == dt.datetime(1970, 1, 1, 0, 0, 1, tzinfo=dt.UTC)


def test_an_unknown_content_type_names_the_known_ones() -> None:
    with pytest.raises(DecodeError, match=r"'text/csv' is not known.*application/json.*application/msgpack.*arrow"):
        decode(b"a,b", "text/csv; header=present")


def test_an_unknown_codec_is_a_configuration_error() -> None:
    with pytest.raises(ConfigError, match="protobuf"):
        encode({}, "protobuf")  # type: ignore[arg-type]


@pytest.mark.parametrize("codec", ["json", "msgpack"])
@pytest.mark.parametrize("key", [(1, 2), frozenset({1, 2}), (1, (2, 3))], ids=str)
def test_a_key_of_several_parts_is_written_as_text_and_can_be_read_again(codec: Codec, key: Hashable) -> None:
    text = json.dumps(_listed(key), separators=(",", ":"))
    assert decode(*encode({"v": {key: 3}}, codec)) == {"v": {text: 3}}


def _listed(value: object) -> object:
    return [_listed(x) for x in value] if isinstance(value, (tuple, frozenset)) else value
