"""Replies that are no answers: cut, refused, empty or unfit. They are told, and told alike, whoever asked the model."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from pool_bench import config, program, work
from standin import REFUSAL
from waiting import until

from dspex.bus.records import CallRequest
from dspex.bus.serving.call_spec import CallSpec
from dspex.workers.answer import Answer
from dspex.workers.answerers.router import Router
from dspex.workers.config import Profile

PRICE = {"input": 4.0, "output": 8.0, "cached": 1.0}
ROUTES = ("native", "worker")
both_routes = pytest.mark.parametrize("route", ROUTES)
module = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def router(shared_model: Any) -> AsyncIterator[Router]:
    """What a child runs calls with, in this process."""
    made = Router(config(shared_model.url).for_child())
    yield made
    await made.close()


def predict(signature: str = "text -> reply, note: str | None", **options: Any) -> CallSpec:
    return CallSpec("predict", signature, signature, **options)


async def ask(router: Router, item: CallRequest) -> Answer:
    return await router.run(item, None, print)


def error(answer: Answer) -> dict[str, Any]:
    assert answer.error is not None, answer.outputs
    return dict(answer.error)


# -- why a model stopped ---------------------------------------------------------------------------------------------
@module
@pytest.mark.parametrize("adapter", ["chat", "json", "xml"])
async def test_a_reply_that_was_cut_is_an_invalid_output_on_both_routes(router: Router, adapter: str) -> None:
    told = []
    for route in ROUTES:
        answer = await ask(router, work("standin:length", spec=predict(route=route, adapter=adapter)))
        found = error(answer)
        assert (answer.route, answer.outputs) == (route, None)
        assert (found["type"], found["retryable"]) == ("InvalidOutput", True)
        assert answer.usage is not None
        assert (answer.usage.finish, answer.usage.output_tokens > 0) == ("length", True)
        told.append((found["message"], found["fix"], found["code"]))
    assert told[0] == told[1]
    assert "was cut after" in told[0][0]
    assert "finish_reason 'length'" in told[0][0]
    assert "max_tokens" in told[0][1]


@module
@both_routes
async def test_a_reply_that_was_cut_behind_its_last_needed_field_is_not_taken_for_whole(
    router: Router, shared_model: Any, route: str
) -> None:
    said = "[[ ## reply ## ]]\nDear customer, your card was blocked"
    shared_model.replies = {"standin:length": said * 2}  # the stand-in says half of it
    try:
        answer = await ask(router, work("standin:length", spec=predict(route=route)))
    finally:
        shared_model.replies = {}
    assert error(answer)["type"] == "InvalidOutput"
    assert "Dear customer" in error(answer)["message"]


@module
@pytest.mark.parametrize(("fault", "said"), [("refusal", REFUSAL), ("content_filter", "reply of standin")])
async def test_a_refusal_says_the_models_words_and_its_finish_reason(router: Router, fault: str, said: str) -> None:
    told = []
    for route in ROUTES:
        answer = await ask(router, work(f"standin:{fault}", spec=predict(route=route)))
        assert (error(answer)["type"], answer.outputs) == ("LMRefused", None)
        told.append((error(answer)["message"], answer.usage))
    assert told[0] == told[1]
    assert said in told[0][0]
    assert f"finish_reason '{'stop' if fault == 'refusal' else fault}'" in told[0][0]


@module
@pytest.mark.parametrize("name", ["Slow", "Draft"])
async def test_a_program_that_gets_a_cut_reply_fails_where_it_asked(router: Router, name: str) -> None:
    signature = "text -> reply" if name == "Slow" else "text, intent -> reply"
    inputs = {"text": "standin:length", "intent": "a"}
    asked = work(spec=program(name, signature=signature), inputs=inputs if name == "Draft" else {"text": "standin:length"})
    answer = await ask(router, asked)
    assert error(answer)["type"] == "InvalidOutput"
    assert answer.usage is not None
    assert answer.usage.finish == "length"


@module
async def test_replies_of_a_model_that_a_program_makes_itself_are_looked_at_too(router: Router, shared_model: Any) -> None:
    async def answered(text: str) -> Answer:
        asked = work(spec=program("OwnModel", signature="url, text -> reply"), inputs={"url": shared_model.url, "text": text})
        return await ask(router, asked)

    for text, kind, finish in (("standin:length", "InvalidOutput", "length"), ("standin:refusal", "LMRefused", "stop")):
        answer = await answered(text)
        assert (error(answer)["type"], answer.usage and answer.usage.finish) == (kind, finish)
    fine = await answered("fine")
    assert (fine.error, fine.usage and fine.usage.finish) == (None, "stop")


@module
async def test_tokens_that_a_program_spends_in_threads_of_dspys_are_counted(router: Router) -> None:
    once = (await ask(router, work("beside", spec=program("Slow")))).usage
    twice = (await ask(router, work("beside", spec=program("Side")))).usage
    assert once is not None
    assert twice is not None
    assert (twice.input_tokens, twice.output_tokens) == (2 * once.input_tokens, 2 * once.output_tokens)


@module
@both_routes
async def test_an_ordinary_answer_says_why_the_model_stopped(router: Router, route: str) -> None:
    answer = await ask(router, work("fine", spec=predict(route=route)))
    assert (answer.error, answer.usage and answer.usage.finish) == (None, "stop")


@module
@both_routes
async def test_input_that_the_provider_had_in_its_cache_has_a_price_of_its_own(shared_model: Any, route: str) -> None:
    profiles = {"main": Profile("main", "openai/stand-in", base_url=shared_model.url, price=PRICE)}
    router = Router(config(shared_model.url, profiles=profiles).for_child())
    try:
        used = (await ask(router, work("it is cached", spec=predict(route=route)))).usage
    finally:
        await router.close()
    assert used is not None
    assert used.cached_tokens == used.input_tokens // 2 > 10
    read = (used.input_tokens - used.cached_tokens) * 4 + used.cached_tokens
    assert used.cost == pytest.approx((read + 8 * used.output_tokens) / 1e6)


# -- how often it is asked -------------------------------------------------------------------------------------------
@module
@both_routes
@pytest.mark.parametrize("fault", ["length", "nonsense"])
async def test_an_interactive_call_asks_twice_for_a_fit_reply_on_both_routes(
    router: Router, shared_model: Any, route: str, fault: str
) -> None:
    text = f"twice {route} {fault}"
    shared_model.fault(text, f"{fault}=0x1")
    answer = await ask(router, work(text, spec=predict(route=route), record=None))
    assert (answer.error, shared_model.texts[text]) == (None, 2)
    once = await ask(router, work(f"once {route} {fault}", spec=predict(route=route), record=None))
    assert answer.usage is not None
    assert once.usage is not None
    assert answer.usage.output_tokens > once.usage.output_tokens, "both replies were paid for"
    assert answer.usage.finish == "stop", "that of the reply that counts"


@module
@both_routes
async def test_a_reply_that_stays_unfit_ends_an_interactive_call_after_two_and_a_durable_one_after_one(
    router: Router, shared_model: Any, route: str
) -> None:
    for record, asked in ((None, 2), (..., 1)):
        text = f"never {route} {asked}"
        shared_model.fault(text, "length")
        options: dict[str, Any] = {"record": None} if record is None else {}
        answer = await ask(router, work(text, spec=predict(route=route), **options))
        assert (error(answer)["type"], shared_model.texts[text]) == ("InvalidOutput", asked)


# -- bytes and characters --------------------------------------------------------------------------------------------
HALF = "\ud800"
TEXTS = {
    "bom": ("json", '\ufeff{"a": "hi"}'),
    "bom in a value": ("chat", "[[ ## a ## ]]\n\ufeffhi\n\n[[ ## completed ## ]]"),
    "chat": ("chat", f"[[ ## a ## ]]\nhi {HALF}\n\n[[ ## completed ## ]]"),
    "json": ("json", f'{{"a": "hi {HALF}"}}'),
    "escaped": ("json", '{"a": "hi \\ud800"}'),
    "a pair": ("json", '{"a": "hi \\ud83d\\ude00"}'),
    "xml": ("xml", f"<a>hi {HALF}</a>"),
    "nul": ("chat", "[[ ## a ## ]]\nhi\x00\n\n[[ ## completed ## ]]"),
}


@module
@pytest.mark.parametrize("case", TEXTS)
async def test_strange_characters_in_a_reply_are_answered_alike_on_both_routes(
    router: Router, shared_model: Any, case: str
) -> None:
    adapter, said = TEXTS[case]
    shared_model.replies = {f"strange {case}": said}
    try:
        answers = [
            await ask(router, work(f"strange {case}", spec=predict("text -> a", route=route, adapter=adapter)))
            for route in ROUTES
        ]
    finally:
        shared_model.replies = {}
    native, dspy = [(a.outputs, a.error and (a.error["type"], a.error["message"])) for a in answers]
    assert native == dspy
    assert (native[0] is None) == (case in ("chat", "json", "escaped", "xml"))
    assert native[1] is None or native[1][0] == "InvalidOutput"


# -- errors ----------------------------------------------------------------------------------------------------------
@module
@both_routes
async def test_no_message_of_an_ad_hoc_call_begins_with_a_colon(router: Router, route: str) -> None:
    """Such a call has no node whose name could stand there."""
    faults = ("429=1", "500", "400", "nonsense", "length", "refusal", "garbage", "drop")
    asked = [work(f"standin:{fault} {route}", spec=predict(route=route), record=None) for fault in faults]
    for answer in await asyncio.gather(*[ask(router, item) for item in asked]):
        assert not error(answer)["message"].startswith((":", " "))
    answer = await ask(router, work(spec=predict("text -> a: nothing_that_is_known", route=route), record=None))
    assert error(answer)["message"][0].isalpha()


@module
@both_routes
@pytest.mark.parametrize("status", [409, 425])
async def test_a_conflict_and_a_too_early_are_tried_again_later(router: Router, route: str, status: int) -> None:
    answer = await ask(router, work(f"standin:{status}", spec=predict(route=route)))
    assert (error(answer)["type"], error(answer)["retryable"]) == ("LMUnavailable", True)


@module
async def test_a_call_that_its_caller_gave_up_is_cancelled_and_not_tried_again(router: Router, shared_model: Any) -> None:
    asked = work("standin:hang", spec=predict(route="native"))
    running = asyncio.create_task(router.run(asked, None, print, lambda: True))
    await until(lambda: shared_model.running == 1)
    running.cancel()
    answer = await running
    assert (error(answer)["code"], error(answer)["retryable"]) == ("DX611", False)


@module
async def test_an_input_that_a_program_cannot_be_given_is_an_invalid_input(router: Router) -> None:
    asked = program("pydantic_answer", signature="text: bytes -> reply")
    answer = await ask(router, work(spec=asked, inputs={"text": b"\xff"}, record=None))
    assert error(answer)["type"] == "InvalidInput"
