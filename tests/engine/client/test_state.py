"""What operators with state keep, as a client sees it: of one key or of all, now or as it was then."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cli_bench import Project
from engine_lab import APP, STREAM, Lab

from dspex.bus import subjects
from dspex.bus.errors import ConfigError, RecordingIncomplete, TopologyError
from dspex.bus.message import partition_of
from dspex.bus.settings.model import Settings
from dspex.engine.client.client import connect
from dspex.engine.client.status.state import find, listing, of_key
from dspex.engine.hosting.delete import delete
from dspex.engine.hosting.engine import Engine
from dspex.engine.log import commit_log, housekeeping
from dspex.operators.stream import gather
from dspex.operators.topology import Topology

MakeLab = Callable[..., Lab]


@pytest.fixture(autouse=True)
def _frequent_snapshots_and_sweeps(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few entries then show what thousands would."""
    monkeypatch.setattr(housekeeping, "EVERY", 60.0)
    monkeypatch.setattr(commit_log, "LEAST", 3_000)


@dataclass
class Seen:
    n: int
    names: tuple[str, ...] = ()


def counted(state: Seen, data: Any, ctx: Any) -> tuple[Seen | None, Iterable[Any]]:
    return (None if data.get("forget") else Seen(state.n + 1, (*state.names, data["k"]))), []


def counting(name: str = "t") -> Topology:
    topology = Topology(name, retention="2m")
    topology.source(f"{name}.in").key_by("k").stateful(counted, init=lambda: Seen(0), name="seen").sink(f"{name}.out")
    return topology


def now(one: Lab) -> datetime:
    """The server's clock."""
    return datetime.fromtimestamp(one.run(one.client.bus.stream(STREAM)).now, tz=UTC)


def state(one: Lab, node: str, key: str, **options: Any) -> Any:
    return one.run(one.client.state(node, key, **options))


def test_the_state_of_a_key_is_seen_without_the_code_that_made_it(lab: MakeLab) -> None:
    one = lab(counting())
    one.start()
    for key in ("a", "b", "a"):
        one.publish("t.in", {"k": key})
    one.advance(1)
    assert state(one, "t/seen", "a") == state(one, "seen", "a") == {"n": 2, "names": ("a", "a")}
    assert state(one, "seen", "c") is None
    one.publish("t.in", {"k": "a", "forget": True})
    one.advance(1)
    assert state(one, "seen", "a") is None


def test_the_state_is_seen_as_it_was_at_an_entry_and_at_a_time_also_behind_a_snapshot(lab: MakeLab) -> None:
    one = lab(counting())
    one.start()
    before = now(one)
    places: list[tuple[int, datetime]] = []
    for _ in range(60):  # enough for snapshots
        one.publish("t.in", {"k": "a"})
        one.advance(1)
        places.append((one.run(one.client.bus.stream(STREAM)).last, now(one)))
    assert one.messages(subjects.snapshot(APP, "t", "s2", "*"))
    for n in (0, 1, 30, 58):
        sequence, time = places[n]
        assert state(one, "seen", "a", at=sequence)["n"] == state(one, "seen", "a", at=time)["n"] == n + 1
    assert state(one, "seen", "a", at=1) is state(one, "seen", "a", at=before - timedelta(days=1)) is None


def test_what_was_before_the_retention_is_said_to_be_gone(lab: MakeLab) -> None:
    one = lab(counting())
    one.start()
    for _ in range(40):
        one.publish("t.in", {"k": "a"})
    one.advance(200)
    one.publish("t.in", {"k": "a"})
    one.advance(65)
    first = one.messages(subjects.log(APP, "t", "s2", partition_of("a", 64)))[0].sequence
    assert first > 100
    with pytest.raises(RecordingIncomplete, match="not kept any more"):
        state(one, "seen", "a", at=first - 1)
    assert state(one, "seen", "a")["n"] == 41


def test_the_keys_are_listed_with_those_that_changed_since(lab: MakeLab) -> None:
    one = lab(counting())
    one.start()
    for key in ("b", "a"):
        one.publish("t.in", {"k": key})
    one.advance(60)
    since = now(one)
    one.publish("t.in", {"k": "c"})
    one.advance(1)
    found = one.run(listing(one.client.bus, APP, "t/seen"))
    assert [(s.key, s.value["n"]) for s in found] == [("a", 1), ("b", 1), ("c", 1)]
    assert [s.key for s in one.run(listing(one.client.bus, APP, "seen", since=since))] == ["c"]


def test_a_name_that_no_operator_has_is_refused_with_those_that_are_meant(lab: MakeLab) -> None:
    one = lab(counting("t"), counting("u"))
    one.start()
    for wrong, meant in (
        ("t/sen", "did you mean t/seen"),
        ("sean", "t/seen"),
        ("seen", "did you mean t/seen or u/seen"),
        ("q", "one of: t/seen, u/seen"),
    ):
        with pytest.raises(TopologyError) as e:
            one.run(find(one.client.bus, APP, wrong))
        assert (e.value.code, meant in e.value.fix) == ("DX235", True), e.value.fix


def test_whatever_takes_a_name_of_what_is_applied_says_which_one_was_meant(lab: MakeLab) -> None:
    one, asking = lab(), Topology("support")
    asking.source("in").predict("text -> label", name="classify").sink("out")
    one.start("engine", asking)
    client = one.client

    async def first(names: AsyncIterator[Any]) -> Any:
        return await anext(names)

    for use, meant in (
        (lambda: client.resolve("support/clasify"), "support/classify"),
        (lambda: first(client.watch("suport/classify")), "support/classify"),
        (lambda: first(client.approvals("suport")), "support"),
        (lambda: delete(client.bus, APP, "suport"), "support"),
    ):
        with pytest.raises((TopologyError, ConfigError)) as e:
            one.run(use())
        assert e.value.fix == f"did you mean {meant}?"


def test_every_operator_with_state_shows_what_it_holds(lab: MakeLab) -> None:
    topology = Topology("all")
    source = topology.source("in", time="time")
    keyed, other = source.key_by("k"), topology.source("other").key_by("k", name="other_k")
    keyed.batch(9, within="1h", name="batch").sink("o1")
    keyed.debounce("1h", name="debounce").sink("o2")
    keyed.throttle("1/h", name="throttle").sink("o3")
    keyed.dedupe("k", within="1h", name="dedupe").sink("o4")
    keyed.join(other, within="1h", name="join").sink("o5")
    keyed.lookup(other, name="lookup").sink("o6")
    keyed.window("1m").count(name="count").sink("o7")
    keyed.window("1m", every="30s").collect(name="collect").sink("o8")
    keyed.window("1m", every="30s").aggregate(int, lambda s, d: s + d["n"], name="sum").sink("o9")
    keyed.session_window("1m").collect(name="session").sink("o10")
    keyed.reduce(lambda a, b: {**b, "n": a["n"] + b["n"]}, name="reduce").sink("o11")
    keyed.aggregate(int, lambda s, d: s + d["n"], name="aggregate").sink("o12")
    source.batch(9, within="1h", name="unkeyed").sink("o13")
    gather(source.set({"x": "1"}), source.filter("n > 9"), within="1h", name="both").sink("o14")
    one = lab(topology)
    one.start()
    start = now(one).replace(second=0, microsecond=0)
    data = [{"k": "a", "n": n, "time": (start + timedelta(seconds=n)).isoformat()} for n in (1, 2)]
    one.publish("other", {"k": "a", "v": 1})
    for d in data:
        one.publish("in", d)
    one.advance(1)
    first, second = (start + timedelta(seconds=n) for n in (1, 2))
    half, whole, back = (start + timedelta(seconds=s) for s in (30, 60, -30))
    value = {"k": "a", "v": 1}
    assert state(one, "unkeyed", "") == state(one, "batch", "a") == data
    assert state(one, "debounce", "a") == data[-1]
    assert state(one, "throttle", "a")["waits"] == data[1:]
    assert state(one, "dedupe", "a") == {"a": first}
    assert state(one, "join", "a") == {"left": data, "right": [value]}
    assert state(one, "lookup", "a") == value
    assert state(one, "count", "a") == [{"start": start, "end": whole, "value": 2}]
    assert state(one, "collect", "a") == [{"start": start, "end": half, "value": data}]
    windows = [{"start": back, "end": half, "value": 3}, {"start": start, "end": whole, "value": 3}]
    assert state(one, "sum", "a") == windows
    assert state(one, "session", "a") == [{"first": first, "last": second, "value": data}]
    assert (state(one, "reduce", "a")["n"], state(one, "aggregate", "a")) == (3, 3)
    assert [one["0"]["n"] for one in state(one, "both", "").values()] == [1, 2]
    kept = [s.key for s in one.run(of_key(one.client.bus, APP, "unkeyed", ""))]
    assert kept == [""]


def test_the_command_line_shows_state_as_json_and_to_people(tmp_path: Path, unique: str, nats_url: str) -> None:
    project = Project(tmp_path, unique, NATS_URL=nats_url)
    topology = Topology("shown")
    topology.source(project.input).key_by("k").reduce(lambda a, b: b, name="last").sink(project.output)

    async def some() -> None:
        settings = Settings.load(server__url=nats_url, app=unique)
        async with Engine(topology, settings=settings, pools="none"), connect(settings=settings) as client:
            for key in ("a", "b"):
                await (await client.publish(project.input, {"k": key})).wait("30s")

    asyncio.run(some())
    row = {"topology": "shown", "node": "last", "key": "a", "partition": partition_of("a", 64), "value": {"k": "a"}}
    assert project.here("--json", "state", "get", "shown/last", "a").objects() == [row]
    assert project.here("state", "get", "last", "a").out == '{"k":"a"}\n'
    assert [line.split()[0] for line in project.here("state", "ls", "last").out.splitlines()] == ["key", "a", "b"]
    one = project.here("--json", "state", "ls", "last", "--topology", "shown", "--since", "1h", "--limit", "1")
    assert (one.objects(), one.err) == ([row], "1 more keys: --limit 2\n")
    for none in (["get", "last", "c"], ["get", "last", "a", "--at", "1h"]):
        found = project.here("state", *none)
        assert (found.code, found.out, "keeps nothing" in found.err) == (1, "", True)
    assert project.here("--json", "state", "get", "lost", "a").error()["code"] == "DX235"
    assert project.here("--json", "state", "get", "last", "a", "--at", "soon").error()["code"] == "DX105"


def test_what_is_kept_at_a_time_to_come_is_not_told(lab: MakeLab) -> None:
    one = lab(counting())
    one.start()
    one.publish("t.in", {"k": "a"})
    one.advance(1)
    for at in (10**9, now(one) + timedelta(minutes=5)):
        with pytest.raises(ConfigError, match="lies ahead") as refused:
            state(one, "seen", "a", at=at)
        assert refused.value.code == "DX105"
    assert state(one, "seen", "a", at=now(one)) == state(one, "seen", "a")
