"""What is held back while too much is open, and what never is: else nothing would ever close."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from engine_lab import Lab

from dspex.bus.errors import ProgramError
from dspex.bus.message import partition_of
from dspex.operators.topology import Topology

MakeLab = Callable[..., Lab]


def asking(**options: Any) -> Topology:
    topology = Topology("t")
    topology.source("in", **options).predict("n: int -> answer", name="ask", deadline="60s").sink("out")
    return topology


def opened(one: Lab) -> int:
    return sum(len(p.tables.calls.rows) for _, p in one.partitions())


def test_letters_that_are_redriven_are_admitted_as_events_of_a_source_are(lab: MakeLab) -> None:  # G1
    def fails(inputs: dict[str, Any], work: Any) -> dict[str, Any]:
        raise ProgramError("a bug")

    one = lab(asking())
    one.start(most_open_calls=2)
    one.answers["ask"] = fails
    one.work()
    for n in range(8):
        one.publish("in", {"n": n})
    one.advance(1)
    one.stop_workers()
    assert one.run(one.client.redrive(one.letters())) == 8
    one.advance(5)
    assert opened(one) == 2
    del one.answers["ask"]
    one.work()
    one.advance(5)
    assert sorted(o["n"] for o in one.outputs("out")) == list(range(8))


def test_the_ends_of_windows_wait_while_too_much_is_open_and_deadlines_do_not(lab: MakeLab) -> None:  # G2, G3
    topology = Topology("t")
    counted = topology.source("in", time="at").key_by("k").window("10s").count(name="w").map(lambda w: {"n": w.value}, name="n")
    counted.predict("n: int -> answer", name="ask", deadline="10s").sink("out")
    one = lab(topology)
    one.start(most_open_calls=1)
    keys = [key for n in range(2000) if partition_of(key := f"k{n}", 64) == 5][:4]
    for key in keys:
        one.publish("in", {"k": key, "at": "2025-01-01T00:00:01Z"})
    one.publish("in", {"k": keys[0], "at": "2025-01-01T00:00:30Z"})
    one.advance(2)
    assert sum(len(p.tables.keyed.rows) for _, p in one.partitions()) == 4  # open windows have held nothing back
    for n in range(4):
        assert (opened(one), len(one.letters())) == (1, n)
        one.advance(10.5)  # a deadline
    assert opened(one) == 1  # of the last window
    one.work()
    one.advance(2)
    assert [o["n"] for o in one.outputs("out")] == [1]


def test_a_partition_with_a_closed_gate_keeps_no_other_one_waiting(lab: MakeLab) -> None:  # G4
    one = lab(asking(partitions=2))
    one.start(most_open_calls=2)
    full, free = (next(key for key in "abcdef" if partition_of(key, 2) == p) for p in (0, 1))
    for n in range(50):
        one.publish("in", {"n": n}, key=full)
    one.publish("in", {"n": 50}, key=free)
    one.advance(1)
    assert sorted(request.inputs["n"] for request in one.requests()) == [0, 1, 50]
    one.work()
    one.advance(20)
    assert sorted(o["n"] for o in one.outputs("out")) == list(range(51))
