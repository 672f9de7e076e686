"""The way of a newcomer: what scripts/newcomer does and times, beside this checkout and with a stand-in for the model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from cli_bench import stand_in

pytestmark = pytest.mark.no_cover  # what it runs of ours is measured elsewhere
SCRIPT = Path(__file__).parents[2] / "scripts/newcomer"
STEPS = [
    "start a project",
    "a run of one's own",
    "open the page",
    "look at the run",
    "replay it",
    "fork it",
    "see the difference",
]


@pytest.mark.long
@pytest.mark.timeout(300)  # seven commands and three that stay, on a machine that does other things too
def test_a_newcomer_sees_a_run_in_the_page_replays_it_and_forks_it() -> None:
    with stand_in() as url:
        done = subprocess.run([sys.executable, SCRIPT, "--here", "--json", "--model", url], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    took = json.loads(done.stdout)
    assert list(took) == [*STEPS, "in all"]
    assert all(seconds > 0 for seconds in took.values())


def test_the_script_says_what_it_does_and_refuses_what_it_does_not_know() -> None:
    told = subprocess.run([sys.executable, SCRIPT, "-h"], capture_output=True, text=True)
    assert (told.returncode, "--here" in told.stdout) == (0, True)
    assert subprocess.run([sys.executable, SCRIPT, "--hear"], capture_output=True).returncode == 2
