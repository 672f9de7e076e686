"""Tables and arrays in Arrow's form: they come back equal, and no bytes from outside do any harm."""

from __future__ import annotations

import math
import subprocess
import sys
from contextlib import suppress
from typing import Any

import numpy
import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspex.bus.codecs import ARROW, decode, encode
from dspex.bus.codecs.arrow_size import expanded
from dspex.bus.errors import DecodeError, InvalidInput

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


def test_an_array_without_dimensions_comes_back_as_a_number() -> None:
    assert decode(*encode(numpy.array(1.5), "auto")) == 1.5
    result = decode(*encode(numpy.array(7, "i2"), "arrow"))
    assert (result.shape, result.dtype, int(result)) == ((), numpy.dtype("i2"), 7)


@pytest.mark.parametrize("array", [numpy.array([object()]), numpy.array(["text"]), numpy.zeros(2, "i4,f4")])
def test_an_array_of_anything_but_numbers_is_refused(array: Any) -> None:
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


def test_a_table_whose_offsets_point_outside_of_it_is_refused() -> None:
    offsets = pyarrow.array([0, 1_000_000, 2], "i4").buffers()[1]
    text = pyarrow.StringArray.from_buffers(2, offsets, pyarrow.py_buffer(b"ab"))
    with pytest.raises(DecodeError):
        decode(encode(pyarrow.table({"text": text}), "arrow")[0], ARROW)


@given(st.data())
def test_a_damaged_table_gives_data_or_a_decode_error(data: st.DataObject) -> None:
    encoded = bytearray(encode(TABLE, "arrow")[0])
    for _ in range(data.draw(st.integers(1, 4))):
        encoded[data.draw(st.integers(0, len(encoded) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = decode(bytes(encoded), ARROW)
    except DecodeError:
        return
    assert isinstance(found, pyarrow.Table | pyarrow.Array | numpy.ndarray)


def test_arrow_is_imported_only_when_it_is_used() -> None:
    program = (
        "import sys; from dspex.bus.codecs import *; encode({'a': 1}, 'auto');print({'pyarrow', 'numpy'} & set(sys.modules))"
    )
    assert subprocess.check_output([sys.executable, "-c", program], text=True) == "set()\n"


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


# -- what a small stream may become ----------------------------------------------------------------------------------
def written(table: Any, **options: Any) -> bytes:
    sink = pyarrow.BufferOutputStream()
    with pyarrow.ipc.new_stream(sink, table.schema, options=pyarrow.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue().to_pybytes())


@pytest.mark.parametrize("compression", ["zstd", "lz4", None])
@pytest.mark.parametrize(
    "table",
    [
        TABLE,
        pyarrow.table({"n": numpy.arange(100_000), "same": numpy.zeros(100_000)}),
        pyarrow.table(
            {"d": pyarrow.array(["a", "b", None] * 50).dictionary_encode(), "deep": [[[1], []], None, [[2, 3]]] * 50}
        ),
        pyarrow.table({"nothing": pyarrow.nulls(1000), "flag": [True, None] * 500}),
        pyarrow.concat_tables([TABLE] * 5),
        TABLE.slice(0, 0),
        pyarrow.table({}),
    ],
    ids=["mixed", "numbers", "dictionary", "nulls", "batches", "empty", "no columns"],
)
def test_a_compressed_table_is_read_and_its_size_is_known_before(table: Any, compression: str | None) -> None:
    data = written(table, compression=compression)
    assert decode(data, ARROW).equals(table)
    found = expanded(data)
    assert found.rows >= table.num_rows
    assert found.size >= (table.nbytes / 2 if table.num_rows else 0)  # the buffers of a slice may be shared


@pytest.mark.parametrize("compression", ["zstd", "lz4"])
def test_a_small_stream_that_would_fill_the_memory_is_refused_before_it_is_decoded(compression: str) -> None:
    column = pyarrow.array(numpy.zeros(2_000_000))
    data = written(pyarrow.table({f"c{n}": column for n in range(20)}), compression=compression)
    assert len(data) < 2 << 20
    before = pyarrow.total_allocated_bytes()
    with pytest.raises(DecodeError, match="320,000,000 bytes of memory"):
        decode(data, ARROW)
    assert pyarrow.total_allocated_bytes() - before < 1 << 20


def test_rows_that_take_no_space_are_counted_too() -> None:
    with pytest.raises(DecodeError, match="rows in 0 bytes"):
        decode(written(pyarrow.table({"n": pyarrow.nulls(1 << 22)})), ARROW)


@given(st.sampled_from(["zstd", "lz4", None]), st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), max_size=8))
def test_no_change_of_a_stream_makes_the_size_fail_in_another_way_than_the_reading(
    compression: str | None, changes: list[tuple[int, int]]
) -> None:
    data = bytearray(written(pyarrow.table({"n": list(range(50)), "t": ["x"] * 50}), compression=compression))
    for place, value in changes:
        data[place % len(data)] = value
    before = pyarrow.total_allocated_bytes()
    with suppress(DecodeError):
        decode(bytes(data), ARROW)
    assert pyarrow.total_allocated_bytes() - before < 64 << 20
