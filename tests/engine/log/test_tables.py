"""The tables of a partition stay as small as what is in them, however long the run."""

from __future__ import annotations

from typing import Any

import pytest

from dspex.engine.log.rows import WITHIN, OpenCall, Position, Timer
from dspex.engine.log.tables import Tables
from dspex.engine.replay.told import ToldTables

MANY, FEW = 10_000, 200


def entries(tables: Tables) -> int:
    """How much the tables remember beside their rows: all heaps."""
    timers, calls = tables.timers, tables.calls
    heaps = [timers._heap, *timers._marks.values(), *timers._holds._heaps.values(), *calls._holds._heaps.values()]
    heaps += map(list, calls._queues.values())
    return sum(map(len, heaps))


def test_calls_that_are_closed_leave_nothing_in_a_topology_in_which_nobody_asks_for_a_watermark() -> None:
    tables = Tables()
    for n in range(1, MANY):
        call = OpenCall("ask", "id", "run", "light", 60.0, b"", time=float(n))
        tables.change([("calls", n, call), ("timers", n, Timer(1e9, "deadline"))])
        tables.change([("calls", n, None), ("timers", n, None)])
    assert entries(tables) < FEW


def test_calls_that_are_closed_behind_one_that_stays_open_leave_nothing() -> None:
    """Of a node whose calls are in order: submitted ones without a session wait for no other."""
    tables, call = Tables(frozenset({"ask"})), OpenCall("ask", "id", "run", "light", 60.0, b"")
    tables.change([("calls", 1, call), ("calls", 2, call)])
    for n in range(3, MANY):
        tables.change([("calls", n, call)])
        tables.change([("calls", n, None)])
    assert entries(tables) < FEW
    assert [tables.calls.turn("ask", None), tables.calls.turn("ask", None, without=1)] == [1, 2]
    tables.change([("calls", 1, None)])
    assert tables.calls.turn("ask", None) == 2


def test_timers_that_are_set_again_and_again_leave_one_of_them() -> None:
    tables = Tables()
    for n in range(MANY):
        wake = Timer(1e9 + n, "wake", node="batch", hold=float(n), until=1e9)
        tables.change([("timers", 1, wake), ("timers", 2, Timer(float(n), "mark", node="join", hold=1.0))])
    assert entries(tables) < 2 * FEW
    assert (tables.hold("batch", 0.0), tables.hold("join", 0.0)) == (MANY - 1, 1.0)
    assert tables.timers.due(2e9) == [(1, tables.timers.rows[1])]
    assert tables.timers.reached(1e9, lambda node: 1e9) == 2


def test_a_hold_ends_for_good_with_its_time_and_the_later_ones_stay() -> None:
    tables = Tables()
    rows = [("timers", n, Timer(1e9, "wake", node="batch", hold=float(n), until=10.0 * n)) for n in range(1, 4)]
    tables.change(rows)
    assert [tables.hold("batch", now) for now in (5.0, 10.0, 25.0, 30.0)] == [1.0, 2.0, 3.0, float("inf")]


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize("asked", [(), (10, 11, 12)])
def test_what_a_log_tells_is_the_same_whenever_it_is_asked_as_entry_by_entry(at_once: bool, asked: tuple[int, ...]) -> None:
    """Rows that are gone, rows that changed, and requests that lie before or in the entry that opened them last."""
    call, timer = OpenCall("ask", "id", "run", "light", 60.0, b""), Timer(1e9, "wake", node="batch", key="k", name="n")
    position, state = Position(7, time=3.0), ("batch", "k", "")
    log: list[dict[str, Any]] = [
        {"calls": [(1, call._replace(work=-2)), (2, call._replace(work=WITHIN))], "timers": [(3, timer)], "number": 4},
        {"positions": [("source", position)], "keyed": [(state, b"a")], "calls": [(2, None)], "timers": [(3, None)]},
        {"calls": [(1, call._replace(work=-1, try_number=2)), (4, call)], "keyed": [(state, b"b")], "number": 5},
        {"calls": [(4, None)], "timers": [(3, timer._replace(due=2e9))], "keyed": [(("batch", "l", "x"), b"")]},
    ]
    expected, told = Tables(), ToldTables(Tables(), at_once=at_once)
    for sequence, entry in enumerate(log, 10):
        expected.apply(entry, sequence)
        told.take(entry, sequence)
        assert sequence not in asked or told.snapshot() == expected.snapshot()
    found = told.snapshot()
    assert found == expected.snapshot()
    assert (found["calls"], found["number"]) == ([(1, call._replace(work=11, try_number=2))], 5)
