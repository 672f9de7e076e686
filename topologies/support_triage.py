"""Support triage: customer messages in, urgent ones and the rest out, each with what it is about.

    support.messages → clean → validate → classify → branch → support.urgent
                                                            ↘ support.triaged

`classify` is a DSPy program in a worker (support_program.py); the rest runs in the engine. What has no text, or cannot be
classified, becomes a dead letter. What is urgent is not left to the model alone: a rule over the text catches theft and fraud
whatever the model thinks. The same graph stands in support_triage.yaml.

The program gets labelled messages as examples, support_examples.jsonl. Those that the demo sends, support_messages.jsonl, are
others. We wrote both.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from dspex.operators.stream import Record
from dspex.operators.topology import Topology

SIGNATURE = "text -> intent: Literal['card_arrival', 'lost_card', 'exchange_rate', 'top_up_failed', 'refund_missing']"
URGENT = "intent == 'lost_card' or matches(lower(text), 'stole|thief|fraud|was not me')"


class Message(BaseModel):
    """What a customer wrote. Other fields are kept."""

    model_config = ConfigDict(extra="allow")

    text: str = Field(min_length=1, max_length=4000)
    customer: str = "unknown"


class Triaged(Message):
    """A message with what the model says that it is about."""

    intent: str


def clean(message: Record) -> Record:
    """White space at the ends and runs of it inside mean nothing."""
    return {**message, "text": " ".join(str(message.get("text", "")).split())}


topology = Topology("support-triage")
_messages = topology.source("support.messages").map(clean).validate(Message)
_triaged = _messages.program("dspex.topologies.support_program:Classify", SIGNATURE, name="classify", into=Triaged)
_urgent, _routine = _triaged.branch(URGENT)
_urgent.sink("support.urgent")
_routine.sink("support.triaged")
