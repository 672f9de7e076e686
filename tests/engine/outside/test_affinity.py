"""What `affinity=` asks of workers for the events of a topology."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from engine_lab import Lab

from dspex.bus.errors import AffinityLost, ConfigError
from dspex.operators.topology import Topology

MakeLab = Callable[[Any], Lab]


def asking(affinity: Any) -> Topology:
    t = Topology("triage")
    t.source("in").predict("text -> answer", name="classify", affinity=affinity, fallback={"answer": "?"}).sink("out")
    return t


@pytest.fixture
def lab() -> Iterator[MakeLab]:
    labs: list[Lab] = []

    def make(affinity: str) -> Lab:
        labs.append(Lab(asking(affinity)))
        labs[-1].start()
        labs[-1].work()
        return labs[-1]

    yield make
    for one in labs:
        one.close()


@pytest.mark.parametrize(
    ("affinity", "asked"),
    [
        ("none", [(None, False)] * 3),
        ("prefer", [("k", False), ("k", False), ("s", False)]),
        ("require", [("k", True), ("k", True), ("s", True)]),
    ],
)
def test_a_call_asks_for_the_worker_of_its_key_or_else_of_its_session(lab: MakeLab, affinity: str, asked: list[Any]) -> None:
    one = lab(affinity)
    one.publish("in", {"text": "a"}, key="k")
    one.publish("in", {"text": "b"}, key="k", session="s")
    one.publish("in", {"text": "c"}, session="s")
    assert [(request.affinity, request.required) for request in one.asked] == asked
    assert one.differences() == []


def test_an_event_that_has_neither_is_a_dead_letter_where_a_worker_is_required(lab: MakeLab) -> None:
    one = lab("require")
    one.publish("in", {"text": "a"})
    (letter,) = one.letters()
    assert (letter.reason, letter.node, one.asked) == ("InvalidInput", "classify", [])
    assert "neither" in letter.message


def test_an_event_whose_worker_is_gone_is_a_dead_letter_and_its_redrive_is_asked_again(lab: MakeLab) -> None:
    one = lab("require")

    def gone(inputs: dict[str, Any], request: Any) -> dict[str, Any]:
        raise AffinityLost("it is gone")

    one.answers["classify"] = gone
    one.publish("in", {"text": "a"}, key="k")
    (letter,) = one.letters()
    assert (letter.reason, len(one.asked)) == ("AffinityLost", 1), "it is not tried again, and nothing stands in for it"
    one.answers["classify"] = lambda inputs, request: {"answer": "yes"}
    one.run(one.client.redrive([letter]))
    one.advance(5)
    assert [data["answer"] for data in one.outputs("out")] == ["yes"]


def test_a_node_that_is_asked_by_its_name_requires_what_it_requires_in_its_topology(lab: MakeLab) -> None:
    one = lab("require")
    with pytest.raises(ConfigError, match="session"):
        one.run(one.client.call("triage/classify", {"text": "a"}))
    with pytest.raises(ConfigError, match="session"):
        one.run(one.client.submit("triage/classify", {"text": "a"}))
    found = [one.run(lab(affinity).client.resolve("triage/classify")).affinity for affinity in ("none", "prefer", "require")]
    assert found == ["none", "prefer", "require"]
