"""A job that makes a program better with one of DSPy's optimizers, as something that can be submitted (`Spec.optimize`)."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Final, cast

from typing_extensions import TypedDict, Unpack

from dspex.bus.codecs.checking import checked
from dspex.bus.errors import ConfigError, DecodeError, InvalidInput
from dspex.bus.records import Outputs
from dspex.bus.serving.call_spec import CallSpec
from dspex.bus.serving.programs.optimizers import (
    OPTIMIZE,
    OPTIMIZER_POOL,
    JobArguments,
    is_ref_of_metric,
    job_refusal,
)
from dspex.bus.settings.duration import Duration, seconds
from dspex.bus.settings.similar import did_you_mean
from dspex.engine.graph.nodes import Call, Retry
from dspex.operators.native.examples import checked_examples
from dspex.operators.native.metrics.metrics import METRICS
from dspex.operators.native.signature import Signature

HELD_BACK: Final = 0.3
"""The part of the rows that the scores are taken with, where no others are given for that."""
SEED: Final = 9
"""What DSPy's own MIPROv2 begins with."""
LONGEST: Final = 24 * 3600.0
"""Seconds for all attempts at a job, unless one alone may take longer: about so long its journal is kept."""
ROWS: Final = 100_000
_CODE: Final = "DX105"


@dataclass(frozen=True)
class Optimization:
    """A job of an optimizer, for `Client.submit`. See `Spec.optimize`.

    Attributes:
        program: what is to become better.
        arguments: see JobArguments. held_back: the part of the rows that is not learned from.
    """

    program: CallSpec
    arguments: JobArguments
    pool: str = OPTIMIZER_POOL
    held_back: float = HELD_BACK
    timeout: float = 6 * 3600.0
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def to_call(self) -> Call[dict[str, Any]]:
        """The call that a job is."""
        return self._call

    @cached_property
    def _call(self) -> Call[dict[str, Any]]:
        spec = replace(
            self.program,
            kind=OPTIMIZE,
            signature=self.program.signature or self.program.target,
            arguments=cast("Mapping[str, object]", self.arguments),
            lm=self.program.lm[:1],  # scores of two models cannot be compared
            tools=(),
            route="worker",
            cache=0.0,
            hedge="",
            first_token_timeout=0.0,
            choose="listed",
            lane="live",  # each request of an optimizer waits for the one before
        )
        deadline = max(self.timeout, min(4 * self.timeout, LONGEST))
        retry = Retry(attempts=3, backoff="2s")
        return Call(spec, self.pool, self._inputs, _outputs, self.timeout, deadline, retry)

    def _inputs(self, data: Any) -> Outputs:
        """`{"rows": […]}`, or `{"train": […], "test": […]}`, as a worker gets it. Raises InvalidInput, naming row and field."""
        signature, given = self._signature, cast("Mapping[str, Any]", data if isinstance(data, Mapping) else {})
        if set(given) == {"rows"}:
            train, test = self._parted(checked_examples(signature, _listed(given["rows"], "rows"), "the rows"))
        elif set(given) == {"train", "test"}:
            train, test = (checked_examples(signature, _listed(given[name], name), name) for name in ("train", "test"))
        else:
            raise InvalidInput("a job takes rows", fix='{"rows": […]}, or {"train": […], "test": […]}')
        if not train or not test:
            lacks = "learned from" if not train else "scored with"
            raise InvalidInput(f"there are no rows to be {lacks}", fix="give more rows, or rows for both: train and test")
        need = 2 * len(test) + 1
        if 0 < self.arguments["requests"] < need:
            why = f"the two scores alone take {need - 1} requests or more, and the budget has {self.arguments['requests']}"
            raise InvalidInput(why, fix="raise the budget, or score with fewer rows")
        return {"train": train, "test": test}

    def _parted(self, rows: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """The same parts for the same rows and seed."""
        mixed = random.Random(self.arguments["seed"]).sample(rows, len(rows))
        held = min(max(1, round(len(rows) * self.held_back)), len(rows) - 1)
        return mixed[held:], mixed[:held]

    @cached_property
    def _signature(self) -> Signature:
        import json

        return Signature.from_plain(json.loads(self.program.signature_json))


class OptimizeOptions(TypedDict, total=False):
    """How a program is made better.

    Attributes:
        using: the optimizer: "BootstrapFewShot" (the default) or "MIPROv2", which needs optuna in the pool's environment.
        options: of the optimizer, as DSPy calls them: `{"auto": "light"}`, `{"max_bootstrapped_demos": 4}`.
        requests, tokens: that the job may make and use, all attempts together; then it ends in BudgetExceeded. 0: any number.
        held_back: the part of the rows that is only scored with, where `train` and `test` are not given apart; 0.3.
        threads: programs that run side by side; 8. seed: of all that is drawn.
        pool: whose workers run it; "optimizer". timeout: of an attempt, "6h"; all together may take four times that, and a
            day at most.
    """

    using: str
    options: Mapping[str, Any]
    requests: int
    tokens: int
    held_back: float
    threads: int
    seed: int
    pool: str
    timeout: Duration


def optimize(spec: CallSpec, metric: str, **o: Unpack[OptimizeOptions]) -> Optimization:
    """The job that makes the program of a spec better. See `Spec.optimize`."""
    held_back, limit = o.get("held_back", HELD_BACK), seconds(o.get("timeout", "6h"))
    arguments = JobArguments(
        program=spec.plain(),
        optimizer=o.get("using", "BootstrapFewShot"),
        options=dict(o.get("options") or {}),
        metric=metric,
        threads=o.get("threads", 8),
        seed=o.get("seed", SEED),
        requests=o.get("requests", 0),
        tokens=o.get("tokens", 0),
    )
    try:
        checked(JobArguments, "the arguments of a job", arguments)
    except DecodeError as error:
        fix = "threads, seed, requests and tokens are whole numbers"
        raise ConfigError(error.message, code=_CODE, fix=fix, node="optimize") from None
    if (why := job_refusal(arguments)) is not None:
        raise ConfigError(why[0], code=_CODE, fix=why[1], node="optimize")
    if not is_ref_of_metric(metric) and metric not in METRICS:
        fix = did_you_mean(metric, METRICS, 'a name in dspex.metrics, or a ref: "pkg.module:name"')
        raise ConfigError(f"there is no metric {metric!r}", code=_CODE, fix=fix, node="optimize")
    if not 0 < held_back < 1 or limit <= 0:
        raise ConfigError("held_back is a part, and timeout a time", code=_CODE, fix="0.3 and 6h are usual", node="optimize")
    if spec.kind == "enrich":
        raise ConfigError("enrich asks no model", code=_CODE, fix="give a predict or a program", node="optimize")
    return Optimization(spec, arguments, o.get("pool", OPTIMIZER_POOL), held_back, limit)


def _listed(rows: object, name: str) -> Sequence[object]:
    if isinstance(rows, (str, bytes, Mapping)) or not isinstance(rows, Sequence):
        raise InvalidInput(f"{name} is {type(rows).__name__}, and a job takes a list of rows", fix=f'{{"{name}": […]}}')
    found = cast("Sequence[object]", rows)
    if len(found) > ROWS:
        raise InvalidInput(f"{name} has {len(found):,} rows, of which {ROWS:,} are allowed", fix="take a sample of them")
    return found


def _outputs(data: Any, outputs: Mapping[str, object]) -> dict[str, Any]:
    return dict(outputs)
