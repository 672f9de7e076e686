"""Metrics over Arrow columns: the numbers of the single functions, for thousands of rows at once.

The texts of a column are joined to one run of bytes. A table and a few masks find the words in it; words become numbers, and
the words of two texts are compared as sorted numbers. Texts that are not plain ASCII are normalized one by one before that:
normalizing them again changes nothing. A metric without such a method is computed row by row.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import eq

from dspex.bus.errors import InvalidInput
from dspex.operators.native.metrics.column_words import Overlap, Words
from dspex.operators.native.metrics.columns import END, Array, blocks, column, is_list, lists, np, pa, pc, plain
from dspex.operators.native.metrics.metrics import METRICS, normalize_text
from dspex.operators.native.metrics.text import NO_EVIDENCE, passage, same_plain
from dspex.operators.native.problems import did_you_mean


def batch(metric: str, actual: Array, expected: Array) -> Array:
    """See `dspex.metrics.batch`."""
    if metric not in METRICS:
        raise InvalidInput(f"there is no metric {metric!r}: {did_you_mean(metric, METRICS)}")
    ours, theirs = column(metric, "actual", actual), column(metric, "expected", expected)
    if len(ours) != len(theirs):
        raise InvalidInput(f"{metric}: actual has {len(ours)} rows, expected has {len(theirs)}")
    if is_list(ours) and metric != "passage_match":
        raise InvalidInput(f"{metric}: actual must be a column of text, not of lists")
    valid = pc.and_(ours.is_valid(), theirs.is_valid()).to_numpy(zero_copy_only=False)
    if not valid.all():
        ours, theirs = ours.filter(pa.array(valid)), theirs.filter(pa.array(valid))
    if metric in _OF_REFERENCES and is_list(theirs) and pc.any(pc.equal(theirs.value_lengths(), 0)).as_py():
        raise InvalidInput(f"{metric}: a row of expected has no reference to compare with")
    score = _score(metric)
    scores = np.zeros(len(valid))
    scores[valid] = np.concatenate([np.empty(0), *(score(a, b) for a, b in blocks(ours, theirs))])
    return pa.array(scores, mask=~valid)


def _score(metric: str) -> Callable[[Array, Array], Array]:
    """The function of two columns that gives a number for every row."""
    if metric in _OF_REFERENCES:
        return lambda ours, theirs: _best(_OF_REFERENCES[metric], ours, theirs)
    if metric == "passage_match":
        return _passage_match
    one = METRICS[metric]
    return lambda ours, theirs: np.array([one(a, b) for a, b in zip(ours.to_pylist(), theirs.to_pylist())])


def _best(score: Callable[[bytes, bytes, Array], Array], ours: Array, theirs: Array) -> Array:
    """The best score of every row over its references."""
    offsets, references = lists(theirs)
    rows = np.repeat(np.arange(len(ours)), np.diff(offsets))
    scores = score(plain(ours, normalize_text), plain(references, normalize_text), rows)
    return np.maximum.reduceat(scores, offsets[:-1])


# -- exact match ---------------------------------------------------------------------------------------------------
def _exact_match(ours: bytes, theirs: bytes, rows: Array) -> Array:
    """As `same_plain`, but its first two comparisons, which decide most pairs, are done for all pairs at once."""
    texts, references = _of_rows(ours, rows), theirs.split(END)
    found = np.fromiter(map(eq, texts, references), np.bool_, len(rows))
    letters, their_letters = _of_rows(ours.translate(None, NO_EVIDENCE), rows), theirs.translate(None, NO_EVIDENCE)
    alike = np.fromiter(map(eq, letters, their_letters.split(END)), np.bool_, len(rows))
    for i in np.flatnonzero(alike & ~found).tolist():
        found[i] = same_plain(texts[i], references[i])
    return found.astype(np.float64)


def _of_rows(texts: bytes, rows: Array) -> list[bytes]:
    return list(map(texts.split(END).__getitem__, rows.tolist()))


def _share(part: Array, whole: Array) -> Array:
    return np.divide(part, whole, out=np.zeros(len(part)), where=whole > 0)


def _precision(ours: bytes, theirs: bytes, rows: Array) -> Array:
    overlap = Overlap.of(ours, theirs, rows)
    return _share(overlap.same, overlap.ours)


def _recall(ours: bytes, theirs: bytes, rows: Array) -> Array:
    overlap = Overlap.of(ours, theirs, rows)
    return _share(overlap.same, overlap.theirs)


def _f1_of(overlap: Overlap) -> Array:
    precise, complete = _share(overlap.same, overlap.ours), _share(overlap.same, overlap.theirs)
    return _share(2 * precise * complete, precise + complete)


def _f1(ours: bytes, theirs: bytes, rows: Array) -> Array:
    return _f1_of(Overlap.of(ours, theirs, rows))


def _hotpot_f1(ours: bytes, theirs: bytes, rows: Array) -> Array:
    overlap = Overlap.of(ours, theirs, rows)
    return np.where(overlap.mislabelled, 0.0, _f1_of(overlap))


_OF_REFERENCES: dict[str, Callable[[bytes, bytes, Array], Array]] = {
    "exact_match": _exact_match,
    "f1": _f1,
    "hotpot_f1": _hotpot_f1,
    "precision": _precision,
    "recall": _recall,
}


# -- passages ------------------------------------------------------------------------------------------------------
def _passage_match(ours: Array, theirs: Array) -> Array:
    (passages_of, passages), (answers_of, answers) = (
        (offsets.tolist(), _between_spaces(texts)) for offsets, texts in (lists(ours), lists(theirs))
    )
    found = [
        any(a in p for p in passages[passages_of[i] : passages_of[i + 1]] for a in answers[answers_of[i] : answers_of[i + 1]])
        for i in range(len(ours))
    ]
    return np.array(found, dtype=np.float64)


def _between_spaces(texts: Array) -> list[bytes]:
    """`passage` of every text."""
    words = Words.of(plain(texts, passage))
    keep = words.is_word.copy()
    articles = words.is_article()
    starts, sizes = words.starts[articles], words.sizes[articles]
    for i in range(3):
        keep[starts[sizes > i] + i] = False
    keep[1:] |= keep[:-1].copy()  # the space after a word
    keep |= words.data == END[0]
    normal: bytes = words.data[keep].tobytes()
    return (b" " + normal.replace(END, END + b" ")).split(END)[:-1]
