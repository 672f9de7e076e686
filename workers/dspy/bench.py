"""The operations of `dspex bench native` as DSPy and the other peers do them. The only file of the benchmark that imports dspy.

Nothing is kept between two runs but what the peer's user would keep: the signature, the compiled template, the validator.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any

# DSPy would fetch a price list from the network at the first call, as in `config.child_environment`
os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")

import dspy
from dspy.evaluate import metrics

from dspex.workers.bench.cases import SHORT, TYPED, TYPES, AsyncOperation, Case, Inputs, Operation, places
from dspex.workers.dspy.versions.installed import ADAPTERS

_PROGRAMS: dict[str, Any] = {"predict": dspy.Predict, "chain_of_thought": dspy.ChainOfThought}
_METRICS: dict[str, Any] = {
    "exact_match": metrics.EM,
    "f1": metrics.F1,
    "hotpot_f1": metrics.HotPotF1,
    "precision": lambda actual, references: metrics.precision_score(actual, references[0]),  # it takes one
}


def build(case: Case) -> Operation:
    """What does the operation once, from its data. Raises ImportError where the peer is not installed."""
    return _BUILD[case.kind](case)


def plain(case: Case, result: Any) -> object:
    """A result in the form that both sides share."""
    if case.group == "schema":
        return places(result)
    if case.kind == "metric":
        return float(result)  # DSPy's may be bools
    if case.kind == "batch":
        return list(map(float, result))
    if case.kind not in ("signature", "cached signature"):
        return result
    sides = {"inputs": result.input_fields, "outputs": result.output_fields}
    types = {side: [[name, str(info.annotation)] for name, info in fields.items()] for side, fields in sides.items()}
    return {**types, "instructions": result.instructions}


def _signature(spec: str, instructions: str | None = None) -> Any:
    make: Any = dspy.Signature  # a class whose metaclass makes classes
    return make(spec, instructions, custom_types=dict(TYPES)) if "Report" in spec else make(spec, instructions)


def _signatures(case: Case) -> Operation:
    instructions = case.options.get("instructions")
    return lambda spec: _signature(spec, instructions)


def _format(case: Case) -> Operation:
    signature, adapter = _signature(case.options["signature"]), ADAPTERS[case.options["adapter"]]()
    demos = case.options["demos"]
    return partial(adapter.format, signature, demos)


def _parse(case: Case) -> Operation:
    signature, adapter = _signature(case.options["signature"]), ADAPTERS[case.options["adapter"]]()
    return partial(adapter.parse, signature)


def _all_new(case: Case) -> Operation:
    adapter = dspy.ChatAdapter()

    def run(data: Any) -> object:
        signature = _signature(TYPED)
        return [adapter.format(signature, [], data["inputs"]), adapter.parse(signature, data["text"])]

    return run


def _metric(case: Case) -> Operation:
    name = case.options["metric"]
    if name == "passage_match":
        return lambda d: metrics.answer_passage_match(dspy.Example(answer=d["expected"]), dspy.Prediction(context=d["actual"]))
    score = _METRICS[name]
    return lambda d: score(d["actual"], [d["expected"]])


def _batch(case: Case) -> Operation:
    score = _METRICS[case.options["metric"]]
    return lambda d: [score(actual, [expected]) for actual, expected in zip(d["actual"], d["expected"])]


def _environment(case: Case) -> Any:
    import jinja2
    import jinja2.sandbox

    kind = jinja2.sandbox.SandboxedEnvironment if case.peer == "sandbox" else jinja2.Environment
    return kind(undefined=jinja2.StrictUndefined, cache_size=0)


def _template(case: Case) -> Operation:
    template = _environment(case).from_string(case.options["text"])
    return lambda data: template.render(data)


def _new_template(case: Case) -> Operation:
    environment, text = _environment(case), case.options["text"]
    return lambda data: environment.from_string(text).render(data)


def _validator(schema: Any) -> Any:
    import jsonschema  # type: ignore[import-untyped]  # a peer, not a dependency

    return jsonschema.Draft202012Validator(schema)


def _errors(validator: Any, data: object) -> str:
    return "; ".join(f"{'.'.join(map(str, e.absolute_path)) or 'data'}: {e.message}" for e in validator.iter_errors(data))


def _schema(case: Case) -> Operation:
    validator = _validator(case.options["schema"])
    return lambda data: _errors(validator, data)


def _new_schema(case: Case) -> Operation:
    schema = case.options["schema"]
    return lambda data: _errors(_validator(schema), data)


def predict(kind: str, url: str, model: str, calls: str) -> AsyncOperation:
    """DSPy's own call of a model. `calls`: "sync" or "acall". Its cache and its retries are off, all else is as it comes."""
    lm = dspy.LM(f"openai/{model}", api_base=url, api_key="none", cache=False, num_retries=0)
    program = _PROGRAMS[kind](SHORT)
    program.set_lm(lm)

    async def sync(inputs: Inputs) -> object:
        return program(**inputs).toDict()

    async def acall(inputs: Inputs) -> object:
        return (await program.acall(**inputs)).toDict()

    return sync if calls == "sync" else acall


_BUILD: dict[str, Callable[[Case], Operation]] = {
    "signature": _signatures,
    "cached signature": _signatures,  # DSPy keeps none
    "all new": _all_new,
    "format": _format,
    "parse": _parse,
    "metric": _metric,
    "normalize": lambda case: metrics.normalize_text,
    "batch": _batch,
    "template": _template,
    "new template": _new_template,
    "schema": _schema,
    "new schema": _new_schema,
}
