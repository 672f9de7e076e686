"""Late events: letters by default, which are redriven only with a time at which they are in time."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from dspex.bus.errors import RunError
from dspex.engine.testing.driver import Driver
from dspex.operators.topology import Topology

START = datetime(2026, 1, 1, tzinfo=UTC)


def test_a_late_event_is_redriven_with_a_new_time_only() -> (
    None
):  # E14; the lateness is none by default, and nothing is lost unsaid
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
