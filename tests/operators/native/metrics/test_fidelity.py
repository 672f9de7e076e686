"""The metrics give what the installed DSPy gives, for one pair of texts, for several references and over columns."""

from __future__ import annotations

import random
from itertools import product
from typing import Any

import metric_texts as hard
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dspex import metrics
from dspex.bus.errors import InvalidInput
from dspex.operators.native.metrics.text import passage

# Planes 0 to 3 and the tags; the others hold nothing, or private characters that are all alike.
CHARACTERS = [*range(0x32400), *range(0xE0000, 0xE0200), *range(0xF0000, 0xF0040)]


@pytest.fixture(scope="session")
def theirs(dspy: Any) -> Any:
    """DSPy's functions by our names, each of (actual, list of references)."""
    from dspy.evaluate import metrics as m

    def example(**fields: Any) -> Any:
        return dspy.Example(**fields)

    return {
        "normalize_text": m.normalize_text,
        "exact_match": m.EM,
        "f1": m.F1,
        "hotpot_f1": m.HotPotF1,
        "precision": lambda actual, refs: max(m.precision_score(actual, r) for r in refs),
        # DSPy has no recall: it is the precision of the two texts exchanged
        "recall": lambda actual, refs: max(m.precision_score(r, actual) for r in refs),
        "passage_match": lambda actual, refs: m.answer_passage_match(example(answer=refs), example(context=actual)),
        "answer_exact_match": lambda actual, refs, frac: m.answer_exact_match(
            example(answer=refs), example(answer=actual), frac=frac
        ),
    }


OF_ONE = ["exact_match", "f1", "hotpot_f1", "precision", "recall"]


@given(text=hard.texts())
def test_normalized_text_is_dspys(theirs: Any, text: str) -> None:
    assert metrics.normalize_text(text) == theirs["normalize_text"](text)


@given(pair=hard.pairs())
def test_a_metric_of_two_texts_is_dspys(theirs: Any, pair: tuple[str, str]) -> None:
    for actual, reference in (pair, pair[::-1]):
        for metric in OF_ONE:
            assert metrics.METRICS[metric](actual, reference) == theirs[metric](actual, [reference]), metric


@settings(max_examples=settings().max_examples // 4)
@given(
    actual=hard.texts(), references=st.lists(hard.texts(), min_size=1, max_size=4), frac=st.sampled_from([0.0, 0.3, 0.5, 1.0])
)
def test_a_metric_of_several_references_is_dspys(theirs: Any, actual: str, references: list[str], frac: float) -> None:
    for metric in OF_ONE:
        assert metrics.METRICS[metric](actual, references) == theirs[metric](actual, references), metric
    assert metrics.exact_match(actual, references, frac=frac) == theirs["answer_exact_match"](actual, references, frac)
    assert metrics.exact_match(actual, actual, frac=frac) == theirs["answer_exact_match"](actual, actual, frac)


@given(
    pair=hard.pairs(),
    before=st.lists(hard.texts(), max_size=2),
    answers=st.lists(hard.texts(), max_size=2),
)
def test_passage_match_is_dspys(theirs: Any, pair: tuple[str, str], before: list[str], answers: list[str]) -> None:
    passages, wanted = [*before, pair[0]], [*answers, pair[1]]
    assert metrics.passage_match(passages, wanted) == theirs["passage_match"](passages, wanted)
    assert metrics.passage_match(before, wanted) == theirs["passage_match"](before, wanted)
    assert metrics.passage_match(passages, answers) == theirs["passage_match"](passages, answers)
    assert metrics.passage_match(pair[0], pair[1]) == theirs["passage_match"]([pair[0]], pair[1])


@settings(max_examples=settings().max_examples // 4)
@given(
    words=st.lists(st.sampled_from(["eiffel", "tower", "the", "Tower.", "é", "ﬁ", "x\x00y", "™", "-", "\u0301"]), max_size=8),
    start=st.integers(0, 8),
    size=st.integers(0, 4),
)
def test_an_answer_out_of_the_passage_is_found_where_dspy_finds_it(
    theirs: Any, words: list[str], start: int, size: int
) -> None:
    passage, answer = " ".join(words), " ".join(words[start : start + size])
    assert metrics.passage_match(passage, answer) == theirs["passage_match"]([passage], answer)


@settings(max_examples=settings().max_examples // 4)
@given(seed=st.integers(), distinct=st.integers(1, 200))
def test_long_texts_that_repeat_their_words_give_dspys_numbers(theirs: Any, seed: int, distinct: int) -> None:
    chance = random.Random(seed)
    actual, reference = (
        " ".join(f"w{chance.randrange(distinct)}" for _ in range(chance.randrange(30, 120))) + chance.choice(["", " the é"])
        for _ in range(2)
    )
    for metric in OF_ONE:
        assert metrics.METRICS[metric](actual, reference) == theirs[metric](actual, [reference]), metric


def test_marks_that_deleting_punctuation_brings_together_are_put_in_order(theirs: Any) -> None:
    passage, answer = "x\u0301.\u0323y", "x\u0323\u0301y"
    assert metrics.passage_match(passage, answer) == theirs["passage_match"]([passage], answer) == 1.0


def test_the_written_corpus_gives_dspys_numbers(theirs: Any) -> None:
    for text in hard.CORPUS + hard.PIECES + hard.SURROGATES:
        assert metrics.normalize_text(text) == theirs["normalize_text"](text), repr(text)
    for actual, reference in product(hard.CORPUS, repeat=2):
        for metric in OF_ONE:
            assert metrics.METRICS[metric](actual, reference) == theirs[metric](actual, [reference]), (
                metric,
                actual,
                reference,
            )
        assert metrics.passage_match(actual, reference) == theirs["passage_match"]([actual], reference), (actual, reference)


def test_every_character_is_normalized_as_dspy_does(theirs: Any) -> None:
    """Between an article and a word."""
    for first in range(0, len(CHARACTERS), 64):
        text = " ".join(f"a{chr(c)}the {chr(c)}X" for c in CHARACTERS[first : first + 64])
        assert metrics.normalize_text(text) == theirs["normalize_text"](text), hex(CHARACTERS[first])


def test_every_character_of_a_passage_is_a_token_where_dpr_has_one(dspy: Any) -> None:
    from dspy.dsp.utils import DPR_normalize
    from dspy.evaluate.metrics import normalize_text

    for first in range(0, len(CHARACTERS), 64):
        text = " ".join(f"x{chr(c)}y" for c in CHARACTERS[first : first + 64])
        assert passage(text).split(" ")[1:-1] == DPR_normalize(normalize_text(text)), hex(CHARACTERS[first])


@pytest.mark.parametrize("metric", ["exact_match", "f1", "hotpot_f1"])
def test_dspy_refuses_a_missing_reference_too(theirs: Any, metric: str) -> None:
    with pytest.raises(ValueError, match="empty"):
        theirs[metric]("text", [])
    with pytest.raises(InvalidInput):
        metrics.METRICS[metric]("text", [])
