"""What an optimizer's job is: which of DSPy's optimizers, with what, by which metric, and how much it may ask of a model.

A job is a call of a kind of its own. Its inputs are rows, as `train` and `test`; among the arguments of its spec is the spec of
the program that is to become better. So it is as durable as any call: journaled, tried again, and ended at its deadline.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from typing_extensions import TypedDict

from dspex.bus.serving.programs.modules import HOME
from dspex.bus.settings.similar import did_you_mean

OPTIMIZE: Final = "optimize"
"""The kind of call that a job is."""
OPTIMIZER_POOL: Final = "optimizer"
"""The pool of a job that names none."""
PERFECT: Final = 1.0
"""What a metric by name has to give for an answer that is to be shown as an example."""
MOST_THREADS: Final = 64
"""Programs that a job may run side by side."""
LARGEST_SEED: Final = (1 << 32) - 1
"""The largest one that NumPy takes, by which MIPROv2 draws."""
_NOT_NEGATIVE: Final = "a whole number of 0 or more"
_POSITIVE: Final = "a whole number of 1 or more"
_NUMBER: Final = "a number"
_SIZES: Final = ("light", "medium", "heavy")
_SIZE: Final = "light, medium or heavy"

OPTIMIZERS: Final[Mapping[str, Mapping[str, str]]] = {
    "BootstrapFewShot": {
        "max_bootstrapped_demos": _NOT_NEGATIVE,
        "max_labeled_demos": _NOT_NEGATIVE,
        "max_rounds": _POSITIVE,
        "metric_threshold": _NUMBER,
    },
    "MIPROv2": {
        "auto": _SIZE,
        "num_candidates": _POSITIVE,
        "num_trials": _POSITIVE,
        "max_bootstrapped_demos": _NOT_NEGATIVE,
        "max_labeled_demos": _NOT_NEGATIVE,
        "minibatch_size": _POSITIVE,
        "init_temperature": _NUMBER,
        "metric_threshold": _NUMBER,
    },
}
"""DSPy's optimizers that a job may use, with the options of each and what those are."""


class JobArguments(TypedDict):
    """The arguments of a job's spec.

    Attributes:
        program: the spec of the program, as a map.
        optimizer: a name in OPTIMIZERS; options: its own.
        metric: a name in `dspex.metrics`, or the ref of a function of (example, prediction, trace).
        threads: programs that run side by side. seed: of what is drawn.
        requests, tokens: that it may ask of models, and use, in all its attempts together; 0: any number.
    """

    program: dict[str, Any]
    optimizer: str
    options: dict[str, Any]
    metric: str
    threads: int
    seed: int
    requests: int
    tokens: int


class JobBudget(NamedTuple):
    """What a job may ask of models: requests, and tokens; 0: any number."""

    requests: int = 0
    tokens: int = 0


def is_ref_of_metric(metric: str) -> bool:
    """Whether a metric is code of a user's."""
    return ":" in metric


def refs_of(arguments: Mapping[str, Any]) -> tuple[str, ...]:
    """What the allow-list of a pool has to name for a job, besides the refs of its program: the optimizer, and a metric of a
    user's.
    """
    named = ref_of_optimizer(str(arguments.get("optimizer")))
    metric = arguments.get("metric")
    return (named, metric) if isinstance(metric, str) and is_ref_of_metric(metric) else (named,)


def ref_of_optimizer(optimizer: str) -> str:
    """What the allow-list of a pool has to name: a job asks models as often as it likes."""
    return f"{HOME}{optimizer}"


def job_refusal(asked: JobArguments) -> tuple[str, str] | None:
    """Why there is no such job, and what to do; None where there is one."""
    optimizer, options, threads, seed = asked["optimizer"], asked["options"], asked["threads"], asked["seed"]
    budget = JobBudget(asked["requests"], asked["tokens"])
    if (takes := OPTIMIZERS.get(optimizer)) is None:
        return f"there is no optimizer {optimizer!r} in jobs", did_you_mean(optimizer, OPTIMIZERS)
    for name, value in options.items():
        if (kind := takes.get(name)) is None:
            return f"{optimizer} takes no option {name!r}", f"it takes: {', '.join(takes)}"
        if not _is(kind, value):
            return f"{name} of {optimizer} is {value!r}"[:300], f"give {kind}"
    by_number = [name for name in ("num_candidates", "num_trials") if name in options]
    if by_number and ("auto" in options or len(by_number) < 2):
        return f"{', '.join(by_number)} of {optimizer} cannot stand so", "give auto alone, or num_candidates with num_trials"
    if not 1 <= threads <= MOST_THREADS:
        return f"{threads} programs side by side cannot be", f"threads is 1 to {MOST_THREADS}"
    if not 0 <= seed <= LARGEST_SEED:  # MIPROv2 would find out when nearly all is paid for
        return f"{seed} is no seed"[:300], f"seed is 0 to {LARGEST_SEED:,}"
    if min(budget) < 0:
        return f"a budget of {min(budget)} is none", "a whole number; 0 for no limit"
    return None


def _is(kind: str, value: object) -> bool:
    if kind == _SIZE:
        return value in _SIZES
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return kind == _NUMBER or (isinstance(value, int) and value >= (kind == _POSITIVE))
