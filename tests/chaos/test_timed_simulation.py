"""Keys, state and time under deaths: a few seeds; the command runs hundreds."""

from __future__ import annotations

import pytest
from timed_simulation import TimedSimulation

pytestmark = [pytest.mark.no_cover, pytest.mark.long]


@pytest.mark.parametrize("seed", [0, 5])  # one source of one partition, and two of three each; both are told wrong times
def test_no_count_and_no_window_is_wrong_whoever_dies(seed: int) -> None:
    report = TimedSimulation(seed, count=20, kills=3).run()
    assert report.good, str(report)


def test_an_event_whose_call_failed_meets_its_other_branches_once_all_letters_are_redriven() -> None:
    said = dict.fromkeys(("paused", "people", "enriched", "third", "freezes"), False)
    report = TimedSimulation(
        2, count=3, keys=1, kills=1, engines=1, workers=1, strays=0.0, failing=True, patient=True, **said
    ).run()
    assert report.good, str(report)
    assert report.numbers["redriven"] >= 1
