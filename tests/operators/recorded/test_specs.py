from __future__ import annotations

from enum import Enum
from typing import Literal, TypeVar

import pytest
from pydantic import BaseModel, Field

from dspex.bus.errors import ExpressionError, InvalidInput, InvalidOutput, TopologyError
from dspex.engine.graph.nodes import Retry
from dspex.operators.native.signature import Signature
from dspex.operators.recorded.calls import chain_of_thought, predict, program, react
from dspex.operators.topology import Topology


class Message(BaseModel):
    customer: str
    text: str


class Triaged(Message):
    intent: Literal["lost_card", "other"]
    urgency: int = Field(ge=1, le=5)


SIGNATURE = "text -> intent: Literal['lost_card', 'other'], urgency: int"
GOOD = {"intent": "other", "urgency": 3}


def test_inputs_are_the_fields_of_the_signature_from_a_record_or_a_model():
    call = predict(SIGNATURE).to_call()
    assert call.inputs({"customer": "c", "text": "hi"}) == {"text": "hi"}
    assert call.inputs(Message(customer="c", text="hi")) == {"text": "hi"}
    with pytest.raises(InvalidInput, match="text: Field required"):
        call.inputs({"customer": "c"})


def test_inputs_can_be_mapped_by_expressions():
    call = predict("question, n: int -> answer", inputs={"question": "upper(text)", "n": "len(text)"}).to_call()
    assert call.inputs({"text": "hi"}) == {"question": "HI", "n": 2}
    with pytest.raises(ExpressionError, match="no field 'text'"):
        call.inputs({})


def test_inputs_are_plain_data_for_the_wire():
    call = predict("m, when: datetime.date -> a").to_call()
    found = call.inputs({"m": [Message(customer="c", text="t")], "when": "2026-01-02"})
    assert found == {"m": [{"customer": "c", "text": "t"}], "when": "2026-01-02"}


def test_the_result_is_the_data_with_the_outputs():
    call = predict(SIGNATURE).to_call()
    assert call.accept({"text": "hi", "intent": "old"}, {**GOOD, "junk": 1}) == {"text": "hi", **GOOD}


def test_into_types_the_result_and_its_constraints_count():
    call = predict(SIGNATURE, into=Triaged).to_call()
    data = {"customer": "c", "text": "hi"}
    assert call.accept(data, GOOD) == Triaged(**data, **GOOD)
    with pytest.raises(InvalidOutput, match="does not fit Triaged: urgency"):
        call.accept(data, {"intent": "other", "urgency": 9})
    with pytest.raises(InvalidOutput, match="intent"):
        call.accept(data, {"intent": "nonsense", "urgency": 1})


def test_chain_of_thought_adds_the_reasoning():
    call = chain_of_thought("text -> answer").to_call()
    assert call.accept({"text": "q"}, {"answer": "a", "reasoning": "r"}) == {"text": "q", "answer": "a", "reasoning": "r"}
    assert call.spec.kind == "chain_of_thought"


def test_a_call_without_options_has_the_documented_defaults():
    call = predict(SIGNATURE).to_call()
    assert (call.pool, call.timeout, call.deadline, call.order, call.on_error) == ("lightweight", 60, 600, "any", "dead_letter")
    assert (call.retry, call.fallback, call.priority) == (Retry(), None, 5)
    assert (call.spec.target, call.spec.lm, call.spec.adapter, call.spec.config) == (SIGNATURE, (), None, {})


def test_options_of_a_call_are_written_into_its_spec():
    spec = react(
        "q -> a",
        tools=["shop:find"],
        max_iters=3,
        pool="gpu",
        lm=["big", "main"],
        adapter="json",
        config={"temperature": 0.0},
        timeout="1m30s",
        retry=Retry(attempts=2, backoff="500ms"),
        order="key",
        priority=2,
        on_error="skip",
        fallback={"a": "sorry"},
    )
    call = spec.to_call()
    assert (call.pool, call.timeout, call.order, call.priority, call.on_error) == ("gpu", 90, "key", 2, "skip")
    assert call.retry == Retry(attempts=2, backoff=0.5, cap=60)
    assert call.fallback is not None
    assert call.fallback({}) == {"a": "sorry"}
    sent = call.spec
    assert (sent.lm, sent.adapter, sent.tools, sent.max_iters, sent.config) == (
        ("big", "main"), "json", ("shop:find",), 3, {"temperature": 0.0},
    )  # fmt: skip


def test_the_route_is_auto_and_leaving_it_out_changes_no_digest():
    assert predict("q -> a").to_call().spec.route == "auto"
    assert "route" not in predict("q -> a").plain()
    native = predict("q -> a", route="native")
    assert native.to_call().spec.route == "native"
    assert native.digest != predict("q -> a").digest
    assert react("q -> a", tools=["shop:find"], route="worker").to_call().spec.route == "worker"


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: react("q -> a", tools=["shop:find"], route="native"), "react runs in DSPy only"),
        (lambda: program("shop:Draft", "q -> a", route="native"), "program runs in DSPy only"),
        (lambda: chain_of_thought("q -> reasoning", route="native"), "a field reasoning of its own"),
        (lambda: react("q -> a", tools=["shop:find"]).with_options(route="native"), "react runs in DSPy only"),
        (lambda: program("shop:Draft", "q -> a", first_token_timeout="2s"), "first_token_timeout= cannot be"),
    ],
)
def test_a_native_route_for_what_only_dspy_can_answer_is_refused_at_once(make, why):
    with pytest.raises(TopologyError) as e:
        make()
    assert (e.value.code, why in e.value.message) == ("DX236", True), e.value.message


def test_a_fallback_may_be_a_function_of_the_data():
    call = predict("q -> a", fallback=lambda data: {"a": data["q"]}).to_call()
    assert call.fallback is not None
    assert call.fallback({"q": "x"}) == {"a": "x"}


def test_a_spec_is_frozen_and_options_make_another():
    one = predict("q -> a", pool="small")
    two = one.with_options(pool="big", timeout=5)
    assert (one.to_call().pool, two.to_call().pool, two.to_call().timeout) == ("small", "big", 5)
    assert one.digest != two.digest
    assert one.digest == predict("q->a", pool="small").digest


def test_equal_durations_give_equal_specs_however_they_are_written():
    assert predict("q -> a", timeout="90s").digest == predict("q -> a", timeout=90).digest


def test_a_program_is_a_name_and_is_not_imported():
    spec = program("nowhere.to.be.found:Draft", "text -> reply", state="draft@3")
    assert (spec.target, spec.to_call().spec.state) == ("nowhere.to.be.found:Draft", "draft@3")


@pytest.mark.parametrize(
    ("options", "code", "message", "fix"),
    [
        ({"pol": "x"}, "DX204", "no option 'pol'", "did you mean pool?"),
        ({"pool": "a b"}, "DX205", "pool cannot be 'a b'", "letters"),
        ({"lm": []}, "DX205", "lm cannot be", "profile"),
        ({"order": "none"}, "DX205", "order cannot be 'none'", "any, key, serial"),
        ({"on_error": "stop"}, "DX205", "on_error cannot be 'stop'", "dead_letter, skip"),
        ({"route": "dspy"}, "DX205", "route cannot be 'dspy'", "auto, worker, native"),
        ({"adapter": "yaml"}, "DX205", "adapter cannot be 'yaml'", "chat, json, xml"),
        ({"timeout": "soon"}, "DX205", "timeout cannot be 'soon'", "1h30m"),
        ({"timeout": 0}, "DX205", "timeout cannot be 0", "more than 0"),
        ({"priority": 10}, "DX205", "priority cannot be 10", "from 0 to 9"),
        ({"priority": -1}, "DX205", "priority cannot be -1", "from 0 to 9"),
        ({"priority": True}, "DX205", "priority cannot be True", "from 0 to 9"),
        ({"priority": "urgent"}, "DX205", "priority cannot be 'urgent'", "from 0 to 9"),
        ({"retry": {"attempts": 0}}, "DX205", "retry.attempts cannot be 0", "from 1"),
        ({"retry": {"attemps": 3}}, "DX204", "retry has no 'attemps'", "did you mean attempts?"),
        ({"config": {"temprature": 1}}, "DX204", "config has no parameter 'temprature'", "did you mean temperature?"),
        ({"config": {"max_tokens": "9"}}, "DX205", "config.max_tokens cannot be '9'", "int"),
        ({"inputs": {"z": "text"}}, "DX207", "inputs= maps 'z'", "inputs: q"),
        ({"inputs": {"q": "event.key"}}, "DX208", "read `event`", ".set("),
        ({"inputs": {"q": "lowr(x)"}}, "DX208", "lowr", "did you mean lower?"),
        ({"fallback": {"b": 1}}, "DX205", "fallback: the outputs do not fit", "every output"),
        ({"fallback": "nowhere:fn"}, "DX221", "cannot be imported", "path"),
        ({"config": {"n": 0}}, "DX205", "config.n cannot be 0", "from 1"),
        ({"config": {"max_tokens": 0}}, "DX205", "config.max_tokens cannot be 0", "from 1"),
        ({"config": {"temperature": -0.1}}, "DX205", "config.temperature cannot be -0.1", "from 0"),
        ({"config": {"top_p": 1.1}}, "DX205", "config.top_p cannot be 1.1", "from 0 to 1"),
        ({"config": {"stop": []}}, "DX205", "config.stop cannot be []", "list of texts"),
        ({"timeout": "2m", "deadline": "1m"}, "DX205", "timeout, 120 s, is longer than deadline, 60 s", "raise deadline"),
        ({"timeout": "11m"}, "DX205", "timeout, 660 s, is longer than deadline, 600 s", "raise deadline"),
        ({"fallback": 5}, "DX205", "fallback cannot be 5", "function"),
    ],
)
def test_a_wrong_option_is_refused_with_a_fix(options, code, message, fix):
    with pytest.raises(TopologyError) as e:
        predict("q -> a", **options)
    assert e.value.code == code
    assert message in e.value.message
    assert fix in e.value.fix


def test_a_spec_reports_all_its_problems_at_once():
    with pytest.raises(TopologyError) as e:
        predict("q -> a: Foo", pol="x", timeout="soon")  # type: ignore[call-arg]
    assert sorted(p.code for p in e.value.problems) == ["DX204", "DX205", "DX209"]


def test_a_program_that_no_worker_could_import_is_refused():
    class Draft: ...

    for make in (lambda: program(Draft, "a -> b"), lambda: react("a -> b", tools=[lambda: 1])):
        with pytest.raises(TopologyError, match="cannot import") as e:
            make()
        assert e.value.code == "DX218"
    with pytest.raises(TopologyError, match="is not a ref"):
        program("Draft", "a -> b")
    assert program(Message, "a -> b").target == f"{__name__}:Message"


def test_a_type_of_the_users_travels_with_its_json_schema():
    spec = predict(Signature("a -> b: list[Message]", types={"Message": Message}))
    known = spec.to_call().spec.types
    assert spec.to_call().spec.signature == "a -> b: list[Message]"
    assert known["classes"]["Message"]["kind"] == "model"
    assert known["definitions"]["T0"]["schema"] == Message.model_json_schema()
    t = Topology("small")
    t.source("in").call(spec, name="p").sink("out")
    with pytest.raises(TopologyError, match="cannot be written as YAML: p uses <a -> b") as e:
        t.to_yaml()
    assert "`types:`" in e.value.fix


class Coordinates(Enum):
    CENTER = (0, 0)


@pytest.mark.parametrize(
    ("tp", "why"),
    [
        (Coordinates, "Coordinates.CENTER is a tuple, which no model can write"),
        (TypeVar("T"), "T is not a type yet"),
        (Literal[Coordinates.CENTER], "no signature can write the type"),
    ],
)
def test_a_type_that_cannot_travel_to_a_worker_is_refused(tp, why):
    with pytest.raises(TopologyError) as e:
        predict(Signature("a -> b").with_updated_fields("b", type=tp))
    assert e.value.code == "DX211"
    assert why in e.value.message


def test_a_call_that_runs_code_of_users_is_not_made_twice_at_once() -> None:
    assert predict("q -> a", hedge="p95", first_token_timeout="2s").to_call().spec.hedge == "p95"
    for build in (lambda: program("shop:Draft", "q -> a", hedge="p95"), lambda: react("q -> a", tools=["a:b"], hedge="p95")):
        with pytest.raises(TopologyError, match="run code of yours twice at once"):
            build()
