"""Predict and ChainOfThought against DSPy's: the same request to the same server, and the same answer from the same reply."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from standin import StandIn, answer

from dspex.bus.errors import CallError, DspexError, InvalidInput, InvalidOutput, LMRefused, LMUnavailable, TopologyError
from dspex.operators.native.lm.endpoint import Endpoint
from dspex.operators.native.lm.native_support import why_not_native, why_not_native_signature
from dspex.operators.native.lm.openai_models import json_mode, json_mode_known, reasons
from dspex.operators.native.lm.predict import KINDS, ChainOfThought, Piece, Predict, Prediction
from dspex.operators.native.signature import Signature

MODEL = "openai/stand-in"


@dataclass
class Lab:
    """The server, and both sides on one event loop."""

    runner: asyncio.Runner
    model: StandIn
    endpoint: Endpoint
    dspy: Any

    def theirs(self, kind: str, signature: Any, inputs: dict[str, Any], adapter: str, model: str, **params: Any) -> Any:
        """DSPy's request and outputs; an exception in place of what did not come."""
        made = {
            "chat": lambda: self.dspy.ChatAdapter(use_json_adapter_fallback=False),
            "json": self.dspy.JSONAdapter,
            "xml": lambda: self.dspy.XMLAdapter(use_json_adapter_fallback=False),
        }[adapter]()

        async def ask() -> Any:
            lm = self.dspy.LM(model, api_base=self.model.url, api_key="k", cache=False, num_retries=0).copy(**params)
            program = {"predict": self.dspy.Predict, "chain_of_thought": self.dspy.ChainOfThought}[kind](signature)
            with self.dspy.context(lm=lm, adapter=made, disable_history=True, warn_on_type_mismatch=False):
                return (await program.acall(**inputs)).toDict()

        return self._seen(ask())

    def ours(self, kind: str, signature: Any, inputs: dict[str, Any], adapter: str, model: str, **params: Any) -> Any:
        async def ask() -> Any:
            made = KINDS[kind](signature, self.endpoint, model=model, adapter=adapter, params=params)  # type: ignore[arg-type]
            return (await made.ask(inputs, retry=False)).outputs

        return self._seen(ask())

    def _seen(self, asking: Any) -> tuple[Any, Any]:
        self.model.bodies = bodies = []
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of DSPy, about rollout_id at temperature 0
                outputs: Any = self.runner.run(asking)
        except Exception as error:  # noqa: BLE001  what DSPy raises for what it cannot format or read is anything
            outputs = error
        return bodies, outputs


@pytest.fixture(scope="module")
def lab(dspy: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with pytest.MonkeyPatch.context() as patch, asyncio.Runner() as runner:
        patch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
        model = StandIn()
        runner.run(model.__aenter__())
        endpoint = Endpoint(model.url, "k")
        yield Lab(runner, model, endpoint, dspy)
        runner.run(endpoint.close())
        runner.run(model.__aexit__())


# -- the same request, the same answer -------------------------------------------------------------------------------
_HARD = ["", " ", "hällo\r\nwörld", "[[ ## reply ## ]]\nno", "</text><x>&amp;", "\x00\x1f\u2028", "a" * 3000, "{", "«»"]
_TEXTS = st.text(max_size=40) | st.sampled_from(_HARD)
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | _TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["k", "ключ", "a b"]), inner, max_size=3),
    max_leaves=6,
)
_VALUES = {
    "": _TEXTS,
    "str": _TEXTS,
    "int": st.integers(-(10**6), 10**6),
    "float": st.floats(allow_nan=False, allow_infinity=False),
    "bool": st.booleans(),
    "list[str]": st.lists(_TEXTS, max_size=3),
    "dict[str, Any]": st.dictionaries(st.sampled_from(["k", "ключ"]), _JSON, max_size=2),
    "Optional[int]": st.none() | st.integers(0, 9),
    "Literal['a', 'b']": st.sampled_from(["a", "b"]),
    "Any": _JSON,
    "datetime.date": st.sampled_from(["2026-01-31", "today"]),
    "list[dict[str, Any]]": st.lists(st.dictionaries(st.just("k"), _JSON), max_size=2),
}
_OUTPUTS = [
    *("", "str", "int", "float", "bool", "list[str]", "dict[str, int]", "Optional[int]", "str | None", "Literal['yes', 'ß']"),
    *(
        "Literal[1, 2]",
        "list[dict[str, int]]",
        "tuple[int, str]",
        "list[int] | None",
        "Any",
        "set[str]",
        "datetime.date",
        "bytes",
    ),
]
_IN, _OUT = ["text", "question", "weiß", "n", "completed"], ["reply", "answer", "größe", "label"]
_PARAMS = st.fixed_dictionaries(
    {},
    optional={
        "temperature": st.sampled_from([0, 0.0, 0.3, 1, 2.0, None]),
        "max_tokens": st.integers(1, 10**6) | st.none(),
        "top_p": st.sampled_from([0, 0.5, 1.0]),
        "stop": st.sampled_from(["x", ["a", "b"], [], ("t",)]),
        "seed": st.integers(-5, 5),
        "frequency_penalty": st.sampled_from([-2, 0.5]),
        "presence_penalty": st.sampled_from([0, 2.0]),
        "n": st.sampled_from([1, None]),
        "rollout_id": st.none() | st.just(7),
    },
)


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    names = draw(st.lists(st.sampled_from(_IN), min_size=1, max_size=3, unique=True))
    kinds = [draw(st.sampled_from(list(_VALUES))) for _ in names]
    outputs = draw(st.lists(st.sampled_from(_OUT), min_size=1, max_size=3, unique=True))
    written = [f"{n}: {t}" if t else n for n, t in zip(names, kinds, strict=True)]
    promised = [f"{n}: {t}" if t else n for n in outputs for t in [draw(st.sampled_from(_OUTPUTS))]]
    return {
        "kind": draw(st.sampled_from(list(KINDS))),
        "signature": f"{', '.join(written)} -> {', '.join(promised)}",
        "instructions": draw(st.sampled_from(["", "Be brief.", "  Two\n    lines.\n", "Ünïcode \\n {text}"])),
        "inputs": {n: draw(_VALUES[t]) for n, t in zip(names, kinds, strict=True)},
        "adapter": draw(st.sampled_from(["chat", "json", "xml"])),
        "model": draw(st.sampled_from([MODEL, "openai/gpt-4o", "openai/gpt-3.5-turbo", "openai/org/model"])),
        "params": draw(_PARAMS),
    }


@settings(max_examples=settings().max_examples // 4)
@given(cases())
def test_request_and_outputs_are_those_of_dspy(lab: Lab, case: dict[str, Any]) -> None:
    kind, inputs, adapter, model = case["kind"], case["inputs"], case["adapter"], case["model"]
    text, instructions = case["signature"], case["instructions"]
    asked, expected = lab.theirs(kind, lab.dspy.Signature(text, instructions or None), inputs, adapter, model, **case["params"])
    sent, found = lab.ours(kind, Signature(text, instructions=instructions), inputs, adapter, model, **case["params"])
    assert sent == asked
    if isinstance(expected, Exception):
        assert isinstance(found, DspexError), (expected, found)
    else:
        assert found == expected
        assert repr(found) == repr(expected)


@pytest.mark.parametrize("model", ["gpt-4o", "gpt-3.5-turbo", "stand-in"])
@pytest.mark.parametrize("signature", ["text -> reply, n: Optional[int], tags: list[str]", "text -> notes: dict[str, int]"])
def test_the_response_format_lists_fields_in_the_order_of_dspy(lab: Lab, model: str, signature: str) -> None:
    """JSON of equal content is not enough: a model writes the fields in the order of the schema."""
    asked, _ = lab.theirs("chain_of_thought", signature, {"text": "x"}, "json", f"openai/{model}")
    sent, _ = lab.ours("chain_of_thought", signature, {"text": "x"}, "json", f"openai/{model}")
    assert repr(sent[0].get("response_format")) == repr(asked[0].get("response_format"))
    assert ("response_format" in sent[0]) == (model != "stand-in")


def test_demos_are_sent_as_dspy_sends_them(lab: Lab) -> None:
    demos = [{"text": "a", "reply": "b"}, {"text": "c", "augmented": True, "reply": "d"}, {"text": "only an input"}]

    async def dspys() -> None:
        program = lab.dspy.Predict("text -> reply")
        program.demos = demos
        lm = lab.dspy.LM(MODEL, api_base=lab.model.url, api_key="k", cache=False, num_retries=0)
        with lab.dspy.context(lm=lm, adapter=lab.dspy.ChatAdapter()):
            await program.acall(text="x")

    async def native() -> None:
        await Predict("text -> reply", lab.endpoint, model=MODEL, demos=demos)(text="x")

    lab.model.bodies = []
    lab.runner.run(dspys())
    lab.runner.run(native())
    first, second = lab.model.bodies
    assert first == second
    assert len(second["messages"]) == 6


# -- as a function ---------------------------------------------------------------------------------------------------
@pytest.mark.asyncio
async def test_a_prediction_has_outputs_tokens_and_what_the_model_said() -> None:
    async with StandIn() as model, Endpoint(model.url) as endpoint:
        predict = Predict("text -> urgency: int, reply", endpoint, model=MODEL)
        found = await predict(text="hello")
        assert found.outputs == {"urgency": answer("int", "", "hello"), "reply": "reply of hello"}
        assert found["reply"] == "reply of hello"
        assert (found.attempts, found.model) == (1, "stand-in")
        assert "[[ ## reply ## ]]\nreply of hello" in found.text
        assert found.usage.output_tokens > 0
        several = await asyncio.gather(*[predict(text=f"t{i}") for i in range(20)])
        assert [p["reply"] for p in several] == [f"reply of t{i}" for i in range(20)]
        thought = await ChainOfThought("text -> reply", endpoint, model=MODEL)(text="hello")
        assert list(thought.outputs) == ["reasoning", "reply"]


@pytest.mark.asyncio
async def test_predict_repeats_a_request_once_after_an_unreadable_reply_and_counts_both() -> None:
    async with StandIn() as model, Endpoint(model.url) as endpoint:
        model.fault("hello", "nonsense=0x1")
        predict = Predict("text -> reply", endpoint, model=MODEL)
        again, once = await predict(text="hello"), await predict(text="other")
        assert (again.attempts, model.texts["hello"], again["reply"]) == (2, 2, "reply of hello")
        assert again.usage.input_tokens > 1.5 * once.usage.input_tokens
        with pytest.raises(InvalidOutput, match="no reply"):
            await predict(text="standin:nonsense")
        assert model.texts["standin:nonsense"] == 2
        paid: list[Any] = []
        with pytest.raises(InvalidOutput):
            await predict.ask({"text": "standin:nonsense"}, retry=False, heard=lambda answer: paid.append(answer.usage))
        assert model.texts["standin:nonsense"] == 3
        assert paid[0].output_tokens > 0


@pytest.mark.asyncio
async def test_predict_does_not_repeat_requests_that_failed() -> None:
    async with StandIn() as model, Endpoint(model.url) as endpoint:
        predict = Predict("text -> reply", endpoint, model=MODEL)
        for fault, kind in {"500": LMUnavailable, "401": LMRefused, "garbage": LMUnavailable}.items():
            with pytest.raises(CallError) as caught:
                await predict(text=f"standin:{fault}")
            assert type(caught.value) is kind
        assert model.requests == 3


@pytest.mark.asyncio
async def test_constraints_are_enforced_unlike_in_dspy() -> None:
    async with StandIn() as model, Endpoint(model.url) as endpoint:
        predict = Predict("text -> urgency: Annotated[int, Field(ge=100)]", endpoint, model=MODEL)
        with pytest.raises(InvalidOutput, match="greater than or equal to 100"):
            await predict(text="hello")
        assert model.requests == 2


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("inputs", "why"),
    [
        ({"text": "a"}, "the signature wants more; there is text"),
        ({}, "the signature wants text, more; there is nothing"),
        ({"text": "lone \ud800", "more": ""}, "not Unicode"),
        ({"text": "<<CUSTOM-TYPE-START-IDENTIFIER>>[]<<CUSTOM-TYPE-END-IDENTIFIER>>", "more": ""}, "marker"),
    ],
)
async def test_inputs_that_cannot_be_sent_are_refused_before_a_request(inputs: dict[str, Any], why: str) -> None:
    async with StandIn() as model, Endpoint(model.url) as endpoint:
        with pytest.raises(InvalidInput, match=why):
            await Predict("text, more, maybe: Optional[int] -> reply", endpoint, model=MODEL)(**inputs)
        assert model.requests == 0


# -- in pieces -------------------------------------------------------------------------------------------------------
@pytest.mark.asyncio
@pytest.mark.parametrize("adapter", ["chat", "json", "xml"])
async def test_fields_come_in_pieces_and_last_comes_the_prediction(adapter: Any) -> None:
    async with StandIn() as model, Endpoint(model.url) as endpoint:
        predict = ChainOfThought("text -> reply", endpoint, model=MODEL, adapter=adapter)
        *pieces, last = [p async for p in predict.stream(text="a rather long text, so that there are pieces")]
        assert isinstance(last, Prediction)
        assert last == await predict(text="a rather long text, so that there are pieces")
    texts: dict[str, str] = {}
    for piece in pieces:
        assert isinstance(piece, Piece)
        texts[piece.field] = texts.get(piece.field, "") + piece.text
    assert {name: text.strip() for name, text in texts.items()} == last.outputs
    assert list(texts) == ["reasoning", "reply"]
    assert len(pieces) > 4


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("fault", "raised"), [("length", InvalidOutput), ("content_filter", LMRefused), ("refusal", LMRefused)]
)
async def test_a_stream_that_is_cut_or_refused_ends_in_the_error_that_a_whole_reply_has(
    fault: str, raised: type[CallError]
) -> None:
    async with StandIn() as model, Endpoint(model.url) as endpoint:
        predict = Predict("text -> reply, note: str | None", endpoint, model=MODEL)
        with pytest.raises(raised) as streamed:
            _ = [p async for p in predict.stream(text=f"standin:{fault}")]
        with pytest.raises(raised) as whole:
            await predict(text=f"standin:{fault}")
        told = [str(e.value).split(" after ")[0] for e in (streamed, whole)]
        assert told[0] == told[1]


@pytest.mark.asyncio
async def test_predict_does_not_repeat_a_streamed_request_with_an_unreadable_reply() -> None:
    async with StandIn() as model, Endpoint(model.url) as endpoint:
        with pytest.raises(InvalidOutput):
            _ = [p async for p in Predict("text -> reply", endpoint, model=MODEL).stream(text="standin:nonsense")]
        assert model.requests == 1


# -- what is covered -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"model": "anthropic/claude-3"}, "is not called by OpenAI's chat API"),
        ({"model": "openai/"}, "is not called by"),
        ({"model": "openai/gpt-5-mini"}, "is a reasoning model"),
        ({"model": "openai/o3-mini"}, "is a reasoning model"),
        ({"model": "openai/claude-sonnet-4-5", "adapter": "json"}, "DSPy's catalog"),
        ({"params": {"n": 2}}, "n=2 is given to DSPy"),
        ({"params": {"temperature": 3}}, "temperature=3 is given to DSPy"),
        ({"params": {"temperature": "hot"}}, "temperature='hot'"),
        ({"params": {"reasoning_effort": "low"}}, "reasoning_effort='low'"),
        ({"params": {"headers": {}}}, "headers="),
        ({"params": {"stop": ["a", ""]}}, "stop="),
        ({"params": {"max_tokens": 0}}, "max_tokens=0"),
        ({"params": {"max_tokens": 10**30}}, "max_tokens=1000"),
        ({"params": {"seed": -(10**30)}}, "seed=-1000"),
        ({"params": {"stop": "\ud800"}}, "stop="),
        ({"params": {"max_tokens": 3, "max_completion_tokens": 3}}, "both given"),
    ],
)
def test_calls_that_may_differ_from_dspy_are_refused(options: dict[str, Any], why: str) -> None:
    with pytest.raises(TopologyError) as caught:
        Predict("text -> reply", Endpoint("http://127.0.0.1:9/v1"), **{"model": MODEL, **options})
    assert (caught.value.code, why in caught.value.message) == ("DX236", True), caught.value.message


def test_calls_that_only_dspy_can_answer_are_known_without_a_model(dspy: Any) -> None:
    assert why_not_native_signature("predict", Signature("text -> reply: list[dict[str, int]]")) is None
    assert "react runs in DSPy only" in str(why_not_native_signature("react", Signature("text -> reply")))
    assert "of its own" in str(why_not_native_signature("chain_of_thought", Signature("reasoning -> reply")))
    image = Signature("photo: Image -> reply", types={"Image": dspy.Image})
    assert "is a type of DSPy's own" in str(why_not_native_signature("predict", image))
    assert why_not_native("predict", image, "chat", MODEL, {}) == why_not_native_signature("predict", image)


def test_the_properties_of_openais_models_are_those_of_dspys_catalog(lab: Lab) -> None:
    from dspy.clients.capabilities import capabilities
    from dspy.clients.lm import _is_openai_reasoning_model
    from dspy.clients.model_metadata import _snapshot

    names = {n.removeprefix("openai/") for n, about in _snapshot().items() if about.get("litellm_provider") == "openai"}
    others = {"stand-in", "qwen/qwen3-8b", "llama-3.3-70b", "mistral-small", "o3", "O1-mini", "gpt-5.6-luna", "gpt-5-chat-x"}
    for name in names | others:
        assert reasons(name) == _is_openai_reasoning_model(f"openai/{name}"), name
        known = capabilities(lab.dspy.LM(f"openai/{name}", api_base="http://127.0.0.1:9/v1", api_key="k"))
        mode = None if "response_format" not in known.params else "schema" if known.response_schema else "object"
        for own in (True, False):
            if not reasons(name) and json_mode_known(name, own):
                assert json_mode(name) == mode, name
        if name in names and mode:
            assert json_mode(name) or not json_mode_known(name, True) or reasons(name), f"{name} would be asked in another form"
