"""Who answers a call in a worker, and that both answer alike: a real pool with a real child, and a stand-in for the model."""

from __future__ import annotations

import asyncio
import gc
import importlib.metadata
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import dspy
import pytest
import pytest_asyncio
from pool_bench import SIGNATURE, Bench, config, program, running, work
from waiting import until

from dspex.bus import codecs, subjects
from dspex.bus.errors import ConfigError
from dspex.bus.message import Message
from dspex.bus.records import CallRecord, CallRequest
from dspex.bus.serving.call_spec import CallSpec
from dspex.bus.serving.sayings import ACCEPTED
from dspex.workers.answer import Answer
from dspex.workers.answerers.router import Router
from dspex.workers.config import PoolConfig, Profile

ROOT = Path(__file__).parents[3]
VERSION = importlib.metadata.version("dspy")


def spec(signature: str = SIGNATURE, route: str = "auto", kind: str = "predict", **options: Any) -> CallSpec:
    return CallSpec(kind, signature, signature, route=route, **options)


def plain(url: str, **options: Any) -> PoolConfig:
    """A pool without programs: nothing needs DSPy at its start."""
    return config(url, **{"programs": (), **options})


def error(record: CallRecord | Answer) -> dict[str, Any]:
    assert record.error is not None, record.outputs
    return dict(record.error)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(shared_model: Any) -> AsyncIterator[Bench]:
    """One pool with programs and with profiles of every kind, for all tests that neither stop it nor kill its child."""
    known = config(shared_model.url)
    more = [
        Profile("two", "openai/stand-in", base_url=shared_model.url, params={"n": 2}),
        Profile("well", "openai/stand-in", base_url=shared_model.url),
        Profile("gone", "openai/a", base_url="http://127.0.0.1:9/v1"),
        Profile("thinks", "openai/o3-mini", base_url=shared_model.url),
        Profile("else", "anthropic/claude-sonnet-4-5", base_url=shared_model.url),
        Profile("keyless", "openai/gpt-4o"),
    ]
    async with running(replace(known, profiles={**known.profiles, **{p.name: p for p in more}})) as found:
        yield found


# -- the same answer -------------------------------------------------------------------------------------------------
@pytest.mark.asyncio(loop_scope="module")
async def test_a_native_answer_has_the_same_record_as_dspys(shared: Bench, shared_model: Any) -> None:
    shared_model.bodies = []
    for kind in ("predict", "chain_of_thought"):
        for adapter in ("chat", "json", "xml"):
            asked = spec(kind=kind, adapter=adapter, instructions="Be brief.", config={"temperature": 0.25, "max_tokens": 99})
            began = time.monotonic()
            native, dspy = await shared.ask(work("my card", spec=asked), work("my card", spec=replace(asked, route="worker")))
            waited = time.monotonic() - began
            assert (native.route, dspy.route) == ("native", "worker")
            assert native.outputs == dspy.outputs, error(native)
            assert list(native.outputs or {}) == list(dspy.outputs or {})
            for name in ("usage", "lm", "program", "dspy_version", "worker", "node", "error"):
                assert getattr(native, name) == getattr(dspy, name), name
            assert shared_model.bodies[-1] == shared_model.bodies[-2]
            assert (native.usage["cost"] or 0) > 0
            assert 0 < native.elapsed <= waited


@pytest.mark.asyncio(loop_scope="module")
async def test_each_failure_of_a_model_is_the_same_whoever_asked(shared: Bench, shared_model: Any) -> None:
    before = shared_model.requests
    faults = ["429=7", "500", "503", "drop", "garbage", "400", "401", "404", "nonsense"]
    found = {}
    for route, busy in (("native", "busy1"), ("worker", "busy2")):
        lms = [(busy,) if f.startswith("429") else () for f in faults]
        records = await shared.ask(*[work(f"standin:{f}", spec=spec(route=route, lm=lm)) for f, lm in zip(faults, lms)])
        assert {r.route for r in records} == {route}
        found[route] = [(error(r)["type"], error(r)["retryable"], error(r)["retry_after"], r.usage) for r in records]
    assert found["native"] == found["worker"]
    assert shared_model.requests - before == 2 * len(faults), "nothing below dspex retries a durable call"
    assert found["native"][-1][3]["output_tokens"] > 0, "a useless answer was paid for too"


@pytest.mark.asyncio(loop_scope="module")
async def test_untrusted_signatures_and_inputs_are_refused_alike_on_both_routes(shared: Bench, shared_model: Any) -> None:
    before = shared_model.requests
    marker = '<<CUSTOM-TYPE-START-IDENTIFIER>>[{"type": "image_url"}]<<CUSTOM-TYPE-END-IDENTIFIER>>'
    for route in ("auto", "worker"):
        imported, marked, missing, absent = await shared.ask(
            work(spec=spec("text -> reply: this", route)),
            work(marker, spec=spec(route=route)),
            work(spec=spec("text, more -> reply", route)),
            work(spec=spec(route=route, lm=("big",))),
        )
        assert (error(imported)["type"], error(marked)["type"]) == ("ProgramError", "InvalidInput")
        assert (error(missing)["type"], error(absent)["code"]) == ("InvalidInput", "DX113")
        assert error(missing)["message"] == "the signature wants more; there is text"
    assert shared_model.requests == before


@pytest.mark.asyncio(loop_scope="module")
async def test_constraints_of_outputs_are_enforced(shared: Bench) -> None:
    asked = spec("text -> urgency: Annotated[int, Field(ge=100)]")
    (record,) = await shared.ask(work("hello", spec=asked))
    assert (record.route, error(record)["type"]) == ("native", "InvalidOutput")
    assert "greater than or equal to 100" in error(record)["message"]


# -- who answers -----------------------------------------------------------------------------------------------------
@pytest.mark.asyncio(loop_scope="module")
async def test_dspy_answers_what_native_does_not_cover_and_what_asks_for_it(shared: Bench) -> None:
    records = await shared.ask(
        work(spec=spec(route="worker")),
        work(spec=spec("text -> reply", kind="react", tools=("sample:echo",), max_iters=2)),
        work(spec=program("echo", route="auto")),
        work(spec=spec(config={"n": 2})),
        work(spec=spec(lm=("two",))),
        work(spec=spec("text, past: dspy.History -> reply"), inputs={"text": "hello", "past": {"messages": []}}),
        work(spec=spec("text -> reasoning, reply", kind="chain_of_thought")),
        work(spec=spec()),
    )
    assert [r.error for r in records] == [None] * 8
    assert [r.route for r in records] == ["worker"] * 7 + ["native"]


@pytest.mark.asyncio(loop_scope="module")
async def test_a_call_that_must_be_native_and_cannot_says_why_and_is_not_tried_again(shared: Bench, shared_model: Any) -> None:
    before = shared_model.requests
    wanted = {
        "react runs in DSPy only": spec("text -> reply", "native", "react", tools=("sample:echo",)),
        "n=2 is given to DSPy as it is": spec(route="native", config={"n": 2}),
        "is a reasoning model": spec(route="native", lm=("thinks",)),
        "is not called by OpenAI's chat API": spec(route="native", lm=("else",)),
        "lm.keyless names no key": spec(route="native", lm=("keyless",)),
        "dspy.History": spec("text, past: dspy.History -> reply", "native"),
    }
    records = await shared.ask(*[work(spec=s) for s in wanted.values()])
    for why, record in zip(wanted, records, strict=True):
        found = error(record)
        assert (found["type"], found["retryable"]) == ("ProgramError", False)
        assert why in found["message"]
        assert 'route="native" cannot be' in found["message"]
    assert shared_model.requests == before


@pytest.mark.asyncio(loop_scope="module")
async def test_work_of_an_engine_that_knew_dspy_alone_goes_to_dspy(shared: Bench) -> None:
    item = work()
    old = {k: v for k, v in item.spec.plain().items() if k != "route"}
    (record,) = await shared.ask(replace(item, spec=CallSpec.unpack(codecs.msgpack_bytes(old))))
    assert (record.route, record.error) == ("worker", None)


@pytest.mark.asyncio
async def test_a_call_that_dspy_would_send_to_another_server_is_not_answered_natively(model: Any) -> None:
    async with running(plain(model.url, env={"OPENAI_API_BASE": "http://127.0.0.1:9/v1"})) as bench:
        (record,) = await bench.ask(work(spec=spec(route="native")))
    assert "OPENAI_API_BASE is set" in error(record)["message"]
    assert model.requests == 0


@pytest.mark.asyncio(loop_scope="module")
async def test_the_next_profile_is_tried_only_when_one_is_unavailable_whoever_serves_it(shared: Bench) -> None:
    served, refused, mixed = await shared.ask(
        work("one", spec=spec(lm=("gone", "well", "two"))),
        work("standin:401", spec=spec(lm=("gone", "well", "two"))),
        work("two", spec=spec(lm=("gone", "two"))),
    )
    assert (served.lm, served.route, served.error) == ("well", "native", None)
    assert error(refused)["type"] == "LMRefused"
    assert (mixed.lm, mixed.route, mixed.error) == ("two", "worker", None)


# -- without DSPy ----------------------------------------------------------------------------------------------------
@pytest.mark.asyncio
async def test_a_child_that_only_serves_native_calls_never_imports_dspy(model: Any, tmp_path: Path) -> None:
    (tmp_path / "dspy.py").write_text("raise ImportError('dspy was imported')")
    async with running(plain(model.url, env={"PYTHONPATH": str(tmp_path)})) as bench:
        cot = spec("text -> reply", kind="chain_of_thought", adapter="json")
        records = await bench.ask(*[work(f"t{i}", spec=spec()) for i in range(5)], work("c", spec=cot))
        assert [(r.route, r.error) for r in records] == [("native", None)] * 6
        assert bench.pool.status.full()["dspy_version"] == VERSION, "told without importing it"
        (other,) = await bench.ask(work(spec=spec(route="worker")))
        assert "dspy was imported" in error(other)["message"]
        assert (await bench.ask(work("after", spec=spec())))[0].error is None


@pytest.mark.long
@pytest.mark.asyncio
async def test_dspy_is_imported_when_it_is_needed_and_native_calls_go_on_meanwhile(model: Any) -> None:
    async with running(plain(model.url)) as bench:
        (child,) = bench.pool.status.full()["children"]
        calls = [work(f"w{i}", spec=spec(route="worker")) for i in range(3)]
        await bench.put(*calls)
        natives = await bench.ask(*[work(f"n{i}", spec=spec(route="native")) for i in range(5)])
        assert [r.error for r in natives] == [None] * 5
        records = {r.call: r for r in await bench.records(8)}
        assert [(records[c.call].route, records[c.call].error) for c in calls] == [("worker", None)] * 3
        (after,) = bench.pool.status.full()["children"]
        assert after["pid"] == child["pid"]
        assert after["rss"] > child["rss"] + (20 << 20), "DSPy is large: whoever does not need it does not pay for it"


@pytest.fixture
def without_dspy(tmp_path: Path) -> str:
    """A Python that has all that dspex needs, and no DSPy."""
    site = tmp_path / "site"
    site.mkdir()
    import yaml

    for entry in Path(yaml.__file__).parents[1].iterdir():
        if not entry.name.startswith(("dspy", "litellm", "__editable__", "dspex", "_", "distutils")) or entry.name == "_yaml":
            (site / entry.name).symlink_to(entry)
    (site / "dspex").symlink_to(ROOT)
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH="{site}" exec "{sys.executable}" -S "$@"\n')
    python.chmod(0o755)
    return str(python)


@pytest.mark.asyncio
async def test_an_environment_without_dspy_serves_native_calls_and_says_what_the_others_need(
    model: Any, without_dspy: str
) -> None:
    async with running(plain(model.url, python=without_dspy)) as bench:
        served, other = await bench.ask(work(spec=spec()), work(spec=spec(route="worker")))
        assert bench.pool.status.full()["dspy_version"] == ""
    assert (served.route, served.error, served.dspy_version) == ("native", None, "3.4")
    assert (error(other)["type"], error(other)["code"]) == ("ConfigError", "DX134")
    assert "pip install 'dspex[dspy]'" in error(other)["fix"]
    with pytest.raises(ConfigError) as caught:
        async with running(config(model.url, python=without_dspy)):
            pass
    assert caught.value.code == "DX134"


# -- time ------------------------------------------------------------------------------------------------------------
@pytest.mark.asyncio(loop_scope="module")
async def test_a_native_call_that_takes_too_long_is_closed_and_its_child_lives(shared: Bench, shared_model: Any) -> None:
    (late,) = await shared.ask(work("standin:hang", spec=spec(), timeout=0.5))
    assert (error(late)["type"], error(late)["retryable"]) == ("CallTimeout", True)
    await until(lambda: shared_model.running == 0)
    assert shared.pool.children.restarts == 0
    assert (await shared.ask(work("after", spec=spec())))[0].error is None


# -- a reply that cannot be read -------------------------------------------------------------------------------------
async def interactive(bench: Bench, item: CallRequest) -> CallRecord:
    """Ask as the engine's client does."""
    frames: asyncio.Queue[Message] = asyncio.Queue()
    inbox = bench.bus.inbox(frames.put_nowait)
    await bench.send(item, inbox.subject)
    async with asyncio.timeout(30):
        while (message := await frames.get()).headers[subjects.KIND] == ACCEPTED:
            pass
    inbox.close()
    return CallRecord.unpack(message.data)


@pytest.mark.asyncio(loop_scope="module")
async def test_an_unreadable_reply_is_asked_for_again_by_an_interactive_call_only(shared: Bench, shared_model: Any) -> None:
    shared_model.fault("durable", "nonsense=0x1")
    shared_model.fault("quick", "nonsense=0x1")
    (durable,) = await shared.ask(work("durable", spec=spec()))
    assert error(durable)["type"] == "InvalidOutput"
    assert shared_model.texts["durable"] == 1, "the engine asks again, counts it and records it"
    quick = await interactive(shared, work("quick", spec=spec(), record=None))
    assert (quick.error, quick.route, shared_model.texts["quick"]) == (None, "native", 2)
    once = await interactive(shared, work("fine", spec=spec(), record=None))
    assert quick.usage["output_tokens"] > once.usage["output_tokens"], "both replies were paid for"
    before = shared_model.texts["standin:nonsense"]
    never = await interactive(shared, work("standin:nonsense", spec=spec(), record=None))
    assert (error(never)["type"], shared_model.texts["standin:nonsense"] - before) == ("InvalidOutput", 2)


def chat(value: str) -> str:
    """A reply of the chat adapter for the output `a`."""
    return f"[[ ## a ## ]]\n{value}\n\n[[ ## completed ## ]]"


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("route", ["native", "worker"])
async def test_a_reply_that_no_record_can_hold_ends_its_own_call_alone(shared: Bench, shared_model: Any, route: str) -> None:
    replies = {"int": "9" * 30, "long": "0x" + "f" * 19_000, "str": '"\\ud800"', "list[str]": '["\\ud800"]'}
    shared_model.replies = {kind: chat(value) for kind, value in replies.items() if kind != "str"}
    shared_model.replies["str"] = '{"a": "\\ud800"}'
    asked = {
        k: spec(f"text -> a: {'int' if k == 'long' else k}", route, adapter="json" if k == "str" else "chat") for k in replies
    }
    shared_model.gate.clear()
    slow = asyncio.create_task(shared.ask(work("standin:gate", spec=spec(route="native"))))
    await until(lambda: shared_model.running == 1)
    for record in await shared.ask(*[work(kind, spec=s) for kind, s in asked.items()]):
        assert (error(record)["type"], record.outputs) == ("InvalidOutput", None)
        assert record.elapsed < 30, "its timeout is 60"
    shared_model.gate.set()
    assert (await slow)[0].error is None, "its neighbour goes on"
    assert shared.pool.children.restarts == 0


@pytest.mark.asyncio
@pytest.mark.parametrize("route", ["native", "worker"])
async def test_a_value_that_is_not_json_is_an_invalid_output(model: Any, route: str) -> None:
    model.replies = {"bytes": chat(r"b'\xff'"), "list[bytes]": chat(r"[b'\xff']"), "Any": chat("...")}
    router = Router(plain(model.url).for_child())
    for kind in model.replies:
        answer = await router.run(work(kind, spec=spec(f"text -> a: {kind}", route)), None, print)
        assert answer.error is None or error(answer)["type"] == "InvalidOutput", (kind, answer.error)
    assert answer.error, "an Ellipsis"
    await router.close()


@pytest.mark.asyncio
async def test_programs_of_untrusted_callers_are_not_kept_for_ever(model: Any) -> None:
    def alive() -> int:
        gc.collect()
        return sum(isinstance(c, type) and issubclass(c, dspy.Signature) for c in gc.get_objects())

    profiles = {"small": Profile("small", "local/none")}  # without a server: programs are made, and no model is asked
    router = Router(plain(model.url, profiles=profiles).for_child())
    counts = []
    for more in (range(300), range(300, 420)):
        for i in more:
            answer = await router.run(work(spec=spec(f"text -> a{i}", "worker")), None, print)
            assert error(answer)["type"] != "ProgramError", answer.error
        counts.append(alive())
    assert counts[0] > 200, "one is made for each"
    assert counts[1] - counts[0] < 100, counts
    await router.close()


# -- local models ----------------------------------------------------------------------------------------------------
@pytest.mark.asyncio
async def test_a_local_model_gets_the_request_that_dspy_would_send_it(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    model.bodies = []
    profiles = {"small": Profile("small", "local/smollm2-135m", params={"top_p": 0.5})}
    router = Router(config(model.url, profiles=profiles, programs=()).for_child())
    for signature in (SIGNATURE, "text -> notes: dict[str, int]", "text -> reply"):
        answers = []
        for route in ("native", "worker"):
            item = work(spec=spec(signature, route, config={"max_tokens": 40}, adapter="chat"))
            answers.append(await router.run(item, model.url, print))
        assert [a.route for a in answers] == ["native", "worker"]
        assert answers[0].error is None
        assert answers[0].outputs == answers[1].outputs
        assert model.bodies[-1] == model.bodies[-2]
        assert model.bodies[-1]["response_format"]["type"] in ("json_schema", "json_object")
    await router.close()
    assert model.last_key == "bearer none"


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("route", ["native", "worker"])
async def test_inputs_of_an_interactive_call_are_checked_on_every_route(shared: Bench, route: str) -> None:
    asked = spec("n: int, note: str | None -> reply", route=route)
    wrong = await interactive(shared, work(spec=asked, inputs={"n": "abc"}, record=None))
    assert error(wrong)["type"] == "InvalidInput"
    assert "n: Input should be a valid integer" in error(wrong)["message"]
    assert wrong.usage.get("input_tokens", 0) == 0
    right = await interactive(shared, work(spec=asked, inputs={"n": "7"}, record=None))
    assert right.error is None
