"""What a pool promises of how its children start: imports once, no shared connection, and today's code after a restart."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import pytest_asyncio
from pool_bench import Bench, config, running, work
from structlog.testing import capture_logs
from waiting import until

from dspex.bus.errors import ConfigError, WorkerLost
from dspex.bus.records import CallRequest
from dspex.bus.serving.call_spec import CallSpec
from dspex.bus.settings.model import Settings
from dspex.workers.config import PoolConfig
from dspex.workers.pool.children import zygote_process

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere children are not forked")

PROGRAMS = """
import asyncio, os, pathlib, random, threading, time
with open(pathlib.Path(__file__).with_name("imported"), "a") as file:
    file.write("x")
log = open(pathlib.Path(__file__).with_name("log"), "a")

async def version(data):
    return {{"reply": {version!r}, "pid": os.getpid(), "drawn": random.random()}}

async def hangs(data):
    time.sleep(600)

async def waits(data):
    "Until there is a file of that name beside this one."
    while not pathlib.Path(__file__).with_name(data["file"]).exists():
        await asyncio.sleep(0.01)
    return {{"reply": os.getpid()}}
{more}
"""


def written(folder: Path, version: str = "old", more: str = "") -> None:
    """The programs of a user."""
    (folder / "shop.py").write_text(PROGRAMS.format(version=version, more=more))


def pool(folder: Path, **options: Any) -> PoolConfig:
    return config("", profiles={}, programs=("shop:*",), path=(str(folder),), restart_max=1000, **options)


def enrich(name: str = "version", **inputs: object) -> CallRequest:
    return work(spec=CallSpec("enrich", f"shop:{name}", ""), inputs=inputs)


async def ask(bench: Bench, name: str = "version", **inputs: object) -> dict[str, Any]:
    (record,) = await bench.ask(enrich(name, **inputs))
    assert record.outputs is not None, record.error
    return dict(record.outputs)


def end(bench: Bench, file: str) -> None:
    """Let the calls end that wait for it."""
    (Path(bench.pool.config.path[0]) / file).touch()


def pids(bench: Bench) -> list[int]:
    return [child.pid for child in bench.pool.children.children]


def imports(bench: Bench) -> int:
    """How often the programs were imported."""
    return len((Path(bench.pool.config.path[0]) / "imported").read_text())


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shop(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Bench]:
    """Two children, for all tests here; each leaves two."""
    written(folder := tmp_path_factory.mktemp("shop"))
    async with running(pool(folder, size=2)) as bench:
        yield bench


@pytest.mark.asyncio(loop_scope="module")
async def test_programs_are_imported_once_for_all_children_and_a_smaller_pool_lets_its_calls_end(shop: Bench) -> None:
    before = imports(shop)
    await shop.pool.children.resize(4)
    assert len(set(pids(shop))) == shop.pool.children.ready == 4
    assert imports(shop) == before
    asked = asyncio.gather(*(ask(shop, "waits", file="smaller") for _ in range(8)))
    await until(lambda: shop.pool.children.slots.busy == 8)
    await shop.pool.children.resize(2)
    assert shop.pool.status.full()["size"] == shop.pool.children.ready == 2
    end(shop, "smaller")
    assert len({answer["reply"] for answer in await asked}) == 4
    await until(lambda: len(pids(shop)) == 2)


@pytest.mark.asyncio(loop_scope="module")
async def test_processes_say_in_a_list_what_they_are(shop: Bench) -> None:
    pytest.importorskip("setproctitle")
    children = [psutil.Process(pid) for pid in pids(shop)]
    assert sorted(child.cmdline()[0] for child in children) == ["dspex child light/0", "dspex child light/1"]
    assert {psutil.Process(child.ppid()).cmdline()[0] for child in children} == {"dspex zygote light"}


@pytest.mark.asyncio(loop_scope="module")
async def test_children_of_one_zygote_draw_different_random_numbers(shop: Bench) -> None:
    drawn = {(record.outputs or {})["drawn"] for record in await shop.ask(*[enrich() for _ in range(8)])}
    assert len(drawn) == 8


@pytest.mark.asyncio(loop_scope="module")
async def test_a_child_that_starts_after_the_programs_were_changed_runs_what_they_are_now(shop: Bench) -> None:
    before = imports(shop), (await ask(shop))["reply"]
    written(Path(shop.pool.config.path[0]), "a new one")
    assert (imports(shop), (await ask(shop))["reply"]) == before, "who runs goes on"
    killed = pids(shop)
    for pid in killed:
        os.kill(pid, signal.SIGKILL)
    await until(lambda: not {*killed} & {*pids(shop)})
    assert (await ask(shop))["reply"] == "a new one"
    await until(lambda: shop.pool.children.ready == 2)
    assert imports(shop) == before[0] + 1


@pytest.mark.asyncio(loop_scope="module")
async def test_a_restart_replaces_every_child_and_no_call_fails(shop: Bench) -> None:
    await until(lambda: shop.pool.children.ready == 2)
    before, restarts = pids(shop), shop.pool.children.restarts
    asked = asyncio.gather(*(ask(shop, "waits", file="restarted") for _ in range(4)))
    await until(lambda: shop.pool.children.slots.busy == 4)
    await shop.pool.children.restart()
    assert shop.pool.children.ready == 2
    end(shop, "restarted")
    assert {answer["reply"] for answer in await asked} == set(before)
    assert (await ask(shop))["pid"] not in before
    assert shop.pool.children.restarts == restarts
    await until(lambda: len(pids(shop)) == 2)


@pytest.mark.asyncio(loop_scope="module")
async def test_a_restart_that_cannot_start_a_child_says_so_and_those_that_run_go_on(shop: Bench) -> None:
    before = (await ask(shop))["pid"]
    written(folder := Path(shop.pool.config.path[0]), more="os._exit(3)")
    with pytest.raises(WorkerLost, match="did not start"):
        await shop.pool.children.restart()
    assert (await ask(shop))["pid"] == before
    assert shop.pool.children.ready == 2
    written(folder, "mended")
    await shop.pool.children.restart()
    assert (await ask(shop))["reply"] == "mended"
    await until(lambda: len(pids(shop)) == 2)


@pytest.mark.asyncio(loop_scope="module")
async def test_a_pool_starts_its_children_again_where_what_starts_them_was_killed(shop: Bench) -> None:
    before = pids(shop)
    asked = asyncio.create_task(shop.ask(enrich("waits", file="never")))
    await until(lambda: shop.pool.children.slots.busy == 1)
    zygote = psutil.Process(before[0]).parent()
    assert zygote is not None
    assert zygote.pid != os.getpid()
    zygote.kill()
    (lost,) = await asked
    assert lost.error is not None
    assert lost.error["type"] == "WorkerLost"
    await until(lambda: shop.pool.children.ready == 2)
    assert (await ask(shop))["pid"] not in before
    await until(lambda: not any(psutil.pid_exists(pid) for pid in before))


@pytest.mark.asyncio(loop_scope="module")
async def test_a_hung_program_ends_at_its_time_also_where_what_started_it_is_frozen(
    shop: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zygote_process, "KILLED_WITHIN", 0.1)
    written(Path(shop.pool.config.path[0]), "not hung")
    before = pids(shop)
    zygote = psutil.Process(before[0]).parent()
    assert zygote is not None
    zygote.suspend()
    hung = work(spec=CallSpec("enrich", "shop:hangs", ""), inputs={}, timeout=0.2)
    (late,) = await shop.ask(hung)
    assert late.error is not None
    assert late.error["type"] == "CallTimeout"
    await until(lambda: shop.pool.children.ready == 2 and not set(before) & set(pids(shop)))
    assert (await ask(shop))["reply"] == "not hung"


@pytest.mark.asyncio
async def test_programs_that_start_a_thread_where_they_are_imported_are_imported_in_each_child(tmp_path: Path) -> None:
    """In a fork it would be gone, with the locks that it held."""
    written(tmp_path, more="threading.Thread(target=time.sleep, args=(1000,), daemon=True, name='poller').start()")
    with capture_logs() as logs:
        async with running(pool(tmp_path, size=2)) as bench:
            assert (await ask(bench))["reply"] == "old"
            assert imports(bench) == 1 + 2
    (said,) = [str(e.get("why")) for e in logs if e["log_level"] == "warning"]
    assert said == "they start a thread when they are imported (poller)"


@pytest.mark.asyncio
async def test_an_interpreter_that_is_not_there_is_told_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="python: /no/such/python cannot be started: No such file") as refused:
        async with running(pool(tmp_path, python="/no/such/python")):
            pass
    assert refused.value.code == "DX142"


LOOK = """
import os, sys
from pool_bench import config
from dspex.workers.child.ahead import import_ahead
for name in sys.argv[2:]:
    if os.fork() == 0:
        print(import_ahead(config("", profiles={}, programs=(f"{name}:*",), path=(sys.argv[1],))), flush=True)
        os._exit(0)
    os.wait()
"""


def test_what_two_children_cannot_share_is_found_where_it_is_imported(tmp_path: Path) -> None:
    cases = {
        "connects": ("import socket; pair = socket.socketpair()", "they open socket:["),
        "starts": ("import subprocess; helper = subprocess.Popen(['sleep', '2'])", "they start a process"),
        "reads": (f"file = open({str(tmp_path / 'reads.py')!r})", f"they open {tmp_path / 'reads.py'}"),
        "logs": (f"file = open({str(tmp_path / 'log')!r}, 'a')", "None"),
        "runs": ("import subprocess; subprocess.run(['true'])", "None"),
        "fails": ("1 / 0", "None"),
    }
    for name, (code, _) in cases.items():
        (tmp_path / f"{name}.py").write_text(code)
    path = os.pathsep.join(sys.path)
    command = [sys.executable, "-c", LOOK, str(tmp_path), *cases]
    said = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": path})
    for line, (_, why) in zip(said.stdout.splitlines(), cases.values(), strict=True):
        assert line.startswith(why), line


def test_a_pool_with_gpus_is_not_forked_and_cannot_be_told_to() -> None:
    assert not PoolConfig("a", "p", gpus=1, devices=(0,)).forks
    assert PoolConfig("a", "p").forks
    with pytest.raises(ConfigError, match="forked"):
        Settings.load(pools={"p": {"gpus": 1, "devices": [0], "zygote": True}})
