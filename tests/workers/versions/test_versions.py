"""The same calls with each version of DSPy: real pools whose children run on other interpreters.

The installed version always runs. TEST_DSPY_PYTHONS names interpreters of others, with commas between (scripts/dspy_versions).
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from pool_bench import APP, POOL, Bench, config, program, running, work
from waiting import until

from dspex.bus.serving.call_spec import CallSpec
from dspex.bus.serving.programs import form
from dspex.bus.serving.programs.states import SavedStates
from dspex.engine.client.call import ask
from dspex.engine.client.calls.stream import Answer
from dspex.engine.client.resolve import Resolved
from dspex.workers.config import Profile

pytestmark = pytest.mark.asyncio(loop_scope="module")
PYTHONS = [sys.executable, *filter(None, os.environ.get("TEST_DSPY_PYTHONS", "").split(","))]
REPLY, TYPED = "text -> reply", "text -> reply, score: float"
PNG = "data:image/png;base64,iVBORw0KGgo="
SINCE = {"Code": (3, 0), "File": (3, 1), "Reasoning": (3, 1)}  # DSPy's types that older versions have not


@pytest_asyncio.fixture(
    scope="module", loop_scope="module", params=PYTHONS, ids=lambda p: "installed" if p == sys.executable else Path(p).parts[-3]
)
async def versioned(shared_model: Any, request: pytest.FixtureRequest) -> AsyncIterator[Bench]:
    """A pool of one child with that interpreter. A model that fails is left alone for a while: each has a name of its own."""
    url = shared_model.url
    profiles = {name: Profile(name, f"openai/{name}", base_url=url) for name in ("main", "other", "chat", "json", "limited")}
    async with running(config(url, profiles=profiles, python=request.param, restart_max=0, restart_within=600.0)) as bench:
        yield bench


def version(bench: Bench) -> str:
    return bench.pool.children.hello.dspy_version


def minor(bench: Bench) -> tuple[int, ...]:
    return tuple(map(int, version(bench).split(".")[:2]))


def spec(signature: str = REPLY, kind: str = "predict", route: str = "worker", **options: Any) -> CallSpec:
    return CallSpec(kind, signature, signature, route=route, **options)


async def test_a_pool_and_its_records_say_which_version_answered(versioned: Bench) -> None:
    (record,) = await versioned.ask(work("hello", spec=spec(TYPED)))
    assert record.outputs == {"reply": "reply of hello", "score": 0.7}
    assert (record.error, record.route, record.dspy_version) == (None, "worker", version(versioned))
    assert record.usage["input_tokens"] > 100
    assert versioned.pool.status.full()["dspy_version"] == versioned.pool.status.summary()["dspy_version"] == version(versioned)


async def test_every_kind_of_program_answers(versioned: Bench) -> None:
    records = await versioned.ask(
        work(spec=spec(kind="chain_of_thought")),
        work(spec=spec(kind="react", tools=("sample:echo",), max_iters=2)),
        work(spec=program("Draft", signature="text, intent -> reply"), inputs={"text": "hello", "intent": "other"}),
        work(spec=program("Slow")),
        work(spec=program("Side")),  # asks in threads of DSPy's
        work(spec=spec("past: dspy.History, text -> reply"), inputs={"past": {"messages": [{"text": "a"}]}, "text": "hello"}),
        work(spec=spec("image: dspy.Image, text -> reply"), inputs={"image": {"url": PNG}, "text": "hello"}),
    )
    assert [r.error for r in records] == [None] * 7
    assert [(r.outputs or {})["reply"] for r in records] == ["reply of hello"] * 7
    assert [r.usage["requests"] for r in records] == [1, 3, 1, 1, 2, 1, 1]


@pytest.mark.parametrize("adapter", ["chat", "json", "xml"])
@pytest.mark.parametrize("kind", ["predict", "chain_of_thought"])
async def test_a_native_call_sends_what_that_version_sends(
    versioned: Bench, shared_model: Any, kind: str, adapter: str
) -> None:
    if adapter == "xml" and minor(versioned) < (3, 0):
        pytest.skip("it has no XML adapter")
    signature = "text, tags: list[str], note: Optional[str] -> intent: Literal['a', 'b'], score: float, why: str | None"
    inputs = {"text": "hello", "tags": ["one", "two\nlines"], "note": None}
    for params in ({}, {"temperature": 0.5, "max_tokens": 50, "stop": ["x"]}, {"n": 1, "top_p": 0.5}):
        shared_model.bodies = []
        for route in ("native", "worker"):
            asked = spec(signature, kind, route, adapter=adapter, config=params)
            (record,) = await versioned.ask(work(spec=asked, inputs=inputs))
            assert (record.error, record.route, record.dspy_version) == (None, route, version(versioned))
        (native, dspys), shared_model.bodies = shared_model.bodies, None
        assert native == dspys


async def test_what_a_version_has_not_is_refused_by_name(versioned: Bench) -> None:
    for name, since in SINCE.items():
        (record,) = await versioned.ask(work(spec=spec(f"text -> thing: list[dspy.{name}], reply")))
        lacks = minor(versioned) < since
        assert (f"has no dspy.{name}" in str((record.error or {}).get("message"))) == lacks
    (xml,) = await versioned.ask(work(spec=spec(adapter="xml")))
    assert ("has no xml adapter" in str((xml.error or {}).get("message"))) == (minor(versioned) < (3, 0))


async def test_no_address_of_an_image_is_a_file_of_the_worker(
    versioned: Bench, shared_model: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Versions before 3.4 would send the file to the model."""
    secret = tmp_path_factory.mktemp("files") / "secret.png"
    secret.write_bytes(b"secret")
    asked, before = spec("image: dspy.Image, text -> reply"), shared_model.requests
    for url in (str(secret), {"url": str(secret)}, f"file://{secret}"):
        (record,) = await versioned.ask(work(spec=asked, inputs={"image": {"url": url}, "text": "x"}))
        assert (record.error or {})["type"] == "InvalidInput"
    assert shared_model.requests == before


async def test_each_failure_of_a_model_has_its_class_and_the_model_is_asked_once(versioned: Bench, shared_model: Any) -> None:
    wanted = {
        "500": ("LMUnavailable", True, None),
        "503": ("LMUnavailable", True, None),
        "drop": ("LMUnavailable", True, None),
        "garbage": ("LMUnavailable", True, None),
        "400": ("LMRefused", False, None),
        "401": ("LMRefused", False, None),
        "nonsense": ("InvalidOutput", True, None),
        "length": ("InvalidOutput", True, None),
        "refusal": ("LMRefused", False, None),
        "content_filter": ("LMRefused", False, None),
    }
    for adapter in ("chat", "json"):
        before = shared_model.requests
        records = await versioned.ask(*[work(f"standin:{f}", spec=spec(TYPED, adapter=adapter, lm=(adapter,))) for f in wanted])
        found = [r.error and (r.error["type"], r.error["retryable"], r.error["retry_after"]) for r in records]
        assert dict(zip(wanted, found, strict=True)) == wanted
        assert shared_model.requests - before == len(wanted), "nothing below dspex asks again"
        assert all("\n" not in r.error["message"] and "litellm" not in r.error["message"] for r in records if r.error)
    (limited,) = await versioned.ask(work("standin:429=7", spec=spec(lm=("limited",))))
    assert limited.error is not None
    assert (limited.error["type"], limited.error["retry_after"]) == ("RateLimited", 7.0)


@pytest.mark.parametrize("asked", ["predict", "Slow"])
async def test_the_request_to_the_model_ends_where_its_caller_leaves(versioned: Bench, shared_model: Any, asked: str) -> None:
    called = Resolved(spec() if asked == "predict" else program(asked), POOL)
    calling = asyncio.create_task(ask(versioned.bus, APP, called, {"text": "standin:hang"}, timeout=60))
    await until(lambda: shared_model.running == 1)
    calling.cancel()
    await asyncio.wait([calling])
    await until(lambda: shared_model.running == 0, 30.0)  # half the time that the call had
    await until(lambda: versioned.pool.children.slots.busy == 0, 30.0)


async def test_calls_at_the_same_time_ask_each_its_own_model(versioned: Bench, shared_model: Any) -> None:
    """An agent asks more than once, and others ask in between."""
    shared_model.bodies = []
    texts = {f"standin:slow=0.1 {n}": ("main", "other")[n % 2] for n in range(6)}
    agent = {lm: spec(kind="react", tools=("sample:echo",), max_iters=2, lm=(lm,)) for lm in ("main", "other")}
    records = await versioned.ask(*[work(text, spec=agent[lm]) for text, lm in texts.items()])
    bodies, shared_model.bodies = shared_model.bodies, None
    asked = {text: [body["model"] for body in bodies if f"{text}\\n" in str(body["messages"])] for text in texts}
    assert [(r.error, r.lm) for r in records] == [(None, lm) for lm in texts.values()]
    assert asked == {text: [lm] * record.usage["requests"] for (text, lm), record in zip(texts.items(), records, strict=True)}
    assert all(len(models) > 1 for models in asked.values())


async def test_nothing_of_a_call_is_kept_behind_its_end(versioned: Bench) -> None:
    for _ in range(3):
        (record,) = await versioned.ask(work(spec=program("Remembers")))
    assert record.outputs == {"reply": "0"}


async def test_a_state_of_another_version_is_used_with_a_warning(versioned: Bench, shared_model: Any) -> None:
    field = {"prefix": "Text:", "description": "${text}"}, {"prefix": "Reply:", "description": "${reply}"}
    state = {"traces": [], "train": [], "demos": [{"text": "ahoy", "reply": "ho"}], "lm": None}
    state["signature"] = {"instructions": "As a pirate.", "fields": list(field)}
    saved = form.read({"write": state, "metadata": {"dependency_versions": {"dspy": "3.3.0"}}})
    await SavedStates(versioned.bus, APP).put("pirate", saved)
    shared_model.bodies = []
    (record,) = await versioned.ask(work(spec=program("Slow", state="pirate@1")))
    (body,), shared_model.bodies = shared_model.bodies, None
    assert record.error is None
    assert record.warning == f"pirate@1 was saved under DSPy 3.3.0, and was loaded by {version(versioned)}"
    assert "As a pirate." in str(body)
    assert "ahoy" in str(body)


LOCAL = """
import asyncio, sys, dspy
from dspex.workers.config import PoolConfig, Profile
from dspex.workers.dspy.models import Models

models = Models(PoolConfig("app", "pool", profiles={"local": Profile("local", "local/small")}))
with dspy.context(lm=models.lm("local", sys.argv[1], 30.0, {}), adapter=models.adapter("local", None)):
    asyncio.run(dspy.Predict("text -> reply, score: float").acall(text="hello"))
"""


@pytest.mark.parametrize("python", PYTHONS[1:], ids=lambda p: Path(p).parts[-3])
async def test_a_model_of_this_machine_is_held_to_a_schema(shared_model: Any, python: str, tmp_path: Path) -> None:
    """No pool: it would start a server with weights."""
    shared_model.bodies = []
    environment = {**os.environ, "DSPY_CACHEDIR": str(tmp_path), "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    process = await asyncio.create_subprocess_exec(python, "-c", LOCAL, shared_model.url, env=environment)
    assert await process.wait() == 0
    (body,), shared_model.bodies = shared_model.bodies, None
    assert body["model"] == "small"
    assert body["response_format"]["json_schema"]["schema"]["required"] == ["reply", "score"]


async def test_an_answer_is_streamed_while_the_model_writes(versioned: Bench, shared_model: Any) -> None:
    shared_model.gate.clear()

    async def begin(told: Any) -> Any:
        asked = Resolved(spec(kind="chain_of_thought"), POOL)
        record, _ = await ask(versioned.bus, APP, asked, {"text": text}, timeout=60, told=told)
        told.ended(record.outputs or {})
        return record

    text = "standin:gate a text that is long enough for pieces"
    async with Answer[Any](begin) as answer:
        pieces = aiter(answer)
        first = await anext(pieces)
        assert (first.field, shared_model.running) == ("reasoning", 1), "the model has not sent the rest"
        shared_model.gate.set()
        rest = [piece async for piece in pieces]
        record = await answer.result()
    for name in ("reasoning", "reply"):
        assert "".join(p.text for p in (first, *rest) if p.field == name) == record.outputs[name]
    assert record.usage["output_tokens"] > 0
