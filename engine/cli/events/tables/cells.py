"""Cells of Arrow columns as plain values. pyarrow rounds, or asks for pandas, where Python's own types are not as fine."""

from __future__ import annotations

from datetime import UTC, datetime, time, timedelta
from itertools import islice
from typing import Any

_TEXT = "bytes that are not text in UTF-8: write them as text, by Base64 for example"


def fault_of(kind: Any) -> str:
    """Why cells of this Arrow type cannot be told exactly; "" where they can."""
    from pyarrow import types as t

    if t.is_interval(kind):
        return "months, days and nanoseconds have no form in an event"
    if t.is_union(kind):
        return "an event does not tell which of several types a cell has"
    if t.is_dictionary(kind) or t.is_run_end_encoded(kind):
        return fault_of(kind.value_type)
    if t.is_map(kind):
        return fault_of(kind.key_type) or fault_of(kind.item_type)
    if _is_list(kind):
        return fault_of(kind.value_type)
    if t.is_struct(kind):
        names = [kind.field(i).name for i in range(kind.num_fields)]
        if len(set(names)) < len(names):
            return "two of its fields have one name"
        return next((why for i in range(kind.num_fields) if (why := fault_of(kind.field(i).type))), "")
    return fault_of(kind.storage_type) if hasattr(kind, "storage_type") else ""


def functions() -> Any:
    """pyarrow.compute, whose functions are made when it is imported."""
    from pyarrow import compute

    return compute


def values(array: Any) -> list[Any]:
    """The cells. Raises ValueError for one that cannot be told exactly; what pyarrow raises, for others."""
    from pyarrow import types as t

    kind = array.type
    if _is_plain(kind):
        return list(array.to_pylist())
    if t.is_dictionary(kind):
        return values(array.dictionary_decode())
    if t.is_run_end_encoded(kind):
        return values(functions().run_end_decode(array))
    if t.is_map(kind):
        return [_map(s.values) if s.is_valid else None for s in array]
    if t.is_list(kind) or t.is_large_list(kind) or t.is_fixed_size_list(kind):
        cells = iter(values(array.flatten()))
        return [None if n is None else list(islice(cells, n)) for n in functions().list_value_length(array).to_pylist()]
    if _is_list(kind):  # views, which may overlap
        return [values(s.values) if s.is_valid else None for s in array]
    if t.is_struct(kind):
        names = [kind.field(i).name for i in range(kind.num_fields)]
        columns = [values(column) for column in array.flatten()]
        rows = zip(*columns) if columns else ((),) * len(array)
        return [dict(zip(names, row)) if valid else None for row, valid in zip(rows, array.is_valid().to_pylist())]
    if hasattr(kind, "storage_type"):
        return values(array.storage)
    if t.is_timestamp(kind) or t.is_time64(kind) or t.is_duration(kind):
        return _nanoseconds(array)
    return [None if cell is None else _text(cell) for cell in array.to_pylist()]


def _is_list(kind: Any) -> bool:
    from pyarrow import types as t

    checks = (t.is_list, t.is_large_list, t.is_fixed_size_list, t.is_list_view, t.is_large_list_view)
    return any(check(kind) for check in checks)


def _is_plain(kind: Any) -> bool:
    """Whether Python has the values as they are."""
    from pyarrow import types as t

    if hasattr(kind, "storage_type"):
        return getattr(kind, "extension_name", "") == "arrow.uuid"
    if t.is_timestamp(kind) or t.is_time64(kind) or t.is_duration(kind):
        return str(kind.unit) != "ns"
    if _is_list(kind):
        return _is_plain(kind.value_type)
    if t.is_struct(kind):
        return all(_is_plain(kind.field(i).type) for i in range(kind.num_fields))
    special = (t.is_map, t.is_dictionary, t.is_run_end_encoded, t.is_binary, t.is_large_binary, t.is_fixed_size_binary)
    return not (any(check(kind) for check in special) or str(kind) == "binary_view")


def _map(entries: Any) -> object:
    """A map by its keys; as a list of keys and values, where the keys are not text and could not be told from it."""
    keys, items = values(entries.field(0)), values(entries.field(1))
    if not all(isinstance(key, str) for key in keys):
        return [{"key": key, "value": item} for key, item in zip(keys, items)]
    found = dict(zip(keys, items))
    if len(found) < len(keys):
        raise ValueError("a map has one key twice")
    return found


def _text(cell: bytes) -> str:
    """Old writers of Parquet do not say that a column is text."""
    try:
        return cell.decode()
    except UnicodeDecodeError as e:
        raise ValueError(_TEXT) from e


def _nanoseconds(array: Any) -> list[Any]:
    """Times as Python's where these are as fine, and as text of the same form where they are not."""
    import pyarrow as pa
    from pyarrow import types as t

    kind, ticks = array.type, array.cast(pa.int64()).to_pylist()
    coarse = (
        pa.timestamp("us", kind.tz) if t.is_timestamp(kind) else pa.duration("us") if t.is_duration(kind) else pa.time64("us")
    )
    found = pa.array([None if tick is None else tick // 1000 for tick in ticks], pa.int64()).cast(coarse).to_pylist()
    return [cell if tick is None or tick % 1000 == 0 else _finer(cell, tick % 1000) for cell, tick in zip(found, ticks)]


def _finer(cell: datetime | time | timedelta, nanoseconds: int) -> str:
    if isinstance(cell, timedelta):
        raise ValueError("a duration has nanoseconds, of which an event has no form: write whole microseconds, or text")
    if isinstance(cell, datetime) and cell.tzinfo is None:
        cell = cell.replace(tzinfo=UTC)  # as all times that name no zone
    text = cell.isoformat(timespec="microseconds")
    fraction = text.index(".") + 7
    return f"{text[:fraction]}{nanoseconds:03}{text[fraction:]}"
