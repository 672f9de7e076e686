"""Columns of text: checked, cut into blocks, and joined to one run of bytes with a byte that is in no text after each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

from dspex.bus.errors import ConfigError, InvalidInput
from dspex.operators.native.metrics.text import LOWER, PUNCTUATION

try:
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as compute
except ImportError as e:
    raise ConfigError(f"metrics.batch needs pyarrow and numpy: {e}", code="DX109", fix='pip install "dspex[arrow]"') from e

__all__ = ["BYTES", "END", "ROWS", "Array", "blocks", "column", "is_list", "lists", "np", "offsets_of", "pa", "pc", "plain"]

Array: TypeAlias = Any  # a numpy array, or a pyarrow array or column: neither has types for its functions

pc: Any = compute  # its functions are made at run time: no type checker knows them
ROWS, BYTES = 4096, 1 << 18  # the largest block: its arrays fit into the processor's cache
END = b"\xff"  # a byte that is in no UTF-8
# A block allocates and frees some megabytes. glibc would return them to the system and take them again for every block, which
# takes as long as the work itself. After it has seen a large array freed, it keeps that much memory.
np.empty(16 << 20, dtype=np.uint8)


def column(metric: str, side: str, values: Array) -> Array:
    """The values as one array of large_string, or of large_list of large_string. Raise InvalidInput for other values."""
    try:
        if isinstance(values, str | bytes):
            raise TypeError("one text is no column")
        found = values if isinstance(values, pa.Array | pa.ChunkedArray) else pa.array(values)
        kinds = pa.types
        listed = kinds.is_list(found.type) or kinds.is_large_list(found.type) or kinds.is_fixed_size_list(found.type)
        kind = found.type.value_type if listed or kinds.is_dictionary(found.type) else found.type
        if not (kinds.is_string(kind) or kinds.is_large_string(kind) or kinds.is_null(kind)):
            raise TypeError(f"it is a column of {found.type}")
        found = found.cast(pa.large_list(pa.large_string()) if listed else pa.large_string())
        found = found.combine_chunks() if isinstance(found, pa.ChunkedArray) else found
        found.validate(full=True)  # invalid UTF-8 could have the byte that ends a text
    except (pa.ArrowException, UnicodeError, TypeError) as e:
        raise InvalidInput(f"{metric}: {side} must be a column of text, or of lists of text: {e}") from e
    if listed and found.flatten().null_count:
        raise InvalidInput(f"{metric}: a list of {side} has a null in it")
    return found


def is_list(column: Array) -> bool:
    """Whether each row has a list of texts."""
    return bool(pa.types.is_large_list(column.type))


def blocks(ours: Array, theirs: Array) -> Iterator[tuple[Array, Array]]:
    """Both columns in blocks of at most ROWS rows and BYTES bytes; a block of one row may be larger."""
    rows = len(ours)
    if rows > 1 and (rows > ROWS or ours.nbytes + theirs.nbytes > BYTES):
        half = rows // 2
        yield from blocks(ours[:half], theirs[:half])
        yield from blocks(ours[half:], theirs[half:])
    elif rows:
        yield ours, theirs


def lists(column: Array) -> tuple[Array, Array]:
    """(offsets, texts): row i has texts[offsets[i]:offsets[i + 1]], which is one text where the column has no lists."""
    if not is_list(column):
        return np.arange(len(column) + 1), column
    return offsets_of(column.value_lengths().to_numpy()), column.flatten()


def offsets_of(sizes: Array) -> Array:
    """The offsets of consecutive parts of these sizes."""
    return np.concatenate([[0], np.cumsum(sizes)])


def plain(texts: Array, special: Callable[[str], str]) -> bytes:
    """All texts in lower case and without punctuation, with a space and `END` after each.

    `special` normalizes a text that is not plain ASCII.
    """
    data = _joined(texts)
    codes = np.frombuffer(data, dtype=np.uint8)
    flags = (codes < 9) | ((codes > 13) & (codes < 28)) | ((codes > 126) & (codes != END[0]))
    if flags.any():
        ends = np.flatnonzero(codes == END[0])
        mask = np.zeros(len(texts), dtype=np.bool_)
        mask[np.searchsorted(ends, np.flatnonzero(flags))] = True
        done = [special(text) for text in texts.filter(pa.array(mask)).to_pylist()]
        data = _joined(pc.replace_with_mask(texts, pa.array(mask), pa.array(done, pa.large_string())))
    return data.translate(LOWER, PUNCTUATION)


def _joined(texts: Array) -> bytes:
    if not len(texts):
        return b""
    end, between = pa.scalar(b" " + END, pa.large_binary()), pa.scalar(b"", pa.large_binary())
    return bytes(pc.binary_join_element_wise(texts.cast(pa.large_binary()), end, between).buffers()[2].to_pybytes())
