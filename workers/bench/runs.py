"""`dspex bench native`: what the operations of `operators/native` cost, beside DSPy, in one run and in turns.

Two sides are compared only where they give the same: every operation is run once on both and the results must be equal.
"""

from __future__ import annotations

import platform
import time
from collections.abc import AsyncIterator, Collection
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from importlib import import_module, metadata

from dspex.bus.errors import ConfigError
from dspex.workers.bench import native_side, predict
from dspex.workers.bench.cases import PEERS, Case, cases
from dspex.workers.bench.measure import FEWEST, Timing, measure, timing
from dspex.workers.bench.rows import Measurement, check
from dspex.workers.bench.server import model_server
from dspex.workers.bench.worker import Worker, worker

WORKER_SHARE = 0.25  # of an operation's time, for the same through a worker


def versions() -> dict[str, str]:
    """What was measured."""
    found = {"python": platform.python_version()}
    for name in ("dspex", "dspy", "pydantic", "jinja2", "jsonschema"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def require_dspy() -> None:
    """Raise ConfigError (DX105) where DSPy is not installed."""
    try:
        import_module("dspex.workers.dspy.bench")  # only that room knows DSPy
    except ImportError as error:
        message = f"--against dspy: DSPy cannot be imported here: {error}"
        raise ConfigError(message, code="DX109", fix="pip install 'dspex[dspy]'") from error


async def native(seconds: float, groups: Collection[str], *, against: bool) -> AsyncIterator[Measurement]:
    """Measure the operations of these groups, `seconds` each; with DSPy and the other peers if `against`.

    Raises DspexError where the two sides of an operation do not give the same.
    """
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(model_server())
        asked = await stack.enter_async_context(worker(url)) if against else None
        for case in cases():
            if case.group in groups:
                yield await row(case, seconds, asked)
        if "predict" in groups:
            async for found in predict.rows(url, seconds, asked):
                yield found


def count(groups: Collection[str]) -> int:
    """How many rows `native` gives for these groups."""
    return sum(case.group in groups for case in cases()) + (len(predict.names()) if "predict" in groups else 0)


async def row(case: Case, seconds: float, asked: Worker | None) -> Measurement:
    """Measure one operation; without `asked` our side alone. Raises DspexError where the two do not give the same."""
    blank = Measurement(case.name, case.group, case.target, note=case.note)
    try:
        ours = native_side.build(case)
        if asked is None:
            return replace(blank, ours=measure({"ours": partial(ours, case.data)}, seconds)["ours"])
        from dspex.workers.dspy import bench as dspy_side

        theirs = dspy_side.build(case)
    except ImportError as error:
        return replace(blank, note=f"not measured: {error.name or error} is not installed")
    expected = dspy_side.plain(case, theirs(case.data))
    check(case.name, native_side.plain(case, ours(case.data)), expected)
    found = measure({"ours": partial(ours, case.data), "theirs": partial(theirs, case.data)}, seconds)
    trips = await _trips(case, asked, expected, seconds * WORKER_SHARE)
    return replace(blank, peer=PEERS[case.peer], ours=found["ours"], theirs=found["theirs"], worker=trips)


async def _trips(case: Case, asked: Worker, expected: object, seconds: float) -> Timing:
    """The peer's operation in a worker: from asking to the answer."""
    result, _ = await asked.operation(case.name, case.data)  # the worker makes what it keeps
    check(f"{case.name}, through a worker", result, expected)
    samples: list[float] = []
    end = time.perf_counter() + seconds
    while len(samples) < FEWEST or time.perf_counter() < end:
        samples.append((await asked.operation(case.name, case.data))[1])
    return timing(samples)
