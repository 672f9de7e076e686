"""What the demo counts: what became of each message, and the figures of all together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dspex.bus.message import Event
from dspex.engine.client.letters import DeadLetter
from dspex.engine.client.runs.steps import Step
from dspex.topologies.support_examples import Nearest, load

DEAD = "dead letter"


@dataclass(frozen=True)
class DemoRow:
    """What became of a message. `expected`: its label; None for one that has none. `seconds`: that its calls took."""

    run: str
    customer: str
    text: str
    expected: str | None
    calls: int
    seconds: float
    tokens: int
    went_to: str
    intent: str | None = None
    why: str | None = None

    @classmethod
    def answered(cls, sent: Mapping[str, Any], event: Event[Any], calls: Sequence[Step]) -> DemoRow:
        """From the message that was sent, the event that came of it, and its recorded calls."""
        return cls(event.run, **_said(sent, event.data["text"], calls), went_to=event.subject, intent=event.data["intent"])

    @classmethod
    def dead(cls, sent: Mapping[str, Any], letter: DeadLetter, calls: Sequence[Step]) -> DemoRow:
        """From the message that was sent, its dead letter, and its recorded calls."""
        text = f"message: {sent['message']}" if "message" in sent else sent["text"]
        return cls(letter.run, **_said(sent, text, calls), went_to=DEAD, why=f"{letter.node}: {letter.message}")

    @property
    def right(self) -> bool | None:
        """Whether the model's answer is the label; None where there is no label."""
        return None if self.expected is None else self.intent == self.expected


def readable(message: Mapping[str, Any]) -> bool:
    """Whether the model has something to read in a message, though it be in the wrong field."""
    return bool(str(message.get("text") or message.get("message") or "").strip())


def _said(sent: Mapping[str, Any], text: str, calls: Sequence[Step]) -> dict[str, Any]:
    return {
        "customer": sent["customer"],
        "text": text,
        "expected": sent.get("intent"),
        "calls": len(calls),
        "seconds": round(sum(c.elapsed.total_seconds() for c in calls), 3),
        "tokens": sum(c.usage.input_tokens + c.usage.output_tokens for c in calls),
    }


@dataclass(frozen=True)
class Figures:
    """What the demo found.

    Attributes:
        sent, out: events that were published, and those at the sinks. dead: letters that wait. lost: events that are neither.
        twice: events at the sinks beyond one for each event that was published.
        needed: calls that the messages need, one for each that has a text. made: as the worker counts them. recorded: attempts
            of which there is a record.
        labelled, right: messages with a label, and those of them that the model got right.
        most_frequent, nearest: how many of them are right if one always says the most frequent label, or that of the most
            similar example.
        examples: labelled messages that the program may show to the model.
        first_seconds, seconds: from the start of the demo to the first answer, and to its end.
    """

    sent: int
    out: int
    dead: int
    lost: int
    twice: int
    needed: int
    made: int
    recorded: int
    tokens: int
    labelled: int
    right: int
    most_frequent: int
    nearest: int
    examples: int
    first_seconds: float
    seconds: float

    @property
    def kept(self) -> bool:
        """Whether what dspex promises is so: nothing lost, nothing twice, no answer paid for twice."""
        return not self.lost and not self.twice and self.made == self.recorded


def figures(
    sample: Sequence[Mapping[str, Any]],
    rows: Mapping[str, DemoRow],
    outputs: Mapping[str, Sequence[Event[Any]]],
    calls: Mapping[str, Sequence[Step]],
    made: int,
    first: float,
    seconds: float,
) -> Figures:
    """The figures of a demo that sent `sample`. By run: the last row, the events at the sinks, and the recorded calls."""
    examples = load()
    near = Nearest(examples)
    labelled = [message for message in sample if message.get("intent")]
    frequent = Counter(message["intent"] for message in labelled).most_common(1)
    recorded = {run: len({(step.call, step.attempt) for step in found}) for run, found in calls.items()}
    own = sum(recorded.get(run, 0) for run in outputs)
    dead = sum(row.went_to == DEAD for row in rows.values())
    return Figures(
        sent=len(outputs),
        out=sum(map(len, outputs.values())),
        dead=dead,
        lost=len(outputs) - dead - sum(bool(found) for found in outputs.values()),
        twice=sum(max(0, len(found) - 1) for found in outputs.values()),
        needed=sum(map(readable, sample)),
        made=made - sum(recorded.values()) + own,  # on a server of the user's, the worker may find calls of an earlier demo
        recorded=own,
        tokens=sum(row.tokens for row in rows.values()),
        labelled=len(labelled),
        right=sum(bool(row.right) for row in rows.values()),
        most_frequent=frequent[0][1] if frequent else 0,
        nearest=sum(near.of(message["text"], 1)[0].intent == message["intent"] for message in labelled),
        examples=len(examples),
        first_seconds=round(first, 1),
        seconds=round(seconds, 1),
    )
