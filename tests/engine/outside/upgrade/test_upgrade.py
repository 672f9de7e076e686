"""Today's code goes on from a store that an earlier commit wrote: it shows it, replays it, and finishes what was open.

make_store.py says what is in it, and makes it anew.
"""

from __future__ import annotations

import json
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_bench import Done, Project, Running, stand_in
from make_store import ASKED, BAD, CLICKS, DONE, OPEN, STORE
from waiting import eventually

pytestmark = [pytest.mark.no_cover, pytest.mark.long]


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    with stand_in() as url:
        made = Project(tmp_path, "old", DSPEX_LM__MAIN__BASE_URL=url)
        with tarfile.open(STORE) as tar:
            tar.extractall(tmp_path, filter="data")
        yield made


def asked(project: Project, *verb: str, code: int = 0) -> list[dict[str, object]]:
    """What a verb prints, as objects."""
    done = project.here("--json", *verb)
    assert done.code == code, (verb, done.out, done.err)
    return done.objects()


def text_of(done: Done) -> str:
    assert done.code == 0, done.err
    return done.out


def test_todays_code_shows_replays_and_goes_on_with_what_an_earlier_commit_wrote(project: Project) -> None:
    with project.start("run", "--pools", "none") as run:
        run.until("ready")
        _shows(project)
        assert run.end() == 0, run.errors()
    with project.start("run") as run:
        run.until("ready")
        _goes_on(project, run)
        assert run.end() == 0, run.errors()


def _shows(project: Project) -> None:
    """Runs with their records, the session, the letter, what the windows hold; and a replay in which nothing differs."""
    runs = asked(project, "runs", "ls", "--topology", "old")
    closed = len(DONE) + len(CLICKS) - 1  # the window of the last click is open
    assert Counter(one["status"] for one in runs) == {"done": closed, "failed": 1, "running": len(OPEN) + 1}
    shown = "".join(text_of(project.here("runs", "show", str(one["id"]))) for one in runs)
    assert all(text in shown for text in (*DONE, BAD, *OPEN)), shown
    talk = text_of(project.here("sessions", "show", "talk"))
    assert all(text in talk for text in ASKED), talk
    (letter,) = asked(project, "dlq", "ls")
    assert letter["node"] == "classify"
    held = asked(project, "state", "ls", "old/per_minute")
    assert [one["key"] for one in held] == ["bob"], held
    again = project.here("--json", "replay", "--topology", "old")
    assert again.code == 0, (again.out, again.err)


def _goes_on(project: Project, run: Running) -> None:
    """What was open comes to its end; windows and sessions go on; letters are redriven; new events are processed."""
    assert eventually(lambda: len(_running(project)) == 1)
    new = project.here("--json", "publish", "old.in", "text=something new", "--wait", "60s")
    assert new.code == 0, new.err
    seen = asked(project, "watch", "old.out", "--start", "all", "--count", str(len(DONE) + len(OPEN) + 1))
    texts = [*DONE, *OPEN, "something new"]
    assert len(seen) == len(texts), seen
    at = "2026-01-01T10:0{}Z"
    for customer, when in ((CLICKS[-1][0], at.format("2:30")), ("ann", at.format("9:00"))):
        assert project.here("publish", "old.clicks", f"customer={customer}", f"sent_at={when}").code == 0
    minutes = asked(project, "watch", "old.minutes", "--start", "all", "--count", "2")
    counts = [json.loads(json.dumps(one["data"])) for one in minutes]
    assert [(one["key"], one["value"]) for one in counts] == [("ann", 2), ("bob", 2)]
    said = project.here("--json", "call", "history: dspy.History, text -> reply", "text=still there?", "--session", "talk")
    assert said.code == 0, said.err
    talk = text_of(project.here("sessions", "show", "talk"))
    assert all(text in talk for text in (*ASKED, "still there?")), talk
    (letter,) = asked(project, "dlq", "ls")
    assert project.here("dlq", "redrive", str(letter["sequence"])).code == 0  # it fails again: a new letter in its place
    assert eventually(lambda: [one["sequence"] for one in asked(project, "dlq", "ls")] not in ([], [letter["sequence"]]))
    assert project.here("--json", "replay", "--topology", "old").code == 0
    assert run.process.poll() is None


def _running(project: Project) -> list[object]:
    return [one["id"] for one in asked(project, "runs", "ls", "--topology", "old") if one["status"] == "running"]
