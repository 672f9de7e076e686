"""What is recorded for the benchmark of replays: messages of banking77, each asked about once."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import dspex

DATA = Path(__file__).parents[2].parent / "shared" / "data" / "banking77"
NAME, POOL, ASKED, SINK = "banking", "banking", "banking.asked", "banking.intents"
SLOTS = 16


def texts(count: int) -> list[str]:
    """The first messages of the test set, each on one line."""
    with (DATA / "test.csv").open(newline="", encoding="utf-8") as file:
        return [" ".join(row["text"].split()) for row, _ in zip(csv.DictReader(file), range(count))]


def intents() -> list[str]:
    """What a message can be about."""
    found: list[str] = json.loads((DATA / "categories.json").read_text())
    return found


def build(more: str = "") -> dspex.Topology:
    """Asks for the intent of each message. `more`: what a changed operator adds to the text of each."""
    made = dspex.Topology(NAME)
    read = made.source(ASKED).map(lambda data: {**data, "text": data["text"].strip()}, name="read")
    asked = read.predict(f"text -> intent: Literal{intents()!r}", name="classify", pool=POOL, deadline="30m")
    asked.map(lambda data: {**data, "queue": data["intent"].split("_")[0] + more}, name="queue").sink(SINK)
    return made


topology = build() if DATA.is_dir() else None
