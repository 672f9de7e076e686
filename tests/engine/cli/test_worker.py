"""`dspex worker` as a process of its own on a real nats-server: started, used, drained, killed."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import pytest_asyncio
import yaml
from cli_bench import NOT_ROOT, needs_proc
from pool_bench import APP, HERE, POOL, Bench, program, work
from waiting import until

from dspex.bus import nats, subjects
from dspex.bus.port import StreamConfig
from dspex.bus.serving.work_consumers import WorkConsumers
from dspex.bus.settings.model import Settings
from dspex.engine.client.status.health import faults
from dspex.engine.hosting.pools import PoolProcess

COMPOSE = Path(__file__).parents[3] / "docker-compose.yml"
CONFIG = """
app = "{app}"
path = ["{path}"]
lm.main = {{ model = "openai/stand-in", base_url = "{url}" }}
pools.{pool} = {{ programs = ["sample:*"], slots = 4 }}
pools.local = {{ lm = "small" }}
lm.small = {{ model = "local/smollm2-135m" }}
"""


class Worker:
    """A running `dspex worker`."""

    def __init__(self, folder: Path, nats_url: str, *options: str, under: Sequence[str] = (), **env: str) -> None:
        arguments = [*under, sys.executable, "-m", "dspex", "--server", nats_url, "--json", "worker", POOL, *options]
        self.log = (folder / "log").open("w+")
        self.process = subprocess.Popen(
            arguments, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True,
            env={**os.environ, **env},
        )  # fmt: skip

    def ready(self) -> dict[str, Any]:
        """Its first line of output."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        self.log.seek(0)
        assert line, self.log.read()
        found: dict[str, Any] = json.loads(line)
        return found

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self.log):
            assert stream is not None
            stream.close()


@pytest_asyncio.fixture
async def bench(model: Any, nats_url: str, tmp_path: Path) -> AsyncIterator[Bench]:
    """A real bus with the application's stream, and a folder with settings for the worker."""
    (tmp_path / "dspex.toml").write_text(
        CONFIG.format(app=APP, path=HERE / "programs", url=model.url, pool=POOL), encoding="utf-8"
    )
    bus = await nats.connect(nats_url)
    await bus.ensure_stream(StreamConfig(subjects.stream(APP), subjects.own_subjects(APP)))
    info = await bus.stream(subjects.stream(APP))
    assert info is not None
    await bus.purge(info.name, ">", below=info.last + 1)
    await WorkConsumers(bus, APP, [(POOL, band) for band in subjects.BANDS]).look()
    found = Bench(None, bus)  # type: ignore[arg-type]
    pump = asyncio.create_task(found.pump())
    yield found
    pump.cancel()
    await asyncio.gather(pump, return_exceptions=True)
    await bus.close()


async def expect_gone(processes: list[psutil.Process]) -> None:
    try:
        await until(lambda: not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in processes))
    finally:
        for left in processes:
            with suppress(psutil.NoSuchProcess):
                left.kill()


@pytest.mark.measured_processes
@pytest.mark.asyncio
async def test_a_worker_serves_says_what_it_has_and_drains_on_sigterm(bench: Bench, nats_url: str, tmp_path: Path) -> None:
    worker = Worker(tmp_path, nats_url, "--size", "2", "--slots", "3", "--relayed")  # as `dspex run` on a terminal starts it
    try:
        ready = await asyncio.to_thread(worker.ready)
        assert (ready["event"], ready["pool"], ready["size"], ready["slots"]) == ("pool ready", POOL, 2, 3)
        assert "sample:echo" in ready["programs"]
        records = await bench.ask(work(), work("hi", spec=program("prints")))
        assert [r.error for r in records] == [None, None]
        children = worker.children()
        assert len(children) == 1 + 2, "what starts them, and two"
        worker.process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(worker.process.wait, 60) == 0
        await expect_gone(children)
        worker.log.seek(0)
        logged = worker.log.read().splitlines()
        assert len([line for line in logged if "printed by a program hi" in line]) == 1
        assert not [line for line in logged if line.startswith("{")]
    finally:
        worker.end()


@pytest.mark.asyncio
async def test_no_child_is_left_when_the_parent_is_killed_whatever_the_programs_do(
    bench: Bench, nats_url: str, tmp_path: Path
) -> None:
    worker = Worker(tmp_path, nats_url, "--size", "3", "--slots", "1")
    try:
        await asyncio.to_thread(worker.ready)
        names = ["holds_the_gil", "blocks", "sleeps"]  # each has a child of its own
        await bench.put(*[work(spec=program(name), timeout=60) for name in names])
        await until(lambda: (tmp_path / "log").read_text().count('"running"') == len(names))
        children = worker.children()
        assert len(children) == 1 + len(names)
        worker.process.kill()
        await expect_gone(children)
    finally:
        worker.end()


SECRETS = {"AWS_SECRET_ACCESS_KEY": "secret-1", "A_KEY": "secret-2", "DSPEX_POOLS__LIGHT__ENV__X": "secret-3"}


@needs_proc
@pytest.mark.asyncio
async def test_the_environment_of_a_workers_parent_tells_a_program_nothing(bench: Bench, nats_url: str, tmp_path: Path) -> None:
    worker = Worker(tmp_path, nats_url, **SECRETS)
    try:
        await asyncio.to_thread(worker.ready)
        (seen,) = await bench.ask(work(str(worker.process.pid), spec=program("environment")))
        if os.geteuid() == 0:  # nobody else may even look
            assert seen.outputs is not None
            assert any(text.startswith("PATH=") for text in seen.outputs["reply"])
        assert [v for v in SECRETS.values() if v.encode() in seen.pack()] == ["secret-3"], "only what is the pool's own"
    finally:
        worker.end()


@needs_proc
@pytest.mark.asyncio
async def test_a_program_cannot_look_into_its_workers_parent(bench: Bench, nats_url: str, tmp_path: Path) -> None:
    worker = Worker(tmp_path, nats_url, under=NOT_ROOT)
    try:
        await asyncio.to_thread(worker.ready)
        (seen,) = await bench.ask(work(str(worker.process.pid), spec=program("environment")))
        assert seen.error is not None
        assert "PermissionError" in seen.error["message"]
    finally:
        worker.end()


@pytest.mark.long
@pytest.mark.asyncio
async def test_the_probe_of_containers_sees_that_a_worker_is_frozen_and_that_it_goes_on(
    bench: Bench, nats_url: str, tmp_path: Path
) -> None:
    alive = tmp_path / "alive"
    stated = yaml.safe_load(COMPOSE.read_text())["services"]["pool"]["healthcheck"]["test"]
    probe = [word.replace("/tmp/alive", str(alive)) for word in stated[1:]]

    def healthy() -> bool:
        return subprocess.run(probe, timeout=60).returncode == 0

    assert not healthy(), "nothing was started"
    worker = Worker(tmp_path, nats_url, "--alive", str(alive))
    try:
        await until(healthy)
        worker.process.send_signal(signal.SIGSTOP)
        await until(lambda: psutil.Process(worker.process.pid).status() == psutil.STATUS_STOPPED)
        os.utime(alive, (0, 0))  # as it is a minute later
        assert not healthy()
        worker.process.send_signal(signal.SIGCONT)
        await until(healthy)
    finally:
        worker.end()


@pytest.mark.asyncio
async def test_a_second_signal_ends_a_worker_at_once(bench: Bench, model: Any, nats_url: str, tmp_path: Path) -> None:
    worker = Worker(tmp_path, nats_url, "--grace", "30s")
    try:
        await asyncio.to_thread(worker.ready)
        await bench.put(work("standin:hang", timeout=60))
        await until(lambda: model.running == 1)
        children = worker.children()
        worker.process.send_signal(signal.SIGTERM)
        await until(lambda: '"SIGTERM"' in (tmp_path / "log").read_text())
        worker.process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(worker.process.wait, 60) == 143
        await expect_gone(children)
    finally:
        worker.end()


@pytest.mark.asyncio
async def test_a_worker_ends_with_the_process_that_started_it(bench: Bench, nats_url: str, tmp_path: Path) -> None:
    worker = Worker(tmp_path, nats_url, "--with-parent")
    try:
        await asyncio.to_thread(worker.ready)
        children = worker.children()
        assert worker.process.stdin is not None
        worker.process.stdin.close()
        assert await asyncio.to_thread(worker.process.wait, 60) == 0
        await expect_gone(children)
    finally:
        worker.end()


@pytest.mark.long
@pytest.mark.asyncio
async def test_a_pool_whose_workers_keep_dying_takes_no_other_with_it(bench: Bench, nats_url: str, tmp_path: Path) -> None:
    """That is where it ends: its calls fail at once, and it tries again later. What runs both pools goes on."""
    (tmp_path / "deadly.py").write_text("import os\nos._exit(3)\n")
    more = f'path = ["{tmp_path}"]\npools.bad = {{ programs = ["deadly:*"], restart = {{ max = 1, within = "1h" }} }}\n'
    settings = (tmp_path / "dspex.toml").read_text().replace("path = [", "# [") + more
    (tmp_path / "dspex.toml").write_text(settings.replace('["sample:*"]', "[]"))
    worker = Worker(tmp_path, nats_url, "bad")
    try:
        ready = [await asyncio.to_thread(worker.ready) for _ in range(2)]
        assert {said["pool"]: said["size"] for said in ready} == {POOL: 1, "bad": 0}
        status = json.loads((await bench.bus.request(subjects.control(APP, "bad"), b'{"kind":"status"}', timeout=60)).data)
        assert (status["failed"], status["ready"], status["restarts"]) == (True, 0, 2)
        whole: Any = {"server": {"app": APP, "stream": {}}, "engines": [], "stages": [], "pools": [status]}
        assert "pool bad" in next(fault.message for fault in faults(whole) if fault.check == "pool")
        (record,) = await bench.ask(work())
        assert record.error is None
        assert worker.process.poll() is None
    finally:
        worker.end()


@pytest.mark.long
@pytest.mark.asyncio
async def test_an_engine_starts_a_pool_again_whose_process_was_killed(bench: Bench, nats_url: str, tmp_path: Path) -> None:
    settings = Settings.load(tmp_path, server__url=nats_url, pools={POOL: {"programs": []}})
    ready: asyncio.Queue[Mapping[str, object]] = asyncio.Queue()
    pool = PoolProcess(POOL, settings, ready.put_nowait)
    try:
        first = await ready.get()
        assert pool.child.process is not None
        pool.child.process.kill()
        second = await ready.get()
        assert (pool.failure, second["size"]) == (None, 1)
        assert second["id"] != first["id"]
    finally:
        await pool.stop(5.0)


@pytest.mark.parametrize(
    ("pool", "code", "fix"),
    [("nothing", "DX133", "pools.nothing"), ("local", "DX131", "dspex model install smollm2")],
)
@pytest.mark.asyncio
async def test_a_worker_that_cannot_start_says_why_and_exits_with_2(
    bench: Bench, nats_url: str, tmp_path: Path, pool: str, code: str, fix: str
) -> None:
    arguments = [sys.executable, "-m", "dspex", "--server", nats_url, "worker", pool]
    environment = {**os.environ, "DSPEX_CACHE": str(tmp_path)}
    done = await asyncio.to_thread(
        subprocess.run, arguments, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert code in done.stderr
    assert fix in done.stderr
    assert "Traceback" not in done.stderr
