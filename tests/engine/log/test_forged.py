"""Entries that look genuine and are not: copies, rows that no table has, and a log that somebody cut."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgpack
import pytest
from engine_lab import APP, STREAM, Lab
from structlog.testing import capture_logs

from dspex.bus import subjects
from dspex.bus.errors import BusError
from dspex.bus.message import Message
from dspex.bus.port import NewMessage
from dspex.engine.log.entries import unpack
from dspex.engine.log.rows import Place, Timer, are_changes
from dspex.engine.log.tables import Tables
from dspex.operators.topology import Topology

MakeLab = Callable[..., Lab]
LOG = subjects.log(APP, "forged", "s1", 0)
WORK = subjects.work(APP, "lightweight", "forged", "ask")
CALL = ["ask", "id", "run", "lightweight", 1e9, b"", 1, 1, 0, 0, 5, None, 0, 1]
ROWS: dict[str, object] = {
    "no table of ours": {"nonsense": [[1, 2]]},
    "a row that is a number": {"calls": [[1, 5]]},
    "rows that are a number": {"calls": 5},
    "a call of which most is missing": {"calls": [[1, ["ask", "id"]]]},
    "a call with a deadline in words": {"calls": [[1, [*CALL[:4], "soon", *CALL[5:]]]]},
    "a call whose number is a text": {"calls": [["1", CALL]]},
    "a timer of no kind": {"timers": [[1, [1.0, "x", None]]]},
    "a timer that is never due": {"timers": [[1, [float("nan"), "event", ["source", 1, -1], 1.0, 0, "r"]]]},
    "a position in words": {"positions": [["source", ["x", -1, 0.0, 0.0]]]},
    "a number that is none": {"number": "x"},
    "a number that leaves no room": {"number": 2**64 - 1},
    "a key that is a number": {"keyed": [[1, b""]]},
    "a split at no place": {"splits": [[5, [1, 1.0, 1, b""]]]},
}


def asking() -> Topology:
    topology = Topology("forged")
    topology.source("in").predict("text -> answer", name="ask").sink("out")
    return topology


def entries(one: Lab, kind: str) -> list[Message]:
    return [m for m in one.messages(LOG) if unpack(m.data)["kind"] == kind]


def forged(one: Lab, **changes: object) -> NewMessage:
    """A commit that goes on from the last one, and is like it but for `changes`."""
    last = entries(one, "commit")[-1]
    entry: dict[str, Any] = {**unpack(last.data), "after": last.sequence, "covers": 0, **changes}
    return NewMessage(LOG, msgpack.packb({name: value for name, value in entry.items() if value is not None}))


def begun(lab: MakeLab) -> Lab:
    """An engine that has asked for six calls, under two claims."""
    one = lab(asking())
    for n in range(0, 6, 3):
        if n:
            one.kill()
        one.start()
        for m in range(n, n + 3):
            one.publish("in", {"text": str(m)})
    return one


def goes_on(one: Lab, count: int) -> None:
    """Everything that was published comes out once, in order."""
    one.work()
    one.advance(60)
    assert [o["text"] for o in one.outputs("out")] == [str(n) for n in range(count)]
    assert one.letters() == []


@pytest.mark.parametrize("alive", [True, False], ids=["while it runs", "while it does not"])
@pytest.mark.parametrize("which", range(6))
def test_a_copy_of_a_commit_opens_no_call_again(lab: MakeLab, which: int, alive: bool) -> None:
    one = begun(lab)
    one.work()
    one.advance(5)
    if not alive:
        one.kill()
    for _ in range(2):
        one.store(NewMessage(LOG, entries(one, "commit")[which].data))
    if not alive:
        one.start()
    one.publish("in", {"text": "6"})
    one.advance(60)
    one.kill()
    with capture_logs() as logs:
        one.start()
    assert sum(line["messages"] for line in logs if "no log entry" in line["event"]) >= 2
    goes_on(one, 7)


ASKS = {
    "a number": 5,
    "a text": "asks",
    "no requests": [1, None],
    "too few": [[1, "x"]],
    "a header that is none": [[1, WORK, b"", {"a": 1}]],
    "what is no work": [[number, "out", b"{}", {}] for number in range(1, 9)],
    "a header that no message can have": [[number, WORK, b"", {subjects.RUN: "a\r\nb"}] for number in range(1, 9)],
    "another header": [[number, WORK, b"", {"a b": "c"}] for number in range(1, 9)],
    "no subject": [[1, "a b", b"{}", {}]],
    "twice": [[1, WORK, b"", {}], [1, WORK, b"", {}]],
}


@pytest.mark.parametrize("asks", ASKS.values(), ids=ASKS.keys())
def test_a_commit_that_holds_what_is_no_request_is_passed_over(lab: MakeLab, asks: object) -> None:
    one = begun(lab)
    wrong = forged(one, asks=asks)
    one.store(wrong)
    one.kill()
    one.store(wrong)
    one.start()
    one.publish("in", {"text": "6"})
    goes_on(one, 7)


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS.keys())
def test_a_commit_with_rows_that_no_table_has_is_passed_over(lab: MakeLab, rows: object) -> None:
    one = begun(lab)
    one.store(forged(one, tables=rows))
    one.publish("in", {"text": "6"})
    one.advance(30)
    one.kill()
    one.store(forged(one, tables=rows))
    one.start()
    one.publish("in", {"text": "7"})
    goes_on(one, 8)


@pytest.mark.parametrize("piece", [b"", b"\xc1", msgpack.packb({"calls": 5}), None], ids=["empty", "none", "odd rows", "gone"])
def test_a_commit_whose_pieces_are_no_rows_is_passed_over(lab: MakeLab, piece: bytes | None) -> None:
    one = begun(lab)
    for alive in (True, False):
        if not alive:
            one.kill()
        commit = forged(one, tables=None, pieces=1, covers=1)
        if piece is not None:
            one.store(NewMessage(f"{LOG}.pieces", piece))
        one.store(commit)
    one.start()
    one.advance(30)
    goes_on(one, 6)


def test_a_claim_behind_what_is_no_entry_is_passed_over_though_it_names_a_snapshot(lab: MakeLab) -> None:
    one = begun(lab)
    one.kill()
    claim, request = entries(one, "claim")[-1], entries(one, "commit")[-1].sequence - 1
    row = (1, 2, 3, b"", 5)
    one.store(NewMessage(LOG, msgpack.packb({**unpack(claim.data), "after": request, "snapshot": row})))
    one.start()
    goes_on(one, 6)


@pytest.mark.parametrize("claimed", [False, True], ids=["with commits alone", "with a claim behind them"])
def test_a_log_without_its_first_claim_is_refused_and_not_begun_anew(lab: MakeLab, claimed: bool) -> None:
    one = lab(asking())
    one.start()
    for n in range(3):
        one.publish("in", {"text": str(n)})
    one.kill()
    if claimed:
        one.start()
        one.kill()
    first = entries(one, "claim")[0]
    one.run(one.client.bus.delete(STREAM, first.sequence))
    before = len(one.messages(LOG))
    with pytest.raises(BusError) as e:
        one.start()
    assert e.value.code == "DX411"
    assert LOG in e.value.message
    assert "backup" in e.value.fix
    one.hosts.clear()
    assert claimed or len(one.messages(LOG)) == before
    assert len(one.requests()) == 3


def test_copies_of_commits_in_a_log_that_no_engine_has_claimed_yet_end_no_engine(lab: MakeLab) -> None:
    other = Topology("other")
    other.source("else").map(lambda d: d, name="same").sink("elsewhere")
    one = lab(other)
    one.start()
    one.publish("else", {"n": 1})
    one.kill()
    for message in one.messages(subjects.log(APP, "other", "s1", 0))[1:]:  # the first is the claim that it begins with
        one.store(NewMessage(LOG, message.data))
    one.start("b", other, asking())
    one.publish("in", {"text": "0"})
    one.publish("else", {"n": 2})
    goes_on(one, 1)
    assert one.outputs("elsewhere") == [{"n": 1}, {"n": 2}]


def test_a_timer_that_leaves_out_what_it_need_not_say_is_read_as_one_that_says_it() -> None:
    rows = {"timers": ((3, (1.0, "deadline")), (4, (1.0, "event", ("source", 7))))}
    assert are_changes(rows)
    tables = Tables()
    tables.restore(rows)
    assert tables.timers.rows == {3: Timer(1.0, "deadline"), 4: Timer(1.0, "event", Place("source", 7))}
