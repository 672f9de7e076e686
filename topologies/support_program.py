"""The DSPy program of support triage. It runs in workers; the engine never imports it."""

from __future__ import annotations

from typing import Any

import dspy

from dspex.topologies.support_examples import Nearest, load
from dspex.topologies.support_triage import SIGNATURE


class Classify(dspy.Module):  # type: ignore[misc]  # Any to mypy, which does not read DSPy
    """Says what a message is about. The three labelled messages that are most like it are the demonstrations.

    Without them, or with always the same ones, a small model mostly guesses. The most similar one comes last: what a model read
    last counts most. DSPy has this as `KNNFewShot`, which needs a model for its vectors.
    """

    def __init__(self) -> None:
        super().__init__()
        self.ask = dspy.Predict(SIGNATURE)
        self.nearest = Nearest(load())

    async def aforward(self, text: str) -> Any:
        """The prediction, with `intent`."""
        shown = [dspy.Example(text=example.text, intent=example.intent) for example in self.nearest.of(text, 3)]
        return await self.ask.acall(text=text, demos=shown[::-1])
