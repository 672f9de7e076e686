"""Anybody may store anything on the subject of a log, or under a key of the bucket: no engine ends or loses anything."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import msgpack
import orjson
import pytest
from engine_lab import APP, STREAM, Lab
from structlog.testing import capture_logs

from dspex.bus import subjects
from dspex.bus.errors import BusError, StreamFull, TopologyError
from dspex.bus.port import NewMessage
from dspex.engine.graph import manifest
from dspex.engine.log import commit_log
from dspex.engine.log.entries import packed, plain, summed, unpack
from dspex.operators.topology import Topology

MakeLab = Callable[..., Lab]
LOG = subjects.log(APP, "spoiled", "s1", 0)
CLAIM = {"v": 3, "kind": "claim", "time": 1.0, "owner": "x", "nonce": "n", "build": {}, "epoch": 2, "manifest": 1}
COMMIT = {"v": 3, "kind": "commit", "time": 1.0, "after": 1, "covers": 0, "digest": b"", "taken": (), "tables": {}}
GARBAGE: dict[str, object] = {
    "bytes": b"\xc1garbage",
    "nothing": b"",
    "nil": None,
    "a list": [1, 2],
    "nested beyond measure": b"\x91" * 5000,
    "a map without a version": {"kind": "commit"},
    "of the first version": {"v": 1, "kind": "claim", "epoch": 7},
    "a claim of a manifest that nobody applied": {**CLAIM, "manifest": 10**9, "base": 0, "older": 0, "after": 0},
    "a claim after what is no commit": {**CLAIM, "base": 0, "older": 0, "after": 10**9},
    "a claim with another base": {**CLAIM, "base": 10**9, "older": 5, "after": 0},
    "wrong types": {**CLAIM, "base": "0", "older": 0, "after": 0, "epoch": "one"},
    "a commit of a claim that is not there": {**COMMIT, "claim": 10**9, "base": 0, "older": 0},
    "a commit with a base that is none": {**COMMIT, "claim": 1, "base": 10**9, "older": 3},
    "a claim that names a claim in words": {**CLAIM, "base": 0, "older": 0, "after": 0, "claim": "x"},
    "a claim that covers something odd": {**CLAIM, "base": 0, "older": 0, "after": 0, "covers": {}},
    "a claim of the last day of all": {**CLAIM, "base": 0, "older": 0, "after": 0, "time": 1e308, "epoch": 1},
    "a commit after something odd": {**COMMIT, "claim": 1, "base": 0, "older": 0, "after": []},
    "a commit in odd pieces": {**COMMIT, "claim": 1, "base": 0, "older": 0, "pieces": {}},
    "a commit in more pieces than it covers": {**COMMIT, "claim": 1, "base": 0, "older": 0, "pieces": 10**9},
    "a snapshot that is none": {**COMMIT, "claim": 1, "base": 0, "older": 0, "snapshot": [1, 2]},
}


def spoiled() -> Topology:
    topology = Topology("spoiled")
    topology.source("in").predict("text -> answer", name="ask").sink("out")
    return topology


def with_a_snapshot(lab: MakeLab, monkeypatch: pytest.MonkeyPatch) -> Lab:
    """One whose log has snapshots, and forty calls that nobody has answered; its engine is killed."""
    monkeypatch.setattr(commit_log, "LEAST", 2_000)  # bytes of entries until a snapshot
    one = lab(spoiled())
    one.start()
    for n in range(40):
        one.publish("in", {"text": str(n)})
    one.kill()
    return one


def garbage(what: object) -> bytes:
    return what if isinstance(what, bytes) else bytes(msgpack.packb(what))


def goes_on(one: Lab, count: int) -> None:
    """Everything that was published comes out once, in order."""
    one.work()
    one.advance(30)
    assert [o["text"] for o in one.outputs("out")] == [str(n) for n in range(count)]
    assert one.letters() == []


@pytest.mark.parametrize("what", GARBAGE.values(), ids=GARBAGE.keys())
def test_what_is_no_entry_in_a_log_is_passed_over_and_counted(lab: MakeLab, what: object) -> None:
    one = lab(spoiled())
    one.start()
    for n in range(5):
        one.publish("in", {"text": str(n)})
    one.store(NewMessage(LOG, garbage(what)))  # while the engine runs
    for n in range(5, 10):
        one.publish("in", {"text": str(n)})
    one.advance(10)
    one.kill()
    one.store(NewMessage(LOG, garbage(what)))  # and while none does
    with capture_logs() as logs:
        host = one.start()
    assert any("no log entry" in line["event"] and line["subject"] == LOG for line in logs)
    assert host.runners[0].counters["unreadable"] > 0
    goes_on(one, 10)
    one.drain()
    one.start()
    one.publish("in", {"text": "10"})
    goes_on(one, 11)


def test_much_garbage_in_a_log_is_told_in_few_lines(lab: MakeLab) -> None:
    one = lab(spoiled())
    one.start()
    one.publish("in", {"text": "0"})
    one.advance(10)
    one.kill()
    for _ in range(300):
        one.store(NewMessage(LOG, b"garbage"))
    with capture_logs() as logs:
        one.start()
    told = [line["messages"] for line in logs if "no log entry" in line["event"]]
    assert len(told) <= 4  # one for each reading, not for each message
    assert max(told) == 300
    goes_on(one, 1)


@pytest.mark.parametrize("wrong", [None, -1, 0], ids=["none", "an entry without one", "the last entry"])
def test_a_claim_that_names_another_snapshot_than_the_log_does_is_passed_over(
    lab: MakeLab, monkeypatch: pytest.MonkeyPatch, wrong: int | None
) -> None:
    one = with_a_snapshot(lab, monkeypatch)
    last = one.messages(LOG)[-1]
    base = unpack(last.data)["base"]
    named = unpack(one.server.streams[STREAM].messages[base].data)["snapshot"]
    one.run(one.client.bus.purge(STREAM, LOG, below=named[0]))  # as housekeeping does: the log is whole no more
    another = 0 if wrong is None else (last.sequence if wrong == 0 else base + wrong)
    one.store(NewMessage(LOG, garbage({**CLAIM, "epoch": 9, "after": last.sequence, "base": another, "older": 0})))
    one.start()
    goes_on(one, 40)


def test_a_log_that_begins_with_garbage_begins_behind_it(lab: MakeLab) -> None:
    one = lab(spoiled())
    one.start()
    one.drain()
    one.run(one.client.bus.purge(STREAM, LOG, below=10**6))
    for what in GARBAGE.values():
        if what != GARBAGE["of the first version"]:
            one.store(NewMessage(LOG, garbage(what)))
    one.start()
    one.publish("in", {"text": "0"})
    goes_on(one, 1)


def test_what_is_no_entry_between_snapshots_and_pieces_disturbs_neither(lab: MakeLab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commit_log, "LEAST", 2_000)
    one = lab(spoiled())
    one.start()
    for n in range(40):
        one.publish("in", {"text": str(n)})
        for subject in (f"{LOG}.pieces", f"{LOG}.snapshot"):
            one.store(NewMessage(subject, b"\xc1"))
    assert any("snapshot" in unpack(m.data) for m in one.messages(LOG))
    one.kill()
    one.start()
    goes_on(one, 40)


def test_an_entry_that_is_missing_is_an_error_and_never_a_hole(lab: MakeLab) -> None:
    one = lab(spoiled())
    one.start()
    for n in range(3):
        one.publish("in", {"text": str(n)})
    one.kill()
    last = one.messages(LOG)[-1]
    one.server.streams[STREAM].messages[last.sequence] = last._replace(data=b"\xc1")  # as a bad disk would
    before = [m.sequence for m in one.messages(LOG) if m.sequence < last.sequence]
    one.start()  # nobody can tell the last entry from garbage, and the one before is a state that was
    one.kill()
    middle = before[1]
    stored = one.server.streams[STREAM].messages
    stored[middle] = stored[middle]._replace(data=b"\xc1")
    stored[before[2]] = stored[before[2]]._replace(data=b"\xc1")
    with pytest.raises(BusError) as e:
        one.start()
    assert e.value.code == "DX411"
    one.hosts.clear()


def test_a_log_of_the_first_version_is_refused_and_says_what_to_do(lab: MakeLab) -> None:  # P6
    one = lab(spoiled())
    one.start()
    one.drain()
    one.run(one.client.bus.purge(STREAM, LOG, below=10**6))
    for n in range(2):
        one.store(NewMessage(LOG, garbage({"v": 1, "kind": "claim", "epoch": n + 1, "owner": "old", "manifest": 1})))
    with pytest.raises(BusError, match="older version of dspex") as e:
        one.start()
    assert e.value.code == "DX411"
    assert "another application name, or delete" in e.value.fix
    one.hosts.clear()


def put(one: Lab, key: str, value: bytes) -> None:
    async def go() -> None:
        name = subjects.applied(APP) if key.startswith(subjects.manifest_prefix()) else subjects.bucket(APP)
        await (await one.client.bus.bucket(name)).put(key, value)

    one.run(go())


KEYS = [
    (subjects.member_key("engine", "x"), subjects.member_key("engine", "x")),
    (subjects.manifest_key("other", 1), subjects.manifest_key("other", 2)),  # takes one
]
VALUES: list[Any] = [b"", b"\xff", b"null", b"[]", b'{"engine": 5, "topologies": 7, "pid": "x", "time": "y", "stages": 3}']


@pytest.mark.parametrize(("key", "later"), KEYS)
@pytest.mark.parametrize("value", VALUES)
def test_garbage_under_a_key_of_the_bucket_ends_no_engine_and_no_status(
    lab: MakeLab, key: str, later: str, value: bytes
) -> None:
    one = lab(spoiled())
    one.start()
    put(one, key, value)
    one.publish("in", {"text": "0"})
    one.advance(20)
    one.kill()
    put(one, later, value)
    one.start()
    one.publish("in", {"text": "1"})
    one.advance(20)
    goes_on(one, 2)
    status = one.run(one.client.status())
    assert [row["topology"] for row in status["stages"]] == ["spoiled"]


def test_a_manifest_is_written_over_by_nobody(lab: MakeLab) -> None:
    one = lab(spoiled())
    one.start()
    one.drain()
    with pytest.raises(StreamFull):
        put(one, subjects.manifest_key("spoiled", 1), b"{}")
    one.start()
    one.publish("in", {"text": "0"})
    goes_on(one, 1)


def test_a_manifest_behind_a_lost_one_stops_housekeeping_which_would_remove_what_that_needs(lab: MakeLab) -> None:
    one = lab(spoiled())
    one.start()

    async def read() -> Mapping[str, manifest.Manifest]:
        return await manifest.read(await one.client.bus.bucket(subjects.applied(APP)), whole=True)

    (topology, applied), *_ = one.run(read()).items()
    put(one, subjects.manifest_key("other", 1), orjson.dumps({"version": 1}))  # junk, which is passed over: it replaces nothing
    assert one.run(read()) == {topology: applied}
    put(one, subjects.manifest_key(topology, 3), replace(applied, version=3).pack())
    with pytest.raises(TopologyError):
        one.run(read())


@pytest.mark.parametrize("which", [0, 1, 2], ids=["the first", "the second", "the third"])
def test_a_copy_of_an_earlier_claim_is_passed_over(lab: MakeLab, which: int) -> None:
    one = lab(spoiled())
    for n in range(0, 8, 2):
        one.start()
        one.publish("in", {"text": str(n)})
        one.publish("in", {"text": str(n + 1)})
        one.kill()
    claims = [m for m in one.messages(LOG) if unpack(m.data)["kind"] == "claim"]
    one.store(NewMessage(LOG, claims[which].data))
    one.start()
    one.kill()
    one.store(NewMessage(LOG, claims[which].data))
    one.start()
    goes_on(one, 8)


def test_a_snapshot_that_a_later_version_has_written_is_told_as_that_and_not_as_damaged(
    lab: MakeLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = with_a_snapshot(lab, monkeypatch)
    stored = one.server.streams[STREAM].messages
    last = [m for m in one.messages(LOG) if "snapshot" in unpack(m.data)][-1]
    entry = dict(unpack(last.data))
    at, first, final, _, _ = entry["snapshot"]
    assert first == final
    whole = packed({**plain(stored[first].data), "later": ()})
    stored[first] = stored[first]._replace(data=whole)
    entry["snapshot"] = (at, first, final, hashlib.sha256(whole).digest(), len(whole))
    stored[last.sequence] = last._replace(data=summed(entry))
    with pytest.raises(BusError, match=f"written by a newer version of dspex: .* the snapshot at {first}") as e:
        one.start()
    assert e.value.code == "DX411"
    one.hosts.clear()
