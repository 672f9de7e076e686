"""What an engine refuses before it starts anything."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from engine_lab import Lab

from dspex.bus import telemetry
from dspex.bus.errors import DspexError, TopologyError, Unreachable
from dspex.bus.memory.server import Faults
from dspex.bus.settings.model import Settings
from dspex.engine.client.client import connect
from dspex.engine.hosting import engines
from dspex.engine.hosting.command_process import READ, relay
from dspex.engine.hosting.engine import Engine, EngineEvent
from dspex.operators.topology import Topology


def test_an_engine_refuses_what_is_no_topology() -> None:
    with pytest.raises(TopologyError, match="3 is int, not a Topology") as caught:
        Engine(3, settings=Settings(app="test"))  # type: ignore[arg-type]
    assert caught.value.code == "DX221"


@pytest.mark.parametrize(("seconds", "starts"), [(20.0, True), (60.0, False)], ids=["a while", "too long"])
def test_an_engine_that_starts_with_its_cluster_waits_until_that_has_a_leader(
    lab: Callable[..., Lab], seconds: float, starts: bool
) -> None:
    topology = Topology("t")
    topology.source("in").sink("out")
    one = lab(topology)
    one.server.luck.faults = Faults(disconnect=1.0)  # nothing answers

    async def begin() -> None:
        asyncio.get_running_loop().call_later(seconds, setattr, one.server.luck, "faults", Faults())

    one.run(begin())
    if starts:
        one.start()
        one.publish("in", {"a": 1})
        one.advance(1)
        assert one.outputs("out") == [{"a": 1}]
    else:
        with pytest.raises(Unreachable):
            one.start()


def test_what_a_pool_logs_is_handed_on_in_whole_lines_and_without_bound_only_in_parts() -> None:
    told: list[str] = []

    async def go() -> None:
        stream = asyncio.StreamReader()
        for part in (b"one\ntw", b"o\n", b"x" * (3 * READ), b"\nlast"):
            stream.feed_data(part)
        stream.feed_eof()
        await relay(stream, told.append)

    asyncio.run(go())
    assert (told[:2], told[-1]) == (["one", "two"], "last")
    assert "".join(told[2:-1]) == "x" * (3 * READ)
    assert max(map(len, told)) < 2 * READ


@pytest.mark.parametrize(
    ("target", "deaths", "what"),
    [
        ("none:topology", 9, "'none:topology' cannot be imported"),
        ("dspex.topologies.support_triage:topology", 0, "no NATS server"),
    ],
    ids=["for good", "once too often"],
)
def test_an_engine_process_that_cannot_run_is_given_up_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str, deaths: int, what: str
) -> None:
    monkeypatch.setattr(engines, "MOST_DEATHS", deaths)

    async def run() -> None:
        settings = Settings().placed(tmp_path, {})
        others = engines.EngineProcesses(2, ("--pools", "none", "--no-server", target), settings, lambda number, said: None)
        try:
            await others.failed()
        finally:
            await others.stop(1.0)

    with pytest.raises(DspexError, match=what):
        asyncio.run(run())


@pytest.mark.asyncio
async def test_an_observer_is_told_what_an_engine_does_until_that_is_drained(nats_url: str, unique: str) -> None:
    topology, told = Topology(unique), list[EngineEvent]()
    topology.source(f"{unique}.in").sink(f"{unique}.out")
    settings = Settings.load(server__url=nats_url, app=unique)
    async with (
        Engine(topology, settings=settings, pools="none", observer=told.append) as engine,
        connect(settings=settings) as c,
    ):
        await (await c.publish(f"{unique}.in", {"n": 1})).wait("60s")
        assert engine.running
    names = [event.name for event in told]
    assert names.index("claimed") < names.index("commit") < names.index("released")
    assert "taken" not in names
    (commit,) = [event.facts for event in told if event.name == "commit" and event.facts["messages"]]
    assert (commit["topology"], commit["arrivals"]) == (unique, 1)
    assert not telemetry.listeners


@pytest.mark.parametrize(
    ("submit", "pools", "started"), [(True, "all", ["lightweight", "optimizer"]), (False, "all", []), (True, "none", [])]
)
def test_all_pools_but_those_with_gpus_are_started_where_calls_can_be_submitted(
    submit: bool, pools: Any, started: list[str]
) -> None:
    configured: dict[str, Any] = {"lightweight": {}, "optimizer": {}, "gpu": {"gpus": 1, "devices": [0]}}
    settings = Settings.load(app="test", engine={"submit": submit}, pools=configured)
    engine = Engine(settings=settings, pools=pools)
    assert engine._pool_names() == started  # pyright: ignore[reportPrivateUsage]
