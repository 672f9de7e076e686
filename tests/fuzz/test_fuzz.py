"""Mutated inputs for every entry point: a few of each here, as many as one likes by run.py."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import structlog
from entries import ENTRIES, close
from fuzzing import Entry, cases, check, run
from mutations import Case

from dspex.bus.errors import DecodeError


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


def _refuse_at_length(case: Case) -> None:
    raise DecodeError(repr(case.data) * 5000)


BUGS: dict[str, Callable[[Case], object]] = {
    "an error of Python": lambda case: {}[case.data],
    "a large result": lambda case: case.data * 100_000,
    "an error as long as one likes": _refuse_at_length,
}


@pytest.mark.parametrize("take", BUGS.values(), ids=BUGS)
def test_a_bug_is_reported_once_with_the_command_that_gives_its_input_again(take: Callable[[Case], object]) -> None:
    entry = Entry("bad", lambda: [Case(b'{"a":1}')], lambda: take, "json", subject="somewhere")
    (failure,) = run(entry, 20, seed=7).failures.values()
    assert failure.startswith("python tests/fuzz/run.py 'bad' --seed 7 --first 0 --inputs 1\n")


@pytest.mark.parametrize("name", ["frame", "source json", "topology"])
def test_an_input_is_the_same_whatever_was_tried_before_it(name: str) -> None:
    first, again = cases(ENTRIES[name], 3), cases(ENTRIES[name], 3, first=40)
    assert [next(first) for _ in range(50)][40:] == [next(again) for _ in range(10)]


HANGS = """
import fuzzing
from mutations import Case

def wait(case):
    while True: pass

fuzzing.HANGS = 0.5
fuzzing.run(fuzzing.Entry("endless", lambda: [Case(b"x")], lambda: wait), 1)
"""


def test_an_input_that_never_returns_ends_the_process_with_a_traceback_and_is_known() -> None:
    script = f"import sys; sys.path[:0] = {sys.path!r}\n{HANGS}"
    process = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "in wait" in told
    last = Path(tempfile.gettempdir()) / f"dspex-fuzz-{process.pid}"
    assert last.read_text() == "python tests/fuzz/run.py 'endless' --seed 0 --first 0 --inputs 1\n"
    last.unlink()
