"""`publish(at=, after=)`: an event is stored at once and taken when its time has come, once, whatever happens in between."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from engine_lab import APP, SOURCES, Cut, Lab

from dspex.bus import subjects
from dspex.bus.codecs.times import MOST_AHEAD
from dspex.bus.errors import ConfigError, DspexError, RetryLater
from dspex.bus.port import NewMessage
from dspex.bus.serving import payloads
from dspex.engine.client.status.health import faults
from dspex.engine.replay.partition import PartitionReplay
from dspex.engine.runtime.walk.compile import compile_stage
from dspex.engine.testing.driver import Driver
from dspex.operators.topology import Topology

MakeLab = Callable[..., Lab]


def plain(name: str = "plain") -> Topology:
    topology = Topology(name)
    topology.source("in").map(lambda d: d, name="same").sink("out")
    return topology


def now(one: Lab) -> datetime:
    async def clock() -> float:
        return one.server.now

    return datetime.fromtimestamp(one.run(clock()), tz=UTC)


def status(one: Lab, run: str) -> str:
    async def info() -> str:
        return (await one.client.run(run).info()).status

    return str(one.run(info()))


def header(one: Lab, text: str) -> None:
    """An event of any publisher, with this header."""
    one.store(NewMessage("in", b"{}", {subjects.AT: text}))


def test_an_event_waits_for_its_time_which_is_its_event_time_and_holds_up_no_other() -> None:
    topology = Topology("timed")
    topology.source("in").map(lambda d, ctx: {**d, "time": ctx.event.time.isoformat()}).sink("out")
    with Driver(topology) as d:
        d.publish("in", {"n": 1}, after="1m", key="k")
        d.publish("in", {"n": 2}, key="k")
        assert [o["n"] for o in d.outputs("out")] == [2]
        d.advance("59s")
        assert len(d.outputs("out")) == 1
        d.advance("2s")
        assert [o["n"] for o in d.outputs("out")] == [2, 1]
        waited, other = d.events("in")
        assert timedelta(seconds=59) < waited.time - other.time <= timedelta(minutes=1)
        assert d.outputs("out")[1]["time"] == waited.time.isoformat()


@pytest.mark.parametrize("landed", [True, False])
@pytest.mark.parametrize("commit", [1, 2, 3])
def test_an_engine_that_dies_at_any_commit_takes_what_waited_once(lab: MakeLab, commit: int, landed: bool) -> None:
    one = lab(plain())
    one.start(bus=(cut := Cut(one.server, commit, landed)))
    one.publish("in", {"n": 1}, after="3s")
    one.publish("in", {"n": 2})
    one.advance(4)
    assert cut.cut.is_set()
    one.kill()
    one.start("b")
    one.advance(10)
    assert sorted(o["n"] for o in one.outputs("out")) == [1, 2]


def test_a_run_that_waits_is_not_done_and_an_engine_that_dies_meanwhile_forgets_nothing(lab: MakeLab) -> None:
    one = lab(topology := plain())
    one.start()
    run = one.publish("in", {"n": 1}, at=now(one) + timedelta(seconds=30))
    one.publish("in", {"n": 2}, at=now(one) - timedelta(days=1))
    assert status(one, run) == "running"
    for name in ("b", "c", "d"):
        one.kill(next(iter(one.hosts)))
        one.start(name)
        one.advance(7)
    assert one.outputs("out") == [{"n": 2}]
    one.advance(10)
    assert one.outputs("out") == [{"n": 2}, {"n": 1}]
    assert status(one, run) == "done"
    (source,) = topology.graph.sources
    stage, bus = compile_stage(topology.graph, source, "s1"), one.client.bus
    replay = PartitionReplay(bus, APP, stage, SOURCES, 0, 1, payloads.most(bus))

    async def differences() -> list[Any]:
        return [d async for d in replay.differences()]

    assert one.run(differences()) == []


def test_what_waited_may_ask_to_be_processed_later_and_fail_like_any_other() -> None:
    tries: list[int] = []

    def picky(data: Any) -> Any:
        tries.append(data["n"])
        if len(tries) == 1:
            raise RetryLater("not yet", after=60)
        raise ValueError("a bug")

    topology = Topology("picky")
    topology.source("in").map(picky, name="picky").sink("out")
    with Driver(topology) as d:
        d.publish("in", {"n": 7}, after="10s")
        d.advance("11s")
        assert tries == [7]
        d.advance("1m")
        (letter,) = d.dead_letters()
        assert (letter.node, letter.event.data, tries) == ("picky", {"n": 7}, [7, 7])
        d.redrive()
        assert tries == [7, 7, 7], "a letter waits for no time any more"
        assert len(d.dead_letters()) == 1


@pytest.mark.parametrize(
    "text",
    [
        "tomorrow",
        "",
        "+",
        "+-5",
        "+nan",
        "+inf",
        "+1e400",
        "2099-01-01T00:00:00Z",
        "0001-01-01T00:00:00+14:00",
        f"+{MOST_AHEAD + 1}",
    ],
)
def test_a_header_that_says_no_time_makes_a_dead_letter_that_can_be_run(lab: MakeLab, text: str) -> None:
    one = lab(plain())
    one.start()
    header(one, text)
    header(one, "+0")
    (letter,) = one.letters()
    assert (letter.node, letter.reason) == ("in", "DecodeError")
    assert subjects.AT in letter.message
    assert one.outputs("out") == [{}]
    one.run(one.client.redrive([letter]))
    one.advance(1)
    assert one.outputs("out") == [{}, {}]


def test_events_that_wait_close_the_gate_and_status_says_who_holds_it(lab: MakeLab) -> None:  # G2
    one = lab(plain())
    one.start(most_open_calls=3)
    for n in range(3):
        one.publish("in", {"n": n}, after="20s")
    one.publish("in", {"n": "now"})
    one.advance(1.5)
    found = one.run(one.client.status())
    (stage,) = found["stages"]
    assert (stage["put_off"], stage["full"], stage["lag"], stage["stopped"]) == (3, 1, 1, None)
    assert [f.message for f in faults(found) if f.check == "stage"] == [
        "plain/s1: 1 of 1 partitions admit no event: 3 events wait for their time"
    ]
    one.advance(20)
    assert {o["n"] for o in one.outputs("out")} == {0, 1, 2, "now"}
    (stage,) = one.run(one.client.status())["stages"]
    assert (stage["put_off"], stage["full"], stage["lag"]) == (0, 0, 0)


def test_an_event_that_waits_holds_the_watermark_at_its_time_from_then_on(lab: MakeLab) -> None:
    """Else what comes at its time would be late behind events that came at once."""
    one = lab(plain())
    host = one.start()
    at = now(one) + timedelta(hours=5)
    one.publish("in", {"n": 1}, at=at)
    (p,) = host.runners[0].partitions.values()
    hold, time = p.tables.hold, at.timestamp()
    assert (hold("in", time - 1), hold("in", time + 60), hold("in", time + 7200)) == (time, time, float("inf"))


@pytest.mark.parametrize(
    ("times", "why"),
    [
        ({"at": datetime(2026, 1, 1), "after": 1}, "one time"),
        ({"time": datetime(2026, 1, 1), "after": 1}, "one time"),
        ({"after": "367d"}, "at most 366 days"),
        ({"after": "soon"}, "is not a duration"),
        ({"headers": {"Dspex-At": "+1"}}, "is set by dspex"),
    ],
)
def test_times_that_cannot_be_are_refused(lab: MakeLab, times: dict[str, Any], why: str) -> None:
    one = lab(plain())
    with pytest.raises(DspexError, match=why) as e:
        one.run(one.client.publish("in", {}, **times))
    assert isinstance(e.value, ConfigError)
    assert e.value.fix


@pytest.mark.parametrize("which", ["time", "at"])
def test_a_time_that_is_no_datetime_is_refused(lab: MakeLab, which: str) -> None:
    one = lab(plain())
    one.start()
    times: dict[str, Any] = {which: "2026-01-31T09:00:00Z"}
    with pytest.raises(ConfigError, match="is no datetime"):
        one.run(one.client.publish("in", {}, **times))
