"""What a pool promises when programs block, die and grow, and when it is told to stop."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from typing import Any

import psutil
import pytest
from pool_bench import APP, POOL, Bench, config, light, native, program, running, work
from structlog.testing import capture_logs
from waiting import until

from dspex.bus import subjects
from dspex.bus.memory.server import MemoryServer
from dspex.bus.port import NewMessage, StreamConfig
from dspex.bus.serving.work_consumers import WorkConsumers
from dspex.workers.pool.pool import Pool


def children(bench: Bench) -> list[int]:
    return [c.pid for c in bench.pool.children.children]


# -- children that die -----------------------------------------------------------------------------------------------
@pytest.mark.asyncio(loop_scope="module")
async def test_the_calls_of_a_child_that_dies_fail_at_once_and_it_is_replaced(mortal: Bench) -> None:
    first, before = await mortal.answering(), mortal.pool.children.restarts
    (dead,) = await mortal.ask(work(spec=program("dies"), timeout=600))  # longer than this waits
    assert dead.error is not None
    assert (dead.error["type"], dead.error["retryable"]) == ("WorkerLost", True)
    assert "signal 9" in dead.error["message"]
    assert dead.error["retry_after"] is None, "nobody knows who killed it"
    assert await mortal.answering() != first
    assert mortal.pool.children.restarts == before + 1


@pytest.mark.asyncio(loop_scope="module")
async def test_all_calls_of_a_killed_child_end_in_worker_lost(mortal: Bench) -> None:
    items = [work(spec=program("sleeps"), timeout=60) for _ in range(8)]
    asked = asyncio.create_task(mortal.ask(*items))
    await until(lambda: mortal.pool.children.slots.busy == 8)
    os.kill(children(mortal)[0], signal.SIGKILL)
    records = await asked
    assert {r.error and r.error["type"] for r in records} == {"WorkerLost"}


@pytest.mark.asyncio
async def test_a_pool_whose_children_die_too_often_fails_its_calls(model: Any) -> None:
    async with running(light(model.url, restart_max=0, restart_within=600.0)) as bench:
        os.kill(children(bench)[0], signal.SIGKILL)
        await until(lambda: bench.pool.status.full()["failed"])
        (refused,) = await bench.ask(native())
        assert bench.pool.status.full()["failed"], "it is refused while no child runs"
        assert refused.error is not None
        assert (refused.error["type"], refused.error["retry_after"]) == ("WorkerLost", 600.0)
        assert f"pool {POOL} failed" in refused.error["message"]


@pytest.mark.asyncio
async def test_a_pool_whose_children_died_too_often_starts_one_when_its_time_is_over(model: Any) -> None:
    async with running(light(model.url, restart_max=0, restart_within=0.2)) as bench:
        (first,) = children(bench)
        os.kill(first, signal.SIGKILL)
        await until(lambda: first not in children(bench) and bench.pool.status.full()["ready"] == 1)
        assert not bench.pool.status.full()["failed"]
        assert (await bench.ask(native()))[0].error is None


@pytest.mark.asyncio
async def test_calls_that_end_their_process_do_not_fail_the_pool(model: Any) -> None:
    async with running(config(model.url, restart_max=0, restart_within=600.0)) as bench:
        for alone in (False, True):
            dead = await bench.ask(*[work(spec=program("dies"), alone=alone) for _ in range(2)])
            assert [r.error and r.error["type"] for r in dead] == ["WorkerLost"] * 2
        (after,) = await bench.ask(work(spec=program("pid")))
        assert after.error is None
        assert not bench.pool.status.full()["failed"]


@pytest.mark.asyncio(loop_scope="module")
async def test_only_the_call_that_runs_alone_dies_with_its_process(mortal: Bench, shared_model: Any) -> None:
    """It waits for the call that is there, and the one behind it does not join it."""
    shared_model.gate.clear()
    first_asked = asyncio.create_task(mortal.ask(native("standin:gate")))
    await until(lambda: shared_model.running == 1)
    items = [work(spec=program("dies"), alone=True), *[work(spec=program("pid")) for _ in range(5)]]
    asked = asyncio.create_task(mortal.ask(*items))
    await until(lambda: mortal.pool.children.slots.waiting)
    shared_model.gate.set()
    dead, *after = await asked
    assert dead.error is not None
    assert dead.error["type"] == "WorkerLost"
    assert [r.error for r in after] == [None] * 5
    (first,) = await first_asked
    assert first.error is None, "it ended by itself, not with the process"
    assert mortal.pool.children.slots.busy == 0


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("raises_silently", "ProgramError"),
        ("raises_unmade", "ProgramError"),
        ("raises_no_exception", "ProgramError"),
        ("interrupts", "ProgramError"),
        ("exits_in_a_task", "ProgramError"),
        ("leaks_a_cancellation", "WorkerLost"),
    ],
)
async def test_an_error_that_cannot_be_told_ends_its_own_call_and_not_its_neighbours(
    quick: Bench, name: str, kind: str
) -> None:
    neighbour = work("standin:slow=0.3")
    failed, served = await quick.ask(work(spec=program(name)), neighbour)
    assert failed.error is not None
    assert failed.error["type"] == kind
    assert served.error is None
    assert quick.pool.children.restarts == 0


@pytest.mark.asyncio(loop_scope="module")
async def test_a_task_of_a_program_that_exits_ends_neither_its_call_nor_its_process(quick: Bench) -> None:
    neighbour = work("standin:slow=0.3")
    mine, served = await quick.ask(work(spec=program("exits_beside")), neighbour)
    assert (mine.error, served.error) == (None, None)
    assert mine.outputs == {"reply": "hello"}
    assert quick.pool.children.restarts == 0


# -- time ------------------------------------------------------------------------------------------------------------
@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("name", ["sleeps", "blocks", "blocks_the_loop", "holds_the_gil"])
async def test_an_attempt_ends_at_its_timeout_whatever_the_program_does(mortal: Bench, name: str) -> None:  # N5
    first = await mortal.answering()
    (late,) = await mortal.ask(work(spec=program(name), timeout=0.5))
    assert late.error is not None
    assert (late.error["type"], late.error["retryable"]) == ("CallTimeout", True)
    assert (await mortal.answering() == first) == (name == "sleeps"), "only a child that does not react is killed"


@pytest.mark.asyncio
async def test_a_program_that_holds_the_gil_does_not_stop_the_signs_of_life(model: Any) -> None:  # N2
    async with running(config(model.url), ack_wait=1.0, sign_of_life=0.1) as bench:
        await bench.put(work(spec=program("holds_the_gil"), timeout=2.0))
        busy: set[int] = set()
        await until(lambda: busy.add(bench.pool.children.slots.busy) or bench.seen)
        assert max(busy) == 1, "work without signs of life is delivered a second time"


@pytest.mark.asyncio(loop_scope="module")
async def test_work_past_its_deadline_is_not_served(quick: Bench, shared_model: Any) -> None:
    before = shared_model.requests
    (late,) = await quick.ask(work(left=0.0))
    assert late.error is not None
    assert late.error["type"] == "CallTimeout"
    assert shared_model.requests == before


@pytest.mark.asyncio
async def test_the_deadline_of_work_counts_from_when_it_was_stored_and_not_from_when_it_was_taken(model: Any) -> None:
    bus = MemoryServer().connect()
    await bus.ensure_stream(StreamConfig(subjects.stream(APP), subjects.own_subjects(APP)))
    item = native(left=0.001)  # it takes a pool longer to start its child
    await bus.publish(NewMessage(subjects.work(APP, POOL, item.topology, item.node), item.pack()))
    async with running(light(model.url), bus) as bench:
        (late,) = await bench.records(1)
        assert late.error is not None
        assert late.error["type"] == "CallTimeout"
    assert model.requests == 0


@pytest.mark.asyncio(loop_scope="module")
async def test_a_call_cancelled_by_its_timeout_closes_the_request_to_the_model(quick: Bench, shared_model: Any) -> None:
    (late,) = await quick.ask(work("standin:hang", timeout=0.5))
    assert late.error is not None
    assert late.error["type"] == "CallTimeout"
    await until(lambda: shared_model.running == 0)
    assert quick.pool.children.restarts == 0


# -- records ---------------------------------------------------------------------------------------------------------
@pytest.mark.asyncio
async def test_work_that_is_delivered_again_leaves_one_record(model: Any) -> None:  # N15
    """In a pool of its own: one that has just stood still, as that of a file does between its tests, looks for the record."""
    async with running(light(model.url)) as bench:
        item = native("again")
        await bench.ask(item)
        async with asyncio.timeout(60):
            while model.texts["again"] < 2:  # it is run again: the record of the first run was stored first
                await bench.put(item)
                await bench.ask(native("another"))
        await bench.ask(native("another"))
        assert [r.call for r in bench.seen].count(item.call) == 1


@pytest.mark.asyncio(loop_scope="module")
async def test_an_answer_too_large_for_a_message_is_stored_and_one_over_64_mb_becomes_an_error(quick: Bench) -> None:
    (large,) = await quick.ask(work("3000000", spec=program("big")))
    assert large.outputs == {"reply": "x" * 3_000_000}
    (big,) = await quick.ask(work("68000000", spec=program("big")))
    assert big.error is not None
    assert big.error["type"] == "OutputTooLarge"
    assert big.event == b"the event of the call"


@pytest.mark.asyncio(loop_scope="module")
async def test_unreadable_work_is_dropped_with_a_log_line(quick: Bench) -> None:
    with capture_logs() as logs:
        await quick.bus.publish(NewMessage(subjects.work(APP, POOL, "triage", "classify"), b"\xc1 no MessagePack"))
        assert (await quick.ask(work()))[0].error is None
    assert any(e["event"] == "unreadable work dropped" and e["log_level"] == "error" for e in logs)


@pytest.mark.asyncio(loop_scope="module")
async def test_what_a_program_prints_goes_to_the_log_and_not_into_the_frames(quick: Bench) -> None:
    with capture_logs() as logs:
        printed, reported = await quick.ask(work(spec=program("prints")), work(spec=program("status")))
        assert printed.outputs == {"reply": "ok"}
        assert reported.error is None
        await until(lambda: {"printed", "logged"} <= {str(e.get("line", e["event"])).split(" ")[0] for e in logs})
    lines = {e["line"] for e in logs if e["event"] == "program output"}
    assert {"printed by a program hello", "written to fd 1"} <= lines
    (own,) = [e for e in logs if e["event"] == "logged by a program"]
    assert (own["seen"], own["call"]) == ("hello", reported.call)
    assert any(e["event"] == "status" and e["text"] == "half way" for e in logs)


# -- replacing -------------------------------------------------------------------------------------------------------
@pytest.mark.asyncio
async def test_a_child_is_replaced_after_its_number_of_calls_and_loses_none(model: Any) -> None:
    async with running(light(model.url, recycle_calls=3)) as bench:
        (first,) = children(bench)
        records = await bench.ask(*[native(f"t{i}") for i in range(6)])
        assert [r.error for r in records] == [None] * 6
        await until(lambda: children(bench) and first not in children(bench) and bench.pool.children.ready == 1)
        assert bench.pool.children.restarts == 0


# -- stopping --------------------------------------------------------------------------------------------------------
@pytest.mark.asyncio
async def test_a_drain_finishes_what_runs_and_hands_the_rest_back(model: Any) -> None:
    server = MemoryServer()
    async with running(light(model.url), server.connect()) as first:
        quick, slow = native("standin:gate"), native("standin:slow=600x1", timeout=600)
        await first.put(quick, slow)
        await until(lambda: model.running == 2)
        pids = children(first)
        await first.pool.executions.drain(0.0)  # as where the work loop is later: durable calls are given up by that alone
        model.gate.set()
        await first.pool.drain(3.0)
        (done,) = await first.records(1)
        assert (done.call, done.error) == (quick.call, None)
        assert not any(psutil.pid_exists(p) for p in pids)
        async with running(light(model.url), server.connect()) as second:
            records = await second.records(2)
            assert [r.call for r in records] == [quick.call, slow.call]
            assert records[1].error is None
            assert records[1].worker != done.worker


@pytest.mark.asyncio
async def test_a_full_stream_stops_the_pool_from_taking_more_and_loses_nothing(model: Any) -> None:
    bus = MemoryServer().connect()
    await bus.ensure_stream(StreamConfig(subjects.stream(APP), subjects.own_subjects(APP), max_messages=42))
    async with running(light(model.url, slots=2), bus) as bench:
        model.gate.clear()
        await bench.put(*[native(f"standin:gate {i}") for i in range(40)])  # before a record takes their room
        model.gate.set()
        await until(lambda: bench.pool.records.pending > 2 and bench.pool.children.slots.busy == 0)
        assert len(await bench.records(2)) == 2
        assert model.requests < 12, "it does not call models for records that it cannot store"
        await bus.purge(subjects.stream(APP), subjects.work_pattern(APP, POOL), below=38)
        calls = [r.call for r in await bench.records(6)]
        assert len(set(calls)) == len(calls)


@pytest.mark.asyncio
async def test_a_pool_waits_for_an_application_that_is_not_there_yet(model: Any) -> None:
    bus = MemoryServer().connect()
    pool = Pool(bus, light(model.url))
    await pool.start()
    try:
        await bus.ensure_stream(StreamConfig(subjects.stream(APP), subjects.own_subjects(APP)))
        await WorkConsumers(bus, APP, [(POOL, 1)]).look()
        bench = Bench(pool, bus)
        pump = asyncio.create_task(bench.pump())
        assert (await bench.ask(native()))[0].error is None
        pump.cancel()
    finally:
        await pool.drain(0)
        await bus.close()


# -- what is said of it ---------------------------------------------------------------------------------------------
@pytest.mark.asyncio(loop_scope="module")
async def test_status_shows_what_a_pool_is_doing(quick: Bench, shared_model: Any) -> None:
    before = len(quick.seen)
    shared_model.gate.clear()
    await quick.put(work("standin:gate"))
    await until(lambda: quick.pool.children.slots.busy == 1)
    answer = await quick.bus.request(subjects.control(APP, POOL), json.dumps({"kind": "status"}).encode())
    status = json.loads(answer.data)
    assert {"id", "host", "pid", "restarts", "dspy_version", "programs"} <= set(status)
    assert (status["pool"], status["size"], status["slots"], status["busy"], status["ready"]) == (POOL, 1, 16, 1, 1)
    assert status["failed"] is False
    assert status["children"][0]["pid"] == children(quick)[0]
    assert status["children"][0]["rss"] > 10 << 20
    assert "sample:echo" in status["programs"]["found"]
    shared_model.gate.set()
    await quick.records(before + 1)


@pytest.mark.asyncio(loop_scope="module")
async def test_a_record_goes_to_the_subject_that_its_work_names(quick: Bench) -> None:
    await quick.ask(item := work())
    assert item.record is not None
    found = await quick.bus.scan(subjects.stream(APP), [item.record.subject], start=1, stop=10_000)
    assert [m.headers[subjects.MESSAGE_ID] for m in found].count(item.record.id) == 1
