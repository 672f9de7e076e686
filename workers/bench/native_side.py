"""The operations of `dspex bench native` as dspex does them."""

from __future__ import annotations

import itertools
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from dspex.bus.errors import InvalidInput
from dspex.operators.native.metrics.metrics import METRICS, batch, normalize_text
from dspex.operators.native.signature import Signature
from dspex.operators.native.templates.schema import Schema
from dspex.operators.native.templates.template import Template
from dspex.workers.bench.cases import SHORT, TYPED, TYPES, AsyncOperation, Case, Inputs, Operation, places

_DISTINCT = 5000  # texts in turn: more than any cache of ours holds


def build(case: Case) -> Operation:
    """What does the operation once, from its data. Raises ImportError where an optional package is missing."""
    return _BUILD[case.kind](case)


def plain(case: Case, result: Any) -> object:
    """A result in the form that both sides share."""
    if case.group == "schema":
        return places(result.removeprefix("the data does not fit the schema: "))
    if case.kind == "batch":
        return result.to_pylist()
    if case.kind not in ("signature", "cached signature"):
        return result
    sides = {"inputs": result.inputs, "outputs": result.outputs}
    types = {side: [[name, str(field.annotation)] for name, field in fields.items()] for side, fields in sides.items()}
    return {**types, "instructions": result.objective}


def _signature(spec: str) -> Signature:
    return Signature(spec, types=TYPES) if "Report" in spec else Signature(spec)


def _cold_signature(case: Case) -> Operation:
    """Each time a text that was not seen for long: no cache helps."""
    instructions, spec = case.options.get("instructions", ""), _distinct(case.data)
    return lambda _: Signature(spec(), instructions=instructions)


def _distinct(spec: str) -> Callable[[], str]:
    """The text, and from the second time on others like it."""
    return itertools.cycle([spec, *(spec.replace("score", f"score_{i}") for i in range(_DISTINCT))]).__next__


def _all_new(case: Case) -> Operation:
    spec = _distinct(TYPED)

    def run(data: Any) -> object:
        signature = Signature(spec())
        text = data["text"]
        if (name := [*signature.outputs][-1]) != "score":
            text = text.replace("score", name)
        return [signature.messages(data["inputs"]), signature.parse(text)]

    return run


def _format(case: Case) -> Operation:
    signature = _signature(case.options["signature"])
    adapter, demos = case.options["adapter"], case.options["demos"]
    return partial(signature.messages, adapter=adapter, demos=demos)


def _parse(case: Case) -> Operation:
    signature, adapter = _signature(case.options["signature"]), case.options["adapter"]
    return partial(signature.parse, adapter=adapter)


def _metric(case: Case) -> Operation:
    score = METRICS[case.options["metric"]]
    return lambda d: score(d["actual"], d["expected"])


def _batch(case: Case) -> Operation:
    import pyarrow as pa

    columns = [pa.array(case.data[side]) for side in ("actual", "expected")]  # the conversion is not part of what is measured
    return lambda _: batch(case.options["metric"], *columns)


def _template(case: Case) -> Operation:
    return Template(case.options["text"]).render


def _new_template(case: Case) -> Operation:
    text = case.options["text"]
    return lambda data: Template(text).render(data)


def _errors(schema: Schema, data: object) -> str:
    try:
        schema.check(data)
    except InvalidInput as error:
        return error.message
    return ""


def _schema(case: Case) -> Operation:
    return partial(_errors, Schema(case.options["schema"]))


def _new_schema(case: Case) -> Operation:
    schema = case.options["schema"]
    return lambda data: _errors(Schema(schema), data)


@asynccontextmanager
async def predict(kind: str, url: str, model: str) -> AsyncGenerator[AsyncOperation, None]:
    """Our own call of a model: outputs from inputs. For as long as the block runs its connections are kept."""
    from dspex.operators.native.lm.endpoint import Endpoint
    from dspex.operators.native.lm.predict import KINDS

    async with Endpoint(url, "none") as endpoint:
        program = KINDS[kind](SHORT, endpoint, model=f"openai/{model}")

        async def call(inputs: Inputs) -> object:
            return (await program(**inputs)).outputs

        yield call


_BUILD: dict[str, Callable[[Case], Operation]] = {
    "signature": _cold_signature,
    "cached signature": lambda case: Signature,
    "all new": _all_new,
    "format": _format,
    "parse": _parse,
    "metric": _metric,
    "normalize": lambda case: normalize_text,
    "batch": _batch,
    "template": _template,
    "new template": _new_template,
    "schema": _schema,
    "new schema": _new_schema,
}
