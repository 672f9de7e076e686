"""Dead letters: what is in them, and running them again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from engine_lab import APP, STREAM, Lab

from dspex.bus import subjects
from dspex.bus.errors import CallTimeout, ProgramError, RetryLater, TopologyError
from dspex.bus.port import NewMessage
from dspex.engine.client import letters
from dspex.engine.graph.nodes import Retry
from dspex.engine.testing.driver import Driver
from dspex.operators.topology import Topology

MakeLab = Callable[..., Lab]


def repairable() -> tuple[Topology, dict[str, Any]]:
    """source → before → ask → after → out, with functions that can be broken and repaired."""
    broken: dict[str, Any] = {}

    def before(data: Any) -> Any:
        if broken.get("before"):
            raise ValueError("before is broken")
        return data

    def after(data: Any) -> Any:
        if broken.get("after"):
            raise ValueError("after is broken")
        return data

    topology = Topology("repairable")
    asked = topology.source("in").map(before, name="before").predict("text -> answer", name="ask")
    asked.map(after, name="after").sink("out")
    return topology, broken


def test_a_dead_letter_holds_the_event_the_operator_the_reason_and_the_traceback() -> None:
    topology, broken = repairable()
    broken["before"] = True
    with Driver(topology) as d:
        run = d.publish("in", {"text": "a"}, key="k", session="s")
        (letter,) = d.dead_letters()
    assert (letter.event.id, letter.event.subject, letter.event.data) == (run, "in", {"text": "a"})
    assert (letter.event.key, letter.event.session, letter.run) == ("k", "s", run)
    assert (letter.node, letter.reason, letter.code, letter.attempts) == ("before", "DataError", "DX507", 1)
    assert letter.message == "before raised ValueError: before is broken"
    assert 'raise ValueError("before is broken")' in letter.traceback
    assert letter.topology == "repairable"
    assert letter.as_dict()["event"]["key"] == "k"
    assert "traceback" in letter.as_dict(traceback=True)


def test_a_redrive_runs_an_event_that_failed_in_a_native_operator_from_its_source() -> None:
    topology, broken = repairable()
    broken["before"] = True
    with Driver(topology) as d:
        d.answer("ask", {"answer": "yes"})
        run = d.publish("in", {"text": "a"}, key="k")
        assert d.redrive() == 1
        (letter,) = d.dead_letters()
        assert (letter.attempts, letter.run, letter.event.id) == (2, run, run)
        broken.clear()
        assert d.redrive() == 1
        assert d.dead_letters() == []
        (event,) = d.events("out")
        assert (event.run, event.key, event.data) == (run, "k", {"text": "a", "answer": "yes"})


def test_a_redrive_of_a_call_makes_its_next_attempt_under_the_same_id_with_all_its_retries() -> None:
    topology, _ = repairable()
    with Driver(topology) as d:
        d.fail("ask", ProgramError("broken"))
        run = d.publish("in", {"text": "a"})
        d.answer("ask", {"answer": "yes"})
        d.fail("ask", ProgramError("still broken"))
        assert d.redrive() == 1
        (letter,) = d.dead_letters()
        assert (letter.node, letter.attempts, letter.message) == ("ask", 2, "still broken")
        assert d.redrive() == 1
        assert [e.run for e in d.events("out")] == [run]
        assert [s.attempt for s in d.calls("ask")] == [1, 2, 3]
        assert len({s.call for s in d.calls("ask")}) == 1


def test_a_redriven_call_is_retried_as_a_new_one_is() -> None:
    topology = Topology("retrying")
    topology.source("in").predict("text -> answer", name="ask", retry=Retry(attempts=2, backoff="1s")).sink("out")
    with Driver(topology) as d:
        d.fail("ask", CallTimeout("down"), times=3)
        d.publish("in", {"text": "a"})
        d.advance("5s")
        (letter,) = d.dead_letters()
        assert letter.attempts == 2
        d.answer("ask", {"answer": "yes"})
        d.redrive()
        d.advance("5s")
        assert d.dead_letters() == []
        assert [s.attempt for s in d.calls("ask")] == [1, 2, 3, 4]


def test_a_redrive_behind_a_call_asks_no_model_again() -> None:
    topology, broken = repairable()
    broken["after"] = True
    with Driver(topology) as d:
        d.answer("ask", {"answer": "yes"})
        run = d.publish("in", {"text": "a"})
        (letter,) = d.dead_letters()
        assert letter.node == "after"
        broken.clear()
        assert d.redrive() == 1
        assert [(e.run, e.data) for e in d.events("out")] == [(run, {"text": "a", "answer": "yes"})]
        assert len(d.calls("ask")) == 1


def test_a_redriven_event_has_the_ids_that_it_would_have_had() -> None:
    ids = []
    for break_it in (False, True):
        topology, broken = repairable()
        broken["after"] = break_it
        with Driver(topology) as d:
            d.answer("ask", {"answer": "yes"})
            d.publish("in", {"text": "a"}, id="order-17")
            broken.clear()
            d.redrive()
            ids.append([e.id for e in d.events("out")])
    assert ids[0] == ids[1]


def test_a_dead_letter_that_is_redriven_twice_runs_once(lab: MakeLab) -> None:
    topology, broken = repairable()
    broken["before"] = True
    one = lab(topology)
    one.start()
    one.work()
    one.publish("in", {"text": "a"})
    broken.clear()
    found = one.letters()
    for count in (1, 0):  # the second client has listed it before the first one redrove it
        assert one.run(one.client.redrive(found)) == count
        one.loop.settle()
    one.advance(1)
    assert len(one.outputs("out")) == 1


def test_a_dropped_dead_letter_is_gone(lab: MakeLab) -> None:
    topology, broken = repairable()
    broken["before"] = True
    one = lab(topology)
    one.start()
    one.publish("in", {"text": "a"})
    assert one.run(letters.drop(one.client.bus, APP, [d.sequence for d in one.letters()])) == 1
    assert one.letters() == []


def test_dead_letters_are_found_by_topology_node_and_reason(lab: MakeLab) -> None:
    topology, broken = repairable()
    broken["before"] = True
    one = lab(topology)
    one.start()
    one.publish("in", {"text": "a"})
    one.store(NewMessage("in", b"{not json"))

    async def listed(topology: str, **o: Any) -> list[str]:
        return [d.node async for d in one.client.dead_letters(topology, **o)]

    assert one.run(listed("repairable")) == ["before", "in"]
    assert one.run(listed("other")) == []
    assert one.run(listed("*", node="before")) == ["before"]
    assert one.run(listed("*", reason="DecodeError")) == ["in"]
    assert one.run(listed("*", reason="DX507")) == ["before"]


def test_a_dead_letter_may_be_redriven_with_other_data(lab: MakeLab) -> None:
    topology = Topology("numbers")
    topology.source("in").map(lambda d: {"half": d["n"] / 2}, name="halve").sink("out")
    one = lab(topology)
    one.start()
    one.publish("in", {"n": "four"})
    one.run(letters.redrive(one.client.bus, APP, one.letters(), data={"n": 4}))
    one.loop.settle()
    assert one.outputs("out") == [{"half": 2.0}]


def test_the_letter_of_an_event_too_large_for_a_message_names_its_payload_and_is_redriven(lab: MakeLab) -> None:
    topology, broken = Topology("large"), [True]

    def shorten(data: Any) -> Any:
        if broken:
            raise ValueError("broken")
        return len(data["text"])

    topology.source("in").map(shorten, name="shorten").sink("out")
    one = lab(topology, max_payload=64_000)
    one.start()
    one.publish("in", {"text": "x" * 63_900})
    for attempt in (1, 2):
        (letter,) = one.letters()
        assert (letter.node, letter.attempts) == ("shorten", attempt)
        (stored,) = one.messages(subjects.dead_pattern(APP))
        assert subjects.CLAIM_CHECK in stored.headers
        if attempt == 2:
            broken.clear()
        assert one.run(letters.redrive(one.client.bus, APP, [letter])) == 1
        one.loop.settle()
    assert one.outputs("out") == [63_900]
    assert one.letters() == []


def test_an_event_as_large_as_a_message_can_be_may_ask_for_later(lab: MakeLab) -> None:
    topology, tries = Topology("large"), list[int]()

    def patient(data: Any) -> Any:
        tries.append(1)
        if len(tries) < 3:
            raise RetryLater(after=1.0)
        raise ValueError("no")

    topology.source("in").map(patient, name="patient").sink("out")
    one = lab(topology, max_payload=64_000)
    one.start()
    one.publish("in", {"text": "x" * 63_300})  # with what is said of its wait, just a message
    one.advance(5)
    (letter,) = one.letters()
    assert (letter.node, letter.attempts) == ("patient", 3)


def test_a_dead_letter_fits_a_message_whatever_failed(lab: MakeLab) -> None:
    """Answer, data and traceback together are more than a message holds; the partition goes on."""
    topology = Topology("fat")

    def fail(data: Any) -> Any:
        raise ValueError("\U0001f600" * 20_000)

    topology.source("in").predict("text -> answer", name="ask").map(fail, name="fail").sink("out")
    one = lab(topology, max_payload=64_000)
    one.answers["ask"] = lambda inputs, work: {"answer": "y" * 20_000}
    host = one.start()
    one.work()
    one.publish("in", {"text": "x" * 12_000})
    one.advance(5)
    (letter,) = one.letters()
    assert (letter.node, letter.event.data) == ("fail", {"text": "x" * 12_000})
    assert host.runners[0].stopped is None
    assert one.run(one.client.bus.stream(STREAM)).messages > 0


def test_only_a_dead_letter_that_was_listed_can_be_redriven(lab: MakeLab) -> None:
    from dataclasses import replace

    from dspex.bus.errors import RunError

    topology, broken = repairable()
    broken["before"] = True
    one = lab(topology)
    one.start()
    one.publish("in", {"text": "a"})
    (letter,) = one.letters()
    with pytest.raises(RunError):
        one.run(one.client.redrive([replace(letter, sequence=0)]))


@pytest.mark.parametrize(
    ("outputs", "header"), [({"answer": "ok"}, "CallTimeout"), ({"answer": 5}, None)], ids=["fit", "do not"]
)
def test_a_redriven_event_is_marked_as_a_fallbacks_only_where_its_outputs_are_kept(outputs: Any, header: str | None) -> None:
    """Outputs that do not fit are not kept: the call is made again, and answered."""
    broken = [True]

    def follower(data: Any) -> Any:
        if broken:
            raise ValueError("not yet")
        return data

    topology = Topology("fallen")
    options: dict[str, Any] = {"retry": Retry(attempts=1), "fallback": lambda data: outputs}
    asked = topology.source("in").predict("text -> answer: Literal['ok']", name="ask", **options)
    asked.map(follower, name="follower").sink("out")
    with Driver(topology) as d:
        d.answer("ask", {"answer": "ok"})
        d.fail("ask", CallTimeout("down"))
        d.publish("in", {"text": "a"})
        assert len(d.dead_letters()) == 1
        broken.clear()
        d.redrive()
        (output,) = d.events("out")
        assert (output.data["answer"], output.headers.get("Dspex-Fallback")) == ("ok", header)


def test_a_letter_whose_stage_nobody_runs_any_more_is_kept_and_its_redrive_refused(lab: MakeLab) -> None:
    def version(source: str, **options: Any) -> Topology:
        topology = Topology("moved", **options)
        topology.source(source).map(lambda d: {"half": d["n"] / 2}, name="halve").sink("out")
        return topology

    one = lab(version("in"))
    one.start()
    one.publish("in", {"n": "four"})
    one.kill()
    one.start("b", version("other", drop=["in"]))
    (letter,) = one.letters()
    with pytest.raises(TopologyError, match="has no stage s1 any more") as caught:
        one.run(one.client.redrive([letter]))
    assert caught.value.code == "DX232"
    assert one.letters() == [letter]


def test_a_letter_of_a_source_that_was_renamed_is_redriven_where_it_went_on(lab: MakeLab) -> None:
    def version(source: str, function: Any, **options: Any) -> Topology:
        topology = Topology("moved", **options)
        topology.source(source).map(function, name="halve").sink("out")
        return topology

    one = lab(version("in", lambda d: d["n"] / 2))
    one.start()
    one.publish("in", {"n": "four"})
    one.kill()
    one.start("b", version("other", lambda d: {"length": len(d["n"])}, renamed_from={"other": "in"}))
    assert one.run(one.client.redrive(one.letters())) == 1
    one.advance(20)  # until the engine that was killed counts as dead
    assert one.outputs("out") == [{"length": 4}]


@pytest.mark.parametrize("options", [{"drop": ["ask"]}, {"renamed_from": {"reply": "ask"}}], ids=["dropped", "renamed"])
def test_a_letter_of_an_operator_that_was_dropped_is_kept_and_of_one_that_was_renamed_redriven(
    lab: MakeLab, options: dict[str, Any]
) -> None:
    def version(name: str, **options: Any) -> Topology:
        topology = Topology("asking", **options)
        topology.source("in").predict("text -> answer", name=name).sink("out")
        return topology

    def refuse(inputs: dict[str, Any], request: Any) -> dict[str, Any]:
        raise ProgramError("no")

    one = lab(version("ask"))
    one.start()
    one.answers |= {"ask": refuse, "reply": lambda inputs, request: {"answer": "yes"}}
    one.work()
    one.publish("in", {"text": "a"})
    one.advance(1)
    one.kill()
    one.start("b", version("reply", **options))
    (letter,) = one.letters()
    if "renamed_from" in options:
        assert one.run(one.client.redrive([letter])) == 1
        one.advance(30)
        assert [o["answer"] for o in one.outputs("out")] == ["yes"]
        return
    with pytest.raises(TopologyError, match="has no operator ask any more") as caught:
        one.run(one.client.redrive([letter]))
    assert (caught.value.code, f"dspex dlq drop {letter.sequence}" in caught.value.fix) == ("DX232", True)
    assert one.letters() == [letter]
