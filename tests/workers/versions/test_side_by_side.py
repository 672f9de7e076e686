"""Two versions of DSPy in one application: two pools, each with an interpreter of its own, on a real server."""

from __future__ import annotations

import os
from typing import Any

import pytest

import dspex
from dspex.bus.settings.model import Settings
from dspex.engine.cli.server.doctor import checks

PYTHONS = [python for python in os.environ.get("TEST_DSPY_PYTHONS", "").split(",") if python]


@pytest.mark.skipif(not PYTHONS, reason="TEST_DSPY_PYTHONS names no other interpreter: scripts/dspy_versions")
@pytest.mark.asyncio
async def test_each_pool_answers_with_its_version_and_says_which_it_is(model: Any, unique: str, nats_url: str) -> None:
    import dspy

    lm = {"main": {"model": "openai/stand-in", "base_url": model.url}}
    settings = Settings.load(server__url=nats_url, app=unique, lm=lm, pools={"new": {}, "old": {"python": PYTHONS[0]}})
    topology, asked = dspex.Topology("both"), f"{unique}.in"
    events = topology.source(asked).predict("text -> reply", name="new", pool="new", route="worker")
    events.predict("reply -> again", name="old", pool="old", route="worker").sink(f"{unique}.out")
    async with dspex.Engine(topology, settings=settings), dspex.connect(settings=settings) as client:
        run = await client.publish(asked, {"text": "hello"})
        await run.wait("60s")
        assert len(model.texts) == 2, "each pool has asked the model"
        found = {
            pool: await client.call(dspex.predict("text -> reply", pool=pool, route=route), {"text": "hello"}, timeout="60s")
            for pool, route in (("new", "worker"), ("old", "native"))
        }
        rows = {row["pool"]: row for row in (await client.status())["pools"]}
    old = found["old"].dspy_version
    assert [r.data["reply"] for r in found.values()] == ["reply of hello"] * 2
    assert found["new"].dspy_version == dspy.__version__ != old
    assert {pool: row.get("dspy_version") for pool, row in rows.items()} == {"new": dspy.__version__, "old": old}
    seen = {check.name: check for check in await checks(settings, ask=False)}
    assert seen["pools.old"].ok
    assert f"dspy {old}" in seen["pools.old"].message
