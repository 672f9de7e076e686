"""All operators that keep events at once: whichever commit an engine dies in, the next one gives what one engine would have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from engine_lab import Cut, Lab

from dspex.bus import subjects
from dspex.operators.stream import gather
from dspex.operators.topology import Topology

MakeLab = Callable[..., Lab]


def everything() -> Topology:
    topology = Topology("t")
    orders = topology.source("orders", time="at").dedupe("id", within="5s", name="once").key_by("k")
    asked = orders.predict("n: int -> answer", name="ask")
    gather(orders.set({"x": "n"}, name="x"), asked, within="60s", name="both").batch(3, within="4s", name="some").sink(
        "batches"
    )
    orders.throttle("4/s", name="slow").map(lambda d: d["n"], name="n").sink("slowly")
    orders.debounce("2s", name="calm").map(lambda d: d["n"], name="m").sink("last")
    other = topology.source("payments", time="at").key_by("k", name="payment_key")
    pairs = orders.join(other, within="1s", how="left", name="paid")
    pairs.map(lambda pair: [d and d["n"] for d in pair], name="p").sink("pairs")
    return topology


def publish(one: Lab) -> None:
    for n in range(12):
        at = f"2026-01-01T00:00:{n:02d}Z"
        one.publish("orders", {"id": f"i{n - n % 4 % 3}", "k": f"k{n % 2}", "n": n, "at": at})
        if n in (3, 4):
            one.publish("payments", {"k": f"k{n % 2}", "n": n, "at": at})


def ended(one: Lab) -> dict[str, list[Any]]:
    one.work()
    one.advance(45)
    assert one.left() == []
    assert one.letters() == []
    found = {subject: one.messages(subject) for subject in ("batches", "slowly", "last", "pairs")}
    for messages in found.values():
        assert len({m.headers[subjects.EVENT_ID] for m in messages}) == len(messages)
    outputs = {subject: one.outputs(subject) for subject in found}
    outputs["batches"] = sorted(item["n"] for batch in outputs["batches"] for item in batch)
    return {subject: sorted(values, key=str) for subject, values in outputs.items()}


def test_whichever_commit_an_engine_dies_in_nothing_is_lost_doubled_or_left(lab: MakeLab) -> None:  # P10
    straight = lab(everything())
    straight.start()
    publish(straight)
    expected = ended(straight)
    assert len(expected["slowly"]) == len(expected["batches"]) == 6
    assert any(pair[1] is None for pair in expected["pairs"])
    for at, landed in ((4, True), (11, False)):
        one = lab(everything())
        bus = Cut(one.server, at, landed)
        one.start("a", bus=bus)
        publish(one)
        one.kill("a")
        assert bus.cut.is_set()
        one.start("b")
        found = ended(one)
        # The clock goes on while no engine runs: what a burst had until then was the last of it for long enough.
        assert set(found["last"]) >= set(expected["last"])
        assert found | {"last": expected["last"]} == expected
        assert one.differences() == []
