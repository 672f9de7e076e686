"""The ready-made support triage: both of its forms, and what becomes of messages, without a model."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from dspex import Topology, testing
from dspex.engine.cli.demo.demo import samples
from dspex.topologies import support_examples, support_triage

YAML = Path(support_triage.__file__).with_suffix(".yaml")
SOURCE, URGENT, TRIAGED = "support.messages", "support.urgent", "support.triaged"


THEFT = ("stole", "thief", "fraud", "was not me")
INTENTS = ["card_arrival", "lost_card", "exchange_rate", "top_up_failed", "refund_missing"]


def answer(inputs: Mapping[str, Any]) -> dict[str, str]:
    """What stands in for the model: the same for the same text."""
    return {"intent": "lost_card" if "!" in str(inputs["text"]) else "top_up_failed"}


def urgent(message: Mapping[str, Any]) -> bool:
    """Where the message has to go: by the answer, or by the rule beside it."""
    return answer(message)["intent"] == "lost_card" or any(words in message["text"].lower() for words in THEFT)


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
        {"text": "My rent is late", "customer": "c7", "channel": "app", "intent": "top_up_failed"}
    ]
    assert [c.inputs for c in driver.calls("classify")] == [{"text": "My rent is late"}]


def test_urgent_messages_and_the_others_take_their_own_branches(driver: testing.Driver) -> None:
    for text in ("Answer me!", "How do I top up?", "A Thief has my card"):
        driver.publish(SOURCE, {"text": text})
    assert [(m["text"], m["intent"]) for m in driver.outputs(URGENT)] == [
        ("Answer me!", "lost_card"),
        ("A Thief has my card", "top_up_failed"),
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


def test_an_intent_that_does_not_exist_becomes_a_dead_letter(driver: testing.Driver) -> None:
    driver.answer("classify", {"intent": "weather"})
    driver.publish(SOURCE, {"text": "Hello"})
    (letter,) = driver.dead_letters()
    assert (letter.node, letter.reason) == ("classify", "InvalidOutput")
    assert "intent" in letter.message


def test_every_message_of_the_sample_is_somewhere_exactly_once_though_everything_crashes(driver: testing.Driver) -> None:
    sample = [{k: v for k, v in message.items() if k != "intent"} for message in samples(8)]
    driver.answer("classify", answer, after="2s")
    runs = set[str]()
    for number, message in enumerate(sample):
        runs.add(driver.publish(SOURCE, message, key=message["customer"]))
        if number % 10 == 5:
            driver.crash()
    driver.advance("1m")
    letters = driver.dead_letters()
    ended = [e.run for subject in (URGENT, TRIAGED) for e in driver.events(subject)]
    assert (len(runs), len(letters)) == (42, 2)  # the sample has two that nobody can read
    assert sorted([*ended, *(letter.run for letter in letters)]) == sorted(runs)
    assert len(driver.calls("classify")) == 40  # the answers of the time before are read back
    readable = [m for m in map(support_triage.clean, sample) if m["text"]]
    assert {m["text"] for m in driver.outputs(URGENT)} == {m["text"] for m in readable if urgent(m)}


def words(text: str) -> str:
    """The text without its punctuation."""
    return " ".join(re.findall(r"\w+", text.lower()))


# -- the messages ------------------------------------------------------------------------------------------------------
def test_no_message_of_the_sample_is_among_those_that_the_model_is_shown() -> None:
    shown = {words(example.text) for example in support_examples.load()}
    sent = [words(message["text"]) for message in samples(8) if "intent" in message]
    assert len(shown) == 200
    assert [text for text in sent if text in shown] == []
    assert len(set(sent)) == 40


def test_intents_are_equally_frequent_and_those_of_the_signature() -> None:
    assert Counter(example.intent for example in support_examples.load()) == dict.fromkeys(INTENTS, 40)
    assert all(f"'{intent}'" in support_triage.SIGNATURE for intent in INTENTS)
    for each in (1, 4, 8):
        labels = Counter(message["intent"] for message in samples(each) if "intent" in message)
        assert labels == dict.fromkeys(INTENTS, each)


def test_the_first_messages_of_each_intent_are_taken_in_the_order_of_the_file() -> None:
    everything = [message["customer"] for message in samples(8)]
    few = [message["customer"] for message in samples(2)]
    assert few == [customer for customer in everything if customer in few]
    assert few[:10] == everything[:10]


def test_the_most_similar_example_is_the_one_that_shares_the_rarest_words() -> None:
    found = support_examples.Nearest(
        [
            support_examples.Example("my card was stolen", "lost_card"),
            support_examples.Example("my card is late", "card_arrival"),
            support_examples.Example("my refund is late", "refund_missing"),
        ]
    )
    assert [example.intent for example in found.of("Stolen! My card is gone", 3)] == [
        "lost_card",
        "card_arrival",
        "refund_missing",
    ]
    assert [example.intent for example in found.of("xyz", 2)] == ["lost_card", "card_arrival"]
    assert len(found.of("my card", 9)) == 3
