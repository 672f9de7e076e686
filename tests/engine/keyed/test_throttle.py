"""throttle and debounce: events wait on the clock of the engine, hold the watermark, and survive it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from engine_lab import Lab
from pydantic import BaseModel

from dspex.bus.message import Message
from dspex.engine.testing.driver import Driver
from dspex.operators.stream import AnyStream, gather
from dspex.operators.topology import Topology

MakeLab = Callable[..., Lab]


class Typed(BaseModel):
    n: int


def throttled(rate: str, *, keyed: bool = False, partitions: int = 1, burst: int = 1) -> Topology:
    topology = Topology("t")
    s = topology.source("in", partitions=partitions)
    (s.key_by("k").throttle(rate, burst=burst, name="slow") if keyed else s.throttle(rate, burst=burst, name="slow")).sink(
        "out"
    )
    return topology


def most_within(messages: list[Message], seconds: float) -> int:
    times = [m.time for m in messages]
    return max(sum(1 for t in times if at <= t < at + seconds) for at in times)


def test_a_rate_is_that_of_the_whole_stream_and_order_outlives_the_engine(lab: MakeLab) -> None:  # I13, P18
    one = lab(throttled("10/s", partitions=4))
    one.start()
    for n in range(40):
        one.publish("in", {"n": n}, key=f"k{n}")
    one.advance(1.5)
    one.kill()
    one.start("b")
    one.advance(10)
    messages = one.messages("out")
    assert sorted(d["n"] for d in one.outputs("out")) == list(range(40))
    assert most_within(messages, 0.999) <= 11  # commits of two releases may have one time of the server
    assert one.left() == []
    assert one.differences() == []


def test_each_key_has_a_rate_of_its_own_and_its_order() -> None:
    with Driver(throttled("1/s", keyed=True)) as d:
        for n in range(8):
            d.publish("in", {"k": f"k{n % 2}", "n": n})
        assert [o["n"] for o in d.outputs("out")] == [0, 1]
        d.advance("1s")
        assert sorted(o["n"] for o in d.outputs("out")) == [0, 1, 2, 3]
        d.advance("5s")
        for key in ("k0", "k1"):
            mine = [o["n"] for o in d.outputs("out") if o["k"] == key]
            assert mine == sorted(mine)
            assert len(mine) == 4


def test_a_burst_goes_on_at_once_and_after_silence_again() -> None:
    with Driver(throttled("1/s", burst=3)) as d:
        for before in (0, 4):
            for _ in range(4):
                d.publish("in", {})
            assert len(d.outputs("out")) == before + 3
            d.advance("5s")
            assert len(d.outputs("out")) == before + 4


def test_a_rate_far_above_the_ticks_of_the_clock_is_kept() -> None:
    with Driver(throttled("50/s")) as d:
        for n in range(60):
            d.publish("in", {"n": n})
        d.advance("1s")
        assert 50 <= len(d.outputs("out")) <= 52


@pytest.mark.parametrize("rate", ["", "10", "10/", "0/s", "-1/s", "10/w", "1e3/s", 10, None])
def test_what_is_no_rate_is_refused_with_an_example(rate: Any) -> None:
    (problem,) = [p for p in throttled(rate).check() if p.level == "error"]
    assert problem.code == "DX205"
    assert '"10/s"' in problem.fix


def bouncing() -> Topology:
    topology = Topology("t")
    topology.source("in").key_by("k").debounce("5s", name="calm").predict("n: int -> answer", name="ask").sink("out")
    return topology


def test_one_call_is_made_for_the_last_event_of_a_burst() -> None:
    with Driver(bouncing()) as d:
        d.answer("ask", {"answer": "yes"})
        for n in range(6):
            d.publish("in", {"k": "a", "n": n})
            d.advance("4s")
        d.publish("in", {"k": "b", "n": 9})
        d.crash()
        assert d.calls("ask") == []
        d.advance("6s")
        assert sorted(o["n"] for o in d.outputs("out")) == [5, 9]
        assert len(d.calls("ask")) == 2


def test_the_last_event_of_a_burst_stays_of_its_run_and_nothing_of_it_is_left(lab: MakeLab) -> None:
    one = lab(bouncing())
    one.start()
    one.work()
    runs = [one.publish("in", {"k": "a", "n": n}) for n in range(3)]
    one.advance(10)
    (message,) = one.messages("out")
    assert message.headers["Dspex-Run"] == runs[-1]
    assert one.left() == []
    assert one.differences() == []


def test_data_of_a_type_has_it_behind_whether_it_waited_or_not() -> None:
    topology = Topology("t")
    typed = topology.source("in").key_by("k").validate(Typed).throttle("1/s", name="slow")
    typed.batch(2, within="1m", name="b").map(lambda data: [m.n + 1 for m in data], name="sum").sink("out")
    with Driver(topology) as d:
        d.publish("in", {"k": "a", "n": 1})
        d.publish("in", {"k": "a", "n": 2})
        d.advance("2s")
        assert d.outputs("out") == [[2, 3]]


def asked_twice(s: AnyStream) -> AnyStream:
    keyed = s.key_by("k")
    asked = [keyed.predict("k -> x", name="x", fallback={"x": ""}), keyed.predict("k -> y", name="y", fallback={"y": ""})]
    return gather(*asked, within="1m", name="both")


@pytest.mark.parametrize(
    ("waits", "counts"),
    [
        (lambda s: s.key_by("k").throttle("1/s", name="slow"), [5]),
        (lambda s: s.throttle("1/s", name="slow").key_by("k"), [5]),
        (lambda s: s.key_by("k").batch(3, within="5s", name="some").filter("len(it) < 3", name="small"), [1]),
        (lambda s: s.key_by("k").join(s.key_by("k + 'x'", name="none"), within="2s", how="left", name="alone"), [5]),
        (asked_twice, [5]),
    ],
    ids=["throttle", "throttle of a stream", "batch", "left join", "gather of calls"],
)
def test_what_waits_is_not_late_for_a_window_behind_it(waits: Callable[[AnyStream], AnyStream], counts: list[int]) -> None:
    topology = Topology("t")
    waits(topology.source("in", time="at")).window("5s").count(name="count").sink("out")
    with Driver(topology) as d:
        d.answer("x", {"x": "1"}, after="7s") if topology.graph.calls else None
        d.answer("y", {"y": "1"}, after="2s") if topology.graph.calls else None
        for n in range(5):
            d.publish("in", {"k": "a", "at": f"2026-01-01T00:00:{n:02d}Z"})
        d.publish("in", {"k": "z", "at": "2026-01-01T00:01:00Z"})
        d.advance("9s")
        assert [o["value"] for o in d.outputs("out")] == counts
