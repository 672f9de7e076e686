"""Metrics: how well a text answers, as a number from 0 to 1. Public as `dspex.metrics`.

    from dspex import metrics

    metrics.f1("Eiffel Tower is in Paris", "Paris")                       # 0.33
    metrics.exact_match("The Eiffel Tower!", ["Eiffel Tower", "Louvre"])  # 1.0
    metrics.batch("f1", table["answer"], table["label"])                  # a column of numbers

Every metric takes `actual` (the answer) first and `expected` (the reference, or several of them) second, and returns a
float. Of several references the best counts. The numbers are those of DSPy's metrics for the same texts.

Raises:
    InvalidInput: a value is no text, there is no reference, or so many for so long an answer that it would take seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from dspex.bus.errors import InvalidInput
from dspex.operators.native.metrics import scores
from dspex.operators.native.metrics.arguments import references_of, text_of, texts_of
from dspex.operators.native.metrics.json_values import NO_JSON, json_value, same_json
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

_FUZZY_WORK = 10**10  # the product of two lengths, of all pairs together; more would take longer than a second
_WORK = 5 * 10**7  # the length of the answer times the number of references; more would take longer than a second
_PASSAGE_WORK = 10**9  # the length of the passages times the number of answers; as above


def normalize_text(text: str) -> str:
    """`text` as the metrics compare it: NFD, lower case, without ASCII punctuation, without the words a, an and the, and with
    single spaces between words. As DSPy's `normalize_text`."""
    return " ".join(words(text_of("normalize_text", "text", text)))


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
    references = references_of("exact_match", actual, expected)
    _check_work("exact_match", len(actual) * len(references), _WORK)
    return float(any(same_words(actual, reference) for reference in references))


def f1(actual: str, expected: str | Sequence[str]) -> float:
    """Harmonic mean of `precision` and `recall`; 0.0 when no word is shared, also for two empty texts. As DSPy's `F1`."""
    if type(actual) is str and type(expected) is str:
        return scores.f1(*words_of_both(actual, expected))
    return _best(scores.f1, "f1", actual, expected)


def hotpot_f1(actual: str, expected: str | Sequence[str]) -> float:
    """`f1`, but 0.0 when one side is `yes`, `no` or `noanswer` and the other is not the same. As DSPy's `HotPotF1`."""
    return _best(scores.hotpot_f1, "hotpot_f1", actual, expected)


def precision(actual: str, expected: str | Sequence[str]) -> float:
    """Share of the answer's words that are in the reference, each as often as it is there. As DSPy's `precision_score`."""
    return _best(scores.precision, "precision", actual, expected)


def recall(actual: str, expected: str | Sequence[str]) -> float:
    """Share of the reference's words that are in the answer, each as often as it is there."""
    return _best(scores.recall, "recall", actual, expected)


def jaccard(actual: str, expected: str | Sequence[str]) -> float:
    """Words that both have over words that either has, each counted once; 0.0 for two empty texts."""
    return _best(scores.jaccard, "jaccard", actual, expected)


def passage_match(actual: str | Sequence[str], expected: str | Sequence[str]) -> float:
    """1.0 when a passage contains an answer, word for word, else 0.0. As DSPy's `answer_passage_match`.

    Args:
        actual: one passage, or several; no passage contains nothing.
        expected: one answer, or several; an answer without words is in every passage, no answer is in none.
    """
    answers = [passage(text) for text in texts_of("passage_match", "expected", expected)]
    texts = texts_of("passage_match", "actual", actual)
    _check_work("passage_match", sum(map(len, texts)) * len(answers), _PASSAGE_WORK)
    found = (passage(text) for text in texts)
    return float(any(answer in text for text in found for answer in answers))


def fuzzy(actual: str, expected: str | Sequence[str]) -> float:
    """How similar the normalized texts are, letter by letter: rapidfuzz's `ratio` over 100. 1.0 for two empty texts.

    The time grows with the product of the two lengths; pairs with products over 10,000,000,000 together are InvalidInput.
    """
    return _alike("ratio", "fuzzy", actual, expected)


def token_sort(actual: str, expected: str | Sequence[str]) -> float:
    """`fuzzy` with the words of each side in alphabetical order (rapidfuzz's `token_sort_ratio`)."""
    return _alike("token_sort_ratio", "token_sort", actual, expected)


def token_set(actual: str, expected: str | Sequence[str]) -> float:
    """`fuzzy` of sets of words: 1.0 when one side's words are all in the other (rapidfuzz's `token_set_ratio`)."""
    return _alike("token_set_ratio", "token_set", actual, expected)


def json_match(actual: object, expected: object) -> float:
    """1.0 when both are the same JSON value, else 0.0.

    The order of keys does not count, the order of a list does; `1` and `1.0` are the same number, `true` is no number.

    Args:
        actual: JSON text, or a value made of dict, list, str, numbers, bool and None. Text that is no JSON matches nothing.
        expected: the same. A list is one value, not several references.

    Raises:
        InvalidInput: `expected` is text that is no JSON.
    """
    wanted = json_value(expected)
    if wanted is NO_JSON:
        raise InvalidInput("json_match: expected is no JSON text")
    given = json_value(actual)
    return float(given is not NO_JSON and same_json(given, wanted))


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


def _best(score: Callable[[list[str], list[str]], float], metric: str, actual: object, expected: object) -> float:
    """The best of `score(words, words)` over the references."""
    if type(actual) is str and type(expected) is str:
        return score(*words_of_both(actual, expected))
    references = references_of(metric, actual, expected)
    text = text_of(metric, "actual", actual)
    _check_work(metric, len(text) * len(references), _WORK)
    ours = words(text)
    return max(score(ours, words(reference)) for reference in references)


def _check_work(metric: str, work: int, most: int) -> None:
    """Raise InvalidInput for what would take long: whoever publishes chooses the texts, and how many there are."""
    if work > most:
        raise InvalidInput(f"{metric}: that is too much to compare: {work:,} steps, of which {most:,} are allowed")


def _alike(scorer: str, metric: str, actual: object, expected: object) -> float:
    from rapidfuzz import fuzz

    ratio = getattr(fuzz, scorer)
    references = references_of(metric, actual, expected)
    ours = normalize_text(text_of(metric, "actual", actual))
    theirs = [normalize_text(reference) for reference in references]
    if len(ours) * sum(map(len, theirs)) > _FUZZY_WORK:
        raise InvalidInput(f"{metric}: the texts are too long to compare letter by letter", fix="use f1 for long texts")
    return float(max(ratio(ours, text) for text in theirs)) / 100
