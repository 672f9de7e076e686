"""What operators keep is sealed where payloads are: who reads the server reads none of it, and an engine goes on from it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
from engine_lab import APP, STREAM, Lab

from dspex.bus import subjects
from dspex.bus.errors import NotAllowed
from dspex.bus.memory.server import MemoryBus
from dspex.bus.port import BusEvents
from dspex.bus.serving.keys.keyring import Keyring
from dspex.engine.log import commit_log
from dspex.operators.topology import Topology

MakeLab = Callable[..., Lab]
CARD = "4929-1111-2222-3333"
ENVIRON = {"KEY": "0" * 64}


@pytest.fixture(autouse=True)
def _frequent_snapshots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commit_log, "LEAST", 3_000)


def remembered(state: list[str], data: Any, ctx: Any) -> tuple[list[str], Iterable[Any]]:
    return [*state[-9:], data["text"]], []


def counted(state: int, data: Any, ctx: Any) -> tuple[int, Iterable[Any]]:
    return state + 1, []


def keeping() -> Topology:
    """Operators that keep what they are given: in rows, in the names of timers, in the keys of hops."""
    topology = Topology("t")
    source = topology.source("in")
    keyed = source.key_by("k", name="by_k")
    keyed.stateful(remembered, init=list, name="seen").sink("out.seen")
    keyed.window("10m").collect(name="window").sink("out.windows")
    keyed.batch(1000, within="1h", name="batch").sink("out.batches")
    keyed.debounce("1h", name="last").sink("out.last")
    keyed.approve(name="ask").sink("out.approved")
    source.key_by("text", name="by_text").stateful(counted, init=int, ttl="9s", name="n").sink("out.n")
    source.dedupe("text", within="1h", name="once").sink("out.once")
    return topology


def sealed(one: Lab) -> MemoryBus:
    bus = one.server.connect()
    bus.sealing = Keyring(bus, APP, "KEY", ENVIRON)
    return bus


def running(lab: MakeLab) -> Lab:
    one = lab(keeping())
    one.client.bus.sealing = Keyring(one.client.bus, APP, "KEY", ENVIRON)
    one.start(bus=sealed(one))
    for number in range(60):
        one.publish("in", {"k": f"k{number % 3}", "text": f"{CARD} {number % 40}"})
        one.advance(0.2)
    return one


def test_nothing_that_operators_keep_is_stored_in_clear_text(lab: MakeLab) -> None:
    one = running(lab)
    stored = [m for stream in one.server.streams.values() for m in stream.messages.values()]
    assert not [m.subject for m in stored if CARD.encode() in m.data or CARD in str(m.headers)]
    assert len(one.outputs("out.once")) == 40
    kinds = {kind for kind in ("pieces", "snapshot") if any(f".{kind}" in m.subject for m in stored)}
    assert kinds == {"pieces", "snapshot"}
    assert any(CARD in str(row) for row in one.left())


def test_an_engine_goes_on_from_sealed_state_and_a_replay_gives_the_same(lab: MakeLab) -> None:
    one = running(lab)
    before = sorted(map(str, one.left()))
    one.kill()
    one.start("b", bus=sealed(one))
    one.advance(10)
    assert sorted(map(str, one.left())) == before
    one.publish("in", {"k": "k0", "text": f"{CARD} 1"})
    one.advance(1)
    assert len(one.outputs("out.once")) == 40
    assert one.run(one.client.state("seen", "k0"))[-1] == f"{CARD} 1"
    assert one.differences() == []


class Counting(MemoryBus):
    """A connection that counts what it asks the server for."""

    asked = 0

    async def scan(self, *args: Any, **options: Any) -> Any:
        self.asked += 1
        return await super().scan(*args, **options)

    async def get(self, *args: Any) -> Any:
        self.asked += 1
        return await super().get(*args)


def test_to_read_a_log_back_does_not_take_a_question_for_each_of_its_entries(lab: MakeLab) -> None:
    one = running(lab)
    one.kill()
    bus = Counting(one.server, BusEvents())
    bus.sealing = Keyring(bus, APP, "KEY", ENVIRON)
    one.start("b", bus=bus)
    one.advance(10)
    assert sum(".pieces" in m.subject for m in one.server.streams[STREAM].messages.values()) > 150
    assert bus.asked < 3 * len(list(one.partitions()))  # it was over 3.5, and there are few entries here


def test_who_has_no_key_is_told_so_and_status_works_without(lab: MakeLab) -> None:
    one = running(lab)
    one.client.bus.sealing = None
    with pytest.raises(NotAllowed, match="this process has no key"):
        one.run(one.client.state("seen", "k0"))
    one.kill()
    one.advance(60)
    assert [s["source"] for s in one.run(one.client.status())["stages"]] == ["in", "by_k", "by_text", "once/hop"]


def test_what_was_kept_in_clear_text_before_is_read_and_sealed_from_then_on(lab: MakeLab) -> None:
    one = lab(keeping())
    one.start()
    one.publish("in", {"k": "k0", "text": CARD})
    one.advance(1)
    one.kill()
    after = one.server.streams[STREAM].last
    one.client.bus.sealing = Keyring(one.client.bus, APP, "KEY", ENVIRON)
    one.start("b", bus=sealed(one))
    one.advance(5)
    one.publish("in", {"k": "k0", "text": f"{CARD} 2"})
    one.advance(1)
    assert one.run(one.client.state("seen", "k0")) == [CARD, f"{CARD} 2"]
    later = [m for sequence, m in one.server.streams[STREAM].messages.items() if sequence > after]
    assert not [m.subject for m in later if CARD.encode() in m.data]
    assert any(subjects.SEALED in m.headers for m in later)
