"""A server that is started again and takes less in one message than before: whatever was open goes on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from engine_lab import Lab

from dspex.bus.errors import ProgramError, RateLimited
from dspex.engine.client import letters
from dspex.operators.topology import Topology

MakeLab = Callable[..., Lab]
LARGE = "x" * 60_000


def holding() -> Topology:
    """Events that wait in an operator, behind a hop, for a person, for a call, and for its next try; and state of a key."""
    topology = Topology("holding")
    source = topology.source("in")
    asked, kept, people = source.branch("kind == 'call'", "kind == 'state'")
    asked.predict("text -> answer", name="ask", order="key", timeout="60s", deadline="2h").sink("answers")
    kept.key_by("key", name="by").reduce(lambda a, b: {**b, "text": a["text"] + b["text"]}, name="sum").sink("sums")
    people.approve(name="person").sink("approved")
    return topology


def answer(inputs: dict[str, Any], work: Any) -> Any:
    if inputs["text"].startswith("again") and work.try_number == 1:
        raise RateLimited("wait", retry_after=300.0)
    if inputs["text"].startswith("bad") and work.attempt == 1:
        raise ProgramError("cannot")
    return {"answer": inputs["text"]}


async def decided(one: Lab) -> None:
    async for approval in one.client.approvals():
        await one.client.decide(approval, "accept")


@pytest.mark.parametrize("stays", [False, True], ids=["started", "stays"])
@pytest.mark.parametrize("limit", [16_384, pytest.param(50_000, marks=pytest.mark.long)])
def test_what_was_open_when_the_servers_limit_was_lowered_comes_to_its_end(lab: MakeLab, limit: int, stays: bool) -> None:
    """For an engine that is started then, and for one that finds the server again."""
    one = lab(holding())
    one.answers["ask"] = answer
    one.start()
    one.work()
    for n in range(12):
        one.publish("in", {"kind": "state", "key": f"k{n % 2}", "text": LARGE})
    for start in ("again", "bad"):
        one.publish("in", {"kind": "call", "text": start + LARGE}, key=start)
    one.publish("in", {"kind": "person", "text": LARGE})
    one.advance(5)
    one.kill_workers()
    one.publish("in", {"kind": "call", "text": "waits" + LARGE}, key="waits")
    one.advance(5)
    assert (len(one.letters()), len(one.outputs("answers"))) == (1, 0)

    one.server.max_payload = limit
    one.client.bus.max_payload = limit  # type: ignore[misc]
    host, bus = one.hosts["a"]
    if stays:
        bus.max_payload = limit
    else:
        one.kill()
        host = one.start("b")
    one.work()
    for n in range(2):
        one.publish("in", {"kind": "state", "key": f"k{n % 2}", "text": LARGE})
    one.run(letters.redrive(one.client.bus, "lab", one.letters()))
    one.run(decided(one))
    one.advance(400)
    assert host.failure is None
    assert sorted(o["answer"][:5] for o in one.outputs("answers")) == ["again", "badxx", "waits"]
    assert [len(o["text"]) for o in one.outputs("sums")][-2:] == [7 * 60_000] * 2
    assert [o["text"] for o in one.outputs("approved")] == [LARGE]
    assert one.letters() == []
    assert not one.differences()
