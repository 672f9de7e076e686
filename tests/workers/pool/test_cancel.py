"""A caller that leaves ends its call: the worker stops it, and so does the request to the model."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from pool_bench import APP, POOL, SIGNATURE, Bench, program
from waiting import until

from dspex.bus import codecs, subjects
from dspex.bus.errors import CallTimeout
from dspex.bus.records import CallRecord
from dspex.bus.serving.call_spec import CallSpec
from dspex.engine.client.call import ask
from dspex.engine.client.resolve import Resolved


async def records(bench: Bench) -> list[CallRecord]:
    found = await bench.bus.page(subjects.stream(APP), [subjects.interactive_record(APP, POOL)], start=1, stop=1 << 40)
    return [CallRecord.unpack(message.data) for message in found]


async def leave(bench: Bench, spec: CallSpec, text: str, begun: Callable[[], bool]) -> CallRecord:
    """Ask, leave when `begun()` says that the call runs, and see what is recorded of it."""
    before = {record.call for record in await records(bench)}
    calling = asyncio.create_task(ask(bench.bus, APP, Resolved(spec, POOL), {"text": text}, timeout=60))
    await until(begun)
    calling.cancel()
    await asyncio.wait([calling])
    assert calling.cancelled()

    async def failed() -> list[CallRecord]:
        """Not one that a call has left which was answered before."""
        return [record for record in await records(bench) if record.error and record.call not in before]

    await until(failed)
    (record,) = await failed()
    return record


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    ("spec", "requests"),
    [
        (CallSpec("predict", SIGNATURE, SIGNATURE, route="native"), 1),
        (CallSpec("predict", SIGNATURE, SIGNATURE, route="worker"), 1),
        (program("Slow"), 1),
        (program("Side"), 2),
    ],
    ids=["native", "a coroutine of DSPy's", "a thread", "threads of a program's own"],
)
async def test_a_caller_that_leaves_ends_the_request_to_the_model(
    shared: Bench, shared_model: Any, spec: CallSpec, requests: int
) -> None:
    """Also those of a program that is synchronous, and its thread ends with them: nothing has to be killed."""
    shared_model.fault("hangs", "hang")
    record = await leave(shared, spec, "hangs", lambda: shared_model.running == requests)
    await until(lambda: shared_model.running == 0, 30.0)  # half the time that the call had
    assert (record.error or {})["type"] == "Cancelled"
    assert shared.pool.children.restarts == 0


@pytest.mark.asyncio(loop_scope="module")
async def test_a_caller_whose_time_is_over_leaves_too(shared: Bench) -> None:
    with pytest.raises(CallTimeout):
        await ask(shared.bus, APP, Resolved(program("sleeps"), POOL), {"text": "x"}, timeout=0.5)
    await until(lambda: shared.pool.children.slots.busy == 0)


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    "said", [{"kind": "cancel"}, {"kind": "cancel", "call": 5}, {"kind": "cancel", "call": "no such call"}]
)
async def test_what_cancels_nothing_harms_nobody(shared: Bench, said: dict[str, object]) -> None:
    calling = asyncio.create_task(ask(shared.bus, APP, Resolved(program("echo"), POOL), {"text": "x"}, timeout=30))
    await shared.bus.send(subjects.control(APP, POOL), codecs.encode(said)[0])
    assert (await calling)[0].error is None
