"""The quick start of the design, word for word: a pipeline with two models, and a window behind one of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field

from dspex import Record, Topology
from dspex.testing import Driver


class Message(BaseModel):
    customer: str
    text: str = Field(min_length=1, max_length=4000)


class Triaged(Message):
    intent: Literal["card_arrival", "lost_card", "exchange_rate", "other"]
    urgency: int = Field(ge=1, le=5)


def clean(m: Record) -> Record:
    return {**m, "text": " ".join(m["text"].split())}


SIGNATURE = "text -> intent: Literal['card_arrival','lost_card','exchange_rate','other'], urgency: int"
YAML = f"""
dspex: 1
topology: support-triage
sources: {{ support.messages: {{}} }}
nodes:
  clean:              {{ from: support.messages, map: "{__name__}:clean" }}
  validate:           {{ from: clean, validate: "{__name__}:Message" }}
  classify:           {{ from: validate, pool: lightweight, into: "{__name__}:Triaged",
                        predict: "{SIGNATURE}" }}
  branch:             {{ from: classify, branch: ["urgency >= 4"] }}
  draft:              {{ from: branch.0, program: "programs:DraftReply", signature: "text, intent -> reply", pool: writers }}
  by_intent:          {{ from: classify, key_by: intent }}
  intents_per_minute: {{ from: by_intent, window: 1m, count: {{}} }}
sinks:
  support.replies: {{ from: draft }}
  support.queue:   {{ from: branch.rest }}
  support.intents: {{ from: intents_per_minute }}
"""


def triage() -> Topology:
    topology = Topology("support-triage")
    source = topology.source("support.messages").map(clean).validate(Message)
    triaged = source.predict(SIGNATURE, name="classify", pool="lightweight", into=Triaged)
    urgent, routine = triaged.branch("urgency >= 4")
    urgent.program("programs:DraftReply", "text, intent -> reply", name="draft", pool="writers").sink("support.replies")
    routine.sink("support.queue")
    triaged.key_by("intent").window("1m").count(name="intents_per_minute").sink("support.intents")
    return topology


def test_urgent_messages_get_a_draft_and_intents_are_counted_by_the_minute() -> None:
    def draft(data: Any) -> Record:
        return {"reply": f"Sorry about {data['intent']}"}

    with Driver(triage()) as d:
        d.answer("classify", {"intent": "lost_card", "urgency": 5})
        d.answer("draft", draft)
        d.publish("support.messages", {"customer": "c1", "text": "  stolen! "})
        assert d.outputs("support.replies")[0]["reply"] == "Sorry about lost_card"
        d.advance("2m")
        assert d.outputs("support.intents")[0]["value"] == 1
        d.crash()
        assert len(d.calls("classify")) == 1


def test_the_same_graph_in_yaml_has_the_same_digest(tmp_path: Path) -> None:
    file = tmp_path / "triage.yaml"
    file.write_text(YAML)
    assert Topology.load(str(file)).digest == triage().digest
