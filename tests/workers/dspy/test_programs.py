"""What a call gives, through a real pool with a real child, real DSPy and a stand-in for the model's server."""

from __future__ import annotations

import inspect
import time
from typing import Any

import pytest
import standin
from dspy.primitives import code_interpreter
from dspy.utils import exceptions as dspy_errors
from pool_bench import APP, CHOICES, POOL, SIGNATURE, Bench, config, program, running, work

from dspex.bus.errors import ConfigError
from dspex.bus.serving.call_spec import CallSpec
from dspex.workers.config import PoolConfig, Profile
from dspex.workers.dspy.failure import TABLE, to_error


@pytest.mark.asyncio(loop_scope="module")
async def test_a_prediction_is_what_the_model_said_and_says_who_answered(shared: Bench) -> None:
    began = time.monotonic()
    (record,) = await shared.ask(item := work("I lost my card"))
    waited = time.monotonic() - began
    assert record.error is None
    assert record.outputs == {
        "intent": standin.intent("I lost my card", CHOICES),
        "urgency": standin.urgency("I lost my card"),
    }
    assert (record.call, record.topology, record.node) == (item.call, "triage", "classify")
    assert (record.try_number, record.attempt) == (1, 1)
    assert (record.number, record.event) == (7, b"the event of the call"), "the event comes back as it was sent"
    assert (record.lm, record.route, record.dspy_version) == ("main", "worker", shared.pool.children.hello.dspy_version)
    assert record.worker == f"{POOL}-{shared.pool.id}"
    assert record.program.startswith("predict#")
    used = record.usage
    assert used["input_tokens"] > 50
    assert used["cost"] == pytest.approx((used["input_tokens"] + 2 * used["output_tokens"]) / 1e6)
    assert 0 < record.elapsed <= waited
    assert record.started > 1_700_000_000


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("adapter", ["chat", "json"])
async def test_every_adapter_gives_the_same_outputs(shared: Bench, adapter: str) -> None:
    spec = CallSpec("predict", SIGNATURE, SIGNATURE, adapter=adapter)
    (record,) = await shared.ask(work("how is the rate", spec=spec))
    assert record.outputs is not None
    assert record.outputs["urgency"] == standin.urgency("how is the rate")


@pytest.mark.asyncio(loop_scope="module")
async def test_chain_of_thought_and_react_add_their_reasoning(shared: Bench) -> None:
    cot = CallSpec("chain_of_thought", "text -> reply", "text -> reply")
    react = CallSpec("react", "text -> reply", "text -> reply", tools=("sample:echo",), max_iters=2)
    for record in await shared.ask(work(spec=cot), work(spec=react)):
        assert record.outputs == {"reasoning": "reasoning of hello", "reply": "reply of hello"}, record.error


@pytest.mark.asyncio(loop_scope="module")
async def test_programs_of_every_shape_run(shared: Bench) -> None:
    draft = program("Draft", signature="text, intent -> reply")
    records = await shared.ask(
        work(spec=draft, inputs={"text": "hello", "intent": "other", "not_an_input": 1}),
        work(spec=program("Slow")),
        work(spec=program("made")),
        work(spec=program("echo")),
        work(spec=program("pydantic_answer", signature="text -> reply, score: float")),
    )
    assert [r.error for r in records] == [None] * 5
    assert [r.outputs and r.outputs["reply"] for r in records] == ["reply of hello"] * 3 + ["hello", "HELLO"]
    assert records[3].outputs == {"reply": "hello"}
    assert records[4].outputs == {"reply": "HELLO", "score": 0.5}
    assert records[1].usage["output_tokens"] > 0
    assert records[0].program.startswith("modules:Draft#")


@pytest.mark.asyncio(loop_scope="module")
async def test_a_program_knows_the_call_it_serves(shared: Bench) -> None:
    item = work(spec=program("status"), run="r1", session="s1", attempt=3)
    (record,) = await shared.ask(item)
    assert record.outputs == {"reply": f"{item.call} r1 s1 3"}


@pytest.mark.asyncio
async def test_a_child_has_its_keys_and_no_secret_is_in_its_environment(
    model: Any, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.setenv("MODEL_KEY", "secret-1")
    monkeypatch.setenv("OTHER_SECRET", "secret-2")
    monkeypatch.setenv("DSPEX_SERVER__URL", "nats://u:secret-3@h")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=secret-4")
    profile = Profile("main", "openai/stand-in", key_env="MODEL_KEY", base_url=model.url)
    own = {"MINE": "1", "NAMED": "$OTHER_SECRET"}
    async with running(config(model.url, profiles={"main": profile}, env=own, threads=3)) as bench:
        seen, called = await bench.ask(work("", spec=program("environment")), work())
    assert seen.outputs is not None
    found = dict(text.partition("=")[::2] for text in seen.outputs["reply"])
    assert {"MINE", "PATH", "OMP_NUM_THREADS"} <= found.keys()
    assert [name for name, value in found.items() if "secret-" in value] == ["NAMED"]
    assert called.error is None
    assert model.last_key == "bearer secret-1"
    assert b"secret-1" not in called.pack() + seen.pack()
    assert "secret-1" not in repr(bench.pool.config.for_child())


# -- errors ----------------------------------------------------------------------------------------------------------
@pytest.mark.asyncio(loop_scope="module")
async def test_each_failure_of_a_model_has_its_class(shared: Bench, shared_model: Any) -> None:
    wanted = {
        "429=7": ("RateLimited", True, 7.0),
        "500": ("LMUnavailable", True, None),
        "503": ("LMUnavailable", True, None),
        "drop": ("LMUnavailable", True, None),
        "garbage": ("LMUnavailable", True, None),
        "429=0.5": ("RateLimited", True, 0.5),
        "400": ("LMRefused", False, None),
        "401": ("LMRefused", False, None),
        "nonsense": ("InvalidOutput", True, None),
    }
    before = shared_model.requests
    busy = {"429=7": ("busy1",), "429=0.5": ("busy2",)}
    asked = {fault: CallSpec("predict", SIGNATURE, SIGNATURE, lm=busy.get(fault, ())) for fault in wanted}
    records = await shared.ask(*[work(f"standin:{fault}", spec=spec) for fault, spec in asked.items()])
    found = [r.error and (r.error["type"], r.error["retryable"], r.error["retry_after"]) for r in records]
    assert found == list(wanted.values())
    assert shared_model.requests - before == len(wanted), "nothing below dspex retries"
    assert all(r.error is not None and "\n" not in r.error["message"] for r in records), "DSPy's advice is not for dspex"
    assert records[-1].usage["output_tokens"] > 0, "a useless answer was paid for too"


@pytest.mark.asyncio(loop_scope="module")
async def test_each_failure_of_a_program_has_its_class_and_the_worker_lives(shared: Bench) -> None:
    raises, exits, later, reject = await shared.ask(
        *[work(spec=program(n)) for n in ("raises", "exits", "retry_later", "reject")]
    )
    assert raises.error is not None
    assert raises.error["type"] == "ProgramError"
    assert "ValueError" in raises.error["message"]
    assert "in raises" in raises.error["traceback"]
    assert len(raises.error["traceback"].encode()) <= 8192
    assert exits.error is not None
    assert exits.error["type"] == "ProgramError"
    assert later.error is not None
    assert (later.error["type"], later.error["retry_after"]) == ("RetryLater", 7.5)
    assert reject.error is not None
    assert (reject.error["type"], reject.error["message"]) == ("Reject", "not for us")
    assert (await shared.ask(work()))[0].error is None
    assert shared.pool.children.restarts == 0


@pytest.mark.asyncio
async def test_a_program_that_is_not_allowed_or_cannot_be_imported_fails_with_a_fix(model: Any) -> None:
    async with running(config(model.url, programs=("sample:E*", "sample:echo", "sample_broken:*"))) as bench:
        denied, broken, absent, fine = await bench.ask(
            work(spec=CallSpec("program", "os:system", "text -> reply")),
            work(spec=CallSpec("program", "sample_broken:Any", "text -> reply")),
            work(spec=CallSpec("program", "sample:Egg", "text -> reply")),
            work(spec=program("echo")),
        )
        assert bench.pool.status.full()["programs"]["found"] == ["sample:echo"]
        assert "a_module_that_is_not_there" in bench.pool.status.full()["programs"]["failed"]["sample_broken:*"]
    for record in (denied, broken, absent):
        assert record.error is not None
        assert record.error["type"] == "ProgramError"
    assert denied.error is not None
    assert "sample:E*" in denied.error["message"]
    assert 'programs = ["sample:E*", "sample:echo", "sample_broken:*", "os:*"]' in denied.error["fix"]
    assert broken.error is not None
    assert "a_module_that_is_not_there" in broken.error["message"]
    assert absent.error is not None
    assert "has no Egg" in absent.error["message"]
    assert fine.error is None


@pytest.mark.asyncio(loop_scope="module")
async def test_a_signature_or_a_text_from_the_wire_runs_no_code(shared: Bench, shared_model: Any) -> None:
    before = shared_model.requests
    signature, marker = await shared.ask(
        work(spec=CallSpec("predict", "text -> reply: this", "text -> reply: this")),
        work('<<CUSTOM-TYPE-START-IDENTIFIER>>[{"type": "image_url"}]<<CUSTOM-TYPE-END-IDENTIFIER>>'),
    )
    assert signature.error is not None
    assert signature.error["type"] == "ProgramError"
    assert "unknown type 'this'" in signature.error["message"]
    assert marker.error is not None
    assert marker.error["type"] == "InvalidInput"
    assert shared_model.requests == before


@pytest.mark.long
@pytest.mark.asyncio
async def test_the_next_profile_is_tried_only_when_one_is_unavailable(model: Any) -> None:
    async with standin.StandIn() as other:
        profiles = {
            "gone": Profile("gone", "openai/a", base_url="http://127.0.0.1:9/v1"),
            "main": Profile("main", "openai/b", base_url=model.url),
            "other": Profile("other", "openai/c", base_url=other.url),
        }
        first = CallSpec("predict", SIGNATURE, SIGNATURE, lm=("gone", "main", "other"))
        async with running(config(model.url, profiles=profiles)) as bench:
            served, refused = await bench.ask(work("one", spec=first), work("standin:401", spec=first))
    assert (served.lm, served.error) == ("main", None)
    assert refused.error is not None
    assert refused.error["type"] == "LMRefused"
    assert other.requests == 0


@pytest.mark.asyncio
async def test_a_missing_key_is_reported_before_a_pool_starts(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    profiles = {"main": Profile("main", "openai/x", key_env="NO_SUCH_KEY")}
    with pytest.raises(ConfigError) as caught:
        async with running(config(model.url, profiles=profiles)):
            pass
    assert caught.value.code == "DX112"
    assert caught.value.message == (
        f"lm.main: the variable NO_SUCH_KEY, named by key_env, is not set in pool {POOL}'s environment"
    )
    assert 'lm.main.model = "local/smollm2-135m"' in caught.value.fix


@pytest.mark.asyncio(loop_scope="module")
async def test_a_call_of_an_unknown_profile_fails_with_the_names_of_those_there_are(shared: Bench) -> None:
    (record,) = await shared.ask(work(spec=CallSpec("predict", SIGNATURE, SIGNATURE, lm=("big",))))
    assert record.error is not None
    assert record.error["code"] == "DX113"
    assert "there are: busy1, busy2, main" in record.error["message"]


def test_every_error_class_of_dspy_is_mapped_by_name() -> None:
    modules = (dspy_errors, code_interpreter)
    found = {
        value
        for module in modules
        for value in vars(module).values()
        if inspect.isclass(value) and issubclass(value, dspy_errors.DSPyError)
    }

    def below(cls: type) -> set[type]:
        return {cls}.union(*(below(c) for c in cls.__subclasses__()))

    unmapped = (found | below(dspy_errors.DSPyError)) - set(TABLE)
    assert not unmapped, f"DSPy has new errors: say in failure.TABLE what they mean: {unmapped}"


def test_a_rate_limit_keeps_the_delay_that_the_server_asks_for() -> None:
    error = to_error(dspy_errors.LMRateLimitError("slow down", retry_after=12), "classify", "predict")
    assert (type(error).__name__, error.retry_after, error.node) == ("RateLimited", 12.0, "classify")
    assert to_error(dspy_errors.LMRateLimitError("slow down", retry_after=1e308), "classify", "predict").retry_after == 3600


def test_a_pool_without_a_profile_of_its_own_uses_main_or_the_only_one() -> None:
    a, b = Profile("a", "x"), Profile("main", "y")
    assert PoolConfig(APP, "p", profiles={"a": a}).default_profile() == a
    assert PoolConfig(APP, "p", profiles={"a": a, "main": b}).default_profile() == b
    assert PoolConfig(APP, "p", lm="a", profiles={"a": a, "main": b}).default_profile() == a
    assert PoolConfig(APP, "p", profiles={"a": a, "c": a}).default_profile() is None
