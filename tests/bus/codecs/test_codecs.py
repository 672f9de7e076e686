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
from contextlib import suppress
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
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from dspex.bus.codecs import ARROW, JSON, MSGPACK, Codec, decode, encode, json_bytes, register_codec
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


@settings(max_examples=100)
@given(plain)
def test_plain_data_comes_back_from_json(data: Any) -> None:
    encoded, content_type = encode(data)
    assert content_type == JSON
    assert decode(encoded, content_type) == data
    assert json_bytes(data) == encoded
    json.loads(encoded)


@settings(max_examples=100)
@given(with_bytes)
def test_plain_data_and_bytes_come_back_from_messagepack(data: Any) -> None:
    encoded, content_type = encode(data, "msgpack")
    assert content_type == MSGPACK
    assert decode(encoded, content_type) == data


@settings(max_examples=100)
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
def test_what_is_not_plain_is_converted_the_same_way_by_all(codec: Codec, data: Any, expected: Any) -> None:
    for value, result in ((data, expected), ([data], [expected]), ({"k": data}, {"k": expected})):
        assert decode(*encode(value, codec)) == result


def test_a_derived_attribute_is_not_sent() -> None:
    record = Record("r")
    assert record.derived == 3
    assert decode(*encode(record)) == {"name": "r", "_hidden": 2}


def test_a_set_is_sent_in_the_same_order_by_every_process() -> None:
    program = "from dspex.bus.codecs import json_bytes; print(json_bytes({*'abcdefgh', 3, 1.5}).decode())"
    runs = {
        subprocess.run(
            [sys.executable, "-c", program], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in "123"
    }
    assert len(runs) == 1


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: {"a": [None, {"b": x}]}, lambda x: Point(x, 1), numpy.float64])
def test_json_refuses_what_is_no_number(number: float, wrap: Any) -> None:
    with pytest.raises(InvalidInput, match=str(number)):
        json_bytes(wrap(number))
    with pytest.raises(InvalidInput, match=str(number)):
        encode(wrap(number), "auto")


def test_json_says_where_the_number_is_that_is_none() -> None:
    with pytest.raises(InvalidInput, match=r"data\.rows\[1\]\.score is nan"):
        json_bytes({"rows": [{"score": None}, {"score": math.nan}]})


@settings(max_examples=100)
@given(plain)
def test_none_and_the_word_null_are_fine(data: Any) -> None:
    wrapped = {"null": data, "none": None, "text": "null"}
    assert decode(json_bytes(wrapped)) == wrapped


def test_messagepack_keeps_what_is_no_number() -> None:
    assert math.isnan(decode(*encode({"x": math.nan}, "msgpack"))["x"])


class Opaque:
    pass


@pytest.mark.parametrize(
    ("data", "place"),
    [
        ({"a": [1, Opaque()]}, r"data\.a\[1\] is a Opaque"),
        (Opaque(), r"data is a Opaque"),
        ({"a": {"b": 1 << 64}}, r"data\.a\.b is an int of 65 bits"),
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
def test_what_cannot_be_encoded_is_named_with_its_place(codec: Codec, data: Any, place: str) -> None:
    with pytest.raises(InvalidInput, match=place) as caught:
        encode(data, codec)
    assert caught.value.fix


def test_json_has_no_bytes_and_says_what_has() -> None:
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
def test_what_is_not_json_is_refused(data: bytes) -> None:
    with pytest.raises(DecodeError):
        decode(data)


@pytest.mark.parametrize("data", [b"", b"\xc1", b"\x92\x01", b"\x01\x01", b"\xc7\x01\x05x", b"\x81\x90\x01", b"\x91" * 5000])
def test_what_is_not_messagepack_is_refused(data: bytes) -> None:
    with pytest.raises(DecodeError) as caught:
        decode(data, MSGPACK)
    assert len(caught.value.message) < 400


@settings(max_examples=300)
@given(st.binary(), st.sampled_from([JSON, MSGPACK, ARROW]))
def test_bytes_from_outside_give_data_or_a_decode_error(data: bytes, content_type: str) -> None:
    caught: list[DecodeError] = []
    try:
        decode(data, content_type)
    except DecodeError as e:
        caught.append(e)
    assert all(len(e.message) < 1000 for e in caught)


def test_a_time_of_messagepack_is_read() -> None:
    assert decode(b"\xd6\xff\x00\x00\x00\x01", MSGPACK) == dt.datetime(1970, 1, 1, 0, 0, 1, tzinfo=dt.UTC)


def test_an_unknown_content_type_names_the_known_ones() -> None:
    with pytest.raises(DecodeError, match=r"'text/csv' is not known.*application/json.*application/msgpack.*arrow"):
        decode(b"a,b", "text/csv; header=present")


def test_an_unknown_codec_is_a_configuration_error() -> None:
    with pytest.raises(ConfigError, match="protobuf"):
        encode({}, "protobuf")  # type: ignore[arg-type]


# -- Arrow -----------------------------------------------------------------------------------------------------------
TABLE = pyarrow.table({"id": [1, 2, None], "text": ["a", None, "c"], "vector": [[1.5], [], None]})


def test_a_table_comes_back_equal() -> None:
    encoded, content_type = encode(TABLE, "auto")
    assert content_type == ARROW
    assert decode(encoded, ARROW).equals(TABLE)
    assert decode(*encode(TABLE.to_batches()[0], "arrow")).equals(TABLE)
    assert decode(*encode(TABLE.slice(0, 0), "arrow")).num_rows == 0


@pytest.mark.parametrize(
    "array",
    [
        numpy.arange(12, dtype="<f4").reshape(3, 4),
        numpy.arange(24, dtype="i8").reshape(2, 3, 4),
        numpy.arange(6, dtype=">i4").reshape(2, 3),
        numpy.asfortranarray(numpy.arange(6.0).reshape(2, 3)),
        numpy.arange(20)[::3],
        numpy.array([True, False, True]),
        numpy.array([1 + 2j, 3 - 1j]),
        numpy.array(["2026-05-04", "2027-01-01"], "M8[s]"),
        numpy.array([1.5, -2], "f2"),
        numpy.zeros((0, 3)),
        numpy.zeros((2, 0, 3), "u1"),
        numpy.array([math.nan, math.inf]),
    ],
    ids=lambda a: f"{a.dtype}{a.shape}",
)
def test_an_array_comes_back_in_type_and_shape(array: Any) -> None:
    encoded, content_type = encode(array, "auto")
    assert content_type == ARROW
    result = decode(encoded, content_type)
    assert result.shape == array.shape
    assert result.dtype == array.dtype.newbyteorder("=")
    numpy.testing.assert_array_equal(result, array)


def test_an_array_is_read_without_a_copy() -> None:
    encoded, _ = encode(numpy.arange(100_000, dtype="f4").reshape(100, 1000), "arrow")
    result = decode(encoded, ARROW)
    assert numpy.shares_memory(result, numpy.frombuffer(encoded, "u1"))
    assert not result.flags.writeable


def test_an_array_without_dimensions_is_a_number() -> None:
    assert decode(*encode(numpy.array(1.5), "auto")) == 1.5
    result = decode(*encode(numpy.array(7, "i2"), "arrow"))
    assert (result.shape, result.dtype, int(result)) == ((), numpy.dtype("i2"), 7)


@pytest.mark.parametrize("array", [numpy.array([object()]), numpy.array(["text"]), numpy.zeros(2, "i4,f4")])
def test_an_array_of_what_is_no_number_is_refused(array: Any) -> None:
    with pytest.raises(InvalidInput):
        encode(array, "arrow")


def test_arrow_carries_tables_and_arrays_only() -> None:
    with pytest.raises(InvalidInput, match="dict"):
        encode({"a": 1}, "arrow")


def forged(dtype: str, shape: str, column: Any = (1, 2)) -> bytes:
    table = pyarrow.table({"data": list(column)})
    return encode(table.replace_schema_metadata({"dspex.dtype": dtype, "dspex.shape": shape}), "arrow")[0]


@pytest.mark.parametrize(
    "data",
    [
        forged("O", "[2]"),
        forged("<U2", "[2]"),
        forged("<i8", "[3]"),
        forged("<i8", "nonsense"),
        forged("<i8", '{"a": 1}'),
        forged("nonsense", "[2]"),
        forged("<i8", "[2]", [1, None]),
        forged("<i8", "[2]", ["a", "b"]),
        encode(TABLE, "arrow")[0][:100],
    ],
)
def test_a_forged_or_broken_array_is_refused(data: bytes) -> None:
    with pytest.raises(DecodeError):
        decode(data, ARROW)


def test_a_table_that_points_outside_of_itself_is_refused() -> None:
    offsets = pyarrow.array([0, 1_000_000, 2], "i4").buffers()[1]
    text = pyarrow.StringArray.from_buffers(2, offsets, pyarrow.py_buffer(b"ab"))
    with pytest.raises(DecodeError):
        decode(encode(pyarrow.table({"text": text}), "arrow")[0], ARROW)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_damaged_table_gives_data_or_a_decode_error(data: st.DataObject) -> None:
    encoded = bytearray(encode(TABLE, "arrow")[0])
    for _ in range(data.draw(st.integers(1, 4))):
        encoded[data.draw(st.integers(0, len(encoded) - 1))] = data.draw(st.integers(0, 255))
    with suppress(DecodeError):
        decode(bytes(encoded), ARROW)


def test_arrow_is_imported_only_when_it_is_used() -> None:
    program = (
        "import sys; from dspex.bus.codecs import *; encode({'a': 1}, 'auto');"
        "assert not {'pyarrow', 'numpy'} & set(sys.modules), sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_without_arrow_the_fix_is_named() -> None:
    program = (
        "import sys; sys.modules['pyarrow'] = None\n"
        "from dspex.bus.codecs import *\n"
        "from dspex.bus.errors import *\n"
        "for act in (lambda: encode({}, 'arrow'), lambda: decode(b'', ARROW)):\n"
        "    try: act()\n"
        "    except (ConfigError, DecodeError) as e: print(type(e).__name__, e.fix)\n"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout == "ConfigError pip install 'dspex[arrow]'\nDecodeError pip install 'dspex[arrow]'\n"


# -- the user's own --------------------------------------------------------------------------------------------------
class Temperature:
    def __init__(self, degrees: int) -> None:
        self.degrees = degrees


class Fever(Temperature):
    pass


TEMPERATURE = "application/x-temperature"


def to_bytes(value: Temperature) -> bytes:
    if value.degrees < -273:
        raise ValueError("colder than cold")
    return str(value.degrees).encode()


register_codec(TEMPERATURE, encode=to_bytes, decode=lambda b: Temperature(int(b)), types=[Temperature])


@pytest.mark.parametrize("codec", ["json", "auto"])
def test_a_registered_type_travels_in_its_own_form(codec: Codec) -> None:
    for value in (Temperature(37), Fever(37)):
        encoded, content_type = encode(value, codec)
        assert (encoded, content_type) == (b"37", TEMPERATURE)
        assert decode(encoded, content_type + "; v=1").degrees == 37
    assert encode({"a": 1}, codec)[1] == JSON


def test_failures_of_a_registered_codec_are_data_errors() -> None:
    with pytest.raises(InvalidInput, match="colder than cold"):
        encode(Temperature(-300))
    with pytest.raises(DecodeError, match="x-temperature"):
        decode(b"warm", TEMPERATURE)


@pytest.mark.parametrize("name", [JSON, "Application/JSON", "nonsense", "a/b/c", "a/b; c=d", ""])
def test_a_codec_needs_a_name_of_its_own(name: str) -> None:
    with pytest.raises(ConfigError):
        register_codec(name, encode=bytes, decode=bytes)
