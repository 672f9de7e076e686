"""Saved states of programs, as a client saves, promotes and rolls them back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import orjson
import pytest
from engine_lab import APP, Lab

from dspex.bus import subjects
from dspex.bus.errors import CallError, CallTimeout, InvalidInput, RunError, WorkerLost
from dspex.bus.message import Message
from dspex.bus.records import CallRequest
from dspex.bus.serving import audit
from dspex.operators.topology import Topology

MakeLab = Callable[..., Lab]
FIELDS = [{"prefix": "Text:", "description": "${text}"}, {"prefix": "Answer:", "description": "${answer}"}]
STATE: dict[str, Any] = {"demos": [], "signature": {"instructions": "Answer.", "fields": FIELDS}}


def test_each_change_of_a_saved_program_is_audited_and_told_to_the_pools_that_topologies_use(lab: MakeLab) -> None:
    topology = Topology("asking")
    topology.source("in").predict("text -> answer", name="ask", pool="writers", state="draft@prod").sink("out")
    one, told = lab(topology), list[object]()
    one.start()

    async def hear(message: Message) -> None:
        told.append(orjson.loads(message.data))

    one.run(one.client.bus.subscribe(subjects.control(APP, "writers"), hear))
    client = one.client
    assert [one.run(client.put_program("draft", STATE)) for _ in range(2)] == ["draft@1", "draft@2"]
    one.run(client.promote_program("draft", 1, "prod"))
    one.run(client.promote_program("draft", 2, "prod"))
    assert one.run(client.rollback_program("draft", "prod")) == 1
    assert told == [{"kind": "programs"}] * 5
    stored = one.server.streams[subjects.stream(APP)].messages.values()
    entries = [audit.read(m) for m in stored if m.subject.split(".")[2] == "audit"]
    changes = [(e.verb, e.what["program"]) for e in entries if e.verb in ("put", "promote", "rollback")]
    assert changes == [
        ("put", "draft@1"), ("put", "draft@2"), ("promote", "draft@1"), ("promote", "draft@2"), ("rollback", "draft@1")
    ]  # fmt: skip


@pytest.mark.parametrize("first", [CallTimeout("down"), WorkerLost("killed"), None], ids=["failed", "lost", "does not fit"])
def test_a_call_is_made_again_with_the_version_that_its_first_attempt_had(lab: MakeLab, first: CallError | None) -> None:
    topology = Topology("asking")
    topology.source("in").predict("text -> answer: int", name="ask", state="draft@prod").sink("out")
    one = lab(topology)
    one.start()
    one.states["ask"] = "draft@1"

    def answer(inputs: dict[str, Any], request: CallRequest) -> dict[str, Any]:
        if request.try_number == 1:
            if first is not None:
                raise first
            return {"answer": "many"}
        one.states["ask"] = "other@7"  # no version of this program
        if request.try_number == 2:
            raise CallTimeout("down")
        return {"answer": 1}

    one.answers["ask"] = answer
    one.work()
    one.publish("in", {"text": "a"})
    one.advance(60)
    assert one.outputs("out") == [{"text": "a", "answer": 1}]
    assert [request.state for request in one.asked] == ["", "draft@1", "draft@1"]


def test_what_is_refused_changes_nothing_and_is_not_audited(lab: MakeLab) -> None:
    one = lab()
    with pytest.raises(InvalidInput):
        one.run(one.client.put_program("draft", {"write": {"config": {}}}))
    with pytest.raises(RunError):
        one.run(one.client.promote_program("draft", 1, "prod"))
    with pytest.raises(RunError):
        one.run(one.client.rollback_program("draft", "prod"))
    assert not one.server.streams.get(subjects.stream(APP))
