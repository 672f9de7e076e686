"""Signatures with the user's own types and with DSPy's: a worker's requests are those of plain DSPy, and so are the results."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

import dspy
import pytest
import pytest_asyncio
import standin
import tickets
from dspy_cases import ADDRESS, CASES, IMAGE, OTHER_IMAGE, Case
from pool_bench import Bench, config, running, work

from dspex.bus.errors import InvalidOutput
from dspex.bus.records import CallRecord
from dspex.bus.serving.call_spec import CallSpec
from dspex.operators.recorded.calls import chain_of_thought, predict, program, react
from dspex.workers.config import Profile
from dspex.workers.dspy.versions.installed import ADAPTERS

MODEL = "openai/gpt-4o"
KINDS: Mapping[str, Any] = {"predict": predict, "chain_of_thought": chain_of_thought, "react": react}
OF_DSPY = ("media", "all", "code")  # cases that only DSPy can format
# DSPy sends audio and files through LiteLLM, which takes seconds to import; test_values.py compares their messages.
THROUGH_LITELLM = [
    n for n, case in CASES.items() if any("Audio" in repr(v) or "File(" in repr(v) for _, v in case.inputs.values())
]
_TEXT = re.compile(r"[\w-]+ \w+ (?:worker|native) \w+;")
_ADAPTERS = ("chat", "json", "xml")


@dataclass
class Lab:
    """A pool with a real child, the stand-in that it asks, and plain DSPy, which asks the same stand-in."""

    bench: Bench
    model: standin.StandIn
    lm: dspy.LM

    def bodies(self) -> Mapping[str, list[Any]]:
        """The requests since the last time, in their order, by the text that each was made for."""
        found: dict[str, list[Any]] = {}
        for body in self.model.bodies or []:
            said = [standin.text_of(m["content"]) for m in body["messages"][1:]]
            (text,) = set(_TEXT.findall("\n".join(said)))
            found.setdefault(text, []).append(body)
        self.model.bodies = []
        return found

    def plain(self, kind: str, signature: Any, adapter: str, inputs: dict[str, Any]) -> Any:
        """What plain DSPy makes of it; None where it refuses the model's answer."""
        own: Any = {"predict": dspy.Predict, "chain_of_thought": dspy.ChainOfThought}
        made = own[kind](signature) if kind in own else dspy.ReAct(signature, tools=[nothing], max_iters=1)
        how = ADAPTERS[adapter]() if adapter == "json" else ADAPTERS[adapter](use_json_adapter_fallback=False)
        with dspy.context(lm=self.lm, adapter=how, warn_on_type_mismatch=False):
            try:
                return made(**inputs)
            except dspy.utils.exceptions.AdapterParseError:
                return None


def test_there_are_a_hundred_signatures_and_more() -> None:
    assert len(CASES) - len(THROUGH_LITELLM) > 100
    ways = {way for name in CASES for way in asked(name)}
    assert {way[:2] for way in ways} == {*((k, "worker") for k in KINDS), ("predict", "native"), ("chain_of_thought", "native")}
    assert len(ways) == 3 * 5


def nothing(x: int) -> str:
    """Do nothing."""
    return str(x)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def lab() -> AsyncIterator[Lab]:
    async with standin.StandIn(bodies=[]) as model:
        profile = Profile("main", MODEL, base_url=model.url)
        tools = ("tickets:*", "tickets:nothing")
        async with running(config(model.url, profiles={"main": profile}, programs=tools, slots=4)) as bench:
            yield Lab(bench, model, dspy.LM(MODEL, api_base=model.url, api_key="none", cache=False, num_retries=0))


def asked(name: str) -> list[tuple[str, str, str]]:
    """How a case is called: kind, route and adapter. Over all cases each combination comes about as often."""
    number = list(CASES).index(name)
    ways = [(("predict", "chain_of_thought", "react")[number // 3 % 3], "worker", _ADAPTERS[number % 3])]
    if not name.startswith(OF_DSPY):
        ways.append((("predict", "chain_of_thought")[number % 2], "native", _ADAPTERS[number // 2 % 3]))
    return ways


def reply(adapter: str, outputs: dict[str, Any]) -> str:
    if adapter == "json":
        return json.dumps(outputs)
    form = "<{0}>\n{1}\n</{0}>" if adapter == "xml" else "[[ ## {0} ## ]]\n{1}"
    return "\n\n".join(form.format(n, v if isinstance(v, str) else json.dumps(v)) for n, v in outputs.items())


@dataclass
class Asked:
    """One call, as both sides make it."""

    case: Case
    kind: str
    adapter: str
    text: str
    signature: Any
    data: dict[str, Any]
    call: Any

    @classmethod
    def of(cls, name: str, kind: str, route: str, adapter: str) -> Asked:
        case, text = CASES[name], f"{name} {kind} {route} {adapter};"
        signature = case.signature()
        tools = {"tools": ["tickets:nothing"], "max_iters": 1} if kind == "react" else {}
        spec = KINDS[kind](signature, route=route, adapter=adapter, **tools)
        data = {"text": text, **{n: v for n, (_, v) in case.inputs.items()}}
        return cls(case, kind, adapter, text, signature, data, spec.to_call())

    @property
    def reply(self) -> str:
        if self.kind == "react":
            return reply(self.adapter, {"next_thought": "t", "next_tool_name": "finish", "next_tool_args": {}})
        outputs = {n: v for n, (_, v) in self.case.outputs.items()}
        return reply(self.adapter, outputs if self.kind == "predict" else {"reasoning": "r", **outputs})

    def accepted(self, record: CallRecord) -> Any:
        """The outputs as the caller gets them; None where the model's answer is refused."""
        try:
            found = None if record.outputs is None else self.call.accept({}, record.outputs)
        except InvalidOutput:
            return None
        return found and {n: found[n] for n in self.case.outputs}


@pytest.mark.filterwarnings("ignore:Field name .schema. in:UserWarning")  # plain DSPy warns of it
@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("part", range(4))
async def test_a_workers_requests_and_results_are_those_of_plain_dspy(lab: Lab, part: int) -> None:
    names = [n for n in CASES if n not in THROUGH_LITELLM][part::4]
    calls = [Asked.of(name, *way) for name in names for way in asked(name)]
    lab.model.replies |= {a.text: a.reply for a in calls}
    records = await lab.bench.ask(*[work(spec=a.call.spec, inputs=a.call.inputs(a.data)) for a in calls])
    ours = lab.bodies()
    plain = await asyncio.to_thread(lambda: [lab.plain(a.kind, a.signature, a.adapter, a.data) for a in calls])
    theirs = lab.bodies()
    assert len(ours) == len(calls) > 30
    for a, record, expected in zip(calls, records, plain, strict=True):
        assert ours[a.text] == theirs[a.text], (a.text, record.error)
        assert len(ours[a.text]) == (2 if a.kind == "react" else 1)
        assert a.accepted(record) == (expected and {n: expected[n] for n in a.case.outputs}), a.text


@pytest.mark.asyncio(loop_scope="module")
async def test_a_program_gets_objects_of_its_own_classes_and_asks_what_it_asks_in_plain_dspy(lab: Lab) -> None:
    ticket = {"title": "t", "level": 2, "at": "2026-01-02T03:04:05Z"}
    closes = Case(
        {"ticket": (tickets.Ticket, tickets.Ticket(**ticket)), "where": (list[tickets.Address], [ADDRESS])},
        {"answer": (tickets.Ticket, ticket), "boxes": (list[tickets.Box[tickets.Ticket]], [{"value": ticket}])},
    )
    looks = Case(
        {"photos": (list[dspy.Image], [IMAGE, OTHER_IMAGE]), "main": (dspy.Image | None, None)},
        {"answer": (str, "a"), "best": (dspy.Image, None), "all": (list[dspy.Image | None], None)},
    )
    events = [  # as JSON has them, and as objects
        ("tickets:Closes", closes, {"ticket": ticket, "where": [{"street": "Weg 1", "zipCode": "12345"}]}),
        ("tickets:Closes", closes, {n: v for n, (_, v) in closes.inputs.items()}),
        ("tickets:Looks", looks, {"photos": [{"url": IMAGE.url}, {"url": OTHER_IMAGE.url}]}),
        ("tickets:Looks", looks, {n: v for n, (_, v) in looks.inputs.items()}),
    ]
    text = "program program worker chat;"
    calls = [program(ref, case.signature()).to_call() for ref, case, _ in events]
    for case, said in ((closes, f"{text} HIGH 12345"), (looks, text)):
        lab.model.replies[said] = reply("chat", {n: v for n, (_, v) in case.outputs.items()})
    inputs = [call.inputs({"text": text, **data}) for call, (_, _, data) in zip(calls, events, strict=True)]
    records = await lab.bench.ask(*[work(spec=c.spec, inputs=i) for c, i in zip(calls, inputs, strict=True)])
    ours = lab.bodies()[text]
    with dspy.context(lm=lab.lm, adapter=dspy.ChatAdapter(use_json_adapter_fallback=False)):
        await tickets.Closes().acall(text=text, **{n: v for n, (_, v) in closes.inputs.items()})
        await tickets.Looks().acall(text=text, **{n: v for n, (_, v) in looks.inputs.items()})
    closed, looked = lab.bodies()[text]
    assert [sorted(map(str, ours)), len(ours)] == [sorted(map(str, [closed, closed, looked, looked])), 4]
    outputs = [call.accept({}, record.outputs) for call, record in zip(calls, records, strict=True)]
    made = tickets.Ticket(**ticket)
    assert outputs[:2] == [{"answer": made, "boxes": [tickets.Box[tickets.Ticket](value=made)]}] * 2
    assert outputs[2:] == [{"answer": "a", "best": IMAGE, "all": [None, IMAGE, OTHER_IMAGE]}] * 2
    assert records[2].outputs is not None
    assert records[2].outputs["best"] == {"url": IMAGE.url}


@pytest.mark.asyncio(loop_scope="module")
async def test_data_that_an_annotation_of_a_program_does_not_take_is_an_invalid_input(lab: Lab) -> None:
    signature = "text, ticket: T, where: list[T] -> answer, boxes"
    types = {"classes": {"T": {"kind": "other", "name": "T", "schema": {}}}}
    inputs = {"text": "t", "ticket": {"title": 5}, "where": []}
    (record,) = await lab.bench.ask(work(spec=CallSpec("program", "tickets:Closes", signature, types=types), inputs=inputs))
    assert record.error is not None
    assert (record.error["type"], record.error["message"][:7]) == ("InvalidInput", "ticket:")
