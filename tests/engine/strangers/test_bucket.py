"""Whoever may write into an application's bucket can write heartbeats and manifests: what engines do with forged ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import orjson
import pytest
from engine_lab import APP, Lab
from structlog.testing import capture_logs

from dspex.bus import subjects
from dspex.bus.errors import StreamFull, TopologyError
from dspex.engine.graph import manifest
from dspex.operators.topology import Topology

MakeLab = Callable[..., Lab]


def echo(**options: Any) -> Topology:
    topology = Topology("echo")
    topology.source("in", partitions=8).predict("text -> answer", name="ask", **options).sink("out")
    return topology


def put(one: Lab, key: str, value: bytes) -> None:
    async def go() -> None:
        name = subjects.applied(APP) if key.startswith(subjects.manifest_prefix()) else subjects.bucket(APP)
        await (await one.client.bus.bucket(name)).put(key, value)

    one.run(go())


def says(one: Lab, **changes: Any) -> None:
    """A heartbeat of an engine that is none: as that of engine a, which runs, but for some changes."""

    async def of_a() -> Any:
        found = await (await one.client.bus.bucket(subjects.bucket(APP))).get(subjects.member_key("engine", "a"))
        return orjson.loads(found[0]) if found else {}

    said = {**one.run(of_a()), "pid": 0, "engine": "x", "owns": [], **changes}
    put(one, subjects.member_key("engine", "x"), orjson.dumps(said))


def applied(one: Lab) -> manifest.Manifest:
    async def go() -> Mapping[str, manifest.Manifest]:
        return await manifest.of_application(one.client.bus, APP)

    found: manifest.Manifest = one.run(go())["echo"]
    return found


def owned(one: Lab, name: str = "a") -> int:
    host, _ = one.hosts[name]
    return sum(len(r.partitions) for r in host.runners)


def health(one: Lab) -> str:
    """What `status` says of engine a."""
    (row,) = [e for e in one.run(one.client.status())["engines"] if e["engine"] == "a"]
    return str(row["health"])


@pytest.mark.parametrize("heartbeat", [1.0, 600.0, 1e18])
def test_one_forged_heartbeat_keeps_partitions_for_seconds_whatever_it_says(lab: MakeLab, heartbeat: float) -> None:
    one = lab(echo())
    one.start()
    says(one, heartbeat=heartbeat)
    one.advance(2)
    assert owned(one) == 4
    one.advance(8)
    assert owned(one) == 8


def test_a_forged_heartbeat_that_owns_everything_keeps_it_for_seconds(lab: MakeLab) -> None:
    one = lab(echo())
    one.start()
    one.drain()
    owns = [["echo", "s1", n] for n in range(8)]
    says(one, engine="x", versions={"echo": 1}, owns=owns, heartbeat=1e18)
    one.start("b")
    one.advance(1)
    assert owned(one, "b") == 0
    one.advance(8)
    assert owned(one, "b") == 8


def test_an_engine_that_beats_more_slowly_than_the_others_is_not_taken_for_dead(lab: MakeLab) -> None:
    one = lab(echo())
    one.start("a", heartbeat=1.0)
    one.start("slow", heartbeat=4.0)
    one.advance(20)
    for _ in range(60):
        one.advance(1)
        assert (owned(one, "a"), owned(one, "slow")) == (4, 4)


def test_a_version_that_nobody_applied_takes_no_partition_from_an_engine(lab: MakeLab) -> None:
    one = lab(echo())
    one.start()
    with capture_logs() as logs:
        for n in range(12):
            says(one, versions={"echo": 99}, heartbeat=1.0 + n)
            one.advance(1)
            assert owned(one) == 8
    assert health(one) == "ok"
    assert [(e["engine"], e["versions"]) for e in logs if "nobody applied" in e["event"]] == [("x", {"echo": 99})]


def test_the_log_and_status_name_an_engine_that_lives_and_takes_nothing(lab: MakeLab) -> None:
    one = lab(echo())
    one.start()
    for n in range(20):
        says(one, heartbeat=1.0 + n / 1000)
        one.advance(1)
    assert health(one) == "x owns nothing of the 4 partitions that fall to it"
    one.advance(20)
    assert (owned(one), health(one)) == (8, "ok")


def forged(one: Lab, version: int, **changes: Any) -> bytes:
    return orjson.dumps({**orjson.loads(applied(one).pack()), "version": version, "digest": "forged", **changes})


@pytest.mark.parametrize(
    ("version", "garbage"),
    [(3, b"\xffgarbage"), (3, b"{}"), (999, b""), (999, None)],  # well-formed as version 3 is what who applies writes
    ids=str,
)
def test_an_engine_that_runs_what_was_applied_last_starts_beside_a_forged_manifest(
    lab: MakeLab, version: int, garbage: bytes | None
) -> None:
    one = lab(echo())
    one.start()
    one.drain()
    one.start("b", echo(timeout="9s"))
    one.drain("b")
    assert applied(one).version == 2
    put(one, subjects.manifest_key("echo", version), forged(one, version) if garbage is None else garbage)
    with capture_logs() as logs:
        one.start("c", echo(timeout="9s"))
    assert f"manifest.echo.{version}" in [e["key"] for e in logs if e["event"] == "a manifest is passed over"]
    assert applied(one).version == 2
    one.work()
    one.publish("in", {"text": "a"})
    one.advance(5)
    assert len(one.outputs("out")) == 1


@pytest.mark.parametrize("stages", [{"in": ["s9", 8]}, {"in": ["s1", 4]}, {"in": ["s2", 8], "other": ["s3", 1]}], ids=str)
def test_a_forged_manifest_takes_no_stage_and_its_state_away(lab: MakeLab, stages: Mapping[str, Any]) -> None:
    one = lab(echo())
    one.start()
    one.drain()
    put(one, subjects.manifest_key("echo", 2), forged(one, 2, stages=stages))
    one.start("b")
    assert (applied(one).version, applied(one).stages) == (1, {"in": ("s1", 8)})


@pytest.mark.parametrize("garbage", [b'{"stream": "DSPEX_lab_sources", "seq": 1}', b"", b"{}"])
def test_no_answer_of_the_server_under_keys_to_come_keeps_a_version_from_being_applied(lab: MakeLab, garbage: bytes) -> None:
    one = lab(echo())
    for version in (1, 2, 4, 5):
        put(one, subjects.manifest_key("echo", version), garbage)
    one.start()
    assert applied(one).version == 3
    one.drain()
    one.start("b", echo(timeout="9s"))
    assert applied(one).version == 6
    one.drain("b")
    with pytest.raises(StreamFull):
        put(one, subjects.manifest_key("echo", 6), garbage)
    one.start("c", echo(timeout="9s"))
    one.work()
    one.publish("in", {"text": "a"})
    one.advance(5)
    assert len(one.outputs("out")) == 1


def test_no_other_version_is_applied_beside_a_forged_manifest_and_the_error_names_its_key(lab: MakeLab) -> None:
    one = lab(echo())
    one.start()
    one.drain()
    put(one, subjects.manifest_key("echo", 999), forged(one, 999))
    with pytest.raises(TopologyError, match=r"manifest\.echo\.999") as e:
        one.start("b", echo(timeout="9s"))
    one.hosts.pop("b")
    assert e.value.code == "DX411"
    assert "delete this key" in e.value.fix


@pytest.mark.parametrize(
    "changes",
    [
        {"stages": {"in": ["s1", 10**9]}},
        {"stages": {"in": ["s.*", 1]}},
        {"stages": {}},
        {"calls": {"ask": 5}},
        {"calls": {"ask": {"spec": 5, "pool": "gpu"}}},
        {"retention": -1.0},
        {"digest": 5},
    ],
    ids=str,
)
def test_a_manifest_with_odd_values_is_damaged_and_reaches_no_client(lab: MakeLab, changes: Mapping[str, Any]) -> None:
    one = lab(echo())
    one.start()
    put(one, subjects.manifest_key("echo", 2), forged(one, 2, **changes))
    assert applied(one).version == 1
    assert [row["topology"] for row in one.run(one.client.status())["stages"]] == ["echo"]
