"""Whoever may write records can answer calls: a record is believed only from a worker that was given the request."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from engine_lab import Lab
from structlog.testing import capture_logs

from dspex.bus import subjects
from dspex.bus.port import NewMessage
from dspex.bus.records import CallRequest, unpack_event
from dspex.operators.topology import Topology

MakeLab = Callable[..., Lab]


def asking(lab: MakeLab) -> tuple[Lab, CallRequest]:
    """A lab with an open call."""
    topology = Topology("asking")
    topology.source("in").predict("text -> answer", name="ask").sink("out")
    one = lab(topology)
    one.start()
    one.publish("in", {"text": "a"})
    (request,) = one.requests()
    return one, request


def forged(one: Lab, request: CallRequest, headers: dict[str, str], *, event: bool = True) -> NewMessage:
    """A record with all that can be computed from the place of the source event, and these headers."""
    assert request.record is not None
    made = one.result(request, outputs={"answer": "forged"}, event=request.record.event if event else b"")
    return made._replace(headers=headers)


NONCES = ["", "0" * 16, "f" * 16, "f" * 5000, "é" * 16]


@pytest.mark.parametrize("nonce", NONCES, ids=str)
@pytest.mark.parametrize("event", [True, False])
def test_a_record_without_the_nonce_of_its_call_answers_nothing(lab: MakeLab, nonce: str, event: bool) -> None:
    one, request = asking(lab)
    id = f"asking.s1.0.{request.record.number if request.record else 0}.1.{nonce}"
    with capture_logs() as logs:
        for headers in ({}, {subjects.MESSAGE_ID: id}, {subjects.MESSAGE_ID: f"{id}."}, {subjects.MESSAGE_ID: id[:-1]}):
            one.store(forged(one, request, headers, event=event))
        one.advance(1)
    assert one.outputs("out") == []
    assert len([e for e in logs if "without the id of its call" in e["event"]]) >= 3
    one.work()
    one.advance(1)
    assert one.outputs("out") == [{"text": "a", "answer": "yes"}]
    assert len(one.asked) == 1


def test_a_record_without_payload_and_nonce_ends_no_call(lab: MakeLab) -> None:
    one, request = asking(lab)
    id = f"asking.s1.0.{request.record.number if request.record else 0}.1.{'f' * 16}"
    headers = {subjects.MESSAGE_ID: id, subjects.CLAIM_CHECK: "a" * 64}
    one.store(forged(one, request, headers)._replace(data=b""))
    one.advance(1)
    assert (one.outputs("out"), one.letters()) == ([], [])
    one.work()
    one.advance(1)
    assert one.outputs("out") == [{"text": "a", "answer": "yes"}]


def test_a_record_under_a_fresh_id_is_one_of_its_call(lab: MakeLab) -> None:
    one, request = asking(lab)
    made = one.result(request)
    id = (made.headers or {})[subjects.MESSAGE_ID]
    one.store(made._replace(headers={**(made.headers or {}), subjects.MESSAGE_ID: f"{id}.{'0' * 16}"}))
    one.advance(1)
    assert one.outputs("out") == [{"text": "a", "answer": "yes"}]


def test_a_record_under_a_fresh_id_with_another_event_is_taken_with_the_calls_own(lab: MakeLab) -> None:
    one, request = asking(lab)
    assert request.record is not None
    other = unpack_event(request.record.event)._replace(data=b'{"text": "theirs"}')
    made = one.result(request, event=other.pack())
    id = (made.headers or {})[subjects.MESSAGE_ID]
    one.store(made._replace(headers={**(made.headers or {}), subjects.MESSAGE_ID: f"{id}.{'0' * 16}"}))
    one.advance(1)
    assert one.outputs("out") == [{"text": "a", "answer": "yes"}]


def test_a_record_that_was_asked_for_by_the_owner_before_is_believed(lab: MakeLab) -> None:
    one, request = asking(lab)
    one.kill()
    one.start("b")
    one.advance(8)
    one.store(one.result(request))
    one.advance(1)
    assert one.outputs("out") == [{"text": "a", "answer": "yes"}]
    assert len(one.requests()) == 1
