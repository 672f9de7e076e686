"""Late events: letters by default, which are redriven only with a time at which they are in time. And owners that come late."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from engine_lab import Lab

from dspex.bus.errors import RunError
from dspex.engine.log.commit_log import CommitLog
from dspex.engine.log.entries import LogAddress
from dspex.engine.log.latest import latest
from dspex.engine.testing.driver import Driver
from dspex.operators.topology import Topology

START = datetime(2026, 1, 1, tzinfo=UTC)


def test_a_late_event_is_redriven_with_a_new_time_only() -> None:  # P19, E14: it is late by default, and nothing is lost unsaid
    topology = Topology("t")
    topology.source("in").key_by("k").window("1m").count(name="w").sink("out")
    with Driver(topology) as d:
        d.publish("in", {"k": "a"}, at=START + timedelta(seconds=61))
        d.publish("in", {"k": "a"}, at=START + timedelta(seconds=130))
        d.advance("1s")
        for _ in range(2):
            d.publish("in", {"k": "a"}, at=START)
        assert [letter.reason for letter in d.dead_letters()] == ["LateEvent", "LateEvent"]
        with pytest.raises(RunError, match="would be late again") as refused:
            d.redrive()
        assert (refused.value.code, "--time now" in refused.value.fix) == ("DX625", True)
        assert len(d.dead_letters()) == 2
        assert d.redrive(time=START + timedelta(seconds=125)) == 2
        d.publish("in", {"k": "a"}, at=START + timedelta(seconds=70))
        d.advance("3m")
        assert [w["value"] for w in d.outputs("out")] == [1, 3]
        assert d.redrive(time="now") == 1
        d.advance("3m")
        assert [w["value"] for w in d.outputs("out")] == [1, 3, 1]
        assert d.dead_letters() == []


def test_an_event_is_late_by_the_windows_that_its_own_partition_has_ended() -> None:
    topology = Topology("t")
    topology.source("in").key_by("k").window("10s").count(name="w").sink("out")
    with Driver(topology) as d:
        for seconds, key in ((0, "a"), (100, "a"), (5, "a"), (5, "b"), (6, "b")):
            d.publish("in", {"k": key}, at=START + timedelta(seconds=seconds))
            d.advance("2s")
        assert [(w["key"], w["start"][17:19], w["value"]) for w in d.outputs("out")] == [("a", "00", 1), ("b", "00", 1)]
        assert [letter.event.key for letter in d.dead_letters()] == ["a", "b"]


def test_windows_end_though_an_engine_has_lost_its_source_without_ever_committing(lab: Callable[..., Lab]) -> None:  # E7
    topology = Topology("t")
    topology.source("in").key_by("k").window("10s").count(name="windows").sink("out")
    one = lab(topology)
    host = one.start()
    one.publish("in", {"k": "a"})
    one.advance(2)
    (source,) = [r for r in host.runners if r.source is not None]
    one.run(claimed_by_another(one, source.partitions[0].log.address))
    one.advance(60)
    assert [w["value"] for w in one.outputs("out")] == [1]
    assert source.partitions[0].log.epoch > 2


async def claimed_by_another(one: Lab, log: LogAddress) -> None:
    """An engine has claimed a log, and died before it did anything."""
    bus = one.server.connect()
    other = CommitLog(bus, log, "other", 1)
    await bus.commit([other.draft(await latest(bus, log), one.server.now)])


@pytest.mark.parametrize("time", ["0001-01-01T00:00:30Z", "9999-12-31T23:59:30Z"])
def test_a_window_that_no_year_has_is_a_letter_and_state_can_be_looked_at(time: str) -> None:
    topology = Topology("t")
    keyed = topology.source("in", time="at").key_by("k")
    keyed.window("1h", every="30m").count(name="sliding").sink("out")
    keyed.session_window("1h").count(name="session").sink("sessions")
    with Driver(topology) as d:
        d.publish("in", {"k": "a", "at": time})
        assert {(letter.node, letter.message) for letter in d.dead_letters()} <= {
            (node, "its window lies partly outside of the years 1 to 9999") for node in ("sliding", "session")
        }
        assert d.dead_letters()
        assert d.state("sliding", "a") is None
        assert d.state("session", "a") is None or time < "1"
        d.publish("in", {"k": "a", "at": True})
        assert d.dead_letters()[-1].message == '"at" gives bool, which is no time'
