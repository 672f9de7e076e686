"""Submitted calls: they outlive who asks, the engine and the worker, and are made once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from engine_lab import APP, Lab

import dspex
from dspex.bus import codecs, subjects
from dspex.bus.errors import CallTimeout, ConfigError, LMUnavailable, NotStored, ProgramError
from dspex.bus.port import NewMessage
from dspex.engine.client.call import Result
from dspex.engine.graph.graph import Graph
from dspex.engine.graph.nodes import Retry
from dspex.engine.graph.submitted import NODE, submitted

MakeLab = Callable[..., Lab]


class Submits:
    """As an engine with `engine.submit = true` hosts it."""

    def __init__(self, *pools: str) -> None:
        self.graph: Graph = submitted(APP, pools or ("lightweight",))


def made(lab: MakeLab, *topologies: Any) -> Lab:
    one = lab(*topologies, Submits())
    one.start()
    one.answers[NODE] = lambda inputs, request: {"reply": f"re: {inputs['text']}"}
    return one


def submit(one: Lab, what: Any = "text -> reply", text: str = "hi", **options: Any) -> dspex.Run:
    found: dspex.Run = one.run(one.client.submit(what, {"text": text}, **options))
    one.loop.settle()
    return found


def test_a_submitted_call_is_made_and_any_process_has_its_result(lab: MakeLab) -> None:
    one = made(lab)
    run = submit(one, dspex.chain_of_thought("text -> reply", timeout="20s", deadline="2m"))
    one.work()
    result: Result[Any] = one.run(run.result("1m"))
    assert (result.data, result.worker, result.attempts) == ({"reply": "re: hi"}, "lab", 1)
    (asked,) = one.asked
    assert (asked.topology, asked.node, asked.spec.kind) == (subjects.SUBMITTED, NODE, "chain_of_thought")
    assert (asked.timeout, round(asked.left)) == (20.0, 120)
    again: Result[Any] = one.run(one.client.run(run.id).result("1m"))
    assert again == result
    assert one.differences() == []


def test_it_survives_the_death_of_engine_and_worker(lab: MakeLab) -> None:
    one = made(lab)
    runs = [submit(one, text=str(n)) for n in range(5)]
    one.kill()
    one.start("b")
    one.kill("b")
    one.work()
    one.start("c")
    results = [one.run(run.result("10m")).data["reply"] for run in runs]
    assert results == [f"re: {n}" for n in range(5)]
    assert len({asked.call for asked in one.asked}) == 5


def test_the_same_id_twice_is_one_call_also_when_the_server_has_forgotten_it(lab: MakeLab) -> None:
    one = made(lab)
    one.work()
    first, at_once = submit(one, id="order-1"), submit(one, id="order-1")
    one.run(first.result("1m"))
    one.advance(600)  # longer than a server knows ids
    later = submit(one, id="order-1", text="something else")
    assert (first.duplicate, at_once.duplicate, later.duplicate) == (False, True, True)
    assert one.run(later.result("1m")).data == one.run(at_once.result("1m")).data == {"reply": "re: hi"}
    assert len(one.asked) == 1
    assert submit(one, id="order-2").duplicate is False


def test_it_is_tried_again_as_its_spec_says_and_its_error_is_the_calls_own(lab: MakeLab) -> None:
    one = made(lab)
    one.work()
    tries: list[int] = []

    def fails(inputs: dict[str, Any], request: Any) -> dict[str, Any]:
        tries.append(request.try_number)
        if len(tries) < 3:
            raise LMUnavailable("down")
        raise ProgramError("a bug")

    one.answers[NODE] = fails
    run = submit(one, dspex.predict("text -> reply", retry=Retry(attempts=2, backoff="1s"), priority=0))
    with pytest.raises(ProgramError, match="a bug"):
        one.run(run.result("10m"))
    assert tries == [1, 2, 3]
    assert [letter.node for letter in one.letters()] == [NODE]


def test_a_call_that_nobody_answers_ends_at_its_deadline(lab: MakeLab) -> None:
    one = made(lab)
    run = submit(one, dspex.predict("text -> reply", deadline="30s"))
    with pytest.raises(CallTimeout, match="not finished"):
        one.run(run.result("5s"))
    one.advance(60)
    with pytest.raises(dspex.errors.RunFailed):
        one.run(run.result("1m"))


def test_what_cannot_be_submitted_says_so(lab: MakeLab) -> None:
    one = lab()
    with pytest.raises(NotStored, match="nothing takes submitted calls") as e:
        one.run(one.client.submit("text -> reply", {"text": "x"}))
    assert "engine.submit" in e.value.fix
    one = made(lab)
    with pytest.raises(ConfigError, match="fallback") as refused:
        one.run(one.client.submit(dspex.predict("text -> reply", fallback={"reply": ""}), {"text": "x"}))
    assert refused.value.code == "DX108"


@pytest.mark.parametrize(
    "change", [{"pool": "other"}, {"spec": {"kind": "program"}}, {"retry": {}}, {"deadline": -1.0}, {"spec": 5}]
)
def test_an_event_that_is_no_submitted_call_or_not_of_its_subject_is_a_dead_letter(
    lab: MakeLab, change: dict[str, Any]
) -> None:
    """The server lets a caller use some subjects: what is asked must be what they say."""
    one = made(lab)
    one.work("lightweight", "other")
    submit(one)
    (stored,) = one.messages(subjects.submit_pattern(APP))
    plain = codecs.decode(stored.data, codecs.MSGPACK)
    for name, value in change.items():
        plain[name] = {**plain[name], **value} if isinstance(value, dict) and value else value
    subject = f"{stored.subject.rpartition('.')[0]}.forged"
    headers = {subjects.CONTENT_TYPE: codecs.MSGPACK}
    one.store(NewMessage(subject, codecs.msgpack_bytes(plain), headers))
    one.advance(5)
    assert len(one.asked) == 1
    assert [letter.node for letter in one.letters()] == [NODE]
    assert one.differences() == []
