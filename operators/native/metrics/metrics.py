"""Metrics: how well a text answers, as a number from 0 to 1. Public as `dspex.metrics`.

    from dspex import metrics

    metrics.f1("Eiffel Tower is in Paris", "Paris")                       # 0.33
    metrics.exact_match("The Eiffel Tower!", ["Eiffel Tower", "Louvre"])  # 1.0
    metrics.batch("f1", table["answer"], table["label"])                  # a column of numbers

Every metric takes `actual` (what was answered) first and `expected` (the reference, or several of them) second, and gives
a float. Of several references the best counts. The same call with the same texts gives the same number as DSPy's metric.

Raises:
    InvalidInput: a value is no text, or there is no reference to compare with.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from dspex.bus.errors import InvalidInput
from dspex.operators.native.metrics.text import passage, same_words, words, words_of_both

__all__ = [
    "METRICS",
    "batch",
    "exact_match",
    "f1",
    "fuzzy",
    "hotpot_f1",
    "jaccard",
    "json_match",
    "normalize_text",
    "passage_match",
    "precision",
    "recall",
    "token_set",
    "token_sort",
]

LABELS = frozenset({"yes", "no", "noanswer"})  # HotPotQA: half right is wrong for these
FUZZY_WORK = 10**10  # of the product of two lengths; more would take longer than a second


def normalize_text(text: str) -> str:
    """`text` as the metrics compare it: NFD, lower case, without ASCII punctuation, without the words a, an and the, and with
    single spaces between words. As DSPy's `normalize_text`."""
    return " ".join(words(_text("normalize_text", "text", text)))


def exact_match(actual: str, expected: str | Sequence[str], *, frac: float = 1.0) -> float:
    """1.0 when the normalized texts are the same, else 0.0. As DSPy's `answer_exact_match` and `EM`.

    Args:
        actual: the answer.
        expected: one reference, or several of which one has to match.
        frac: below 1, `f1` of at least this is a match.
    """
    if not frac >= 1.0:
        return float(f1(actual, expected) >= frac)
    if type(actual) is str and type(expected) is str:
        return float(same_words(actual, expected))
    return float(any(same_words(actual, reference) for reference in _references("exact_match", actual, expected)))


def f1(actual: str, expected: str | Sequence[str]) -> float:
    """Harmonic mean of `precision` and `recall`; 0.0 when no word is shared, also for two empty texts. As DSPy's `F1`."""
    if type(actual) is str and type(expected) is str:
        return _f1(*words_of_both(actual, expected))
    return _best(_f1, "f1", actual, expected)


def hotpot_f1(actual: str, expected: str | Sequence[str]) -> float:
    """`f1`, but 0.0 when one side is `yes`, `no` or `noanswer` and the other is not the same. As DSPy's `HotPotF1`."""
    return _best(_hotpot_f1, "hotpot_f1", actual, expected)


def precision(actual: str, expected: str | Sequence[str]) -> float:
    """Share of the answer's words that are in the reference, each as often as it is there. As DSPy's `precision_score`."""
    return _best(_precision, "precision", actual, expected)


def recall(actual: str, expected: str | Sequence[str]) -> float:
    """Share of the reference's words that are in the answer, each as often as it is there."""
    return _best(_recall, "recall", actual, expected)


def jaccard(actual: str, expected: str | Sequence[str]) -> float:
    """Words that both have over words that either has, each counted once; 0.0 for two empty texts."""
    return _best(_jaccard, "jaccard", actual, expected)


def passage_match(actual: str | Sequence[str], expected: str | Sequence[str]) -> float:
    """1.0 when a passage contains an answer, word for word, else 0.0. As DSPy's `answer_passage_match`.

    Args:
        actual: one passage, or several; no passage contains nothing.
        expected: one answer, or several; an answer without words is in every passage, no answer is in none.
    """
    answers = [passage(text) for text in _texts("passage_match", "expected", expected)]
    found = (passage(text) for text in _texts("passage_match", "actual", actual))
    return float(any(answer in text for text in found for answer in answers))


def fuzzy(actual: str, expected: str | Sequence[str]) -> float:
    """How alike the normalized texts are, letter by letter: rapidfuzz's `ratio` over 100. 1.0 for two empty texts.

    Its time grows with the product of the lengths: a pair for which that is over 10,000,000,000 is refused (InvalidInput).
    """
    return _alike("ratio", "fuzzy", actual, expected)


def token_sort(actual: str, expected: str | Sequence[str]) -> float:
    """`fuzzy` with the words of each side in alphabetical order (rapidfuzz's `token_sort_ratio`)."""
    return _alike("token_sort_ratio", "token_sort", actual, expected)


def token_set(actual: str, expected: str | Sequence[str]) -> float:
    """`fuzzy` of sets of words: 1.0 when one side's words are all in the other (rapidfuzz's `token_set_ratio`)."""
    return _alike("token_set_ratio", "token_set", actual, expected)


def json_match(actual: Any, expected: Any) -> float:
    """1.0 when both are the same JSON value, else 0.0.

    The order of keys does not count, the order of a list does; `1` and `1.0` are the same number, `true` is none.

    Args:
        actual: JSON text, or a value made of dict, list, str, numbers, bool and None. Text that is no JSON matches nothing.
        expected: the same. A list is one value, not several references.

    Raises:
        InvalidInput: `expected` is text that is no JSON.
    """
    wanted = _json_value(expected)
    if wanted is _NO_JSON:
        raise InvalidInput("json_match: expected is no JSON text")
    given = _json_value(actual)
    return float(given is not _NO_JSON and _same_json(given, wanted))


def batch(metric: str, actual: Any, expected: Any) -> Any:
    """A metric for every row of two columns: the same numbers as the function gives row by row, several times as fast.

    Args:
        metric: a name in `METRICS`.
        actual: pyarrow Array or ChunkedArray of strings, or a sequence of str. For `passage_match` also lists of strings.
        expected: the same, or lists of strings: several references a row.

    Returns:
        pyarrow.Array of float64, as long as the columns. A row is null where `actual` or `expected` is null.

    Raises:
        InvalidInput: unknown metric, columns of different lengths or of another type, a row without a reference.
        ConfigError: pyarrow or numpy is not installed (`pip install "dspex[arrow]"`).
    """
    from dspex.operators.native.metrics.batch import batch

    return batch(metric, actual, expected)


METRICS: Mapping[str, Callable[[Any, Any], float]] = MappingProxyType(
    {
        "exact_match": exact_match,
        "f1": f1,
        "fuzzy": fuzzy,
        "hotpot_f1": hotpot_f1,
        "jaccard": jaccard,
        "json_match": json_match,
        "passage_match": passage_match,
        "precision": precision,
        "recall": recall,
        "token_set": token_set,
        "token_sort": token_sort,
    }
)
"""Every metric by its name: a function of (actual, expected)."""


# -- references ----------------------------------------------------------------------------------------------------
def _best(score: Callable[[list[str], list[str]], float], metric: str, actual: Any, expected: Any) -> float:
    """The best of `score(words, words)` over the references."""
    if type(actual) is str and type(expected) is str:
        return score(*words_of_both(actual, expected))
    references = _references(metric, actual, expected)
    return max(score(*words_of_both(actual, reference)) for reference in references)


def _references(metric: str, actual: Any, expected: Any) -> list[str]:
    """`expected` as a list with something in it. Raise InvalidInput unless all is text."""
    _text(metric, "actual", actual)
    found = _texts(metric, "expected", expected)
    if not found:
        raise InvalidInput(f"{metric}: expected has no reference to compare with")
    return found


def _texts(metric: str, side: str, value: Any) -> list[str]:
    """One text or several, as a list. Raise InvalidInput when it is neither."""
    if isinstance(value, str):
        return [value]
    if not isinstance(value, Sequence) or isinstance(value, bytes | bytearray | memoryview):
        raise InvalidInput(f"{metric}: {side} must be text or a list of texts, not {type(value).__name__}")
    return [_text(metric, f"an item of {side}", text) for text in value]


def _text(metric: str, what: str, value: Any) -> str:
    if not isinstance(value, str):
        raise InvalidInput(f"{metric}: {what} must be text, not {type(value).__name__}")
    return value


# -- words ---------------------------------------------------------------------------------------------------------
_MANY = 48  # words: from here on it pays to make two Counters


def _overlap(ours: list[str], theirs: list[str]) -> int:
    """How many words both have, a word as often as the side that has it less often."""
    if len(ours) > len(theirs):
        ours, theirs = theirs, ours
    same = 0
    if len(ours) > _MANY:
        of_theirs = Counter(theirs).get
        for word, n in Counter(ours).items():
            if m := of_theirs(word):
                same += n if n < m else m
        return same
    once = set(ours)
    if len(once) == len(ours):
        return len(once.intersection(theirs))
    left: dict[str, int] = {}
    count = left.get
    for word in ours:
        left[word] = count(word, 0) + 1
    for word in theirs:
        if seen := count(word):
            left[word] = seen - 1
            same += 1
    return same


def _f1(ours: list[str], theirs: list[str]) -> float:
    same = _overlap(ours, theirs)
    if not same:
        return 0.0
    precise, complete = same / len(ours), same / len(theirs)
    return (2 * precise * complete) / (precise + complete)  # in DSPy's order: the last bit counts


def _hotpot_f1(ours: list[str], theirs: list[str]) -> float:
    if ours != theirs and (_is_label(ours) or _is_label(theirs)):
        return 0.0
    return _f1(ours, theirs)


def _is_label(found: list[str]) -> bool:
    return len(found) == 1 and found[0] in LABELS


def _precision(ours: list[str], theirs: list[str]) -> float:
    return _overlap(ours, theirs) / len(ours) if ours else 0.0


def _recall(ours: list[str], theirs: list[str]) -> float:
    return _overlap(ours, theirs) / len(theirs) if theirs else 0.0


def _jaccard(ours: list[str], theirs: list[str]) -> float:
    either = set(ours).union(theirs)
    return len(set(ours).intersection(theirs)) / len(either) if either else 0.0


# -- letters -------------------------------------------------------------------------------------------------------
def _alike(scorer: str, metric: str, actual: Any, expected: Any) -> float:
    from rapidfuzz import fuzz

    ratio = getattr(fuzz, scorer)
    references = _references(metric, actual, expected)
    ours = normalize_text(actual)
    theirs = [normalize_text(reference) for reference in references]
    if len(ours) * max(map(len, theirs)) > FUZZY_WORK:
        raise InvalidInput(f"{metric}: the texts are too long to compare letter by letter", fix="use f1 for long texts")
    return float(max(ratio(ours, text) for text in theirs)) / 100


# -- JSON ----------------------------------------------------------------------------------------------------------
_NO_JSON = object()


def _json_value(value: Any) -> Any:
    """Text read as JSON; anything else as it is; `_NO_JSON` for text that is none, or is nested too deeply to be read."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value, parse_constant=_no_number)
    except (ValueError, RecursionError):
        return _NO_JSON


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")  # NaN, Infinity


def _same_json(one: Any, other: Any) -> bool:
    """Without recursion: a value may be nested deeply."""
    pairs = [(one, other)]
    while pairs:
        a, b = pairs.pop()
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            if a.keys() != b.keys():
                return False
            pairs += [(a[key], b[key]) for key in a]
        elif isinstance(a, list | tuple) and isinstance(b, list | tuple):
            if len(a) != len(b):
                return False
            pairs += zip(a, b)
        elif isinstance(a, bool) or isinstance(b, bool):
            if a is not b:
                return False
        elif a != b:
            return False
    return True
