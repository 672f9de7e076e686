"""The labelled messages of support triage, and which of them are most like another message.

They are compared by TF-IDF and the cosine. That needs no model and no library, and is the same on every machine.
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

    A word weighs the more the fewer of them have it: "card" stands in many and says little.
    """

    def __init__(self, examples: Sequence[Example]) -> None:
        texts = Counter(word for example in examples for word in set(_words(example.text)))
        self._weights = {word: math.log((1 + len(examples)) / (1 + number)) + 1 for word, number in texts.items()}
        self._examples = [(example, self._vector(example.text)) for example in examples]

    def of(self, text: str, number: int) -> list[Example]:
        """The `number` most similar ones, the most similar first; of equal ones the one that was given first."""
        wanted = self._vector(text)
        by_likeness = sorted(self._examples, key=lambda example: -_likeness(wanted, example[1]))
        return [example for example, _ in by_likeness[:number]]

    def _vector(self, text: str) -> dict[str, float]:
        """Weights by word, of length 1. A word that no example has is left out."""
        found = {word: number * self._weights[word] for word, number in Counter(_words(text)).items() if word in self._weights}
        length = math.hypot(*found.values()) or 1.0
        return {word: weight / length for word, weight in found.items()}


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _likeness(a: dict[str, float], b: dict[str, float]) -> float:
    """The cosine of two vectors of length 1."""
    return sum(weight * b.get(word, 0.0) for word, weight in a.items())


def load() -> list[Example]:
    """All of them: forty of each intent."""
    lines = files("dspex.topologies").joinpath("support_examples.jsonl").read_bytes().splitlines()
    return [Example(found["text"], found["intent"]) for found in map(orjson.loads, lines)]
