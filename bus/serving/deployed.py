"""What is applied, as a worker needs it: a caller may run a deployed node as it is deployed, and nothing else on its subject.

The server lets a caller use the subjects that it may, and `call.<pool>.<topology>.<node>` says which node that is. What the
node runs is what its topology's manifest says. It is kept for a few seconds, and read again when a request does not fit.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from typing import Any, Final, NamedTuple, NotRequired

import structlog
from typing_extensions import TypedDict

from dspex.bus import subjects
from dspex.bus.codecs.checking import checker
from dspex.bus.errors import BusError, DecodeError, InvalidInput, NotAllowed
from dspex.bus.port import Bucket, Bus
from dspex.bus.records import CallRequest
from dspex.bus.seldom import Seldom
from dspex.bus.serving.call_spec import CallSpec

FRESH: Final = 10.0  # seconds for which what was read is believed
OUTDATED: Final = "DX517"
"""The code of the refusal of a call that is not what its node runs: who asked may know an older version."""
_log = structlog.get_logger("dspex.workers")


class _Call(TypedDict):
    spec: dict[str, Any]
    pool: str
    affinity: NotRequired[str]


class _Manifest(TypedDict):
    """The part of a manifest that matters here; see engine/graph/manifest.py."""

    calls: dict[str, _Call]


class DeployedNode(NamedTuple):
    """What a node runs. `required`: only the worker of a key may."""

    topology: str
    node: str
    spec: CallSpec
    required: bool = False


class Deployed:
    """The deployed nodes of a pool."""

    def __init__(self, bus: Bus, app: str, pool: str) -> None:
        self._bus, self._app, self._pool = bus, app, pool
        self._bucket: Bucket | None = None
        self._seldom = Seldom(_log)
        self._known: dict[str, tuple[float, Mapping[str, DeployedNode]]] = {}  # topology → when it was read, its nodes

    async def check(self, request: CallRequest) -> None:
        """Raise InvalidInput where an interactive call says that it is of a deployed node, and its spec is not that node's.

        Raises BusError where that cannot be read.
        """
        topology, node, asked = request.topology, request.node, request.spec
        if not topology:
            return
        known, fresh = self._nodes(topology)
        as_known = node in known and known[node].spec == asked
        if fresh and as_known:
            return
        try:
            found = await self._look(topology)
        except BusError as error:
            if as_known and not isinstance(error, NotAllowed):
                return  # as it was a moment ago: who asks does not wait until the server's part has another leader
            self._seldom.error("cannot read what deployed nodes run", pool=self._pool, why=error.message, fix=error.fix)
            raise
        if (wanted := found.get(node)) is None:
            why = f"no node {topology}/{node} of pool {self._pool} is applied"
            raise InvalidInput(why, code=OUTDATED, fix="apply its topology")
        if wanted.spec != asked:
            why = f"that is not what {topology}/{node} runs as it is applied"
            raise InvalidInput(why, code=OUTDATED, fix="call it by its name, and try again")

    async def on(self, subject: str) -> DeployedNode:
        """The node that is called on a subject. Raises InvalidInput where there is none; BusError where that cannot be read."""
        topology = subjects.called_topology(subject)
        known, fresh = self._nodes(topology)
        if (found := self._called(known, subject)) is None or not fresh:
            found = self._called(await self._look(topology), subject)
        if found is None:
            why = f"no node of pool {self._pool} is called on {subject}"
            raise InvalidInput(why, code=OUTDATED, fix="apply its topology; what is deployed nowhere takes no JSON")
        return found

    def _called(self, nodes: Mapping[str, DeployedNode], subject: str) -> DeployedNode | None:
        called = (one for one in nodes.values() if subjects.call(self._app, self._pool, one.topology, one.node) == subject)
        return next(called, None)

    def _nodes(self, topology: str) -> tuple[Mapping[str, DeployedNode], bool]:
        """What is known of a topology's nodes, and whether it is believed."""
        read, nodes = self._known.get(topology, (-math.inf, dict[str, DeployedNode]()))
        return nodes, asyncio.get_running_loop().time() - read < FRESH

    async def _look(self, topology: str) -> Mapping[str, DeployedNode]:
        """Read a topology's nodes anew. Raises BusError."""
        now = asyncio.get_running_loop().time()
        found = await self._read(topology) if subjects.is_subject(topology) else {}
        self._known.pop(topology, None)
        if found:  # who makes names up fills no memory
            self._known[topology] = now, found
        return found

    async def _read(self, topology: str) -> dict[str, DeployedNode]:
        """A topology's nodes of this pool. Empty where it is not applied."""
        name = subjects.applied(self._app)
        if self._bucket is None:
            if not await self._bus.has("bucket", name):
                return {}
            self._bucket = await self._bus.bucket(name)
        prefix = subjects.manifest_prefix(topology)
        stored = await self._bucket.latest(prefix)
        if stored is None:
            return {}
        if (specs := self._specs(topology, stored)) is not None:
            return specs
        # Nothing replaces a manifest, but anything may have been put under the key of one to come.
        keys = sorted((await self._bucket.items(prefix)).items(), key=lambda item: -item[1][1])
        for _, (value, _) in keys:
            if (specs := self._specs(topology, value)) is not None:
                return specs
        self._seldom.error("no manifest of a topology can be read: nobody can call its nodes", topology=topology)
        return {}

    def _specs(self, topology: str, stored: bytes) -> dict[str, DeployedNode] | None:
        """The nodes that a manifest has; None for what is no manifest."""
        try:
            calls: dict[str, _Call] = checker(_Manifest).validate_json(stored, strict=True)["calls"]
            return {
                node: DeployedNode(topology, node, CallSpec.read(call["spec"]), call.get("affinity") == "require")
                for node, call in calls.items()
                if call["pool"] == self._pool
            }
        except (ValueError, DecodeError):
            return None
