"""Exactly once, on the in-memory bus: engines killed, frozen and taken over, workers killed, a bus that fails.

A seed of the usual kind, and of each other with `scripts/test --long`; `scripts/chaos simulation driver` runs hundreds.
"""

from __future__ import annotations

import driven
import pytest
from simulation import Simulation

from dspex.bus.memory.server import Faults

pytestmark = pytest.mark.no_cover  # measured, it takes three times as long, and other tests run over the same lines
WORST = Faults(duplicate=0.1, disconnect=0.05, delay=0.2, unsettled=0.1)


@pytest.mark.long
@pytest.mark.parametrize("seed", [1000])
def test_every_event_has_its_effects_exactly_once(seed: int) -> None:
    report = Simulation(seed, count=80).run()
    assert report.good, str(report)


@pytest.mark.long
@pytest.mark.parametrize("seed", [5007])  # a look at the source fails while the event is fetched
def test_an_event_that_was_put_off_keeps_its_id_though_its_source_cannot_be_read_meanwhile(seed: int) -> None:
    report = Simulation(seed, count=120).run()
    assert report.good, str(report)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(1))
def test_frequent_faults_of_the_bus_change_no_effect(seed: int) -> None:
    report = Simulation(seed, count=20, faults=WORST).run()
    assert report.good, str(report)


@pytest.mark.long
@pytest.mark.parametrize("seed", [0])
def test_an_engine_that_dies_between_parts_of_an_event_loses_and_doubles_none(seed: int) -> None:
    report = Simulation(seed, count=10, big=4, kills=12, deadly=0.4, freezes=False).run()
    assert report.good, str(report)
    assert report.numbers["engines killed in a commit"] > 0


@pytest.mark.long
def test_a_thousand_results_may_wait_for_a_slow_call_while_engines_die() -> None:
    report = Simulation(0, count=1200, keys=1, kills=2, slots=200).run()
    assert report.good, str(report)


@pytest.mark.parametrize("seed", range(2))
def test_the_testing_driver_keeps_its_promises_under_faults_and_crashes(seed: int) -> None:
    report = driven.drive(seed)
    assert report.good, str(report)


def test_a_simulation_is_repeated_exactly_by_its_seed() -> None:
    first, second = Simulation(3, count=15, kills=2), Simulation(3, count=15, kills=2)
    report = first.run()
    assert report.good, str(report)
    assert str(report) == str(second.run())
    assert first.stored[-1].time == second.stored[-1].time
