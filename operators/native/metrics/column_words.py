"""The words of a column: found by masks over its bytes, turned into numbers, and compared as sorted numbers."""

from __future__ import annotations

from dataclasses import dataclass

from dspex.operators.native.metrics.columns import END, Array, np, offsets_of, pa
from dspex.operators.native.metrics.scores import LABELS


def _keys(found: list[str]) -> Array:
    """Words of up to 8 bytes as numbers. Shorter ones are padded with \\0, which is in no word."""
    return np.array([int.from_bytes(word.encode().rjust(8, b"\0"), "little") for word in found], dtype=np.uint64)


_ARTICLES = _keys(["a", "an", "the"])
_LABELS = _keys(sorted(LABELS))


@dataclass(frozen=True)
class Words:
    """The words of some texts, articles included."""

    data: Array  # the bytes of the texts
    is_word: Array  # of every byte: whether it is part of a word
    starts: Array
    sizes: Array
    keys: Array  # the first 8 bytes as a number
    offsets: Array  # text i has words offsets[i] to offsets[i + 1]

    @classmethod
    def of(cls, plain: bytes) -> Words:
        # Short keys are padded with \0. In the text, \0 becomes another byte that is in no UTF-8.
        padded = np.frombuffer(plain.replace(b"\0", b"\xfe") + bytes(8), dtype=np.uint8)
        data = padded[:-8]
        is_end = data == END[0]
        is_word = np.zeros(len(data) + 1, dtype=np.bool_)
        np.logical_not((data == ord(" ")) | is_end, out=is_word[1:])
        edges = np.flatnonzero(is_word[1:] != is_word[:-1])  # a word starts, ends, ...
        starts = edges[::2]
        sizes = edges[1::2] - starts
        windows = np.ndarray(len(data), dtype="<u8", buffer=padded, strides=1)
        keys = windows[starts] << (64 - 8 * np.minimum(sizes, 8)).astype(np.uint64)  # the shift drops the bytes after the word
        offsets = np.append(0, np.searchsorted(starts, np.flatnonzero(is_end)))
        return cls(data, is_word[1:], starts, sizes, keys, offsets)

    def is_article(self) -> Array:
        """For every word, whether it is an article."""
        a, an, the = _ARTICLES
        return (self.keys == a) | (self.keys == an) | (self.keys == the)

    def numbers(self) -> Array:
        """A number for every word, the same for the same word."""
        coded = pa.array(self.keys).dictionary_encode()
        numbers = coded.indices.to_numpy().astype(np.int64)
        long = np.flatnonzero(self.sizes > 8)  # longer words may share their first 8 bytes
        if len(long):
            offsets = offsets_of(self.sizes[long])
            places = np.arange(offsets[-1]) + np.repeat(self.starts[long] - offsets[:-1], self.sizes[long])
            buffers = [None, pa.py_buffer(offsets), pa.py_buffer(self.data[places])]
            words = pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(long), buffers).dictionary_encode()
            numbers[long] = len(coded.dictionary) + words.indices.to_numpy()
        return numbers


@dataclass(frozen=True)
class Overlap:
    """For every pair of texts: how many words both have, and how many each has."""

    same: Array
    ours: Array
    theirs: Array
    mislabelled: Array  # one is a label, the other is something else

    @classmethod
    def of(cls, ours: bytes, theirs: bytes, rows: Array) -> Overlap:
        """The overlap of each reference i with the text rows[i]."""
        words = Words.of(ours + theirs)
        kept = np.flatnonzero(~words.is_article())
        offsets: Array = np.searchsorted(kept, words.offsets)
        texts = len(offsets) - 1
        both = np.concatenate([rows, np.arange(texts - len(rows), texts)])
        firsts, counts = offsets[both], np.diff(offsets)[both]
        spread = offsets_of(counts)
        places = kept[np.arange(spread[-1]) + np.repeat(firsts - spread[:-1], counts)]
        pairs = np.repeat(np.tile(np.arange(len(rows)), 2), counts)
        same = _common(pairs, words.numbers()[places], spread[len(rows)], len(rows))
        label = np.zeros(len(both), dtype=np.uint64)
        single = np.flatnonzero(counts == 1)
        word = kept[firsts[single]]
        label[single] = np.where(np.isin(words.keys[word], _LABELS) & (words.sizes[word] <= 8), words.keys[word], 0)
        half = len(rows)
        return cls(same, counts[:half], counts[half:], label[:half] != label[half:])


def _common(pairs: Array, numbers: Array, ours: int, size: int) -> Array:
    """The number of words that both sides of a pair have. A word counts as often as on the side that has it less often.

    The first `ours` words belong to one side, the others to the other side.
    """
    span = 2 * (int(numbers.max(initial=0)) + 1)
    small = np.uint32 if size * span < 1 << 32 else np.int64  # sorting half as many bytes takes half the time
    keys = (pairs * span + 2 * numbers).astype(small)
    keys[ours:] += 1
    keys.sort()
    starts = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]])[: len(keys)])
    runs, counts = keys[starts], np.diff(starts, append=len(keys))
    met = np.flatnonzero((runs[:-1] + 1 == runs[1:]) & (runs[:-1] & 1 == 0))
    return np.bincount(runs[met] // span, np.minimum(counts[met], counts[met + 1]), size)
