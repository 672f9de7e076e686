"""How large cells of Arrow columns become as plain values, found out without making them.

Cells may share what they hold: one of a dictionary, that of a run, a buffer that many views point into. Plain values do not.
"""

from __future__ import annotations

from typing import Any, Final

from dspex.engine.cli.events.tables.cells import functions

_VIEWS: Final = ("string_view", "binary_view")
_POINTER: Final = 8  # bytes that a cell takes in a list of Python, whatever it is


def unshared(array: Any) -> int:
    """Bytes of all cells of an array that is valid."""
    from pyarrow import types as t

    kind, cells = array.type, _POINTER * len(array)
    if hasattr(kind, "storage_type"):
        return unshared(array.storage)
    if t.is_dictionary(kind):
        return cells + (functions().sum(functions().take(_lengths(array.dictionary), array.indices)).as_py() or 0)
    if t.is_run_end_encoded(kind):
        return cells + len(array) * (functions().max(_lengths(array.values)).as_py() or 0)
    if t.is_struct(kind):
        return cells + sum(map(unshared, array.flatten()))
    if t.is_list(kind) or t.is_large_list(kind) or t.is_fixed_size_list(kind):
        return cells + unshared(array.flatten())
    if t.is_map(kind) or t.is_list_view(kind) or t.is_large_list_view(kind):  # a map has no flatten; views may overlap
        return cells + sum(unshared(cell.values) for cell in array if cell.is_valid)
    if str(kind) in _VIEWS:
        return cells + (functions().sum(_lengths(array)).as_py() or 0)
    return max(cells, int(array.nbytes))


def _lengths(array: Any) -> Any:
    """An array: bytes of each cell; of those that are no text, an upper bound."""
    import pyarrow as pa
    from pyarrow import types as t

    kind = array.type
    if str(kind) in _VIEWS:
        begins = 4 * array.offset  # a view is four numbers, of which the first one is the length
        views = memoryview(array.buffers()[1]).cast("i")[begins : begins + 4 * len(array) : 4]
        return pa.array([length if valid else 0 for length, valid in zip(views, array.is_valid().to_pylist())], pa.int64())
    if t.is_string(kind) or t.is_large_string(kind) or t.is_binary(kind) or t.is_large_binary(kind):
        return functions().binary_length(array)
    return pa.array([unshared(array)] * len(array), pa.int64())
