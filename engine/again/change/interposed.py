"""An operator of the engine whose data, or what comes out of it, is changed: in the steps of one run, or in one of them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from itertools import count
from typing import Any, NamedTuple

from dspex.bus.records import Origin
from dspex.engine.again.change.aside import kept_aside, shown_by
from dspex.engine.again.change.reached import Reached
from dspex.engine.graph.context import Build, Handler
from dspex.engine.graph.nodes import Emitted, State


class Interposed(NamedTuple):
    """What is changed. `runs`: in their steps alone: others may be woken meanwhile. `ordinal`: in that one; None: in all.

    `key`: the step is numbered among those of a key; None: among all.
    """

    runs: Collection[str]
    inputs: Mapping[str, Any] | None
    outputs: Mapping[str, Any] | None
    ordinal: int | None
    reached: Reached
    key: str | None = None

    def build(self, build: Build) -> Build:
        """A native operator with the change."""

        def built(outs: Sequence[Handler]) -> Handler:
            mine = self._chosen()
            now = [False]
            inner = build([self._after(out, now) for out in outs])

            def step(data: Any, ctx: Any) -> None:
                now[0] = mine(ctx)
                inner(self._given(data) if now[0] else data, ctx)

            return step

        return built

    def state(self, own: State) -> State:
        """An operator with state with the change. Of what it lets out later that is changed which is of the run."""
        mine, now = self._chosen(), [False]

        def step(out: Handler, inlet: int) -> Callable[[Any, Any], None]:
            inner, aside = own.step(self._after(out, now), inlet), own.step(_nowhere, inlet)

            def run(data: Any, rows: Any) -> None:
                now[0] = mine(rows)
                if not now[0] or self.inputs is None:
                    inner(data, rows)
                    return
                node, then = rows.node, kept_aside(aside, data, rows, own.shown)
                inner(self._given(data), rows)
                once = self.reached.times == 1 and then is not None
                rows.node = node  # what is behind it has run
                self.reached.keeps = (then, shown_by(rows, own.shown)) if once else None

            return run

        def woken(rows: Any, name: str) -> Sequence[Emitted]:
            found = own.woken(rows, name) if own.woken is not None else ()
            if not mine(rows, *(one.origin for one in found)):
                return found
            self.reached.woken = self.ordinal is not None
            return [self._later(one, finished=own.finish is None) for one in found]

        def finish(data: Any) -> Any:
            if not isinstance(data, _Unfinished):
                return own.finish(data) if own.finish is not None else data
            return self.reached.merged(own.finish(data.data) if own.finish is not None else data.data, self.outputs or {})

        made = replace(own, step=step, woken=woken if own.woken is not None else None)
        return replace(made, finish=finish) if own.finish is not None else made

    def _chosen(self) -> Callable[..., bool]:
        """Which steps are meant, asked once for each. One that was woken is also of a run of which something comes out."""
        numbers = count()

        def is_meant(ctx: Any, *out: Origin) -> bool:
            if not any(one.run in self.runs for one in (ctx.origin, *out)) or self.key not in (None, ctx.origin.key):
                return False
            return self.ordinal is None or next(numbers) == self.ordinal

        return is_meant

    def _given(self, data: Any) -> Any:
        return self.reached.merged(data, self.inputs) if self.inputs is not None else data

    def _after(self, out: Handler, now: list[bool]) -> Handler:
        if (fields := self.outputs) is None:
            return out
        return lambda data, ctx: out(self.reached.merged(data, fields) if now[0] else data, ctx)

    def _later(self, one: Emitted, *, finished: bool) -> Emitted:
        if self.outputs is None or one.error is not None or one.origin.run not in self.runs:
            return one
        return one._replace(data=self.reached.merged(one.data, self.outputs) if finished else _Unfinished(one.data))


class _Unfinished(NamedTuple):
    """What an operator finishes later, and is changed then."""

    data: Any


def _nowhere(data: object, ctx: object) -> None:
    """What is handed on aside goes nowhere."""
