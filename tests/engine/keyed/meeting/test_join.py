"""join and lookup: each pair once, in event time; whoever finds none says so; and nothing is left."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from engine_lab import APP, Lab

from dspex.bus import subjects
from dspex.engine.client.status import state
from dspex.engine.client.status.state import KeyState
from dspex.engine.hosting.delete import delete
from dspex.engine.testing.driver import Driver
from dspex.operators.topology import Topology

MakeLab = Callable[..., Lab]


def at(seconds: float) -> str:
    return datetime.fromtimestamp(1_767_225_600 + seconds, tz=UTC).isoformat()


def joining(how: str = "inner", within: str = "10s") -> Topology:
    topology = Topology("t")
    orders = topology.source("orders", time="at").key_by("k", name="order_key")
    payments = topology.source("payments", time="at").key_by("k", name="payment_key")
    pairs = orders.join(payments, within=within, how=how, name="paid")  # type: ignore[call-overload]
    pairs.map(lambda pair, ctx: [*(d and d["n"] for d in pair), ctx.event.time.timestamp() - 1_767_225_600], name="n").sink(
        "out"
    )
    return topology


def send(one: Any, side: str, n: int, seconds: float, key: str = "a") -> str:
    return str(one.publish(side, {"k": key, "n": n, "at": at(seconds)}))


def test_each_pair_comes_once_with_the_later_time_whichever_was_first() -> None:
    with Driver(joining()) as d:
        send(d, "orders", 1, 0)
        send(d, "orders", 2, 5)
        send(d, "payments", 10, 8)
        d.crash()
        send(d, "payments", 11, 15)
        send(d, "orders", 3, 18)
        send(d, "payments", 12, 18, key="b")
        assert sorted(d.outputs("out")) == [[1, 10, 8], [2, 10, 8], [2, 11, 15], [3, 10, 18], [3, 11, 18]]


def test_whoever_found_none_goes_on_once_none_can_follow_any_more() -> None:
    with Driver(joining("left")) as d:
        send(d, "orders", 1, 0)
        send(d, "orders", 2, 5)
        send(d, "payments", 10, 14)
        send(d, "orders", 9, 14, key="b")
        assert d.outputs("out") == [[2, 10, 14]]  # the order at 0 may still find one at 10
        d.crash()
        send(d, "orders", 3, 30, key="c")
        send(d, "payments", 11, 30, key="d")
        d.advance("1s")
        assert sorted(d.outputs("out")[1:]) == [[1, None, 0], [9, None, 14]]
        d.advance("60s")
        assert sorted(d.outputs("out")[3:]) == [[3, None, 30]]


def test_an_event_that_comes_behind_the_watermark_finds_all_that_it_would_have_found() -> None:
    with Driver(joining()) as d:
        send(d, "payments", 10, 0)
        send(d, "orders", 1, 15, key="b")
        send(d, "payments", 11, 15, key="b")
        d.advance("1s")
        send(d, "orders", 2, 7)  # 8 s behind
        d.advance("1s")
        assert sorted(d.outputs("out")) == [[1, 11, 15], [2, 10, 7]]


def test_an_event_so_late_that_it_may_miss_others_is_a_letter() -> None:
    with Driver(joining()) as d:
        send(d, "orders", 1, 0)
        for side in ("orders", "payments"):
            send(d, side, 1, 100)
        d.advance("1s")
        send(d, "orders", 2, 70)
        (letter,) = d.dead_letters()
        assert (letter.node, letter.code) == ("paid", "DX504")


def test_nothing_is_left_of_a_join_and_its_log_replays_as_it_was(lab: MakeLab) -> None:
    one = lab(joining("left"))
    one.start()
    for n in range(8):
        send(one, "orders" if n % 3 else "payments", n, n * 3, key=f"k{n % 2}")
    one.kill()
    one.start("b")
    one.advance(65)  # of silence
    assert one.left() == []
    assert one.differences() == []
    assert len({m.headers[subjects.EVENT_ID] for m in one.messages("out")}) == len(one.outputs("out"))


def test_what_is_unpaired_is_not_late_for_what_counts_behind_the_join() -> None:
    topology = Topology("t")
    a, b = (topology.source(s, time="at").key_by("k", name=f"{s}_key") for s in ("a", "b"))
    again = a.join(b, within="10s", how="left", name="first").map(lambda pair: pair[0], name="order")
    again.join(again.filter("n > 100", name="none"), within="5s", how="left", name="second").sink("out")
    with Driver(topology) as d:
        send(d, "a", 1, 0)
        for side in ("a", "b"):
            send(d, side, 2, 12, key="z")
        d.advance("80s")
        assert sorted(o[0]["n"] for o in d.outputs("out")) == [1, 2]


def test_join_takes_two_streams() -> None:
    topology = Topology("t")
    a, b, c = (topology.source(s).key_by("k", name=f"{s}_key") for s in "abc")
    a.join(b, c, within="1s", name="j").sink("out")  # type: ignore[call-overload]
    (problem,) = [p for p in topology.check() if p.level == "error"]
    assert (problem.code, problem.message) == ("DX204", "join takes two streams, and was given 3")


def looking(**options: Any) -> Topology:
    topology = Topology("t")
    customers = topology.source("customers").key_by("k", name="customer_key")
    orders = topology.source("orders").key_by("k", name="order_key")
    orders.lookup(customers, name="of", **options).map(lambda p: [p[0]["n"], p[1] and p[1]["n"]], name="n").sink("out")
    return topology


def test_an_event_has_the_latest_value_of_its_key() -> None:
    with Driver(looking()) as d:
        d.publish("orders", {"k": "a", "n": 1})
        d.publish("customers", {"k": "a", "n": 10})
        d.publish("customers", {"k": "a", "n": 11})
        d.crash()
        d.publish("orders", {"k": "a", "n": 2})
        d.publish("orders", {"k": "b", "n": 3})
        assert d.outputs("out") == [[1, None], [2, 11], [3, None]]


def test_a_table_is_read_to_its_end_before_the_first_event_is_looked_up(lab: MakeLab) -> None:  # E21
    one = lab(looking())
    one.start()
    one.kill()  # its streams are there
    for n in range(600):
        one.publish("customers", {"k": f"k{n % 50}", "n": n})
    for n in range(50):
        one.publish("orders", {"k": f"k{n}", "n": n})
    one.start("b")
    one.advance(10)
    assert sorted(one.outputs("out")) == [[n, 550 + n] for n in range(50)]
    assert one.differences() == []


def test_a_table_is_read_again_where_an_engine_of_a_deleted_topology_had_read_it(lab: MakeLab) -> None:
    other = Topology("other")  # else all that says how far it was read would be deleted, too
    other.source("in").sink("out.other")
    one = lab(looking(), other)
    one.start()
    for n in range(10):
        one.publish("customers", {"k": f"k{n}", "n": n})
    one.publish("orders", {"k": "k9", "n": 0})
    one.advance(1)
    one.kill()
    one.advance(11)
    one.run(delete(one.client.bus, APP, "t"))
    one.start("b", most_arrivals=1)
    one.advance(5)
    assert one.outputs("out") == [[0, 9], [0, 9]]


@pytest.mark.parametrize("options", [{"ttl": "5s"}, {}])
def test_a_value_is_forgotten_by_none_and_after_its_time_in_whatever_order_they_come(lab: MakeLab, options: Any) -> None:  # P3
    topology = Topology("t")
    customers = topology.source("customers", idle="1s").key_by("event.key", name="customer_key").map(lambda d: d["v"], name="v")
    topology.source("orders", idle="1s").key_by("k", name="order_key").lookup(customers, name="of", **options).sink("out")
    one = lab(topology)
    one.start()

    def change(key: str, value: int | None, seconds: float) -> None:
        one.publish("customers", {"v": value}, key=key, time=datetime(2001, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds))

    def found(keys: str) -> list[int | None]:
        for key in keys:
            one.publish("orders", {"k": key}, time=datetime(2001, 1, 1, tzinfo=UTC))
        one.advance(1)
        return [value for _, value in one.outputs("out")[-len(keys) :]]

    for key, value, seconds in (("a", 1, 0), ("b", 2, 0), ("b", None, 3), ("b", 3, 2), ("c", None, 1), ("c", 4, 0)):
        change(key, value, seconds)
    assert found("abc") == [1, None, None]
    assert [s.key for s in one.run(kept_of(one))] == ["a"]
    change("c", 5, 3)
    assert found("c") == [5]
    for source in ("customers", "orders"):
        one.publish(source, {"k": "d", "v": 6}, key="d")  # now, which is much later
    one.advance(2)
    assert found("abcd") == ([None, None, None, 6] if options else [1, None, 5, 6])
    one.advance(10)
    assert len(one.left()) == (0 if options else 3)
    assert one.differences() == []


async def kept_of(one: Lab) -> list[KeyState]:
    return await state.listing(one.client.bus, APP, "of")


def test_yaml_and_python_give_the_same_join_and_lookup(tmp_path: Any) -> None:
    text = """
dspex: 1
topology: t
sources: { a: {}, b: {} }
nodes:
  ka: { from: a, key_by: k }
  kb: { from: b, key_by: k }
  pairs: { from: [ka, kb], join: {}, within: 10s, how: left }
  known: { from: [ka, kb], lookup: {}, ttl: 5s }
sinks: { out: { from: pairs }, other: { from: known } }
"""
    (tmp_path / "t.yaml").write_text(text)
    loaded = Topology.load(str(tmp_path / "t.yaml"))
    topology = Topology("t")
    a, b = (topology.source(s).key_by("k", name=f"k{s}") for s in ("a", "b"))
    a.join(b, within="10s", how="left", name="pairs").sink("out")
    a.lookup(b, ttl="5s", name="known").sink("other")
    assert loaded.digest == topology.digest
    (tmp_path / "again.yaml").write_text(topology.to_yaml())
    assert Topology.load(str(tmp_path / "again.yaml")).digest == topology.digest
