"""`dspex pools` on a real server, with two processes of a pool: what an operator types, and what comes of it."""

from __future__ import annotations

import asyncio
import signal
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from cli_bench import Project
from waiting import eventually

from dspex.bus import nats, subjects
from dspex.bus.port import NewMessage, StreamConfig
from dspex.bus.serving.work_consumers import WorkConsumers

SETTINGS = """
path = ["."]
pools.shop = { programs = ["shop:*"], size = 2, slots = 3 }
pools.idle = {}
"""
SHOP = "async def version(data):\n    return {'reply': 'one'}\n"


async def made(url: str, app: str) -> None:
    """What an engine makes, and one durable call that waits for a pool that nobody runs."""
    bus = await nats.connect(url)
    await bus.ensure_stream(StreamConfig(subjects.stream(app), subjects.own_subjects(app)))
    await WorkConsumers(bus, app, [("shop", 1), ("idle", 1)]).look()
    await bus.publish(NewMessage(subjects.work(app, "idle", "t", "n"), b"a call"))
    await bus.close()


def rows(project: Project) -> list[dict[str, Any]]:
    done = project.here("--json", "pools", "ls")
    assert done.code == 0, done.err
    return done.objects()


def sizes(project: Project) -> list[int]:
    """Workers that are ready, by process."""
    return sorted(row["ready"] for row in rows(project) if row["pool"] == "shop" and row["id"])


@pytest.mark.long
def test_an_operator_scales_drains_and_restarts_two_processes_of_a_pool(tmp_path: Path, unique: str, nats_url: str) -> None:
    project = Project(tmp_path, unique, SETTINGS, NATS_URL=nats_url)
    project.write("shop.py", SHOP)
    asyncio.run(made(nats_url, unique))
    refused = project.here("--json", "pools", "scale", "shop=3")
    assert (refused.code, refused.error()["message"]) == (5, "no process of pool shop is running")
    with ExitStack() as stack:
        for _ in range(2):
            worker = stack.enter_context(project.start("worker", "shop"))
        assert eventually(lambda: sizes(project) == [2, 2])
        idle = next(row for row in rows(project) if row["pool"] == "idle")
        assert (idle["id"], idle["queue"]) == (None, 1)
        done = project.here("pools", "scale", "shop=5")
        assert (done.code, done.out) == (0, "shop has 5 workers, in 2 processes\n")
        assert sizes(project) == [2, 3]
        worker.end(signal.SIGKILL)
        assert eventually(lambda: sizes(project) == [5]), "the other one takes its share"
        (row,) = [row for row in rows(project) if row["pool"] == "shop"]
        assert (row["size"], row["of"], row["busy"], row["slots"], row["queue"], row["restarts"]) == (5, 5, 0, 15, 0, 0)
        assert row["rss"] > 5 << 20
        human = project.here("pools", "ls").out
        assert f"{row['host']}:{row['pid']}" in human
        assert "5/5 of 5" in human
        drained = project.here("pools", "drain", "shop", "--process", row["id"])
        assert drained.out == "shop: 1 process drained; dspex pools restart shop takes it back\n", drained.err
        assert [(row["ready"], row["state"]) for row in rows(project) if row["pool"] == "shop"] == [(0, "drained")]
        assert project.here("pools", "restart", "shop").out == "shop: 1 process restarted\n"
        assert sizes(project) == [5]
        assert (
            project.here("pools", "scale", "shop=default").out == "shop has as many workers as its settings say, in 1 process\n"
        )
        assert sizes(project) == [2]
    said = [entry["verb"] for entry in project.here("--json", "audit", "ls").objects()]
    assert said == ["scale", "drain", "restart", "scale"]


def test_what_is_no_size_is_refused(tmp_path: Path, unique: str, nats_url: str) -> None:
    project = Project(tmp_path, unique, SETTINGS, NATS_URL=nats_url)
    for wrong in ("shop", "shop=", "=3", "shop=-1", "shop=1.5", "shop=2 shop=3"):
        done = project.here("--json", "pools", "scale", *wrong.split())
        assert (done.code, done.error()["code"]) == (2, "DX105"), wrong
