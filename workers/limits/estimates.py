"""What a call will use, as far as one can tell before it is made.

The first calls of a program are estimated by their texts and by what the model may write at most. Once some were measured, by
the 90th percentile of what calls of the program used beyond their inputs: of an agent, which makes many requests, all together.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Mapping
from typing import Final, NamedTuple

from dspex.bus.records import CallRequest, Usage
from dspex.bus.serving.limits import Amounts
from dspex.bus.serving.programs.optimizers import OPTIMIZE
from dspex.workers.config import Profile

CHARACTERS: Final = 4.0  # of a token, about
FORM: Final = 150.0  # tokens of what an adapter writes around the fields
WRITES: Final = 1000  # tokens that a model may write where nothing says how many; DSPy's own default
ENOUGH: Final = 8  # measured calls, from which on they are believed
KEPT: Final = 64  # of a program
PROGRAMS: Final = 512
_WORST: Final = 0.9
_PICTURE: Final = 6000  # characters that an image or a file counts as, which is a text of its bytes


class Estimates:
    """What the calls of programs are expected to use."""

    def __init__(self) -> None:
        self._measured: dict[tuple[str, str], _Samples] = {}

    def of(self, work: CallRequest, profile: Profile) -> Amounts:
        """By what is counted."""
        job = work.spec.kind == OPTIMIZE  # what it uses is reserved request by request: its rows are no prompt
        read = 0.0 if job else _characters(work.inputs) / CHARACTERS
        samples = self._measured.get((work.spec.program, profile.name))
        if samples is not None and samples.count >= ENOUGH:
            more, requests, cost = samples.worst()
            return {"requests": requests, "tokens": read + more, "cost": cost, "concurrent": 1.0}
        read += len(work.spec.signature_json) / CHARACTERS + FORM
        found = {**profile.params, **work.spec.config}
        written = _count(found.get("max_tokens"), WRITES) * _count(found.get("n"), 1)
        cost = profile.cost_of(read, written)
        return {"requests": 1.0, "tokens": read + written, "cost": cost, "concurrent": 1.0}

    def measured(self, work: CallRequest, profile: Profile, usage: Usage) -> None:
        """What a call has used; that of a job of an optimizer says nothing of another one."""
        if work.spec.kind == OPTIMIZE:
            return
        key = (work.spec.program, profile.name)
        samples = self._measured.pop(key, None) or _Samples()
        self._measured[key] = samples  # the latest last
        if len(self._measured) > PROGRAMS:
            del self._measured[next(iter(self._measured))]
        more = max(0.0, usage.input_tokens + usage.output_tokens - _characters(work.inputs) / CHARACTERS)
        samples.add(_Sample(more, max(1.0, float(usage.requests)), usage.cost or 0.0))


class _Sample(NamedTuple):
    """Of one call. `more`: tokens beyond those of its inputs."""

    more: float
    requests: float
    cost: float


class _Samples:
    """The last calls of a program."""

    def __init__(self) -> None:
        self._order: deque[_Sample] = deque()
        self._sorted: tuple[list[float], ...] = ([], [], [])

    @property
    def count(self) -> int:
        return len(self._order)

    def add(self, sample: _Sample) -> None:
        self._order.append(sample)
        for column, value in zip(self._sorted, sample):
            insort(column, value)
        if len(self._order) > KEPT:
            for column, value in zip(self._sorted, self._order.popleft()):
                del column[bisect_left(column, value)]

    def worst(self) -> _Sample:
        """What nine in ten of them stay below."""
        return _Sample(*(column[int(_WORST * (len(column) - 1))] for column in self._sorted))


def used_by(usage: Usage, estimate: Amounts, *counted: Usage | None, least: float = 1.0) -> Amounts:
    """What an execution has used, by what its child said. A server that tells no tokens has used what was expected.

    `counted`: what of it is counted already, here or by others. `least`: requests that it has made at least.
    """
    tokens, cost = usage.input_tokens + usage.output_tokens, usage.cost
    told = tokens > 0 or usage.requests == 0
    requests = float(usage.requests)
    for one in filter(None, counted):
        tokens -= one.input_tokens + one.output_tokens
        requests, least = requests - one.requests, 0.0
        cost = None if cost is None else cost - (one.cost or 0.0)
    return {
        "requests": max(least, requests),
        "tokens": max(0.0, float(tokens)) if told else estimate.get("tokens", 0.0),
        "cost": max(0.0, cost) if cost is not None and told else estimate.get("cost", 0.0),
    }


def _count(value: object, otherwise: int) -> int:
    """What a call may say of itself: whoever makes it could write any number, and no call gives anything back."""
    return value if isinstance(value, int) and value > 0 else otherwise


def _characters(value: object) -> int:
    """Of all texts in a value, and about as many as other values have when they are written."""
    if isinstance(value, (str, bytes)):
        return min(len(value), _PICTURE) if value[:5] in ("data:", b"data:") else len(value)
    if isinstance(value, Mapping):
        return sum(len(str(key)) + _characters(inner) for key, inner in value.items())
    if isinstance(value, (list, tuple)):
        return sum(map(_characters, value))
    return 8
