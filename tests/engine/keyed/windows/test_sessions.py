"""session_window: a session lasts as long as its events come within the gap, in whatever order they come."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from engine_lab import StageLab

from dspex import Stream, Topology
from dspex.bus import subjects
from dspex.testing import Driver

SESSIONS = Callable[[Stream[Any, str]], Stream[Any, str]]


def made(sessions: SESSIONS) -> StageLab:
    topology = Topology("t")
    sessions(topology.source("in").key_by("k")).sink("out")
    return StageLab(topology)


def counted(gap: str = "10s", **options: Any) -> StageLab:
    return made(lambda s: s.session_window(gap, **options).count(name="w"))


def test_a_session_ends_its_gap_behind_its_last_event_and_an_event_at_its_end_is_the_last_of_it() -> None:
    one = counted()
    for time in (0, 9, 18, 28, 39):
        one.event({}, time)
    one.mark(38)
    assert one.windows() == []
    one.mark(38.001)
    assert one.windows() == [("a", 0, 38, 4)]
    one.mark()
    assert one.windows()[1:] == [("a", 39, 49, 1)]
    assert len({(m.headers or {})[subjects.EVENT_ID] for m in one.written}) == 2
    assert one.kept == (0, 0)


def test_a_session_that_opens_when_the_watermark_is_at_its_end_is_not_late_behind_a_hop() -> None:
    topology, day = Topology("t"), datetime(2026, 1, 1, tzinfo=UTC)
    ended = topology.source("in").key_by("k", name="by_k").session_window("10s").count(name="sessions")
    ended.key_by("'all'", name="together").window("10s").count(name="windows").sink("out")
    with Driver(topology) as d:
        for time in (0, 20, 10, 60):
            d.publish("in", {"k": f"k{time}"}, at=day + timedelta(seconds=time))
            d.advance("2s")
        assert [w["start"][17:19] for w in d.outputs("out")] == ["00", "10", "20"]


def test_an_event_between_sessions_makes_them_one_which_keeps_the_lowest_number() -> None:  # E16
    one = counted(lateness="1m")
    for time in (0, 15, 30):
        one.event({}, time)
    assert one.kept == (1, 3)
    one.event({}, 8)
    one.event({}, 22)
    assert {timer.name for timer in one.tables.timers.rows.values()} == {"0"}
    one.mark()
    assert one.windows() == [("a", 0, 40, 5)]
    assert one.kept == (0, 0)


def test_an_event_is_late_when_the_session_that_it_would_be_in_has_ended() -> None:  # E15
    one = counted()
    one.event({}, 0)
    one.event({}, 9)
    one.mark(15)
    one.event({}, 1)  # its own session would have ended; the one that is open has not
    one.event({}, 30)
    one.mark(19.001)
    one.event({}, 3)
    assert [letter.error["type"] for letter in one.letters] == ["LateEvent"]
    one.mark()
    assert one.windows() == [("a", 0, 19, 3), ("a", 30, 40, 1)]


def test_late_events_of_no_session_are_skipped_where_that_is_asked_for() -> None:
    one = counted(late="skip")
    one.event({}, 0)
    one.mark(20)
    one.event({}, 0)
    assert (one.letters, one.kept) == ([], (0, 0))


def test_a_session_that_goes_on_does_not_set_its_timer_with_each_event() -> None:
    one = counted()
    one.event({}, 0)
    timers = dict(one.tables.timers.rows)
    for time in range(1, 20):
        one.event({}, time)
    assert one.tables.timers.rows == timers
    one.mark(29)
    assert one.windows() == []
    one.mark(29.001)
    assert one.windows() == [("a", 0, 29, 20)]


@pytest.mark.parametrize("order", [(0, 9, 5), (5, 0, 9), (9, 5, 0)])
def test_what_sessions_give_does_not_depend_on_the_order_in_which_they_grew_together(order: tuple[int, ...]) -> None:
    def all_of(s: Stream[Any, str]) -> Stream[Any, str]:
        w = s.session_window("6s")
        reduced = w.reduce(lambda a, b: {"n": a["n"] + b["n"]}, name="r")
        return w.collect(name="c").merge(reduced, w.aggregate(list, lambda state, d: [*state, d["n"]], name="f"))

    one = made(all_of)
    for time in order:
        one.event({"n": time}, time)
    one.mark()
    assert [v for *_, v in one.windows()] == [[{"n": 0}, {"n": 5}, {"n": 9}], [0, 5, 9], {"n": 14}]
    assert one.kept == (0, 0)


def test_more_events_than_a_list_may_have_are_letters_also_when_sessions_grow_together() -> None:
    one = made(lambda s: s.session_window("6s").collect(name="w", limit=2))
    for n, time in enumerate((0, 9, 5)):
        one.event({"n": n}, time)
    assert [letter.error["code"] for letter in one.letters] == ["DX514"]
    one.mark()
    assert [v for *_, v in one.windows()] == [[{"n": 0}], [{"n": 1}]]
    assert one.kept == (0, 0)
