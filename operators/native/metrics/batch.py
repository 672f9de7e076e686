"""Metrics over Arrow columns: the numbers of the single functions, for thousands of rows at once.

The texts of a column are one run of bytes here, with a byte that is in no text behind each. A table and a few masks find
the words in it; words become numbers, and the words of two texts are compared as sorted numbers. Texts that are not plain
ASCII are normalized one by one beforehand: doing it again changes nothing. A metric without such a way is computed row by
row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from operator import eq
from typing import Any

from dspex.bus.errors import ConfigError, InvalidInput
from dspex.operators.native.metrics.metrics import LABELS, METRICS, normalize_text
from dspex.operators.native.metrics.text import LOWER, NO_EVIDENCE, PUNCTUATION, passage, same_plain
from dspex.operators.native.suggestions import did_you_mean

try:
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as compute
except ImportError as e:
    raise ConfigError(f"metrics.batch needs pyarrow and numpy: {e}", fix='pip install "dspex[arrow]"') from e

pc: Any = compute  # its functions are made at run time: no checker sees them
ROWS, BYTES = 4096, 1 << 18  # of one block, at most: its arrays stay in the processor's cache
_END = b"\xff"  # in no UTF-8
# A block takes and frees some megabytes. glibc would hand them back and take them anew for every block, which takes as long
# as the work; once it has seen a large array freed, it keeps as much.
np.empty(16 << 20, dtype=np.uint8)


def _keys(found: list[str]) -> Any:
    """Words of up to 8 bytes as numbers. \0 fills them up: it is in no word."""
    return np.array([int.from_bytes(word.encode().rjust(8, b"\0"), "little") for word in found], dtype=np.uint64)


_ARTICLES = _keys(["a", "an", "the"])
_LABELS = _keys(sorted(LABELS))


def batch(metric: str, actual: Any, expected: Any) -> Any:
    """See `dspex.metrics.batch`."""
    if metric not in METRICS:
        raise InvalidInput(f"there is no metric {metric!r}: {did_you_mean(metric, METRICS)}")
    ours, theirs = _column(metric, "actual", actual), _column(metric, "expected", expected)
    if len(ours) != len(theirs):
        raise InvalidInput(f"{metric}: actual has {len(ours)} rows, expected has {len(theirs)}")
    if _is_list(ours) and metric != "passage_match":
        raise InvalidInput(f"{metric}: actual must be a column of text, not of lists")
    valid = pc.and_(ours.is_valid(), theirs.is_valid()).to_numpy(zero_copy_only=False)
    if not valid.all():
        ours, theirs = ours.filter(pa.array(valid)), theirs.filter(pa.array(valid))
    if metric in _OF_REFERENCES and _is_list(theirs) and pc.any(pc.equal(theirs.value_lengths(), 0)).as_py():
        raise InvalidInput(f"{metric}: a row of expected has no reference to compare with")
    score = _score(metric)
    scores = np.zeros(len(valid))
    scores[valid] = np.concatenate([np.empty(0), *(score(a, b) for a, b in _blocks(ours, theirs))])
    return pa.array(scores, mask=~valid)


def _score(metric: str) -> Callable[[Any, Any], Any]:
    """The function of two columns that gives a number for every row."""
    if metric in _OF_REFERENCES:
        return lambda ours, theirs: _best(_OF_REFERENCES[metric], ours, theirs)
    if metric == "passage_match":
        return _passage_match
    one = METRICS[metric]
    return lambda ours, theirs: np.array([one(a, b) for a, b in zip(ours.to_pylist(), theirs.to_pylist())])


# -- columns -------------------------------------------------------------------------------------------------------
def _column(metric: str, side: str, values: Any) -> Any:
    """One array of large_string, or of large_list of large_string. Raise InvalidInput when it is neither."""
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
        found.validate(full=True)  # bytes that are no UTF-8 would be taken for the end of a text
    except (pa.ArrowException, UnicodeError, TypeError) as e:
        raise InvalidInput(f"{metric}: {side} must be a column of text, or of lists of text: {e}") from e
    if listed and found.flatten().null_count:
        raise InvalidInput(f"{metric}: a list of {side} has a null in it")
    return found


def _is_list(column: Any) -> bool:
    return bool(pa.types.is_large_list(column.type))


def _blocks(ours: Any, theirs: Any) -> Iterator[tuple[Any, Any]]:
    """Both in pieces of not too many rows and bytes; a row is never cut."""
    rows = len(ours)
    if rows > 1 and (rows > ROWS or ours.nbytes + theirs.nbytes > BYTES):
        half = rows // 2
        yield from _blocks(ours[:half], theirs[:half])
        yield from _blocks(ours[half:], theirs[half:])
    elif rows:
        yield ours, theirs


def _lists(column: Any) -> tuple[Any, Any]:
    """(offsets, texts): row i has texts[offsets[i]:offsets[i + 1]], which is one text where the column has no lists."""
    if not _is_list(column):
        return np.arange(len(column) + 1), column
    return _offsets(column.value_lengths().to_numpy()), column.flatten()


def _offsets(sizes: Any) -> Any:
    return np.concatenate([[0], np.cumsum(sizes)])


def _best(score: Callable[[bytes, bytes, Any], Any], ours: Any, theirs: Any) -> Any:
    """The best score of every row over its references."""
    offsets, references = _lists(theirs)
    rows = np.repeat(np.arange(len(ours)), np.diff(offsets))
    scores = score(_plain(ours, normalize_text), _plain(references, normalize_text), rows)
    return np.maximum.reduceat(scores, offsets[:-1])


# -- texts ---------------------------------------------------------------------------------------------------------
def _plain(texts: Any, special: Callable[[str], str]) -> bytes:
    """All texts in lower case and without punctuation, a space and `_END` behind each.

    `special` normalizes a text that is not plain ASCII.
    """
    data = _joined(texts)
    codes = np.frombuffer(data, dtype=np.uint8)
    flags = (codes < 9) | ((codes > 13) & (codes < 28)) | ((codes > 126) & (codes != _END[0]))
    if flags.any():
        ends = np.flatnonzero(codes == _END[0])
        mask = np.zeros(len(texts), dtype=np.bool_)
        mask[np.searchsorted(ends, np.flatnonzero(flags))] = True
        done = [special(text) for text in texts.filter(pa.array(mask)).to_pylist()]
        data = _joined(pc.replace_with_mask(texts, pa.array(mask), pa.array(done, pa.large_string())))
    return data.translate(LOWER, PUNCTUATION)


def _joined(texts: Any) -> bytes:
    if not len(texts):
        return b""
    end, between = pa.scalar(b" " + _END, pa.large_binary()), pa.scalar(b"", pa.large_binary())
    return bytes(pc.binary_join_element_wise(texts.cast(pa.large_binary()), end, between).buffers()[2].to_pybytes())


@dataclass(frozen=True)
class _Words:
    """The words of some texts, articles included."""

    data: Any  # the bytes of the texts
    is_word: Any  # of every byte: whether it is part of a word
    starts: Any
    sizes: Any
    keys: Any  # the first 8 bytes as a number
    offsets: Any  # text i has words offsets[i] to offsets[i + 1]

    @classmethod
    def of(cls, plain: bytes) -> _Words:
        # \0 is what short keys are filled up with: in a text it becomes another byte that is in no UTF-8
        padded = np.frombuffer(plain.replace(b"\0", b"\xfe") + bytes(8), dtype=np.uint8)
        data = padded[:-8]
        is_end = data == _END[0]
        is_word = np.zeros(len(data) + 1, dtype=np.bool_)
        np.logical_not((data == ord(" ")) | is_end, out=is_word[1:])
        edges = np.flatnonzero(is_word[1:] != is_word[:-1])  # a word starts, ends, ...
        starts = edges[::2]
        sizes = edges[1::2] - starts
        windows = np.ndarray(len(data), dtype="<u8", buffer=padded, strides=1)
        keys = windows[starts] << (64 - 8 * np.minimum(sizes, 8)).astype(np.uint64)  # what is behind the word falls out
        offsets = np.append(0, np.searchsorted(starts, np.flatnonzero(is_end)))
        return cls(data, is_word[1:], starts, sizes, keys, offsets)

    def is_article(self) -> Any:
        """Of every word."""
        a, an, the = _ARTICLES
        return (self.keys == a) | (self.keys == an) | (self.keys == the)

    def numbers(self) -> Any:
        """A number for every word, the same for the same word."""
        coded = pa.array(self.keys).dictionary_encode()
        numbers = coded.indices.to_numpy().astype(np.int64)
        long = np.flatnonzero(self.sizes > 8)  # the first 8 bytes do not tell
        if len(long):
            offsets = _offsets(self.sizes[long])
            places = np.arange(offsets[-1]) + np.repeat(self.starts[long] - offsets[:-1], self.sizes[long])
            buffers = [None, pa.py_buffer(offsets), pa.py_buffer(self.data[places])]
            words = pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(long), buffers).dictionary_encode()
            numbers[long] = len(coded.dictionary) + words.indices.to_numpy()
        return numbers


# -- exact match ---------------------------------------------------------------------------------------------------
def _exact_match(ours: bytes, theirs: bytes, rows: Any) -> Any:
    """As `same_plain` does it; but what tells most pairs apart is done for all at once."""
    texts, references = _of_rows(ours, rows), theirs.split(_END)
    found = np.fromiter(map(eq, texts, references), np.bool_, len(rows))
    letters, their_letters = _of_rows(ours.translate(None, NO_EVIDENCE), rows), theirs.translate(None, NO_EVIDENCE)
    alike = np.fromiter(map(eq, letters, their_letters.split(_END)), np.bool_, len(rows))
    for i in np.flatnonzero(alike & ~found).tolist():
        found[i] = same_plain(texts[i], references[i])
    return found.astype(np.float64)


def _of_rows(texts: bytes, rows: Any) -> list[bytes]:
    return list(map(texts.split(_END).__getitem__, rows.tolist()))


# -- F1 and its kin ------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class _Overlap:
    """Of every pair of texts: how many words both have, and each."""

    same: Any
    ours: Any
    theirs: Any
    mislabelled: Any  # one is a label, the other is something else

    @classmethod
    def of(cls, ours: bytes, theirs: bytes, rows: Any) -> _Overlap:
        """Reference i makes a pair with text rows[i]."""
        words = _Words.of(ours + theirs)
        kept = np.flatnonzero(~words.is_article())
        offsets = np.searchsorted(kept, words.offsets)
        texts = len(offsets) - 1
        both = np.concatenate([rows, np.arange(texts - len(rows), texts)])
        firsts, counts = offsets[both], np.diff(offsets)[both]
        spread = _offsets(counts)
        places = kept[np.arange(spread[-1]) + np.repeat(firsts - spread[:-1], counts)]
        pairs = np.repeat(np.tile(np.arange(len(rows)), 2), counts)
        same = _common(pairs, words.numbers()[places], spread[len(rows)], len(rows))
        label = np.zeros(len(both), dtype=np.uint64)
        single = np.flatnonzero(counts == 1)
        word = kept[firsts[single]]
        label[single] = np.where(np.isin(words.keys[word], _LABELS) & (words.sizes[word] <= 8), words.keys[word], 0)
        half = len(rows)
        return cls(same, counts[:half], counts[half:], label[:half] != label[half:])


def _common(pairs: Any, numbers: Any, ours: int, size: int) -> Any:
    """How many words both sides of a pair have, a word as often as the side that has it less often.

    The first `ours` words are of one side, the rest of the other.
    """
    span = 2 * (int(numbers.max(initial=0)) + 1)
    small = np.uint32 if size * span < 1 << 32 else np.int64  # half the bytes are sorted in half the time
    keys = (pairs * span + 2 * numbers).astype(small)
    keys[ours:] += 1
    keys.sort()
    starts = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]])[: len(keys)])
    runs, counts = keys[starts], np.diff(starts, append=len(keys))
    met = np.flatnonzero((runs[:-1] + 1 == runs[1:]) & (runs[:-1] & 1 == 0))
    return np.bincount(runs[met] // span, np.minimum(counts[met], counts[met + 1]), size)


def _share(part: Any, whole: Any) -> Any:
    return np.divide(part, whole, out=np.zeros(len(part)), where=whole > 0)


def _precision(ours: bytes, theirs: bytes, rows: Any) -> Any:
    overlap = _Overlap.of(ours, theirs, rows)
    return _share(overlap.same, overlap.ours)


def _recall(ours: bytes, theirs: bytes, rows: Any) -> Any:
    overlap = _Overlap.of(ours, theirs, rows)
    return _share(overlap.same, overlap.theirs)


def _f1_of(overlap: _Overlap) -> Any:
    precise, complete = _share(overlap.same, overlap.ours), _share(overlap.same, overlap.theirs)
    return _share(2 * precise * complete, precise + complete)


def _f1(ours: bytes, theirs: bytes, rows: Any) -> Any:
    return _f1_of(_Overlap.of(ours, theirs, rows))


def _hotpot_f1(ours: bytes, theirs: bytes, rows: Any) -> Any:
    overlap = _Overlap.of(ours, theirs, rows)
    return np.where(overlap.mislabelled, 0.0, _f1_of(overlap))


_OF_REFERENCES: dict[str, Callable[[bytes, bytes, Any], Any]] = {
    "exact_match": _exact_match,
    "f1": _f1,
    "hotpot_f1": _hotpot_f1,
    "precision": _precision,
    "recall": _recall,
}


# -- passages ------------------------------------------------------------------------------------------------------
def _passage_match(ours: Any, theirs: Any) -> Any:
    (passages_of, passages), (answers_of, answers) = (
        (offsets.tolist(), _between_spaces(texts)) for offsets, texts in (_lists(ours), _lists(theirs))
    )
    found = [
        any(a in p for p in passages[passages_of[i] : passages_of[i + 1]] for a in answers[answers_of[i] : answers_of[i + 1]])
        for i in range(len(ours))
    ]
    return np.array(found, dtype=np.float64)


def _between_spaces(texts: Any) -> list[bytes]:
    """`passage` of every text."""
    words = _Words.of(_plain(texts, passage))
    keep = words.is_word.copy()
    articles = words.is_article()
    starts, sizes = words.starts[articles], words.sizes[articles]
    for i in range(3):
        keep[starts[sizes > i] + i] = False
    keep[1:] |= keep[:-1].copy()  # the space behind a word
    keep |= words.data == _END[0]
    normal: bytes = words.data[keep].tobytes()
    return (b" " + normal.replace(_END, _END + b" ")).split(_END)[:-1]
