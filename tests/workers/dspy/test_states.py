"""Calls with a saved state, through a real pool with a real child, real DSPy and a stand-in for the model's server."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import dspy
import pytest
from pool_bench import APP, POOL, SIGNATURE, Bench, program, work

from dspex.bus import subjects
from dspex.bus.errors import DecodeError, ProgramError
from dspex.bus.memory.server import Faults, MemoryServer
from dspex.bus.records import CallRecord, CallRequest
from dspex.bus.serving.call_spec import CallSpec
from dspex.bus.serving.programs import form
from dspex.bus.serving.programs.states import SavedStates
from dspex.engine.client.resolve import Resolved
from dspex.engine.client.status import programs
from dspex.engine.client.status.programs import ProgramInfo
from dspex.workers.pool.saved_programs import SavedPrograms

pytestmark = pytest.mark.asyncio(loop_scope="module")


def dumped(made: Any, instructions: str, *, version: str = dspy.__version__, **demo: Any) -> form.ProgramState:
    """The state of a program whose first predictor has these instructions and this demonstration."""
    _, predictor = made.named_parameters()[0]
    predictor.signature = predictor.signature.with_instructions(instructions)
    predictor.demos = [dspy.Example(**demo)] if demo else []
    return form.read({**made.dump_state(), "metadata": {"dependency_versions": {"dspy": version}}})


def tools() -> list[Any]:
    def echo(text: str) -> str:
        return text

    return [echo]


def asked(model: Any) -> str:
    """What the model was asked since this was asked last."""
    bodies, model.bodies = model.bodies, []
    return json.dumps(bodies)


async def test_every_kind_of_program_answers_with_its_saved_state(shared: Bench, shared_model: Any) -> None:
    states, short = SavedStates(shared.bus, APP), "text -> reply"
    await states.put("predict", dumped(dspy.Predict(SIGNATURE), "As a pirate 1.", text="ahoy", intent="other", urgency=3))
    await states.put("cot", dumped(dspy.ChainOfThought(short), "As a pirate 2.", text="ahoy", reasoning="r", reply="ho"))
    await states.put("react", dumped(dspy.ReAct(short, tools=tools()), "As a pirate 3."))
    slow = dspy.Module()
    slow.write = dspy.Predict(short)  # type: ignore[attr-defined]
    await states.put("slow", dumped(slow, "As a pirate 4.", text="ahoy", reply="ho"))
    specs = [
        CallSpec("predict", SIGNATURE, SIGNATURE, state="predict@1", route="auto"),
        CallSpec("chain_of_thought", short, short, state="cot"),
        CallSpec("react", short, short, tools=("sample:echo",), max_iters=1, state="react@1"),
        program("Slow", state="slow@1"),
    ]
    for number, spec in enumerate(specs, 1):
        shared_model.bodies = []
        (record,) = await shared.ask(work(spec=spec))
        assert record.error is None
        assert (record.state, record.warning, record.route) == (f"{spec.state.partition('@')[0]}@1", "", "worker")  # type: ignore[union-attr]
        said = asked(shared_model)
        assert f"As a pirate {number}." in said
        assert ("ahoy" in said) == (number != 3)
    (plain,) = await shared.ask(work(spec=program("Slow")))
    assert plain.state == ""
    assert "pirate" not in asked(shared_model), "the program without the state is another one"
    shared_model.bodies = None


async def test_who_promotes_tells_the_pool_and_the_record_says_which_version_it_was(shared: Bench) -> None:
    states, spec = SavedStates(shared.bus, APP), program("Slow", state="moved@prod")
    slow = dspy.Module()
    slow.write = dspy.Predict("text -> reply")  # type: ignore[attr-defined]
    for n in range(2):
        await states.put("moved", dumped(slow, f"Version {n}."))
    await states.promote("moved", 1, "prod")
    (first,) = await shared.ask(work(spec=spec))
    await states.promote("moved", 2, "prod")
    await shared.bus.send(subjects.control(APP, POOL), b'{"kind": "programs"}')
    (second,) = await shared.ask(work(spec=spec))
    assert (first.state, second.state) == ("moved@1", "moved@2")


async def test_a_call_goes_on_with_the_version_that_it_began_with_whatever_its_alias_means_by_then(shared: Bench) -> None:
    """Its journal has what that version has asked, and paid for."""
    states, spec = SavedStates(shared.bus, APP), program("Slow", state="begun@prod")
    slow = dspy.Module()
    slow.write = dspy.Predict("text -> reply")  # type: ignore[attr-defined]
    for n in range(2):
        await states.put("begun", dumped(slow, f"Version {n}."))
    await states.promote("begun", 1, "prod")
    item = work(spec=spec)
    (first,) = await shared.ask(item)
    await states.promote("begun", 2, "prod")
    await shared.bus.send(subjects.control(APP, POOL), b'{"kind": "programs"}')
    (again,) = await shared.ask(replace(item, try_number=2, record=item.record and item.record._replace(id=f"{item.call}.2")))
    (other,) = await shared.ask(work(spec=spec))
    assert [record.state for record in (first, again, other)] == ["begun@1", "begun@1", "begun@2"]
    assert again.requests == {"made": 0, "journal": 1, "missed": 0}


async def test_while_an_alias_moves_to_and_fro_each_record_names_the_version_that_asked_the_model(
    shared: Bench, shared_model: Any
) -> None:
    states, spec = SavedStates(shared.bus, APP), program("Slow", state="rocking@prod")
    slow = dspy.Module()
    slow.write = dspy.Predict("text -> reply")  # type: ignore[attr-defined]
    for n in (1, 2):
        await states.put("rocking", dumped(slow, f"Rocking version {n}."))
    await states.promote("rocking", 1, "prod")
    items, records = [work(f"rocking call {n}.", spec=spec) for n in range(60)], list[CallRecord]()
    asked(shared_model)
    for at in range(0, len(items), 10):
        asking = asyncio.create_task(shared.ask(*items[at : at + 10]))
        for move in range(3):
            await (states.promote("rocking", 2, "prod") if move != 1 else states.rollback("rocking", "prod"))
            await shared.bus.send(subjects.control(APP, POOL), b'{"kind": "programs"}')
        records += await asking
        await states.rollback("rocking", "prod")
    bodies = [json.dumps(body) for body in shared_model.bodies]
    for item, record in zip(items, records):
        assert (record.error, record.state in ("rocking@1", "rocking@2")) == (None, True), record.error
        (body,) = [body for body in bodies if item.inputs["text"] in body]
        assert f"Rocking version {record.state[-1]}." in body


async def test_a_call_that_journals_nothing_has_the_version_that_its_request_names(shared: Bench) -> None:
    states, spec = SavedStates(shared.bus, APP), CallSpec("predict", SIGNATURE, SIGNATURE, state="named@prod")
    for n in range(2):
        await states.put("named", dumped(dspy.Predict(SIGNATURE), f"Version {n}."))
    await states.promote("named", 2, "prod")
    found = await shared.ask(work(spec=spec, try_number=2, state="named@1"), work(spec=spec, try_number=2))
    assert sorted(record.state for record in found) == ["named@1", "named@2"]


@pytest.mark.parametrize("spec", ["named@3", "other@prod", None], ids=["a version", "another program", "no state"])
@pytest.mark.parametrize("state", ["named@1", "named@prod", "named", "x@1"])
async def test_a_request_names_no_version_of_what_its_spec_does_not_name(spec: str | None, state: str) -> None:
    item = work(spec=CallSpec("predict", SIGNATURE, SIGNATURE, state=spec), state=state)
    with pytest.raises(DecodeError):
        CallRequest.unpack(item.pack())


async def test_a_state_that_does_not_fit_names_the_predictor_and_one_that_is_not_there_says_so(shared: Bench) -> None:
    states = SavedStates(shared.bus, APP)
    other = dspy.Module()
    other.read = dspy.Predict("text -> reply")  # type: ignore[attr-defined]
    await states.put("other", dumped(other, "x"))
    wide = dspy.Module()
    wide.write = dspy.Predict("text, more -> reply")  # type: ignore[attr-defined]
    await states.put("wide", dumped(wide, "x"))
    strange = dspy.Module()
    strange.write = dspy.Predict("text -> reply")  # type: ignore[attr-defined]
    await states.put("strange", dumped(strange, "x", question="q", answer="a"))
    wrong = {
        "other@1": ("DX612", "nothing for the predictor write"),
        "wide@1": ("DX612", "predictor write: the state wide@1 does not fit: it has 3 fields"),
        "strange@1": ("DX612", "predictor write: the state strange@1 does not fit: a demonstration"),
        "nothing@1": ("DX627", "no program 'nothing' is saved"),
        "not a name": ("DX105", "does not name a saved program"),
    }
    records = await shared.ask(*(work(spec=program("Slow", state=name)) for name in wrong))
    for record, (code, why) in zip(records, wrong.values()):
        assert record.error is not None
        assert record.error["code"] == code
        assert why in record.error["message"]
        assert record.error["type"] == "ProgramError"
    (function,) = await shared.ask(work(spec=program("echo", state="wide@1")))
    assert function.error is not None
    assert "is no dspy.Module" in function.error["message"]


async def test_a_state_of_another_dspy_is_used_with_a_warning(shared: Bench) -> None:
    slow = dspy.Module()
    slow.write = dspy.Predict("text -> reply")  # type: ignore[attr-defined]
    await SavedStates(shared.bus, APP).put("old", dumped(slow, "Old.", version="2.6.27"))
    (record,) = await shared.ask(work(spec=program("Slow", state="old@1")))
    assert record.error is None
    assert record.warning == f"old@1 was saved under DSPy 2.6.27, and was loaded by {dspy.__version__}"


async def test_while_the_server_does_not_answer_a_name_means_what_it_meant_and_one_call_asks() -> None:
    """Each would have waited for an answer, one behind the other."""
    server = MemoryServer()
    slow = dspy.Module()
    slow.write = dspy.Predict("text -> reply")  # type: ignore[attr-defined]
    await SavedStates(server.connect(), APP).put("kept", dumped(slow, "Kept."))
    saved, spec = SavedPrograms(server.connect(), APP, POOL), program("Slow", state="kept")
    first, second, third = (cast(Any, SimpleNamespace(work=work(spec=spec), state=None, again=False)) for _ in range(3))
    await cast("Any", saved.before(first))
    saved.forget()
    server.luck.faults = Faults(disconnect=1.0)
    await cast("Any", saved.before(second))
    assert saved.before(third) is None
    assert first.state is second.state is third.state is not None


async def test_more_states_than_a_child_keeps_are_sent_again(shared: Bench) -> None:
    states = SavedStates(shared.bus, APP)
    slow = dspy.Module()
    slow.write = dspy.Predict("text -> reply")  # type: ignore[attr-defined]
    for n in range(20):
        await states.put("many", dumped(slow, f"Number {n}."))
    for order in (range(1, 21), range(20, 0, -1)):
        records = await shared.ask(*(work(spec=program("Slow", state=f"many@{n}")) for n in order))
        assert [record.state for record in records] == [f"many@{n}" for n in order], [r.error for r in records if r.error]


async def test_a_worker_describes_a_program_and_asks_no_model_and_tells_no_key(shared: Bench, shared_model: Any) -> None:
    await SavedStates(shared.bus, APP).put(
        "told", dumped(dspy.ChainOfThought("text, intent -> reply"), "As a pirate.", text="a")
    )
    asked, records = shared_model.requests, len(shared.seen)

    async def info(spec: CallSpec) -> ProgramInfo:
        return await programs.describe(shared.bus, APP, Resolved(spec, POOL), 30.0)

    draft = await info(program("Draft", signature="text, intent -> reply"))
    (predictor,) = draft.predictors
    assert (draft.kind, draft.module, draft.lms, draft.state) == ("program", "Draft", {"main": "openai/stand-in"}, "")
    assert (predictor.name, list(predictor.inputs), list(predictor.outputs)) == (
        "write.predict",
        ["text", "intent"],
        ["reasoning", "reply"],
    )
    assert draft.program.startswith("modules:Draft#")
    state = await info(CallSpec("chain_of_thought", "text, intent -> reply", "text, intent -> reply", state="told@1"))
    assert (state.state, state.predictors[0].instructions) == ("told@1", "As a pirate.")
    assert [dict(demo) for demo in state.predictors[0].demos] == [{"text": "a"}]
    agent = await info(CallSpec("react", "text -> reply", "text -> reply", tools=("sample:echo",)))
    assert (agent.tools, len(agent.predictors)) == (["echo", "finish"], 2)
    keyed = await info(program("Keyed"))
    assert keyed.predictors[0].lm == "openai/own"
    assert "SECRET" not in json.dumps(keyed.as_dict(), default=str)
    with pytest.raises(ProgramError, match="allow-list"):
        await info(CallSpec("program", "os:system", "text -> reply"))
    assert shared_model.requests == asked, "no model was asked"
    assert len(shared.seen) == records
    durable = work(spec=program("Draft"), describe=True)
    with pytest.raises(DecodeError, match="of no call"):
        CallRequest.unpack(durable.pack())
    elsewhere = work(spec=program("Draft"), record=None, describe=True)
    assert elsewhere.called_on(APP, POOL) == subjects.ad_hoc_call(APP, POOL, "describe")
