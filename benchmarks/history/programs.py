"""What the pools of these benchmarks run."""

from __future__ import annotations


async def answer(text: str) -> dict[str, str]:
    """Give the argument back, as a model might."""
    return {"reply": text.upper()}
