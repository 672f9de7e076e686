"""The journal of a call is removed when the call is over, and not before."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from engine_lab import APP, Lab

from dspex import Retry, Topology, react
from dspex.bus import subjects
from dspex.bus.errors import ProgramError, RateLimited
from dspex.bus.memory.connection import MemoryBus
from dspex.bus.memory.server import MemoryServer
from dspex.bus.port import BusEvents, NewMessage
from dspex.bus.records import CallRequest

STREAM = subjects.requests(APP)


class Purging(MemoryBus):
    """The connection of an engine that notes what it removes."""

    def __init__(self, server: MemoryServer) -> None:
        super().__init__(server, BusEvents())
        self.removed: list[str] = []

    async def purge(self, stream: str, subject: str, *, below: int) -> None:
        self.removed.append(subject)
        await super().purge(stream, subject, below=below)


def topology() -> Topology:
    t = Topology("trips")
    agent = react("text -> reply", tools=["tools:look_up"], max_iters=3, retry=Retry(attempts=2, backoff="1m"))
    t.source("trips.asked").call(agent, name="agent").sink("trips.found")
    return t


@pytest.fixture
def lab() -> Iterator[Lab]:
    lab = Lab(topology())
    lab.start()
    lab.work()
    yield lab
    lab.close()


def journaling(lab: Lab, ends: list[Any]) -> None:
    """Each attempt leaves something in the journal of its call, and ends as the list says."""
    bus = lab.server.connect()

    def answer(inputs: dict[str, Any], work: CallRequest) -> dict[str, Any]:
        lab.loop.create_task(bus.publish(NewMessage(subjects.request(APP, "lightweight", work.call), b"a part")))
        end = ends.pop(0)
        if isinstance(end, Exception):
            raise end
        return {"reasoning": "", "reply": end}

    lab.answers["agent"] = answer


def left(lab: Lab) -> int:
    info = lab.run(lab.server.connect().stream(STREAM))
    return int(info.messages)


@pytest.mark.parametrize("end", ["found", ProgramError("a bug")])
def test_a_journal_goes_with_the_call_that_it_is_of(lab: Lab, end: Any) -> None:
    journaling(lab, [end])
    lab.publish("trips.asked", {"text": "a trip"})
    lab.advance(2.0)
    assert (len(lab.asked), left(lab)) == (1, 0)


def test_a_journal_stays_for_the_next_attempt(lab: Lab) -> None:
    journaling(lab, [RateLimited("slow down", retry_after=30.0), "found"])
    lab.publish("trips.asked", {"text": "a trip"})
    lab.advance(0.5)
    assert (len(lab.asked), left(lab)) == (1, 1)
    lab.advance(120.0)
    assert (len(lab.asked), left(lab)) == (2, 0)


@pytest.mark.parametrize(("requests", "questions"), [({}, 0), ({"made": 1}, 1)])
def test_a_call_that_made_no_request_costs_the_server_no_question_about_its_journal(
    requests: dict[str, int], questions: int
) -> None:
    lab = Lab(topology())
    bus = Purging(lab.server)
    lab.start(bus=bus)
    lab.publish("trips.asked", {"text": "a trip"})
    lab.advance(1.0)
    (request,) = lab.requests()
    lab.store(lab.result(request, outputs={"reasoning": "", "reply": "found"}, requests=requests))
    lab.advance(2.0)
    assert len(lab.messages("trips.found")) == 1
    assert len(bus.removed) == questions
    lab.close()
