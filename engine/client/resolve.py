"""What is called: a spec whose code is here, a signature, or a recorded operator that is applied."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Generic, NamedTuple, Protocol

from typing_extensions import TypeVar

from dspex.bus.errors import ConfigError, TopologyError
from dspex.bus.port import Bus
from dspex.bus.records import DEFAULT_POOL, Affinity
from dspex.bus.serving.call_spec import CallSpec
from dspex.bus.serving.deployed import FRESH
from dspex.bus.settings.similar import did_you_mean
from dspex.engine.graph import manifest
from dspex.engine.graph.nodes import Call

V = TypeVar("V", default=Any)
V_co = TypeVar("V_co", covariant=True, default=Any)
# only a stage of a topology can carry these out
_OF_TOPOLOGIES = ("fallback", "retry", "on_error", "order", "priority", "lane")
_OF_ENGINES = ("retry", "priority", "lane")  # of these, what a submitted call has


class HasCall(Protocol[V_co]):
    """What can be called: a `Spec`."""

    @property
    def options(self) -> Mapping[str, Any]:
        """The call options that were given explicitly."""
        ...

    def to_call(self) -> Call[V_co]: ...


class Resolved(NamedTuple, Generic[V]):
    """What is asked for.

    Attributes:
        spec, pool: what a worker needs, and whose worker.
        call: where its code is here.
        topology, node: of a deployed node; "" for the rest.
        affinity: of the call.
    """

    spec: CallSpec
    pool: str
    call: Call[V] | None = None
    topology: str = ""
    node: str = ""
    affinity: Affinity = "prefer"


class Nodes:
    """What is asked for, by name. What deployed nodes run is kept for a moment: it is a round trip or two to read, and a worker
    refuses a call that is not what its node runs any more (OUTDATED).
    """

    def __init__(self, app: str) -> None:
        self.app = app
        self._known: dict[str, tuple[float, Resolved[Any]]] = {}  # node → when it was read, and what it runs

    def forget(self, node: str) -> None:
        """Read the node again when it is asked for."""
        self._known.pop(node, None)

    async def resolve(self, bus: Bus, what: HasCall[V] | str, *, durable: bool = False) -> tuple[Resolved[V], bool]:
        """What is asked for, and whether that is certain to be so now. Raises ConfigError, TopologyError.

        `durable`: an engine makes the call, and carries out more of its options.
        """
        if not isinstance(what, str):
            _refuse_options_of_topologies(what.options, durable)
            call = what.to_call()
            return Resolved(call.spec, call.pool, call, affinity=call.affinity), True
        if "->" in what:
            return Resolved(_predict(what), DEFAULT_POOL), True
        now = asyncio.get_running_loop().time()
        read, found = self._known.get(what, (-FRESH, None))
        if found is not None and now - read < FRESH:
            return found, False
        found = await _deployed(bus, self.app, what)
        self._known[what] = now, found  # of nodes that there are: no more than are applied
        return found, True


async def _deployed(bus: Bus, app: str, what: str) -> Resolved[Any]:
    if "/" not in what:
        raise ConfigError(
            f"{what!r} is neither a signature nor a node",
            code="DX126",
            fix='"text -> lang", "topology/node", or a program: "pkg.module:Class" with its signature',
        )
    topology, _, node = what.partition("/")
    applied = await manifest.of_application(bus, app)
    if topology not in applied or node not in applied[topology].calls:
        known = [f"{t}/{n}" for t, m in applied.items() for n in m.calls]
        fix = did_you_mean(what, known, "none is applied: dspex apply")
        raise TopologyError(f"no recorded node {what!r} is applied", code="DX235", fix=fix)
    found = applied[topology].calls[node]
    affinity: Affinity = found.get("affinity", "prefer")
    return Resolved(CallSpec.read(found["spec"]), found["pool"], None, topology, node, affinity)


@lru_cache(256)
def _predict(signature: str) -> CallSpec:
    return CallSpec(kind="predict", target=signature, signature=signature, route="auto")


def _refuse_options_of_topologies(options: Mapping[str, Any], durable: bool) -> None:
    """Raise ConfigError (DX108) for options that an interactive call would ignore: it asks once and raises what went wrong. A
    submitted one is tried again, and has no stream behind it.
    """
    ignored = [name for name in _OF_TOPOLOGIES if name in options and not (durable and name in _OF_ENGINES)]
    if ignored:
        names = ", ".join(ignored)
        if durable:
            fix = f"leave out {names}, or use the spec in a topology: stream.call(spec, name=…)"
            raise ConfigError(f"a submitted call does not carry out the options {names}", code="DX108", fix=fix)
        raise ConfigError(
            f"an interactive call does not carry out the options {names}: it asks once, waits in no queue, and raises the "
            "error",
            code="DX108",
            fix=f"leave out {names} and handle the error, or use the spec in a topology: stream.call(spec, name=…)",
        )
