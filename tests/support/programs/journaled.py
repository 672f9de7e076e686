"""Tools and programs whose requests are journaled. What they do is noted in `done`, or at the address of a server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import dspy
from pydantic import BaseModel

from dspex.workers import context, tool

done: list[tuple[str, str]] = []  # what was done in this process: tool, idempotency key
meanwhile: list[Callable[[str], None]] = []  # called with the name of each tool that runs


def _do(name: str) -> str:
    done.append((name, context().idempotency_key()))
    for call in meanwhile:
        call(name)
    return f"{name} {len(done)}"


def step(text: str = "") -> str:
    """Not marked, and nothing is noted of it."""
    return text


def look_up(city: str = "") -> str:
    """Not marked: it counts as having effects."""
    return _do("look_up")


@tool(effect=False)
def read(city: str = "") -> str:
    return _do("read")


@tool(once=True)
async def pay(city: str = "") -> str:
    return _do("pay")


@tool(record=False)
def clock(city: str = "") -> str:
    done.append(("clock", ""))
    return f"clock {len(done)}"


class Fare(BaseModel):
    price: int


@tool
async def fare(city: str) -> Fare:
    _do("fare")
    return Fare(price=7)


class Trip(dspy.Module):
    """Marked functions, called as any other; and a question behind them."""

    async def aforward(self, text: str) -> Any:
        found = await fare(text)
        paid = await pay(text)
        return dspy.Prediction(reply=f"{paid}, {found.price}, {(await dspy.Predict('text -> reply').acall(text=text)).reply}")


class Wide(dspy.Module):
    """Sixteen requests side by side."""

    async def aforward(self, text: str) -> Any:
        ask = dspy.Predict("text -> reply")
        found = await asyncio.gather(*(ask.acall(text=f"{text} {n % 8}") for n in range(16)))
        return {"reply": " ".join(f.reply for f in found)}


class Threads(dspy.Module):
    """Four requests in threads of DSPy's, and a marked function in each."""

    def forward(self, text: str) -> Any:
        found = dspy.Parallel(num_threads=4)([(self._one, {"number": n, "text": text}) for n in range(4)])
        return {"reply": " ".join(found)}

    def _one(self, number: int, text: str) -> str:
        return str(dspy.Predict("text, number: int -> reply")(text=text, number=number).reply) + read(str(number))


class secretly(dspy.Module):
    """Two requests, with what is secret in both."""

    def forward(self, text: str, card: str) -> Any:
        first = dspy.Predict("text, card -> reply")(text=text, card=card).reply
        return {"reply": dspy.Predict("text, card -> reply")(text=first, card=card).reply, "code": f"of {card}"}


async def insists(text: str) -> Any:
    """Asks again where its model fails, on the loop and in a thread."""
    made = dspy.Predict("text -> reply")
    for ask in (made.acall, lambda **inputs: asyncio.to_thread(made, **inputs)):
        for number in range(3):
            try:
                reply = (await ask(text=text, config={"rollout_id": number, "temperature": 1.0})).reply
            except Exception as error:  # noqa: BLE001  a program of a user
                reply = str(error)
    return {"reply": reply}


async def told(text: str) -> Any:
    """Says what is the same in every attempt, and asks with what is not, where it is told to."""
    mine, made = context(), dspy.Predict("text, drawn -> reply")
    drawn = [str(mine.now), str(mine.random.random()), str(mine.uuid()), str(mine.uuid())]
    with_chance = drawn if text != "by chance" else [str(len(done))]
    done.append(("told", ""))
    reply = (await made.acall(text=text, drawn=" ".join(with_chance))).reply
    for call in meanwhile:
        call("told")
    await made.acall(text=text, drawn="end")
    return {"reply": " ".join([*drawn, reply])}


@tool
def book(city: str) -> str:
    return _do("book")


async def holds_the_loop(text: str) -> Any:
    """Calls a tool that acts, where it holds up its process."""
    return {"reply": book(text)}


async def charge(data: dict[str, Any], key: str) -> dict[str, Any]:
    """An effect of `enrich`."""
    assert key == context().idempotency_key()
    return {"charged": _do("charge")}


async def charged(data: dict[str, Any], key: str) -> dict[str, Any] | None:
    """What `charge` did, as the other system knows."""
    done.append(("charged", key))
    return {"charged": "before"} if data.get("known") else None
