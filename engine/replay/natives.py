"""What native operators gave in a run: values that no stream keeps, made again by walking what was recorded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from dspex.bus import codecs, subjects
from dspex.bus.errors import DspexError, InvalidInput
from dspex.bus.records import Origin, unpack_event
from dspex.engine.graph.nodes import Emitted
from dspex.engine.log.rows import Place
from dspex.engine.replay.watched import ReplayPlace, Watcher
from dspex.engine.runtime.arrival import Arrival
from dspex.engine.runtime.walk.request import Ask, Forward, Output


@dataclass
class NativeValue:
    """What an operator did with one thing that came to it.

    Attributes:
        origin: of what came; of a timer, the operator's own. data: what came, as plain data. timer: it was woken by a timer.
        given: what it handed on, each with the outlet. began: ids of events that came out of a timer; cause: of the first one.
        inside: in order: ids of outputs, calls and events over hops that it led to, and operators behind it with theirs.
        error: what it raised; "" where it did not, though an operator behind it may have.
    """

    node: str
    origin: Origin
    data: Any
    timer: bool = False
    given: list[tuple[int, Any]] = field(default_factory=list)
    began: list[str] = field(default_factory=list)
    cause: str = ""
    inside: list[str | NativeValue] = field(default_factory=list)
    error: str = ""


class NativeValues(Watcher):
    """Collects the values of one run. `found`: by where they were made; those at the begin of a walk, in order."""

    def __init__(self, run: str) -> None:
        self._run, self.found = run, dict[ReplayPlace, list[NativeValue]]()
        self._places: dict[tuple[str, int, Place], tuple[ReplayPlace, list[NativeValue]]] = {}
        self._top: list[NativeValue] = []
        self._stack: list[NativeValue | None] = []  # None: of another run
        self._claimed = 0  # outputs of the walk that have their operator
        self._failing: BaseException | None = None
        self._woken: tuple[NativeValue, Sequence[Emitted]] | None = None

    def arrives(self, where: ReplayPlace, arrival: Arrival, *, again: bool) -> Arrival:
        at = (where.stage, where.partition, arrival.place)
        if again and at in self._places:  # the walk of before gave the same
            before, top = self._places[at]
            self.found[before] = [one for one in self.found[before] if not any(one is old for old in top)]
        self._top = []
        self._places[at] = where, self._top
        self._where, self._stack, self._claimed, self._failing = where, [], 0, None
        return arrival

    def enters(self, node: str, data: Any, walk: Any) -> Any:
        self._claim(walk)
        value = NativeValue(node, walk.origin, _plain(data)) if walk.origin.run == self._run else None
        self._begin(value)
        self._stack.append(value)
        return data

    def gives(self, node: str, outlet: int, data: Any, walk: Any) -> Any:
        if self._stack and (value := self._stack[-1]) is not None:
            value.given.append((outlet, _plain(data)))
        return data

    def leaves(self, node: str, walk: Any) -> None:
        self._claim(walk)
        self._stack.pop()

    def fails(self, node: str, error: BaseException, walk: Any) -> None:
        value = self._stack.pop()
        if value is not None and error is not self._failing:
            value.error = f"{type(error).__name__}: {error}"
        self._failing, self._claimed = error, len(walk.outputs)

    def woken(self, node: str, given: Sequence[Emitted], walk: Any) -> Sequence[Emitted]:
        self._claimed, self._woken = len(walk.outputs), None
        if walk.origin.run == self._run or any(one.origin.run == self._run for one in given):
            value = NativeValue(node, walk.origin, None, timer=True)
            value.given = [(0, _plain(one.data)) for one in given]
            value.began = [one.origin.id for one in given]
            value.cause = next((one.origin.cause or "" for one in given), "")
            self._begin(value)
            self._woken = value, given
        return given

    def finished(self, node: str, before: Any, data: Any) -> None:
        value, given = self._woken or (None, ())
        if value is not None:
            value.given = [
                (0, _plain(data)) if one.data is before else old for one, old in zip(given, value.given, strict=True)
            ]

    def _begin(self, value: NativeValue | None) -> None:
        if value is None:
            return
        if self._stack and (above := self._stack[-1]) is not None:
            above.inside.append(value)
            return
        self._top.append(value)
        self.found.setdefault(self._where, []).append(value)

    def _claim(self, walk: Any) -> None:
        """What came out since is of the operator that runs now. Where none does, a walk begins, or goes on elsewhere."""
        outputs = walk.outputs
        if self._stack and (value := self._stack[-1]) is not None:
            value.inside += [id for one in outputs[self._claimed :] if (id := output_id(one))]
        self._claimed = len(outputs)


def output_id(output: Output) -> str:
    """The id of what came out: of the event for a sink, of the call, of the event over a hop; "" for none."""
    if isinstance(output, Ask):
        return output.call.id
    if isinstance(output, Forward):
        return unpack_event(output.data).origin.id
    return (output.headers or {}).get(subjects.EVENT_ID, "")


def _plain(data: object) -> Any:
    """Data as it would be stored, whatever a function makes of it later."""
    for codec in ("json", "msgpack"):
        try:
            return codecs.decode(*codecs.encode(data, codec))
        except (InvalidInput, DspexError):
            continue
    return f"a {type(data).__name__}, which cannot be written"
