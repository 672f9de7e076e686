"""Programs of DSPy that the tests run in real workers."""

from __future__ import annotations

import asyncio
from typing import Any

import dspy

from dspex.workers import context


class Draft(dspy.Module):
    """Asynchronous, as in the quick start."""

    def __init__(self) -> None:
        super().__init__()
        self.write = dspy.ChainOfThought("text, intent -> reply")

    async def aforward(self, text: str, intent: str) -> Any:
        return await self.write.acall(text=text, intent=intent)


class OwnModel(dspy.Module):
    """Asks models that it makes itself, at `url`, beside that of its profile."""

    def forward(self, url: str, text: str) -> dspy.Prediction:
        with dspy.context(lm=dspy.LM("openai/own", api_base=url, api_key="none", cache=False)):
            return dspy.Predict("text -> reply")(text=text)


class Side(dspy.Module):
    """Asks twice at a time, in threads of DSPy's."""

    def forward(self, text: str) -> Any:
        ask = dspy.Predict("text -> reply")
        return dspy.Parallel(num_threads=2)([(ask, {"text": text}), (ask, {"text": text})])[0]


class Slow(dspy.Module):
    """Synchronous only: runs in a thread."""

    def __init__(self) -> None:
        super().__init__()
        self.write = dspy.Predict("text -> reply")

    def forward(self, text: str) -> Any:
        return self.write(text=text)


class Keyed(dspy.Module):
    """Has a model of its own, with a key."""

    def __init__(self) -> None:
        super().__init__()
        self.write = dspy.Predict("text -> reply")
        self.write.lm = dspy.LM("openai/own", api_key="SECRET", api_base="http://127.0.0.1:9/SECRET")


def interpreter() -> Any:
    """Where code that a model wrote runs in the tests: DSPy's own sandbox needs Deno."""
    return dspy.LocalInterpreter()


class Shouting(dspy.ReAct):
    """Below a class with an asynchronous path, and with a `forward` of its own alone."""

    def __init__(self) -> None:
        super().__init__("text -> reply", tools=[])

    def forward(self, text: str) -> Any:
        return dspy.Prediction(reply=text.upper())


def made() -> Any:
    """A factory: no parameters."""
    return dspy.Predict("text -> reply")


class Chatty(dspy.Module):
    """Says how it goes, also in threads of its own."""

    async def aforward(self, text: str) -> dict[str, Any]:
        context().status("half of it")
        await asyncio.to_thread(context().status, "nearly \ud83d there")
        return {"reply": text}


class Blocking(dspy.Module):
    """Asks a model from a coroutine, as if it were none."""

    async def aforward(self, text: str) -> Any:
        return dspy.Predict("text -> reply")(text=text)


class Twice(dspy.Module):
    """Writes the same output twice, at a time."""

    async def aforward(self, text: str) -> Any:
        ask = dspy.Predict("text -> reply")
        found = await asyncio.gather(ask.acall(text=text), ask.acall(text=f"{text} again"))
        return found[1]


class Remembers(dspy.Module):
    """Says how much of earlier calls it finds."""

    def __init__(self) -> None:
        super().__init__()
        self.write = dspy.Predict("text -> reply")

    def forward(self, text: str) -> dict[str, str]:
        found = len(self.history) + len(self.write.history) + len(dspy.settings.trace or ())
        self.write(text=text)
        return {"reply": str(found)}
