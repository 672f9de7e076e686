"""The real thing: llama.cpp and SmolLM2, asked natively and by DSPy. Wrong answers are fine, unfit ones are not."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Sequence

import psutil
import pytest
import pytest_asyncio
from pool_bench import APP, POOL, Bench, config, running, work
from waiting import until

from dspex.bus.records import CallRecord
from dspex.bus.serving.call_spec import CallSpec
from dspex.bus.serving.sayings import Said
from dspex.engine.client.call import ask
from dspex.engine.client.resolve import Resolved
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
TEXTS = ("My card was stolen!", "What is the exchange rate today?")

pytestmark = [
    pytest.mark.model,
    pytest.mark.long,
    pytest.mark.skipif(not weights.installed(weights.find("smollm2")), reason="not installed: dspex model install smollm2"),
]
LOCAL = {"main": Profile("main", "local/smollm2-135m")}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def local() -> AsyncIterator[Bench]:
    """A pool with the model, for all tests here: to load it and to read the first prompt takes seconds."""
    async with running(config("", profiles=LOCAL)) as bench:
        yield bench


class Told:
    """What comes of a call before its result."""

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}

    def accepted(self, call: str, worker: str) -> None:
        """A worker has it."""

    def said(self, said: Sequence[Said]) -> None:
        for one in said:
            assert one.at == len(self.texts.get(one.field, ""))
            self.texts[one.field] = self.texts.get(one.field, "") + one.text

    def ended(self, outputs: object) -> None:
        """It has answered."""


def fits(record: CallRecord) -> bool:
    """Whether it holds to the signature of ten intents, and says what it used."""
    assert record.outputs is not None, record.error
    assert record.outputs["intent"] in INTENTS
    assert isinstance(record.outputs["urgency"], int)
    assert record.usage["input_tokens"] > 50
    assert record.usage["output_tokens"] > 0
    return record.usage["cost"] is None


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("route", ["native", "worker"])  # the prompts of both are the same
async def test_the_local_model_streams_what_holds_to_a_signature_of_ten_intents(local: Bench, route: str) -> None:
    told, spec = Told(), CallSpec("predict", SIGNATURE, SIGNATURE, route=route)
    record, _ = await ask(local.bus, APP, Resolved(spec, POOL), {"text": TEXTS[0]}, timeout=60, told=told)
    assert record.route == route
    assert fits(record)
    assert told.texts == {name: str(value) for name, value in (record.outputs or {}).items()}


@pytest.mark.asyncio(loop_scope="module")
async def test_a_durable_call_of_the_local_model_holds_to_its_signature(local: Bench) -> None:
    spec = CallSpec("predict", SIGNATURE, SIGNATURE, route="native")
    (record,) = await local.ask(work(TEXTS[1], spec=spec, timeout=60), timeout=65)
    assert (record.error, record.route) == (None, "native")
    assert fits(record)


@pytest.mark.asyncio
async def test_a_model_server_that_dies_is_started_again_and_none_is_left() -> None:
    spec = CallSpec("predict", "text -> kind: Literal['a', 'b']", "text -> kind: Literal['a', 'b']")
    async with running(config("", profiles=LOCAL, programs=())) as local:
        (first,) = local.pool.status.full()["model_servers"]
        os.kill(first, signal.SIGKILL)
        await until(lambda: not local.pool.status.full()["model_servers"])
        (record,) = await local.ask(work(spec=spec, timeout=60), timeout=65)
        assert record.error is None
        (second,) = local.pool.status.full()["model_servers"]
    assert not psutil.pid_exists(second)
