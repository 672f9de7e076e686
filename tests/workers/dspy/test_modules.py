"""DSPy's own modules as programs, through a real pool with a real child, real DSPy and a stand-in for the model's server."""

from __future__ import annotations

import inspect
import json
from collections.abc import AsyncIterator
from typing import Any

import dspy
import pytest
import pytest_asyncio
from pool_bench import Bench, config, program, running, work

from dspex.bus.serving.call_spec import CallSpec
from dspex.bus.serving.programs.modules import HOME, MODULES, needs_permission

pytestmark = pytest.mark.asyncio(loop_scope="module")
SHORT = "text -> reply"
RUN_CODE = tuple(f"{HOME}{name}" for name, module in MODULES.items() if module.runs_code)
CODE = "```python\nprint('from the code')\n```"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def trusting(shared_model: Any) -> AsyncIterator[Bench]:
    """A pool whose allow-list names the modules that run code."""
    async with running(config(shared_model.url, programs=("sample:*", "modules:*", *RUN_CODE))) as found:
        yield found


def own(name: str, signature: str = SHORT, tools: tuple[str, ...] = (), **arguments: Any) -> CallSpec:
    return CallSpec("program", f"{HOME}{name}", signature, tools=tools, arguments=arguments)


async def test_modules_that_only_ask_models_need_no_permission(shared: Bench) -> None:
    specs = {
        "Predict": own("Predict"),
        "ChainOfThought": own("ChainOfThought"),
        "ReAct": own("ReAct", tools=("sample:echo",), max_iters=1),
        "MultiChainComparison": own("MultiChainComparison", "text, completions: list[dict[str, str]] -> reply", M=2),
        "BestOfN": own("BestOfN", module="ChainOfThought", N=2, threshold=1.0, reward_fn="sample:long_enough"),
        "Refine": own("Refine", module="Predict", N=2, threshold=1.0, reward_fn="sample:long_enough"),
    }
    tried = [{"reasoning": "one", "reply": "a"}, {"reasoning": "two", "reply": "b"}]
    more = {"MultiChainComparison": {"completions": tried}}
    asked = [work(spec=spec, inputs={"text": "hello", **more.get(name, {})}) for name, spec in specs.items()]
    for name, record in zip(specs, await shared.ask(*asked)):
        assert record.error is None, (name, record.error)
        assert record.outputs == {"reply": "reply of hello"}, name
        assert record.program.startswith(f"dspy:{name}#")
    assert not any(needs_permission(spec.target) for spec in specs.values())


async def test_the_module_that_calls_tools_natively_answers(shared: Bench, shared_model: Any) -> None:
    submit = {"tool_calls": [{"name": "submit", "args": {"reply": "done"}}]}
    shared_model.answers["tool_calls"] = submit
    (record,) = await shared.ask(work(spec=own("ReActV2", tools=("sample:echo",), max_iters=1)))
    del shared_model.answers["tool_calls"]
    assert record.error is None
    assert record.outputs == {"reply": "done"}


async def test_modules_that_run_code_run_where_the_pool_allows_them(trusting: Bench, shared: Bench, shared_model: Any) -> None:
    here = {"interpreter_factory": "modules:interpreter"}
    shared_model.answers |= {"generated_code": CODE, "finished": True}
    specs = {
        "ProgramOfThought": own("ProgramOfThought", max_iters=1, **here),
        "CodeAct": own("CodeAct", max_iters=1, **here),
        "RLM": own("RLM", max_iters=1, max_llm_calls=2, **here),
        "Flex": own("Flex", max_predictor_calls=3, **here),
    }
    shared_model.answers["code"] = "SUBMIT(reply='from the code')"
    records = await trusting.ask(*(work(spec=spec) for spec in specs.values()))
    for name in ("generated_code", "finished", "code"):
        del shared_model.answers[name]
    for name, record in zip(specs, records):
        assert record.error is None, (name, record.error)
        assert record.outputs is not None
        assert record.outputs["reply"] in ("reply of hello", "from the code", "reply of "), name
    for record in await shared.ask(*(work(spec=spec) for spec in specs.values())):
        assert record.error is not None
        assert "it runs code that a model writes" in record.error["message"]
        assert "programs" in record.error["fix"]
    assert {f"{HOME}{name}" for name in specs} == set(RUN_CODE)


async def test_what_a_module_is_not_built_with_is_refused_by_name(shared: Bench) -> None:
    wrong = {
        "takes no argument 'M'": own("Predict", M=3),
        "max_iters of dspy:ReAct is 0": own("ReAct", max_iters=0),
        "has no module 'Predic'": own("Predic"),
        "has no module 'os'": own("os"),
        "takes no tools": own("Predict", tools=("sample:echo",)),
        "needs reward_fn": own("BestOfN", module="Predict", N=2, threshold=1.0),
        "is called with completions": own("MultiChainComparison"),
        "allow-list": own("BestOfN", module="Predict", N=2, threshold=1.0, reward_fn="os:system"),
        "is a program of yours": program("Draft", arguments={"M": 3}),
    }
    for why, record in zip(wrong, await shared.ask(*(work(spec=spec) for spec in wrong.values()))):
        assert record.error is not None, why
        assert record.error["type"] == "ProgramError", record.error
        assert why in record.error["message"] + record.error["fix"]


async def test_a_forward_of_a_users_own_is_not_passed_over_for_an_inherited_asynchronous_path(shared: Bench) -> None:
    (record,) = await shared.ask(work(spec=program("Shouting")))
    assert record.outputs == {"reply": "HELLO"}


async def test_failures_are_counted_for_each_call_by_itself(shared: Bench, shared_model: Any) -> None:
    best = own("BestOfN", module="Predict", N=2, threshold=1.0, reward_fn="sample:long_enough", fail_count=1)
    for n in range(4):
        text = f"once {n}"
        shared_model.fault(text, "nonsense=1x1")
        (record,) = await shared.ask(work(text, spec=best))
        assert record.error is None, (n, json.dumps(record.error, default=str))


async def test_every_module_of_dspy_that_takes_a_signature_is_known() -> None:
    found = {
        name
        for name, value in vars(dspy).items()
        if inspect.isclass(value) and issubclass(value, dspy.Module) and value is not dspy.Module
        and "signature" in inspect.signature(value.__init__).parameters
    }  # fmt: skip
    assert found <= set(MODULES), "a new module of DSPy: what does it take, and does it run code?"
    assert {name for name in MODULES if not hasattr(dspy, name)} == set()
