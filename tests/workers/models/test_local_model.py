"""The real thing: llama.cpp and SmolLM2, asked natively and by DSPy. Wrong answers are fine, unfit ones are not."""

from __future__ import annotations

import os
import signal

import psutil
import pytest
from pool_bench import config, running, work
from waiting import until

from dspex.bus.serving.call_spec import CallSpec
from dspex.workers.config import Profile
from dspex.workers.models import weights

INTENTS = (
    "card_arrival",
    "lost_or_stolen_card",
    "exchange_rate",
    "declined_card_payment",
    "cash_withdrawal",
    "top_up",
    "transfer",
    "refund",
    "fee_charged",
    "other",
)
SIGNATURE = f"text -> intent: Literal{list(INTENTS)}, urgency: int"
TEXTS = ("My card was stolen!", "What is the exchange rate today?", "When does my new card arrive?")

pytestmark = [
    pytest.mark.model,
    pytest.mark.skipif(not weights.installed(weights.find("smollm2")), reason="not installed: dspex model install smollm2"),
]
LOCAL = {"main": Profile("main", "local/smollm2-135m")}


@pytest.mark.asyncio
@pytest.mark.parametrize("route", ["native", "worker"])
async def test_the_local_model_holds_to_a_signature_of_ten_intents(route: str) -> None:
    spec = CallSpec("predict", SIGNATURE, SIGNATURE, route=route)
    async with running(config("", profiles=LOCAL)) as bench:
        records = await bench.ask(*[work(t, spec=spec, timeout=40) for t in TEXTS], timeout=45)
        assert [(r.error, r.route) for r in records] == [(None, route)] * len(TEXTS)
        for record in records:
            assert record.outputs is not None
            assert record.outputs["intent"] in INTENTS
            assert isinstance(record.outputs["urgency"], int)
            assert record.usage["input_tokens"] > 50
            assert record.usage["cost"] is None


@pytest.mark.asyncio
async def test_a_model_server_that_dies_is_started_again_and_none_is_left() -> None:
    spec = CallSpec("predict", "text -> kind: Literal['a', 'b']", "text -> kind: Literal['a', 'b']")
    async with running(config("", profiles=LOCAL)) as bench:
        (first,) = bench.pool.status.full()["model_servers"]
        assert (await bench.ask(work(spec=spec, timeout=20), timeout=25))[0].error is None
        os.kill(first, signal.SIGKILL)
        await until(lambda: not bench.pool.status.full()["model_servers"])
        (record,) = await bench.ask(work(spec=spec, timeout=20), timeout=25)
        assert record.error is None
        (second,) = bench.pool.status.full()["model_servers"]
    assert not psutil.pid_exists(second)
