"""A program that an optimizer can make better, with an asynchronous path alone."""

from __future__ import annotations

from typing import Any

import dspy


class Sorts(dspy.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ask = dspy.Predict("text -> intent: Literal['card', 'loan', 'rate', 'other']")

    async def aforward(self, text: str) -> Any:
        return await self.ask.acall(text=text)
