"""Keys, state and time under deaths: a few seeds; the command runs hundreds."""

from __future__ import annotations

import pytest
from timed_simulation import TimedSimulation

pytestmark = pytest.mark.no_cover


@pytest.mark.parametrize("seed", [0, 5])  # with one partition of the source and with three; both are told wrong times
def test_no_count_and_no_window_is_wrong_whoever_dies(seed: int) -> None:
    report = TimedSimulation(seed, count=30, kills=3).run()
    assert report.good, str(report)
