"""Optimizers as jobs: in a real child, over the journal, with a model that learns from examples."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
import pytest_asyncio
from learner import SPEC, TEXT, Learner, job, rows
from pool_bench import APP, POOL, Bench, config, running, work
from waiting import until

from dspex.bus import subjects
from dspex.bus.records import AnswerTo, CallRequest
from dspex.bus.serving.call_spec import CallSpec
from dspex.bus.serving.programs import form
from dspex.bus.serving.programs.states import SavedStates
from dspex.engine.client.client import Client

SORTS = replace(SPEC, kind="program", target="learned:Sorts", signature=TEXT)
PROGRAMS = ("dspy:BootstrapFewShot", "dspy:MIPROv2", "metrics_of_users:*", "learned:*")
pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def learner() -> AsyncIterator[Learner]:
    async with Learner() as server:
        yield server


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def optimizers(learner: Learner) -> AsyncIterator[Bench]:
    async with running(config(learner.url, programs=PROGRAMS, restart_max=1000)) as b:
        yield b


def asked(what: Any, data: Any, **options: Any) -> Any:
    call = what.to_call()
    return work(spec=call.spec, inputs=dict(call.inputs(data)), opened=1.0, **options)


def another_try(item: CallRequest) -> CallRequest:
    assert item.record is not None
    return replace(item, try_number=2, attempt=2, record=item.record._replace(id=f"{item.call}.2"))


async def test_a_job_makes_a_program_better(optimizers: Bench) -> None:
    data = {"train": rows(9), "test": rows(6, "test")}
    (record,) = await optimizers.ask(asked(job(options={"max_bootstrapped_demos": 2}), data))
    assert record.error is None, record.error
    found = record.outputs or {}
    assert (found["before"], found["after"]) == (0.0, 100.0)
    assert found["requests"] == 6 + 2 + 6
    assert len(found["state"]["self"]["demos"]) >= 2


async def test_its_state_is_one_that_the_next_calls_use(optimizers: Bench, learner: Learner) -> None:
    """Also of a program with an asynchronous path alone, which optimizers cannot run."""
    data = {"train": rows(4, "asynchronous"), "test": rows(3, "held")}
    (record,) = await optimizers.ask(asked(job(program=SORTS, metric="metrics_of_users:right"), data))
    assert record.error is None, record.error
    assert (record.outputs or {})["after"] == 100.0
    version = await SavedStates(optimizers.bus, APP).put("sorts", form.read((record.outputs or {})["state"]))
    with_state = work("card again", spec=replace(SORTS, state=version.name))
    (used,) = await optimizers.ask(with_state)
    assert (used.outputs, used.state, used.warning) == ({"intent": "card"}, "sorts@1", "")


async def test_mipro_runs_and_asks_the_same_in_every_attempt(optimizers: Bench, learner: Learner) -> None:
    pytest.importorskip("optuna")
    options = {"num_candidates": 3, "num_trials": 3, "max_bootstrapped_demos": 1, "max_labeled_demos": 1, "minibatch_size": 2}
    data = {"train": rows(5, "mipro"), "test": rows(2, "proof")}
    learner.fault("card proof0", "hang@2")  # the second time is behind all that the optimizer asks
    item = asked(job(using="MIPROv2", options=options, threads=1), data)
    first, before = asyncio.create_task(optimizers.ask(item)), learner.requests
    await until(lambda: learner.running == 1 and learner.texts["card proof0"] == 2)
    paid = learner.requests - before
    learner.faults.clear()
    os.kill(optimizers.pool.children.children[0].pid, signal.SIGKILL)
    (lost,) = await first
    assert lost.error is not None
    assert lost.error["type"] == "WorkerLost"
    (record,) = await optimizers.ask(another_try(item))
    assert record.error is None, record.error
    assert record.requests == {"made": 2, "journal": paid - 1, "missed": 0}
    found = record.outputs or {}
    assert (found["before"], found["after"], found["requests"]) == (0.0, 100.0, paid + 1)


async def test_after_a_kill_only_what_was_open_is_asked_again(optimizers: Bench, learner: Learner) -> None:
    learner.fault("rate killed2", "hang@1")
    item, asked_before = asked(job(), {"train": rows(6, "killed"), "test": rows(3, "spared")}), learner.requests
    first = asyncio.create_task(optimizers.ask(item))
    await until(lambda: learner.kinds["hang"] > 0 and learner.running == 1)
    learner.faults.clear()
    os.kill(optimizers.pool.children.children[0].pid, signal.SIGKILL)
    (lost,) = await first
    assert lost.error is not None
    assert lost.error["type"] == "WorkerLost"
    (record,) = await optimizers.ask(another_try(item))
    found = record.outputs or {}
    assert (found["before"], found["after"], found["requests"]) == (0.0, 100.0, 3 + 4 + 3)
    assert learner.requests - asked_before == found["requests"] + 1
    assert record.requests == {"made": found["requests"] - 5, "journal": 5, "missed": 0}


@pytest.mark.parametrize("program", [SPEC, SORTS], ids=["predict", "asynchronous"])
async def test_a_provider_that_is_down_ends_the_attempt_and_not_the_scores(
    optimizers: Bench, learner: Learner, program: CallSpec
) -> None:
    down = f"down_{program.kind}"
    learner.fault(f"card {down}0", "503x1")
    item = asked(job(program=program), {"train": rows(3, "up"), "test": rows(2, down)})
    (first,) = await optimizers.ask(item)
    assert first.error is not None
    assert (first.error["type"], first.error["retryable"]) == ("LMUnavailable", True)
    (record,) = await optimizers.ask(another_try(item))
    assert ((record.outputs or {})["before"], (record.outputs or {})["after"]) == (0.0, 100.0)


async def test_an_answer_that_nobody_can_read_counts_as_wrong(optimizers: Bench, learner: Learner) -> None:
    learner.fault("a riddle", "nonsense")
    data = {"train": rows(3, "even"), "test": [*rows(3, "fine"), {"text": "a riddle", "intent": "other"}]}
    (record,) = await optimizers.ask(asked(job(), data))
    assert record.error is None, record.error
    assert ((record.outputs or {})["before"], (record.outputs or {})["after"]) == (0.0, 75.0)
    assert learner.kinds["nonsense"] > 0


@pytest.mark.parametrize(
    ("metric", "said"),
    [
        ("metrics_of_users:broken", "metrics_of_users:broken raised AttributeError"),
        ("metrics_of_users:silent", "metrics_of_users:silent gave NoneType"),
        ("metrics_of_users:endless", "metrics_of_users:endless gave nan"),
        ("elsewhere:metric", "not in the allow-list|does not allow"),
    ],
)
async def test_a_metric_that_fails_ends_the_job_and_says_for_which_row(optimizers: Bench, metric: str, said: str) -> None:
    (record,) = await optimizers.ask(asked(job(metric=metric), {"train": rows(3, "a"), "test": rows(2, "b")}))
    assert record.error is not None
    assert record.error["type"] == "ProgramError"
    assert re.search(said, record.error["message"]), record.error["message"]


@pytest.mark.parametrize(
    ("limit", "said"), [({"requests": 7}, "7 of 7 requests"), ({"tokens": 200}, "of 200 tokens")], ids=["requests", "tokens"]
)
async def test_a_budget_ends_the_job_also_where_the_journal_answers(
    optimizers: Bench, learner: Learner, limit: dict[str, int], said: str
) -> None:
    data = {"train": rows(6, f"dear{len(limit)}{said[0]}"), "test": rows(3, f"dear_too{said[0]}")}
    before, item = learner.requests, asked(job(threads=1, **limit), data)
    (record,) = await optimizers.ask(item)
    assert record.error is not None
    assert (record.error["type"], record.error["retryable"]) == ("BudgetExceeded", False)
    assert said in record.error["message"]
    paid = learner.requests - before
    (again,) = await optimizers.ask(another_try(item))
    assert again.error == record.error
    assert learner.requests - before == paid <= 7


@pytest.mark.parametrize("program", [SPEC, SORTS], ids=["predict", "asynchronous"])
async def test_a_job_is_cancelled_in_the_middle_and_its_process_lives(
    optimizers: Bench, learner: Learner, program: CallSpec
) -> None:
    wait, name = f"wait_{program.kind}", f"j_{program.kind}"
    learner.fault(f"card {wait}0", "hang")
    item = asked(job(program=program), {"train": rows(3, wait), "test": rows(3, "quick")}, answer=AnswerTo("me", name))
    child = optimizers.pool.children.children[0].pid
    first = asyncio.create_task(optimizers.ask(item))
    await until(lambda: learner.running == 1)
    client = Client(bus=optimizers.bus, app=APP)
    assert re.fullmatch(r"running BootstrapFewShot \d/9", str(await client.job_status(f"{POOL}/{name}")))
    assert await client.cancel_job(f"{POOL}/{name}") is True
    (record,) = await first
    assert record.error is not None
    assert record.error["type"] == "Cancelled"
    await until(lambda: learner.running == 0)
    (again,) = await optimizers.ask(another_try(item))  # an engine that had not heard of it
    assert again.error is not None
    assert again.error["type"] == "Cancelled"
    assert optimizers.pool.children.children[0].pid == child


async def test_a_job_that_is_cancelled_while_nothing_runs_it_is_not_begun(optimizers: Bench, learner: Learner) -> None:
    """Who cancels is gone when it begins."""
    client, before = Client(bus=optimizers.bus, app=APP), learner.requests
    cancelling = asyncio.create_task(client.cancel_job(f"{POOL}/waits"))

    async def stored() -> bool:
        return await optimizers.bus.last(subjects.requests(APP), subjects.job_end(APP, POOL, "waits")) is not None

    await until(stored)
    cancelling.cancel()  # it would wait for who runs the job
    item = asked(job(), {"train": rows(2), "test": rows(2)}, answer=AnswerTo("me", "waits"))
    (record,) = await optimizers.ask(item)
    assert ((record.error or {})["type"], learner.requests) == ("Cancelled", before)


async def test_rows_that_a_worker_cannot_use_are_named(optimizers: Bench) -> None:
    item = asked(job(), {"train": rows(2), "test": rows(2)})
    (record,) = await optimizers.ask(replace(item, inputs={"train": [*rows(1), {"intent": "card"}], "test": rows(1)}))
    assert record.error is not None
    assert record.error["type"] == "InvalidInput"
    assert record.error["message"].startswith("train, row 2: ")
    assert "text" in record.error["message"]


async def test_a_metric_may_give_a_number_of_any_type(optimizers: Bench) -> None:
    item = asked(job(metric="metrics_of_users:exact"), {"train": rows(3, "typed"), "test": rows(3, "number")})
    (record,) = await optimizers.ask(item)
    assert record.error is None, record.error
    assert ((record.outputs or {})["before"], (record.outputs or {})["after"]) == (0.0, 100.0)
