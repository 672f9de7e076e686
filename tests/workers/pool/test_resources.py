"""What a pool's processes may have: memory with what they start, GPUs of their own, a share of the CPU."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from pool_bench import Bench, config, running, work
from waiting import until

from dspex.bus.errors import ConfigError
from dspex.bus.records import CallRequest
from dspex.bus.serving.call_spec import CallSpec
from dspex.workers.config import PoolConfig
from dspex.workers.pool.children.groups import WorkerGroups
from dspex.workers.processes.cgroups import Groups, Unavailable
from dspex.workers.processes.devices import FOLDER, lease

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="no other system has it")

PROGRAMS = """
import asyncio, os, subprocess, sys

async def gpus(data):
    return {"reply": os.environ.get("CUDA_VISIBLE_DEVICES"), "pid": os.getpid()}

async def has_a_helper(data):
    "Starts a process that takes so many MiB, and waits for it."
    script = "import sys, time; x = bytearray(b'x') * (int(sys.argv[1]) << 20); print(flush=True); time.sleep(600)"
    helper = subprocess.Popen([sys.executable, "-Sc", script, str(data["mib"])], stdout=subprocess.PIPE)
    await asyncio.to_thread(helper.stdout.readline)
    await asyncio.sleep(600)
    return {"reply": helper.pid}
"""
GPUS = (10 * os.getpid(), 10 * os.getpid() + 1)  # numbers that no machine has, and no other run of this test


def pool(folder: Path, **options: Any) -> PoolConfig:
    (folder / "hungry.py").write_text(PROGRAMS)
    return config("", profiles={}, programs=("hungry:*",), path=(str(folder),), restart_max=1000, **options)


def enrich(name: str, **inputs: object) -> CallRequest:
    return work(spec=CallSpec("enrich", f"hungry:{name}", ""), inputs=inputs, timeout=600)


async def ask(bench: Bench, name: str, **inputs: object) -> dict[str, Any]:
    (record,) = await bench.ask(enrich(name, **inputs))
    assert record.outputs is not None, record.error
    return dict(record.outputs)


# -- memory ----------------------------------------------------------------------------------------------------------
@pytest.mark.asyncio
async def test_what_programs_start_counts_as_memory_of_their_worker(tmp_path: Path) -> None:
    async with running(pool(tmp_path, memory=150 << 20)) as bench:
        started = time.monotonic()
        (lost,) = await bench.ask(enrich("has_a_helper", mib=300))
        assert lost.error is not None
        assert (lost.error["type"], lost.error["code"]) == ("WorkerLost", "DX606")
        assert time.monotonic() - started < 60, "it is not the time limit of the call"


# -- GPUs ------------------------------------------------------------------------------------------------------------
@pytest.mark.long
@pytest.mark.asyncio
async def test_two_pools_of_a_machine_never_share_a_gpu(tmp_path: Path) -> None:
    """And what a worker had is free again as soon as it has ended, however it did."""
    async with running(pool(tmp_path, gpus=1, devices=GPUS[:1])) as first:
        mine = await ask(first, "gpus")
        assert mine["reply"] == str(GPUS[0])
        with pytest.raises(
            ConfigError, match=f"{GPUS[0]} by a worker of pool light of test .* process {os.getpid()}"
        ) as refused:
            async with running(pool(tmp_path, gpus=1, devices=GPUS[:1])):
                pass
        assert refused.value.code == "DX140"
        free = lease(GPUS, 1, "a test")
        assert free.devices == [GPUS[1]]
        free.close()
        os.kill(mine["pid"], signal.SIGKILL)
        await until(lambda: mine["pid"] not in [c.pid for c in first.pool.children.children])
        assert (await ask(first, "gpus"))["reply"] == str(GPUS[0])
        await first.pool.children.restart()
        assert (await ask(first, "gpus"))["reply"] == str(GPUS[0])
    lease(GPUS, 2, "a test").close()
    for gpu in GPUS:
        (FOLDER / f"dspex-gpu-{gpu}.lock").unlink()


@pytest.mark.asyncio
async def test_a_worker_more_that_cannot_start_takes_nothing_from_those_that_run(tmp_path: Path) -> None:
    """All calls of the pool were refused for a minute, again and again, though its workers were well."""
    held = lease(GPUS[1:], 1, "a test")
    async with running(replace(pool(tmp_path, gpus=1, devices=GPUS), restart_max=1)) as bench:
        children = bench.pool.children
        await asyncio.wait_for(children.resize(2), 30)
        assert (children.ready, children.failed) == (1, False)
        assert (await ask(bench, "gpus"))["reply"] == str(GPUS[0])
        held.close()
        await until(lambda: children.ready == 2)
    for gpu in GPUS:
        (FOLDER / f"dspex-gpu-{gpu}.lock").unlink()


@pytest.mark.asyncio
async def test_a_pool_none_of_whose_workers_can_start_goes_on_as_soon_as_one_can(tmp_path: Path) -> None:
    """It was failed for a minute, though its GPU was free again after a moment."""
    held = lease(GPUS[:1], 1, "a test")
    config = replace(pool(tmp_path, gpus=1, devices=GPUS[:1], size=0), restart_max=1, restart_within=600.0)
    async with running(config) as bench:
        children = bench.pool.children
        await asyncio.wait_for(children.resize(1), 60)
        await until(lambda: children.failed)
        (refused,) = await bench.ask(enrich("gpus"))
        assert ((refused.error or {})["type"], (refused.error or {})["retry_after"]) == ("WorkerLost", 10.0)
        assert "no worker of it can be started" in (refused.error or {})["message"]
        held.close()
        await until(lambda: children.ready == 1)
        assert not children.failed
        assert (await ask(bench, "gpus"))["reply"] == str(GPUS[0])
    (FOLDER / f"dspex-gpu-{GPUS[0]}.lock").unlink()


def test_no_link_is_followed_where_a_lock_should_be(tmp_path: Path) -> None:
    (tmp_path / "dspex-gpu-0.lock").symlink_to(tmp_path / "precious")
    with pytest.raises(ConfigError, match="cannot be opened"):
        lease([0], 1, "a test", tmp_path)
    assert not (tmp_path / "precious").exists()


# -- CPU -------------------------------------------------------------------------------------------------------------
@pytest.mark.asyncio
async def test_a_share_of_the_cpu_holds_or_the_pool_says_why_it_cannot(tmp_path: Path) -> None:
    try:
        async with running(pool(tmp_path, cpu=0.5)) as bench:
            group = Path(f"/proc/{(await ask(bench, 'gpus'))['pid']}/cgroup").read_text()
            assert f"dspex-{os.getpid()}-light-" in group
    except ConfigError as refused:
        found = refused.code, refused.message.partition(": ")[0]
    else:
        return
    assert found == ("DX141", "pools.light.cpu is 0.5, and this system holds no worker to it")


def system(folder: Path, *, controllers: str, inside: str, above: str = "") -> Path:
    """What a system with cgroup v2 says of this process, which is in a group of its own: files in folders."""
    own = folder / "unit.service"
    own.mkdir()
    for group, procs in ((folder, above), (own, inside)):
        (group / "cgroup.controllers").write_text(controllers)
        (group / "cgroup.subtree_control").write_text("")
        (group / "cgroup.procs").write_text(procs)
    (proc := folder / "proc").mkdir()
    (proc / "mounts").write_text(f"proc /proc proc rw 0 0\ncgroup2 {folder} cgroup2 rw 0 0\n")
    (proc / "cgroup").write_text("4:memory:/elsewhere\n0::/unit.service\n")
    return proc


def test_a_process_that_is_alone_in_its_group_makes_groups_below_it(tmp_path: Path) -> None:
    groups = Groups.here(("cpu", "memory"), system(tmp_path, controllers="cpu memory", inside=f"{os.getpid()}\n"))
    own = tmp_path / "unit.service"
    assert (own / "dspex-parent" / "cgroup.procs").read_text() == str(os.getpid()), "a group with limits below it is empty"
    assert (own / "cgroup.subtree_control").read_text() == "+cpu +memory"
    group = groups.make("light-1", cpu=1.5, memory=1000)
    group.add(4711)
    written = {file.name: file.read_text() for file in (own / f"dspex-{os.getpid()}-light-1").iterdir()}
    assert written == {"cpu.max": "150000 100000", "memory.max": "1000", "memory.oom.group": "1", "cgroup.procs": "4711"}


@dataclass(eq=False)
class EndedWorker:
    """A process as the zygote tells of it."""

    pid: int = 4711
    ended: asyncio.Event = field(default_factory=asyncio.Event)


def test_the_group_of_a_worker_that_left_something_behind_is_removed_when_that_has_ended(tmp_path: Path) -> None:
    """It stayed for as long as the pool lived: a pool that replaces its workers for months had thousands."""
    held = WorkerGroups(config("", cpu=1.0))
    held.__dict__["_groups"] = Groups.here(("cpu",), system(tmp_path, controllers="cpu", inside=f"{os.getpid()}\n"))
    worker: Any = EndedWorker()
    held.hold(worker)
    (group,) = (tmp_path / "unit.service").glob("dspex-*-light-*")
    worker.ended.set()
    held.remove()
    assert group.exists(), "a process that the worker started is in it"
    for file in group.iterdir():
        file.unlink()
    held.remove()
    assert not group.exists()


def test_a_process_with_others_in_its_group_uses_the_one_above_where_that_is_empty(tmp_path: Path) -> None:
    proc = system(tmp_path, controllers="cpu memory", inside=f"1\n{os.getpid()}\n")
    Groups.here(("cpu",), proc).make("light-1", cpu=2.0, memory=None)
    assert (tmp_path / f"dspex-{os.getpid()}-light-1" / "cpu.max").read_text() == "200000 100000"


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"controllers": "memory", "inside": ""}, "has no controller cpu"),
        ({"controllers": "cpu", "inside": "1\n", "above": "1\n"}, "has other processes in it"),
    ],
)
def test_why_there_are_no_groups_is_told(tmp_path: Path, given: dict[str, str], why: str) -> None:
    with pytest.raises(Unavailable, match=f"unit.service {why}"):
        Groups.here(("cpu",), system(tmp_path, **given))


# -- replacing -------------------------------------------------------------------------------------------------------
@pytest.mark.asyncio
async def test_no_call_fails_or_waits_while_workers_are_replaced_again_and_again(tmp_path: Path) -> None:
    """One process, which is replaced every few calls: there is always one that takes them."""
    async with running(pool(tmp_path, recycle_calls=5)) as bench:
        seen: set[int] = set()
        while len(seen) < 3:
            assert bench.pool.children.ready >= 1
            records = await bench.ask(*(enrich("gpus") for _ in range(5)))
            seen |= {(record.outputs or {})["pid"] for record in records}
            await asyncio.sleep(0)
        assert bench.pool.children.restarts == 0
