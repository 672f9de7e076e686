"""The topology of the chaos runs, its input, and the pure function from an event to what must come out of it.

Every event has a key and a number `n` that counts within the key, so that the order of a key can be seen at a sink. It crosses
a hop to the partition of its key; its kind says which way it takes behind that:

    plain     a native operator, one output
    ask       a call with order="key", then a branch to one of two sinks
    many      three pieces, to a sink and, each, to a call whose results come in any order
    later     a native operator asks twice or so to be run again later
    spare     the model never answers in the format, and the call's fallback stands in
    big       2,500 outputs, more than one commit holds, with the engine's clock in each
    poison    a native operator before the hop raises: a dead letter
    nonsense  the model never answers in the format: a dead letter after the second attempt
    flaky     as ask, but the model's first answer is an error: the second attempt succeeds
    odd       as ask, but the model's first answer has the wrong type: the second attempt succeeds
    bytes     not JSON: a dead letter
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))  # engines that a run starts read this file too

import standin

from dspex.bus.errors import RetryLater
from dspex.bus.message import derived_id, new_id
from dspex.engine.graph.context import Context
from dspex.engine.graph.nodes import OnGap, Retry
from dspex.operators.topology import Topology

SOURCE, POOL = "chaos.events", "lightweight"
INTENTS = ["card", "cash", "fees", "login", "other"]
NONSENSE = " standin:nonsense"
PIECES, OUTPUTS_OF_BIG = 3, 2500
HOP, BEFORE, BEHIND = "by_key", "s1", "s2"  # every event crosses it, from one stage to the other
PARTITIONS = 4
ORDERED = ("chaos.plain", "chaos.pieces", "chaos.big", "chaos.urgent", "chaos.normal")
SINKS = (*ORDERED, "chaos.labels", "chaos.later", "chaos.spare")
SHARES = {
    "plain": 30,
    "ask": 40,
    "many": 12,
    "later": 6,
    "spare": 4,
    "poison": 5,
    "flaky": 6,
    "odd": 4,
    "nonsense": 4,
    "bytes": 3,
}


def check(event: dict[str, Any]) -> dict[str, Any]:
    """The first operator: poison is found here."""
    if event["kind"] == "poison":
        raise ValueError(f"poison of {event['key']}")
    return event


def shout(event: dict[str, Any]) -> dict[str, Any]:
    return {**event, "text": event["text"].upper()}


def pieces(event: dict[str, Any]) -> list[dict[str, Any]]:
    return [{**event, "i": i, "text": f"{event['text']} {i}"} for i in range(PIECES)]


def burst(event: dict[str, Any], ctx: Context) -> list[dict[str, Any]]:
    """More than two commits can hold. The clock must be the same in all, though the commits are minutes apart."""
    at = ctx.now.timestamp()
    return [{"key": event["key"], "n": event["n"], "i": i, "at": at} for i in range(OUTPUTS_OF_BIG)]


def wait(event: dict[str, Any], ctx: Context) -> dict[str, Any]:
    """Not before the event is a second old."""
    if (ctx.now - ctx.event.time).total_seconds() < 1.0:
        raise RetryLater(after=0.4)
    return event


def build(partitions: int = PARTITIONS, on_gap: OnGap = "stop") -> Topology:
    """The topology. Where workers are real, native Predict answers `label`, and DSPy `classify`."""
    t = Topology("chaos")
    retry = Retry(attempts=12, backoff="200ms", factor=1.5, cap="2s")
    checked = t.source(SOURCE, partitions=partitions, on_gap=on_gap).map(check)
    keyed = checked.key_by("key", name=HOP)
    kinds = ("plain", "many", "big", "later", "spare")
    plain, many, big, later, spare, ask = keyed.branch(*(f"kind == '{kind}'" for kind in kinds))
    later.map(wait).sink("chaos.later")
    plain.map(shout).sink("chaos.plain")
    twice = replace(retry, attempts=2)
    spare.predict("text -> label: str", name="spare", retry=twice, fallback={"label": "spare"}).sink("chaos.spare")
    cut = many.flat_map(pieces)
    cut.sink("chaos.pieces")
    cut.predict("text -> label: str", name="label", retry=retry).sink("chaos.labels")
    big.flat_map(burst).sink("chaos.big")
    signature = f"text -> intent: Literal{INTENTS!r}, urgency: int"
    urgent, normal = ask.predict(signature, name="classify", order="key", retry=retry, route="worker").branch("urgency >= 4")
    urgent.sink("chaos.urgent")
    normal.sink("chaos.normal")
    return t


def _asked() -> Topology:
    """The topology as a run wants its engines to have it."""
    partitions, on_gap = os.environ.get("CHAOS_TOPOLOGY", f"{PARTITIONS} stop").split()
    return build(int(partitions), "skip" if on_gap == "skip" else "stop")


topology = _asked()


def model(inputs: Mapping[str, Any], signature: str) -> dict[str, Any]:
    """What the model answers: the rule of the stand-in server."""
    text = str(inputs["text"])
    if "label" in signature:
        return {"label": standin.answer("str", "label", text)}
    return {"intent": standin.intent(text, INTENTS), "urgency": standin.urgency(text)}


def is_good(outputs: Mapping[str, Any]) -> bool:
    """Whether the operators accept these outputs of a call."""
    return "label" in outputs or isinstance(outputs.get("urgency"), int)


@dataclass(frozen=True)
class Given:
    """One source event, and what must come of it.

    Attributes:
        raw: instead of data, bytes that are published as they are.
        outputs: (sink, data) of each output, in the order in which one sink must show them.
        dead: name of the node in whose dead letters it must end; None: it must not.
        loose: a real model answers, so nobody knows what: one output of `classify`, or its dead letter.
        late: it was redriven, so its outputs stand behind those of later events.
    """

    id: str
    key: str
    data: Any
    raw: bytes | None = None
    outputs: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    dead: str | None = None
    loose: bool = False
    late: bool = False

    @property
    def waits(self) -> bool:
        """Whether a simulation publishes it with a time to wait for, so that later events of its key pass it."""
        return self.raw is None and self.data["kind"] == "later" and self.data["n"] % 2 == 1


def loose(events: Sequence[Given]) -> list[Given]:
    """The same events for a real model, whose answers nobody knows: those that ask for nothing but a class."""
    asked = [e for e in events if e.data and e.data["kind"] == "ask"]
    return [replace(e, outputs=[], loose=True) for e in asked]


def repaired(event: Given) -> Given:
    """An event that a model failed, as it must come out when it is redriven to one that does not."""
    return replace(event, outputs=list(_outputs(event.data)), dead=None, late=True)


def events(
    count: int, seed: int, *, keys: int = 20, big: int = 1, start: float | None = None, texts: Sequence[str] | None = None
) -> list[Given]:
    """`count` events of all kinds, `big` of them big.

    Args:
        start: time of their ids, seconds since the epoch.
        texts: ask about each of these, once; a tenth as many events of all kinds stand among them.
    """
    if texts is not None:
        count = len(texts) // 10
    random, numbers = Random(seed), dict[str, int]()
    root = f"{new_id(start)[:15]}000-8000-000000000000"  # the time, and nothing by chance: a seed must give the same run
    kinds = random.choices(list(SHARES), list(SHARES.values()), k=count)
    for place in random.sample(range(count), min(big, count)):
        kinds[place] = "big"
    what = [(kind, f"message {seed} {number}") for number, kind in enumerate(kinds)]
    if texts is not None:
        what += [("ask", text) for text in texts]
        random.shuffle(what)
    made: list[Given] = []
    for number, (kind, text) in enumerate(what):
        key = f"k{random.randrange(keys)}"
        numbers[key] = n = numbers.get(key, -1) + 1
        made.append(_event(derived_id(root, f"chaos/{seed}", number), key, n, kind, text))
    return made


def _event(id: str, key: str, n: int, kind: str, text: str) -> Given:
    text += {"flaky": " standin:500x1", "odd": " standin:nonsensex1", "nonsense": NONSENSE, "spare": NONSENSE}.get(kind, "")
    data = {"key": key, "n": n, "kind": kind, "text": text}
    if kind == "bytes":
        return Given(id, key, None, raw=b"{" + text.encode(), dead=SOURCE)
    dead = {"poison": "check", "nonsense": "classify"}.get(kind)
    return Given(id, key, data, outputs=[] if dead else list(_outputs(data)), dead=dead)


def _outputs(data: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    kind = data["kind"]
    if kind == "plain":
        yield "chaos.plain", shout(data)
    elif kind == "many":
        for piece in pieces(data):
            yield "chaos.pieces", piece
            yield "chaos.labels", piece | model(piece, "label")
    elif kind == "later":
        yield "chaos.later", data
    elif kind == "spare":
        yield "chaos.spare", {**data, "label": "spare"}
    elif kind == "big":
        for i in range(OUTPUTS_OF_BIG):
            yield "chaos.big", {"key": data["key"], "n": data["n"], "i": i}
    else:
        answer = model(data, "classify")
        yield ("chaos.urgent" if answer["urgency"] >= 4 else "chaos.normal"), data | answer
