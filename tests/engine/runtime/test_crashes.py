"""Killed at any commit, and over a bus that fails: the same outputs as if nothing had happened."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from engine_lab import Cut, Lab, torn

from dspex.bus import subjects
from dspex.bus.errors import ProgramError, RateLimited, RetryLater
from dspex.bus.memory.server import Faults
from dspex.bus.port import NewMessage
from dspex.engine.testing.driver import Driver
from dspex.operators.topology import Topology

MakeLab = Callable[..., Lab]
pytestmark = pytest.mark.no_cover  # measured, it takes twice as long, and other tests run over the same lines


def everything() -> Topology:
    """Natives, a call in order, retries, dead letters, events run again, and many outputs of one event."""
    later: Counter[str] = Counter()

    def patient(data: Any, ctx: Any) -> Any:
        if data["n"] % 7 == 3 and (ctx.now.timestamp() - ctx.event.time.timestamp()) < 3:
            raise RetryLater(after=3.0)
        if data["n"] % 11 == 5:
            raise ValueError("bad event")
        later[ctx.event.id] += 1
        return data

    topology = Topology("everything")
    source = topology.source("in").map(patient, name="patient")
    source.flat_map(lambda d: [{"n": d["n"], "i": i} for i in range(100)], name="split").sink("many")
    source.map(lambda d: {**d, "text": str(d["n"])}, name="text").predict(
        "text -> answer", name="ask", order="key", timeout="5s", deadline="60s"
    ).sink("answers")
    return topology


def answer(inputs: dict[str, Any], work: Any) -> Any:
    n = int(inputs["text"])
    if n % 5 == 1 and work.try_number == 1:
        raise RateLimited("wait", retry_after=2.0)
    if n % 13 == 2:
        raise ProgramError("cannot")
    return {"answer": inputs["text"]}


def results(one: Lab) -> dict[str, Any]:
    """All that a user can see; order only where it is promised. Ids say when an event was stored: they are only counted."""
    seen: dict[str, Any] = {}
    for subject in ("many", "answers"):
        seen[subject] = sorted(m.data for m in one.messages(subject))
        assert len({m.headers[subjects.EVENT_ID] for m in one.messages(subject)}) == len(seen[subject])
    orders: dict[str, list[int]] = {}
    for m, o in zip(one.messages("answers"), one.outputs("answers"), strict=True):
        if o["n"] % 7 != 3:  # those were run again later
            orders.setdefault(m.headers[subjects.KEY], []).append(o["n"])
    seen["orders"] = orders
    seen["letters"] = sorted((letter.event.data["n"], letter.node) for letter in one.letters())
    return seen


def publish(one: Lab, numbers: range) -> None:
    for n in numbers:
        one.publish("in", {"n": n}, id=f"event-{n}", key=f"k{n % 3}")


@pytest.fixture(scope="module")
def undisturbed() -> dict[str, Any]:
    one = Lab(everything())
    one.answers["ask"] = answer
    one.start()
    one.work()
    publish(one, range(20))
    one.advance(30)
    seen = results(one)
    one.close()
    assert len(seen["many"]) == 100 * 18
    assert [n for n, _ in seen["letters"]] == [2, 5, 15, 16]
    return seen


@pytest.mark.parametrize("landed", [True, False], ids=["landed", "lost"])
@pytest.mark.parametrize("at", [*range(1, 13), 16])
def test_killed_at_any_commit_gives_the_same_outputs(lab: MakeLab, undisturbed: dict[str, Any], at: int, landed: bool) -> None:
    one = lab(everything())
    one.answers["ask"] = answer
    one.start()  # makes the stream
    one.drain()
    bus = Cut(one.server, at, landed)
    one.start(bus=bus)
    one.work()
    publish(one, range(10))
    one.advance(3)
    one.kill()
    one.start()
    publish(one, range(10, 20))
    one.advance(40)
    seen = results(one)
    assert bus.cut.is_set() or at >= 16
    assert seen == undisturbed


@pytest.mark.parametrize("seed", range(6))
def test_a_bus_that_fails_and_repeats_itself_changes_nothing(lab: MakeLab, undisturbed: dict[str, Any], seed: int) -> None:
    one = lab(everything(), seed=seed)
    one.answers["ask"] = answer
    one.start()
    one.work()
    one.server.luck.faults = Faults(disconnect=0.02, unsettled=0.1, duplicate=0.2, delay=0.02)
    publish(one, range(20))
    one.advance(60)
    one.server.luck.faults = Faults()
    one.advance(60)
    seen = results(one)
    assert seen["many"] == undisturbed["many"]
    assert seen["letters"] == undisturbed["letters"]
    assert seen["answers"] == undisturbed["answers"]


class Torn(Cut):
    """A server that stores a part of a commit and answers nobody, as one without room or power does."""

    async def commit(self, drafts: Sequence[NewMessage], *, timeout: float = 5.0) -> int:
        if self.left == 1:
            await torn(self, self.server, drafts[: len(drafts) // 2])
        return await super().commit(drafts, timeout=timeout)


@pytest.mark.parametrize("at", range(2, 10))
def test_what_a_torn_commit_left_is_removed_by_the_next_claim(lab: MakeLab, undisturbed: dict[str, Any], at: int) -> None:
    one = lab(everything())
    one.answers["ask"] = answer
    one.start()
    one.drain()
    server = Torn(one.server, at, landed=False)
    one.start(bus=server)
    publish(one, range(10))
    one.advance(3)
    one.kill()
    one.start(bus=Cut(one.server, 1, landed=True))  # claims, and dies before it could look
    one.advance(1)
    one.kill()
    one.start()
    one.work()
    publish(one, range(10, 20))
    one.advance(40)
    assert results(one) == undisturbed


def test_a_recovered_engine_asks_no_model_again() -> None:
    topology = Topology("asked")
    topology.source("in").predict("text -> answer", name="ask").sink("out")
    with Driver(topology) as d:
        d.answer("ask", {"answer": "yes"}, after="3s")
        for n in range(5):
            d.publish("in", {"text": str(n)})
            d.crash()
        d.advance("10s")
        d.crash()
        assert len(d.calls("ask")) == 5
        assert len(d.outputs("out")) == 5


def test_workers_that_die_are_followed_by_others() -> None:
    topology = Topology("asked")
    topology.source("in").predict("text -> answer", name="ask").sink("out")
    with Driver(topology) as d:
        d.answer("ask", {"answer": "yes"}, after="3s")
        d.publish("in", {"text": "a"})
        d.advance("1s")
        d.crash("all")
        d.advance("30s")
        assert len(d.outputs("out")) == 1


def test_a_part_of_the_engine_that_fails_ends_the_engine() -> None:
    """Nothing dies in silence: a bug below a pump is raised by whoever waits for the engine."""
    one = Lab(everything())
    host = one.start()
    p = host.runners[0].partitions[0]
    p.take_in = None  # type: ignore[assignment, method-assign]
    one.publish("in", {"n": 0})
    with pytest.raises(TypeError):
        one.advance(1)
    with pytest.raises(TypeError):
        one.run(host.wait())
    one.hosts.clear()
    one.close()
