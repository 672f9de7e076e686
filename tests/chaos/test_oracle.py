"""The oracle is believed only because it sees each of these."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import accumulate
from typing import Any

import msgpack
import pytest
from oracle import Case, Facts, judge
from simulation import APP, Simulation
from workload import BEFORE, BEHIND, is_good

from dspex.bus import subjects
from dspex.bus.memory.server import Faults
from dspex.bus.message import Message, partition_of
from dspex.bus.records import NodeEvent, pack_frame, unpack_frame
from dspex.engine.graph.nodes import KEYED_PARTITIONS
from dspex.engine.log.entries import unpack

pytestmark = pytest.mark.no_cover


@pytest.fixture(scope="module")
def case() -> Case:
    """A run without faults, with everything in it."""
    simulation = Simulation(5, count=80, kills=0, deadly=0.0, faults=Faults(), freezes=False, big=1)
    report = simulation.run()
    assert report.good, str(report)
    return Case(APP, simulation.events, simulation.stored, simulation.heard)


def _first(case: Case, of: Callable[[Message], bool]) -> int:
    return next(i for i, m in enumerate(case.stored) if of(m))


def _verdict(case: Case, stored: list[Message], heard: list[Message] | None = None) -> set[str]:
    return {v.promise for v in judge(APP, case.events, stored, case.heard if heard is None else heard).violations}


def _sink(m: Message) -> bool:
    return m.subject == "chaos.plain"


def _commit(m: Message) -> bool:
    return ".log." in m.subject and unpack(m.data)["kind"] == "commit"


def _record(m: Message) -> bool:
    return ".record." in m.subject


def _closes(m: Message) -> bool:
    return _commit(m) and any(row is None for _, row in unpack(m.data)["tables"].get("calls", ()))


def _changed(case: Case, at: int, message: Message) -> list[Message]:
    return [*case.stored[:at], message, *case.stored[at + 1 :]]


def _entry(case: Case, at: int, **changes: object) -> list[Message]:
    m = case.stored[at]
    return _changed(case, at, m._replace(data=msgpack.packb({**unpack(m.data), **changes})))


def _tables(case: Case, at: int, **changes: object) -> list[Message]:
    return _entry(case, at, tables={**unpack(case.stored[at].data)["tables"], **changes})


@pytest.mark.parametrize("of", [_sink, lambda m: ".dead." in m.subject], ids=["output", "dead letter"])
def test_the_oracle_sees_a_lost_message(case: Case, of: Callable[[Message], bool]) -> None:
    at = _first(case, of)
    assert "nothing is lost" in _verdict(case, [*case.stored[:at], *case.stored[at + 1 :]])


@pytest.mark.parametrize("of", [_sink, lambda m: ".dead." in m.subject], ids=["output", "dead letter"])
def test_the_oracle_sees_a_doubled_message(case: Case, of: Callable[[Message], bool]) -> None:
    again = case.stored[_first(case, of)]._replace(sequence=case.stored[-1].sequence + 1)
    assert {"nothing is doubled", "commits are whole"} <= _verdict(case, [*case.stored, again])


def test_the_oracle_sees_one_content_under_two_ids(case: Case) -> None:
    m = case.stored[_first(case, _sink)]
    again = m._replace(headers={**m.headers, subjects.EVENT_ID: "another"})
    found = _verdict(case, [*case.stored, again])
    assert "nothing is doubled" in found
    assert "event ids are unique" not in found


def test_the_oracle_sees_a_changed_content(case: Case) -> None:
    at = _first(case, _sink)
    changed = case.stored[at]._replace(data=case.stored[at].data.replace(b"MESSAGE", b"MASSAGE"))
    assert {"nothing is lost", "nothing is doubled", "a repeat is the same event"} <= _verdict(
        case, _changed(case, at, changed)
    )


def test_the_oracle_sees_a_key_out_of_order(case: Case) -> None:
    outputs = [i for i, m in enumerate(case.stored) if m.subject == "chaos.pieces"]
    stored = list(case.stored)
    stored[outputs[0]], stored[outputs[1]] = (
        stored[outputs[1]]._replace(sequence=stored[outputs[0]].sequence),
        stored[outputs[0]]._replace(sequence=stored[outputs[1]].sequence),
    )
    assert "a key keeps its order" in _verdict(case, stored)


def test_the_oracle_sees_two_clocks_in_one_event(case: Case) -> None:
    at = _first(case, lambda m: m.subject == "chaos.big")
    m = case.stored[at]
    assert _verdict(case, _changed(case, at, m._replace(data=m.data.replace(b'"at":1', b'"at":2')))) == {
        "an event has one clock"
    }


def test_the_oracle_sees_a_second_owner(case: Case) -> None:
    assert "one owner commits" in _verdict(case, _entry(case, _first(case, _commit), claim=7))


def test_the_oracle_sees_an_epoch_that_is_left_out(case: Case) -> None:
    claim = _first(case, lambda m: ".log." in m.subject)
    assert "epochs are dense" in _verdict(case, _entry(case, claim, epoch=7))


def test_the_oracle_sees_an_output_outside_of_every_commit(case: Case) -> None:
    at = _first(case, lambda m: _commit(m) and unpack(m.data)["covers"] > 0)
    assert "commits are whole" in _verdict(case, _entry(case, at, covers=0))


def test_the_oracle_sees_a_position_that_goes_back(case: Case) -> None:
    last = len(case.stored) - 1 - next(i for i, m in enumerate(reversed(case.stored)) if _commit(m))
    assert "positions go forward" in _verdict(case, _tables(case, last, positions=[("events", (0, -1, 0.0, 0.0, -1e18))]))


def test_the_oracle_sees_a_call_that_is_never_closed(case: Case) -> None:
    at = _first(case, _closes)
    kept = [(n, row) for n, row in unpack(case.stored[at].data)["tables"]["calls"] if row is not None]
    assert _verdict(case, _tables(case, at, calls=kept)) == {"no call stays open"}


def test_the_oracle_sees_a_call_that_is_closed_twice(case: Case) -> None:
    at = _first(case, _closes)
    calls = unpack(case.stored[at].data)["tables"]["calls"]
    again = [change for change in calls if change[1] is None]
    assert _verdict(case, _tables(case, at, calls=[*calls, *again])) == {"a call is closed once"}


def test_the_oracle_sees_a_second_record(case: Case) -> None:
    again = case.stored[_first(case, _record)]._replace(sequence=case.stored[-1].sequence + 1)
    assert "an attempt is recorded once" in _verdict(case, [*case.stored, again])


def test_the_oracle_sees_a_call_that_succeeded_twice(case: Case) -> None:
    good = next(m for m, o in case.records if o.error is None and is_good(o.outputs or {}))
    again = good._replace(sequence=case.stored[-1].sequence + 1, headers={subjects.MESSAGE_ID: "another attempt"})
    assert _verdict(case, [*case.stored, again]) == {"a call is recorded once"}


def _frame(case: Case) -> tuple[int, list[NodeEvent]]:
    """The first frame: where it is, and what is in it."""
    at = _first(case, lambda m: ".edge." in m.subject)
    return at, unpack_frame(case.stored[at].data)


def test_the_oracle_sees_an_event_that_crosses_a_hop_twice(case: Case) -> None:
    at, events = _frame(case)
    twice = case.stored[at]._replace(data=pack_frame([*events, events[0]]))
    assert "an event crosses a hop once" in _verdict(case, _changed(case, at, twice))


def test_the_oracle_sees_an_event_in_another_partition_than_that_of_its_key(case: Case) -> None:
    at, _ = _frame(case)
    m = case.stored[at]
    place, _, index = m.subject.rpartition(".")
    moved = m._replace(subject=f"{place}.{(int(index) + 1) % KEYED_PARTITIONS}")
    assert _verdict(case, _changed(case, at, moved)) == {"an event goes to the partition of its key"}


def test_the_oracle_sees_a_key_out_of_order_behind_a_hop(case: Case) -> None:
    key = case.events[0].key
    frames = [i for i, m in enumerate(case.stored) if ".edge." in m.subject and unpack_frame(m.data)[0].origin.key == key]
    a, b = case.stored[frames[0]], case.stored[frames[1]]
    stored = list(case.stored)
    stored[frames[0]], stored[frames[1]] = b._replace(sequence=a.sequence), a._replace(sequence=b.sequence)
    assert _verdict(case, stored) == {"a key keeps its order over a hop"}


def test_the_oracle_sees_what_was_heard_and_is_not_stored(case: Case) -> None:
    ghost = case.heard[0]._replace(headers={**case.heard[0].headers, subjects.EVENT_ID: "ghost"})
    assert _verdict(case, list(case.stored), [*case.heard, ghost]) == {"what is heard is stored"}


def test_the_oracle_allows_a_repeat_that_was_heard(case: Case) -> None:
    assert _verdict(case, list(case.stored), [*case.heard, case.heard[0]]) == set()


# -- what somebody beside the engines knows
def _facts(case: Case, stored: list[Message] | None = None, **more: Any) -> Facts:
    """Every event was stored with its first output."""
    published, case = dict[str, float](), Case(APP, case.events, stored or case.stored)
    for m in (*case.outputs, *case.dead):
        published.setdefault(m.headers[subjects.RUN], m.time)
    return Facts(4, published, **more)


def _judged(case: Case, stored: list[Message], facts: Facts) -> set[str]:
    return {v.promise for v in judge(APP, case.events, stored, case.heard, facts).violations}


def _paused(case: Case) -> tuple[list[Message], float]:
    """The run with a pause of two minutes in the middle, and when that begins."""
    begin = case.stored[len(case.stored) // 2].time
    return [m._replace(time=m.time + 120) if m.time > begin else m for m in case.stored], begin


def test_the_oracle_sees_a_partition_that_stands_still_with_work(case: Case) -> None:
    stored, _ = _paused(case)
    assert _judged(case, stored, _facts(case, stored)) == {"partitions make progress"}


def test_the_oracle_allows_a_partition_to_stand_still_while_no_majority_of_the_servers_runs(case: Case) -> None:
    stored, begin = _paused(case)
    assert _judged(case, stored, _facts(case, stored, away=[(begin, begin + 100)])) == set()


def test_the_oracle_lets_partitions_that_wait_for_a_slow_model_make_progress_in_turn(case: Case) -> None:
    p, begin = partition_of(case.events[0].key, KEYED_PARTITIONS), case.stored[0].time
    mine = (subjects.log(APP, "chaos", BEFORE, p % 4), subjects.log(APP, "chaos", BEHIND, p))
    entries = list(accumulate(_commit(m) for m in case.stored))  # how many there are up to each message
    published = {e.id: begin for e in case.events}
    for idle, found in ((200, set[str]()), (700, {"partitions make progress"})):
        times = [begin + 2 * idle * count / entries[-1] for count in entries]  # something all the time
        end = begin + 1.5 * idle  # but in one partition
        late = [m.subject in mine and end - idle < at < end for m, at in zip(case.stored, times)]
        stored = [m._replace(time=end if no else at) for m, at, no in zip(case.stored, times, late)]
        assert _judged(case, stored, Facts(4, published)) == {"partitions make progress"}
        assert _judged(case, stored, Facts(4, published, slow=True)) == found
    paused, _ = _paused(case)
    assert _judged(case, paused, _facts(case, paused, slow=True)) == {"partitions make progress"}


def _without(case: Case, run: str, some: Callable[[int], bool] = lambda place: True) -> list[Message]:
    """The run without what came of an event, or without some of it."""
    mine = [m.sequence for m in (*case.outputs, *case.dead) if m.headers[subjects.RUN] == run]
    gone = {sequence for place, sequence in enumerate(mine) if some(place)}
    return [m for m in case.stored if m.sequence not in gone]


def test_the_oracle_allows_an_unread_event_to_be_lost_with_its_stream_only_as_a_whole_and_where_a_gap_is_told(
    case: Case,
) -> None:
    run = next(e.id for e in case.events if len(e.outputs) > 1)
    facts, lost = _facts(case, unread={run}), _without(case, run)
    silent = [m._replace(data=msgpack.packb({**unpack(m.data), "taken": ()})) if ".log." in m.subject else m for m in lost]
    assert "nothing is lost" in _judged(case, lost, _facts(case))
    assert {"nothing is lost", "a gap is told"}.isdisjoint(_judged(case, lost, facts))
    assert "a gap is told" in _judged(case, silent, facts)
    assert "nothing is lost" in _judged(case, _without(case, run, lambda place: place > 0), facts)


def test_the_oracle_allows_an_output_again_only_as_often_as_its_source_was_rolled_back_to_it(case: Case) -> None:
    m = case.stored[_first(case, _sink)]
    again = m._replace(sequence=case.stored[-1].sequence + 1)
    once = _facts(case, again=Counter([m.headers[subjects.RUN]]))
    assert {"nothing is doubled", "event ids are unique"}.isdisjoint(_judged(case, [*case.stored, again], once))
    assert {"nothing is doubled", "event ids are unique"} <= _judged(case, [*case.stored, again, again], once)
