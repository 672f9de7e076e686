"""Support triage: customer messages in, urgent ones and the rest out, each with its intent.

    support.messages → clean → validate → classify → branch → support.urgent
                                                            ↘ support.triaged

`classify` is a DSPy program in a worker; the rest runs in the engine. What cannot be read, is empty, or cannot be classified
becomes a dead letter. What is urgent is not left to the model alone: a rule over the text beside its answer catches theft and
fraud whatever the model thinks. The same graph stands in support_triage.yaml.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from dspex.operators.native.signature import Signature
from dspex.operators.stream import Record
from dspex.operators.topology import Topology

SIGNATURE = Signature(
    "text -> topic: str, intent: Literal['card_arrival', 'lost_or_stolen_card', 'card_payment', 'cash_withdrawal', "
    "'transfer', 'top_up', 'exchange_rate', 'identity', 'account', 'other'], urgency: Literal['low', 'normal', 'high']",
    # A small model that has to say this first gets more of the rest right.
    instructions="topic: two or three words of the text that say what it is about.",
)

URGENT = "urgency == 'high' or matches(lower(text), 'stole|thief|fraud|lost my|was not me')"


class Message(BaseModel):
    """What a customer wrote. Other fields are kept."""

    model_config = ConfigDict(extra="allow")

    text: str = Field(min_length=1, max_length=4000)
    customer: str = "unknown"


class Triaged(Message):
    """A message with what the model made of it."""

    topic: str
    intent: str
    urgency: Literal["low", "normal", "high"]


def clean(message: Record) -> Record:
    """White space at the ends and runs of it inside mean nothing."""
    return {**message, "text": " ".join(str(message.get("text", "")).split())}


topology = Topology("support-triage")
_triaged = (
    topology.source("support.messages")
    .map(clean)
    .validate(Message)
    .predict(SIGNATURE, name="classify", pool="lightweight", into=Triaged)
)
_urgent, _routine = _triaged.branch(URGENT)
_urgent.sink("support.urgent")
_routine.sink("support.triaged")
