"""Arrow: tables and arrays as an IPC stream. pyarrow and NumPy are imported only when data needs them.

A NumPy array is a table of one column, whose metadata say type and shape. It is read in place: the array's memory is the
message's, so it cannot be written to.
"""

from __future__ import annotations

import json
import struct
from types import ModuleType
from typing import Any

from dspex.bus.codecs.arrow_size import Expanded, expanded
from dspex.bus.errors import ConfigError, DecodeError, InvalidInput

MOST = 64 << 20  # bytes of a table in memory: what could have been sent without compression; see bus/serving/payloads.py
FREE_ROWS = 1 << 16  # that need not take a bit each
_INSTALL = "pip install 'dspex[arrow]'"
_DTYPE, _SHAPE = b"dspex.dtype", b"dspex.shape"
_PORTABLE = "biufcmM"  # kinds of array that mean the same everywhere: no objects, no text, no records


def is_numpy(value: Any) -> bool:
    """Whether `value` is an array or a number of NumPy's, found out without importing NumPy."""
    return type(value).__module__.partition(".")[0] == "numpy" and hasattr(value, "tolist")


def is_columnar(data: Any) -> bool:
    """Whether `data` is an array, or a table of any library that speaks Arrow (pyarrow, polars, pandas, …)."""
    return hasattr(type(data), "__arrow_c_stream__") or (is_numpy(data) and hasattr(data, "shape") and data.shape != ())


def _pyarrow() -> ModuleType:
    try:
        import pyarrow
    except ImportError as e:
        raise ConfigError("Arrow needs the package pyarrow", code="DX109", fix=_INSTALL) from e
    module: ModuleType = pyarrow
    return module


def _numpy() -> ModuleType:
    try:
        import numpy
    except ImportError as e:
        raise ConfigError("arrays need the package numpy", code="DX109", fix=_INSTALL) from e
    return numpy


def encode(data: Any) -> bytes:
    """A table, record batch or array as an Arrow IPC stream. Raises InvalidInput for anything else."""
    pa = _pyarrow()
    if is_numpy(data) and hasattr(data, "dtype"):
        table = _table_of(pa, data)
    elif hasattr(type(data), "__arrow_c_stream__"):
        table = pa.table(data)
    else:
        raise InvalidInput(
            f"data is a {type(data).__name__}, and Arrow carries tables and arrays", fix='use codec="auto" or "json"'
        )
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    encoded: bytes = sink.getvalue().to_pybytes()
    return encoded


def _table_of(pa: ModuleType, array: Any) -> Any:
    numpy = _numpy()
    array = numpy.asarray(array)
    dtype = array.dtype.newbyteorder("=")
    if dtype.kind not in _PORTABLE or dtype.itemsize > 16 or (dtype.kind == "f" and dtype.itemsize > 8):
        raise InvalidInput(f"data is an array of {array.dtype}, which cannot be sent", fix="make it an array of numbers")
    flat = numpy.ascontiguousarray(array, dtype).reshape(-1)
    if dtype.kind not in "iuf":  # Arrow keeps booleans as bits and has no complex: as bytes they are read in place too
        flat = flat.view(numpy.uint8)
    metadata = {_DTYPE: dtype.str.encode(), _SHAPE: json.dumps(array.shape).encode()}
    return pa.table({"data": pa.array(flat)}).replace_schema_metadata(metadata)


def decode(data: bytes) -> Any:
    """The table (pyarrow.Table) or array of an Arrow IPC stream, read in place. Raises DecodeError."""
    try:
        pa = _pyarrow()
        _check_size(expanded(data))
        table = pa.ipc.open_stream(pa.py_buffer(data)).read_all()
        table.validate(full=True)  # offsets that point outside would be read from other memory
        metadata = table.schema.metadata or {}
        return _array_of(table, metadata) if _SHAPE in metadata else table
    except ConfigError as e:
        raise DecodeError(e.message, fix=e.fix) from e
    except (
        OSError,
        ValueError,
        TypeError,
        LookupError,
        NotImplementedError,
        RecursionError,
        struct.error,
    ) as e:  # pyarrow's own are made from these
        raise DecodeError(f"not an Arrow stream: {e}; {len(data)} bytes, beginning {data[:30]!r}") from e


def _check_size(found: Expanded) -> None:
    if found.size > MOST:
        raise DecodeError(f"an Arrow stream that would take {found.size:,} bytes of memory, of which {MOST:,} are allowed")
    if found.rows > 8 * found.size + FREE_ROWS:  # of nulls, or of no column: they take no space until somebody looks at them
        raise DecodeError(f"an Arrow stream of {found.rows:,} rows in {found.size:,} bytes")


def _array_of(table: Any, metadata: dict[bytes, bytes]) -> Any:
    numpy = _numpy()
    dtype = numpy.dtype(metadata[_DTYPE].decode())
    if dtype.kind not in _PORTABLE:
        raise ValueError(f"an array of {dtype}")
    chunks = table.column(0).chunks
    if len(chunks) > 1:
        raise ValueError(f"an array in {len(chunks)} pieces")
    flat = chunks[0].to_numpy(zero_copy_only=True) if chunks else numpy.empty(0, dtype)
    return flat.view(dtype).reshape(json.loads(metadata[_SHAPE]))
