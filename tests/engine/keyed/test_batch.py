"""batch: full ones, or what has come within a time; none of it early, none of it lost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from engine_lab import Lab

from dspex.engine.testing.driver import Driver
from dspex.operators.topology import Topology

MakeLab = Callable[..., Lab]


def batching(*, keyed: bool = True, size: int = 3, fails: list[bool] | None = None) -> Topology:
    def check(items: list[Any]) -> list[Any]:
        if fails:
            raise ValueError("not yet")
        return items

    topology = Topology("t")
    s = topology.source("in")
    batched = s.key_by("k").batch(size, within="10s", name="b") if keyed else s.batch(size, within="10s", name="b")
    batched.map(check, name="check").sink("out")
    return topology


def numbers(outputs: list[Any]) -> list[list[int]]:
    return [[item["n"] for item in batch] for batch in outputs]


def test_a_batch_is_full_or_as_old_as_it_may_be_and_never_goes_before() -> None:  # P3
    with Driver(batching()) as d:
        for n in range(5):
            d.publish("in", {"k": "a", "n": n})
        d.publish("in", {"k": "b", "n": 9})
        assert numbers(d.outputs("out")) == [[0, 1, 2]]
        d.advance("9s")
        assert numbers(d.outputs("out")) == [[0, 1, 2]]
        d.crash()
        d.advance("2s")
        assert sorted(numbers(d.outputs("out"))) == [[0, 1, 2], [3, 4], [9]]


def test_a_stream_without_keys_has_batches_of_a_partition_whatever_keys_its_events_have() -> None:
    with Driver(batching(keyed=False)) as d:
        for n in range(4):
            d.publish("in", {"n": n}, key=f"k{n}")
        d.advance("11s")
        assert numbers(d.outputs("out")) == [[0, 1, 2], [3]]
        assert [e.key for e in d.events("out")] == [None, None]


def test_many_events_at_once_make_full_batches_in_their_order_and_leave_nothing(lab: MakeLab) -> None:  # N10
    one = lab(batching(size=4))
    one.start()
    one.kill()
    for n in range(30):
        one.publish("in", {"k": f"k{n % 2}", "n": n})
    one.start("b")
    one.advance(30)
    found = numbers(one.outputs("out"))
    for key in (0, 1):
        mine = [batch for batch in found if batch[0] % 2 == key]
        assert [len(batch) for batch in mine] == [4, 4, 4, 3]
        assert [n for batch in mine for n in batch] == list(range(key, 30, 2))
    assert one.left() == []
    assert one.differences() == []


def test_a_batch_that_fails_is_a_letter_with_all_of_it_and_keeps_the_next_ones_not_back() -> None:
    fails = [True]
    with Driver(batching(fails=fails)) as d:
        for n in range(3):
            d.publish("in", {"k": "a", "n": n})
        (letter,) = d.dead_letters()
        assert numbers([letter.event.data]) == [[0, 1, 2]]
        fails.clear()
        for n in range(3, 6):
            d.publish("in", {"k": "a", "n": n})
        d.redrive()
        assert numbers(d.outputs("out")) == [[3, 4, 5], [0, 1, 2]]


def test_a_batch_has_the_time_of_its_latest_event_and_a_run_of_its_own() -> None:
    topology = Topology("t")
    batched = topology.source("in", time="at").key_by("k").batch(2, within="10s", name="b")
    batched.map(lambda data, ctx: ctx.event.time.second, name="time").sink("out")
    with Driver(topology) as d:
        runs = [d.publish("in", {"k": "a", "at": f"2026-01-01T00:00:0{n}Z"}) for n in (5, 3)]
        (event,) = d.events("out")
        assert event.data == 5
        assert event.run not in runs


def test_what_waits_can_be_written_in_yaml_and_read_back(tmp_path: Any) -> None:
    topology = Topology("t")
    s = topology.source("in")
    s.batch(10, within="5s", name="ten").sink("tens")
    s.throttle("10/m", burst=2, name="slow").key_by("k").debounce("1m", name="calm").sink("calm.out")
    text = topology.to_yaml()
    assert "throttle: 10/m, burst: 2" in text
    (tmp_path / "t.yaml").write_text(text)
    assert Topology.load(str(tmp_path / "t.yaml")).digest == topology.digest
