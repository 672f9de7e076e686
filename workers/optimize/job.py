"""A job of an optimizer, in a thread of a child: score, compile, score again.

It is a function of its rows, its seed and of what models say, and all that models say is journaled: the next attempt asks the
same questions, and gets the answers that were paid for. So nothing of the optimizer's own state is stored.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Mapping
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any, Final, cast

import dspy

from dspex.bus.errors import Cancelled, DataError, DspexError, InvalidInput, InvalidOutput, ProgramError
from dspex.bus.records import Outputs
from dspex.bus.serving.call_spec import CallSpec
from dspex.bus.serving.programs import form
from dspex.bus.serving.programs.optimizers import JobArguments, JobBudget, job_refusal, ref_of_optimizer
from dspex.bus.settings.called.refs import allows, not_allowed
from dspex.operators.native.examples import checked_examples
from dspex.operators.native.signature import Signature
from dspex.workers.answerers.context import CallContext
from dspex.workers.answerers.refs import Refs
from dspex.workers.journal.requests import Requests, StopCall
from dspex.workers.optimize.budget import JobMeter
from dspex.workers.optimize.estimate import programs_of
from dspex.workers.optimize.scoring import JobMetric, JobProgress

ANY_NUMBER: Final = 10**9  # of rows whose answer nobody can read: each counts as wrong, and the job goes on
FillInputs = Callable[[dict[str, Any]], dict[str, Any]]  # the inputs of a row as the program takes them


class OptimizerJob:
    """What is run in place of a program where the call is a job.

    Args:
        spec: of the job. program: what it makes better. signature: of that.

    Attributes:
        fill: makes the inputs of a row, as the program takes them. threads: programs that run side by side.

    Raises ProgramError, InvalidInput where there is no such job.
    """

    def __init__(self, spec: CallSpec, program: Any, signature: Signature, refs: Refs, requests: Requests) -> None:
        if not isinstance(program, dspy.Module):
            why = f"{spec.target} is no dspy.Module, so it has nothing that an optimizer could change"
            raise ProgramError(why, fix="make it a dspy.Module with predictors", node=spec.target)
        self._asked = asked = cast("JobArguments", spec.arguments)
        budget = JobBudget(asked["requests"], asked["tokens"])
        if (wrong := job_refusal(asked)) is not None:
            raise ProgramError(wrong[0], fix=wrong[1], node=spec.target)
        self._program, self._signature, self._refs, self._requests = program, signature, refs, requests
        self.fill: FillInputs = dict
        self.threads = asked["threads"]
        self._meter = requests.meter = JobMeter(budget)
        if not allows(refs.allow, ref := ref_of_optimizer(asked["optimizer"])):
            said, fix = not_allowed(refs.pool, refs.allow, ref)
            raise ProgramError(f"{said}; a job asks models as often as it likes", fix=fix, node=ref)
        if asked["optimizer"] == "MIPROv2" and find_spec("optuna") is None:  # before anything is paid for
            raise ProgramError("MIPROv2 needs optuna", fix="pip install 'dspex[optimize]', in that pool's environment")
        _quiet()
        if not self._program.predictors():
            raise ProgramError(f"{spec.target} has no predictor", fix="it has to ask a model", node=spec.target)

    def __call__(self, train: object, test: object) -> Outputs:
        """Run it. Raises StopCall, DataError, and whatever DSPy's optimizer raises."""
        asked = self._asked
        learned, held = (self._examples(rows, what) for rows, what in ((train, "train"), (test, "test")))
        about = programs_of(asked["optimizer"], asked["options"], len(learned), len(self._program.predictors()))
        context = cast("CallContext", self._requests.context)
        progress = JobProgress(context.status, 2 * len(held) + about)
        metric = JobMetric(asked["metric"], tuple(self._signature.outputs), self._refs, self._requests, progress)
        progress.enter("scoring before", 0)
        before = self._score(self._program, held, metric)
        progress.enter(f"running {asked['optimizer']}", len(held))
        compiled = self._compiled(learned, metric)
        progress.enter("scoring after", len(held) + about)
        after = self._score(compiled, held, metric)
        used = self._meter.used
        return {
            **{name: asked[name] for name in ("optimizer", "metric")},
            "before": before,
            "after": after,
            "train": len(learned),
            "test": len(held),
            "requests": used.requests,
            "input_tokens": used.input_tokens,
            "output_tokens": used.output_tokens,
            "cost": used.cost,
            "state": _state_of(compiled),
        }

    def _examples(self, rows: object, what: str) -> list[Any]:
        if not isinstance(rows, list) or not rows:
            raise InvalidInput(f"{what} has no rows", fix="give rows that are learned from, and rows that are scored with")
        names = list(self._signature.inputs)
        found: list[Any] = []
        for row in checked_examples(self._signature, cast("list[object]", rows), what):
            given = {name: row[name] for name in names if name in row}
            found.append(dspy.Example(**{**row, **self.fill(given)}).with_inputs(*names))
        return found

    def _score(self, program: Any, rows: list[Any], metric: JobMetric) -> float:
        """In percent, as DSPy has it."""
        evaluate = dspy.Evaluate(
            devset=rows,
            metric=metric,
            num_threads=self.threads,
            max_errors=ANY_NUMBER,
            display_progress=False,
            display_table=False,
            provide_traceback=False,
        )
        found: Any = evaluate(program)
        return float(getattr(found, "score", found))  # before 3.0, a plain number

    def _compiled(self, rows: list[Any], metric: JobMetric) -> Any:
        options = dict(self._asked["options"])
        if self._asked["optimizer"] == "BootstrapFewShot":
            return dspy.BootstrapFewShot(metric=metric, max_errors=ANY_NUMBER, **options).compile(self._program, trainset=rows)
        if len(rows) < 2:
            raise InvalidInput("MIPROv2 learns from two rows at least", fix="give more rows, or use BootstrapFewShot")
        to_compile: dict[str, Any] = {name: options.pop(name) for name in ("num_trials", "minibatch_size") if name in options}
        auto = None if "num_candidates" in options else options.pop("auto", "light")
        made: Any = dspy.MIPROv2(
            metric=metric,
            auto=auto,
            num_threads=self.threads,
            max_errors=ANY_NUMBER,
            seed=self._asked["seed"],
            track_stats=False,
            **options,
        )
        if auto is None:
            held = max(1, int(len(rows) * 0.8))  # what it keeps for its own trials
            to_compile["minibatch_size"] = min(to_compile.get("minibatch_size", 35), held)
        if inspect.signature(made.compile).parameters["requires_permission_to_run"].default is True:
            to_compile["requires_permission_to_run"] = False  # older ones ask at the terminal
        return made.compile(self._program, trainset=rows, **to_compile)


@cache
def _quiet() -> None:
    """Have DSPy draw no bars and tell no steps, in this process: they would be thousands of lines in the pool's log, which has
    the progress of the job.
    """
    for name in ("dspy.teleprompt", "dspy.evaluate", "dspy.predict"):
        logging.getLogger(name).setLevel(logging.ERROR)
    tqdm: Any = import_module("tqdm")
    made: Any = type(
        "NoBar", (tqdm.tqdm,), {"__init__": lambda self, *a, **o: tqdm.tqdm.__init__(self, *a, **{**o, "disable": True})}
    )
    for name in ("dspy.utils.parallelizer", "dspy.teleprompt.bootstrap"):
        module: Any = import_module(name)
        module.tqdm = SimpleNamespace(tqdm=made)


def stops_job(requests: Requests, to_error: Callable[[BaseException], DspexError]) -> Callable[[BaseException], BaseException]:
    """What becomes of an error of a model's in a job: one that is the answer's fault is a wrong answer; any other ends the
    attempt. An optimizer would take a provider that is down for a bad program. The next attempt goes on from the journal.
    """

    def judged(error: BaseException) -> BaseException:
        found = to_error(error)
        if isinstance(found, InvalidOutput):
            return error
        if isinstance(found, Cancelled):  # of what an optimizer has left behind, too, which is the end of nothing
            return StopCall(found)
        requests.ending = requests.ending or found
        return StopCall(requests.ending)

    return judged


def with_forward(program: Any, run: Callable[[Callable[[], Any]], Any]) -> Any:
    """The program with a synchronous path, which is the only one that optimizers know. `run`: gives what a coroutine gives."""
    kind = type(program)
    own = next((name for c in kind.__mro__ for name in ("forward", "aforward") if name in vars(c)), "")
    if own == "forward" or not hasattr(kind, "aforward"):
        return program

    def forward(self: Any, **inputs: Any) -> Any:
        return run(lambda: self.aforward(**inputs))

    made = program.deepcopy()
    # of the same name and module, so that whoever looks for its source finds it
    made.__class__ = type(
        kind.__name__, (kind,), {"forward": forward, "__module__": kind.__module__, "__qualname__": kind.__qualname__}
    )
    return made


def _plain(state: Any) -> Any:
    """The state with demonstrations as maps: before 3.0, some are DSPy's examples."""
    if isinstance(state, dspy.Example):
        return dict(state.items())
    if isinstance(state, Mapping):
        return {name: _plain(value) for name, value in cast("Mapping[str, Any]", state).items()}
    return [_plain(one) for one in state] if isinstance(state, list) else state


def _state_of(program: Any) -> Mapping[str, Any]:
    """The state as it can be kept. Raises ProgramError where it cannot."""
    try:
        found = form.read(_plain(program.dump_state()))
    except DataError as error:
        raise ProgramError(error.message, fix=error.fix) from error
    return {**found.predictors, "metadata": {"dependency_versions": {"dspy": dspy.__version__}}}
