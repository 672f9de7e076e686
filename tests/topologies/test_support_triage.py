"""The ready-made support triage: both of its forms, and what becomes of messages, without a model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from dspex import Topology, testing
from dspex.engine.cli import demo as cli
from dspex.topologies import support_triage

YAML = Path(support_triage.__file__).with_suffix(".yaml")
SOURCE, URGENT, TRIAGED = "support.messages", "support.urgent", "support.triaged"


THEFT = ("stole", "thief", "fraud", "lost my", "was not me")


def answer(inputs: Mapping[str, Any]) -> dict[str, str]:
    """What stands in for the model: the same for the same text."""
    return {"topic": "money", "intent": "other", "urgency": "high" if "!" in str(inputs["text"]) else "low"}


def urgent(message: Mapping[str, Any]) -> bool:
    """Where the message has to go: by the answer, or by the rule beside it."""
    return answer(message)["urgency"] == "high" or any(words in message["text"].lower() for words in THEFT)


@pytest.fixture(params=["python", "yaml"])
def driver(request: pytest.FixtureRequest) -> Iterator[testing.Driver]:
    topology = support_triage.topology if request.param == "python" else Topology.load(YAML)
    with testing.Driver(topology) as d:
        d.answer("classify", answer)
        yield d


def test_python_and_yaml_are_the_same_topology() -> None:
    python, yaml = support_triage.topology, Topology.load(YAML)
    assert yaml.digest == python.digest
    assert _described(yaml) == _described(python)
    assert yaml.to_mermaid() == python.to_mermaid()
    assert [p for t in (python, yaml) for p in t.check()] == []


def _described(topology: Topology) -> dict[str, Any]:
    """All of it but where it was written."""
    found = topology.describe().as_dict()
    return found | {"nodes": [{k: v for k, v in node.items() if k != "place"} for node in found["nodes"]]}


def test_white_space_is_cleaned_and_other_fields_are_kept(driver: testing.Driver) -> None:
    driver.publish(SOURCE, {"text": "  My rent\n is   late ", "customer": "c7", "channel": "app"})
    assert driver.outputs(TRIAGED) == [
        {"text": "My rent is late", "customer": "c7", "channel": "app", "topic": "money", "intent": "other", "urgency": "low"}
    ]
    assert [c.inputs for c in driver.calls("classify")] == [{"text": "My rent is late"}]


def test_urgent_messages_and_the_others_take_their_own_branches(driver: testing.Driver) -> None:
    for text in ("Answer me!", "How do I top up?", "A Thief has my card"):
        driver.publish(SOURCE, {"text": text})
    assert [(m["text"], m["urgency"]) for m in driver.outputs(URGENT)] == [
        ("Answer me!", "high"),
        ("A Thief has my card", "low"),
    ]
    assert [m["text"] for m in driver.outputs(TRIAGED)] == ["How do I top up?"]


@pytest.mark.parametrize("message", [{"text": "   "}, {"message": "in the wrong field"}, {"text": "x" * 4001}])
def test_a_message_without_usable_text_becomes_a_dead_letter_and_reaches_no_model(
    driver: testing.Driver, message: dict[str, Any]
) -> None:
    driver.publish(SOURCE, message)
    (letter,) = driver.dead_letters()
    assert (letter.node, letter.reason, letter.event.data) == ("validate", "InvalidInput", message)
    assert "text" in letter.message
    assert driver.calls("classify") == driver.outputs(URGENT) == driver.outputs(TRIAGED) == []


def test_an_urgency_that_does_not_exist_becomes_a_dead_letter(driver: testing.Driver) -> None:
    driver.answer("classify", {"topic": "money", "intent": "other", "urgency": "apocalyptic"})
    driver.publish(SOURCE, {"text": "Hello"})
    (letter,) = driver.dead_letters()
    assert (letter.node, letter.reason) == ("classify", "InvalidOutput")
    assert "urgency" in letter.message


def test_every_message_of_the_sample_is_somewhere_exactly_once(driver: testing.Driver) -> None:
    sample = cli.samples()
    assert len(sample) >= 40
    runs = {driver.publish(SOURCE, message, key=message["customer"]) for message in sample}
    assert len(runs) == len(sample)
    ended = [e.run for subject in (URGENT, TRIAGED) for e in driver.events(subject)]
    letters = driver.dead_letters()
    assert len(letters) == 2  # the sample has two that nobody can read
    assert sorted([*ended, *(letter.run for letter in letters)]) == sorted(runs)
    expected = {m["text"] for m in map(support_triage.clean, sample) if urgent(m)}
    assert {m["text"] for m in driver.outputs(URGENT)} == expected
    assert 0 < len(expected) < len(sample) / 2


def test_a_crash_in_the_middle_of_the_sample_changes_nothing(driver: testing.Driver) -> None:
    sample = cli.samples()
    driver.answer("classify", answer, after="2s")
    for number, message in enumerate(sample):
        driver.publish(SOURCE, message, key=message["customer"])
        if number % 10 == 5:
            driver.crash()
    driver.advance("1m")
    assert len(driver.outputs(URGENT)) + len(driver.outputs(TRIAGED)) + len(driver.dead_letters()) == len(sample)
    assert len(driver.calls("classify")) == len(sample) - 2  # the answers of the time before are read back
