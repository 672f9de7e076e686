"""What the calls of a run were asked and answered, found by what is asked now."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, NamedTuple

import orjson

from dspex.bus.errors import DspexError, RecordingIncomplete
from dspex.bus.serving.call_spec import CallSpec
from dspex.engine.client.runs.history import History
from dspex.engine.client.runs.steps import Step, what_is_asked
from dspex.engine.client.runs.tree import Happening


class Answer(NamedTuple):
    """What an attempt ended in. `failure`: its error as a record has it; None where it gave outputs."""

    step: Step
    failure: Mapping[str, Any] | None


class RecordedCalls:
    """The calls of a run. Each is given once, its attempts in their order; of equal ones the first that is left.

    Args:
        calls: of the run, in the order in which they were asked for.
        states: what a name of a saved state means now: `draft@prod` → `draft@4`. A call is only equal where it had that. None:
            nobody knows, and states are not compared.
        whole: all that is asked must be equal. Else inputs and program are enough: models and parameters may be those of
            settings which are not here.

    Attributes:
        served: calls that were given.
    """

    def __init__(self, calls: Iterable[Happening], states: Mapping[str, str] | None = None, *, whole: bool = True) -> None:
        self._left: dict[tuple[str, bytes | str], list[Happening]] = {}
        for call in calls:
            self._left.setdefault((call.node, _canonical(call.data)), []).append(call)
        self.nodes = {node for node, _ in self._left}
        self._states, self._whole = states, whole
        self._given: dict[str, deque[Answer]] = {}
        self.served = 0

    def answer(self, call: str, node: str, spec: CallSpec | None, inputs: Mapping[str, Any]) -> Answer | None:
        """What the next attempt at a call was answered; None where none like it is left.

        Args:
            call: its id: one that asks again is given the next attempt. spec: what is asked; None: the node says enough.
        """
        if call not in self._given:
            left = self._left.get((node, _canonical(inputs)), [])
            found = next((one for one in left if spec is None or self._same(spec, one)), None)
            if found is None:
                return None
            left.remove(found)
            self.served += 1
            self._given[call] = deque(Answer(step, failure) for step, failure in zip(found.attempts, found.failures))
        attempts = self._given[call]
        return attempts.popleft() if attempts else None

    def nearest(self, node: str) -> Happening | None:
        """The first call of a node that nobody has asked for again."""
        return next((call for (of, _), calls in self._left.items() if of == node for call in calls), None)

    def _same(self, spec: CallSpec, call: Happening) -> bool:
        """Whether a recorded call was asked what `spec` asks."""
        last = call.attempts[-1]
        known = last.asked and self._whole  # else recorded before requests were known
        if last.asked != what_is_asked(spec) if known else last.program not in (None, "", spec.program):
            return False
        if self._states is None or not last.asked or all(step.error is not None for step in call.attempts):
            return True  # what the state was is not known
        then = next((step.state for step in call.attempts if step.state), "")
        return then == self._states.get(spec.state or "", "")


def taken_by(past: Iterable[History], only: str | None = None) -> dict[str, dict[tuple[str, int], set[int]]]:
    """The entries that took something of runs: by topology, stage and partition. `only`: of this topology; None: of all."""
    found = dict[str, dict[tuple[str, int], set[int]]]()
    for one in (taken for run in past for taken in run.taken):
        topology, stage, index = one.partition
        if only not in (None, topology):
            continue
        found.setdefault(topology, {}).setdefault((stage, index), set()).add(one.sequence)
    return found


def lacks(past: History) -> dict[str, RecordingIncomplete]:
    """By its id a run of which it is not known what it did behind a hop, because a frame cannot be read."""
    if not past.cut:
        return {}
    why = f"of run {past.run}, what went over a hop at {past.cut[0]} is damaged, or cannot be read any more"
    return {past.run: RecordingIncomplete(why, run=past.run, fix=f"what is known is shown: dspex runs show {past.run}")}


def undone(incomplete: Mapping[str, DspexError]) -> Iterator[str]:
    """What cannot be done again, and why, for people."""
    yield from (f"not replayed {which}: {error.message} ({error.code})" for which, error in incomplete.items())


_OPTIONS: Final = (
    orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS | orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_DATETIME
)
_any: Final = json.JSONEncoder(sort_keys=True, default=repr).encode  # `json.dumps` makes an encoder each time


def _canonical(data: object) -> bytes | str:
    """Data as text by which they are compared."""
    try:
        found = orjson.dumps(data, repr, _OPTIONS)
    except TypeError:  # it has integers of more than 64 bits
        return _any(data)
    return found if b"null" not in found else _any(data)  # which it writes for NaN, too
