"""What a test may say: the arguments of a driver, and names, for which an empty answer would let a misspelt test pass."""

from __future__ import annotations

from collections.abc import Sequence

from dspex.bus import subjects
from dspex.bus.errors import ConfigError
from dspex.bus.memory.faults import Faults
from dspex.bus.settings.similar import did_you_mean
from dspex.engine.graph.graph import Graph
from dspex.engine.graph.nodes import StateNode


def refuse_arguments(topologies: Sequence[object], seed: object, faults: object, bus: object) -> None:
    """Raise ConfigError (DX105) for arguments that are none."""
    for wrong, why, fix in (
        (not topologies, "Driver(): there is nothing to run", "Driver(topology)"),
        (not isinstance(seed, int), f"Driver(seed={seed!r}): it is an integer", "seed=1"),
        (not isinstance(faults, Faults | None), f"Driver(faults={faults!r}): it is Faults", "faults=Faults(disconnect=0.05)"),
        (bus not in ("memory", "nats"), f"Driver(bus={bus!r}): there is no such bus", '"memory" or "nats"'),
    ):
        if wrong:
            raise ConfigError(why, code="DX105", fix=fix)


class TestedNames:
    """What the topologies of a test have. Every method raises ConfigError (DX105), which says what was probably meant."""

    def __init__(self, graphs: Sequence[Graph]) -> None:
        self._calls = [n.name for g in graphs for n in g.calls]
        self._states = [n.name for g in graphs for n in g.nodes.values() if isinstance(n, StateNode)]
        self._approves = [n.name for g in graphs for n in g.nodes.values() if n.op == "approve"]
        self._sources = [n.source.subject for g in graphs for n in g.sources]
        self._sinks = [n.sink.pattern for g in graphs for n in g.sinks]

    def one_of(self, what: str, value: str, words: Sequence[str]) -> None:
        """Raise ConfigError where it is none of these words."""
        __tracebackhide__ = True
        if value not in words:
            raise ConfigError(f"{what} cannot be {value!r}", code="DX105", fix=f"one of: {', '.join(words)}")

    def call(self, name: str) -> str:
        """A recorded node."""
        __tracebackhide__ = True
        if name not in self._calls:
            raise _unknown("recorded node", name, self._calls, "the topology calls nothing")
        return name

    def state(self, name: str) -> str:
        """A node with state."""
        __tracebackhide__ = True
        if name not in self._states:
            raise _unknown("node with state", name, self._states, "no operator of the topology keeps any")
        return name

    def approve(self, name: str) -> str:
        """A node at which events wait for a person."""
        __tracebackhide__ = True
        if name not in self._approves:
            raise _unknown("approve", name, self._approves, "no operator of the topology waits for a person")
        return name

    def stored(self, subject: str) -> str:
        """A subject of a sink or of a source, or a pattern that takes in some."""
        __tracebackhide__ = True
        known = [*self._sinks, *self._sources]
        if not any(subjects.overlap(subject, k) for k in known):
            raise _unknown("sink", subject, self._sinks, "end the topology in a sink", self._sources)
        return subject

    def source(self, subject: str) -> str:
        """A subject that a source reads."""
        __tracebackhide__ = True
        if not any(subjects.overlap(subject, k) for k in self._sources):
            raise _unknown("source", subject, self._sources, "begin the topology with a source")
        return subject


def _unknown(what: str, name: str, known: list[str], otherwise: str, more: Sequence[str] = ()) -> ConfigError:
    message = f"there is no {what} {name!r}; there is: {', '.join(known) or 'none'}"
    return ConfigError(message, code="DX105", fix=did_you_mean(name, [*known, *more], otherwise))
