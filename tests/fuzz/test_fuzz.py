"""Mutated inputs for every entry point: a few of each here, as many as one likes by run.py."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import structlog
from entries import ENTRIES, close
from fuzzing import check, run


@pytest.fixture(scope="module", autouse=True)
def _labs() -> Iterator[None]:
    yield
    close()


@pytest.fixture(autouse=True)
def _quiet(no_settings: None) -> Iterator[None]:
    with structlog.testing.capture_logs():  # thousands of lines, each of which is right
        yield


@pytest.mark.no_cover
@pytest.mark.parametrize("name", ENTRIES)
def test_what_anybody_may_have_written_is_taken_or_refused_by_an_error_of_dspex(name: str) -> None:
    entry = ENTRIES[name]
    done = run(entry, entry.slice)
    assert not done.failures, "\n\n".join(done.failures.values())
    assert done.inputs == entry.slice


@pytest.mark.parametrize("name", ENTRIES)
def test_every_seed_of_the_fuzz_test_is_an_input_that_is_taken(name: str) -> None:
    entry = ENTRIES[name]
    take = entry.taker()
    refused = [(case, why) for case in entry.seeds() if (why := check(entry, take, case)) not in entry.refused]
    assert not refused
