"""Programs as a client sees them: what they are made of, and their saved states: save, promote, roll back.

Each change leaves an entry in the audit, and tells the pools: what an alias means is believed for a few seconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from typing_extensions import TypedDict

from dspex.bus import subjects
from dspex.bus.codecs.checking import checked
from dspex.bus.port import Bus
from dspex.bus.serving import audit
from dspex.bus.serving.programs import form
from dspex.bus.serving.programs.states import SavedStates, SavedVersion
from dspex.engine.client.call import ask
from dspex.engine.client.resolve import Resolved
from dspex.engine.graph import manifest


@dataclass(frozen=True)
class PredictorInfo:
    """A predictor of a program.

    Attributes:
        name: in the program, "write.predict"; "self" where the program is one.
        instructions: of its signature. inputs, outputs: its fields, each with its type.
        demos: its demonstrations.
        lm: the model that the program's own code gave it; "" for that of the call.
    """

    name: str
    instructions: str
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    demos: Sequence[Mapping[str, Any]]
    lm: str = ""


@dataclass(frozen=True)
class ProgramInfo:
    """What a program is made of, as a worker has it.

    Attributes:
        kind, target: what was asked about. pool: whose worker it was. worker: which.
        program: its name with a digest of what it is made from, as records have it.
        module: the class, or the function.
        lms: the profiles that are tried, in order, each with its model.
        tools: their names. predictors: see PredictorInfo.
        state: the saved state that it has, "draft@4"; "" for none. warning: what may be wrong with it; "" for nothing.
        dspy_version: of the worker.
    """

    kind: str
    target: str
    pool: str
    worker: str
    program: str
    module: str
    lms: Mapping[str, str]
    tools: Sequence[str]
    predictors: Sequence[PredictorInfo]
    state: str = ""
    warning: str = ""
    dspy_version: str = ""

    def as_dict(self) -> dict[str, Any]:
        """As the CLI prints it."""
        return {**vars(self), "predictors": [vars(one) for one in self.predictors]}


class _Described(TypedDict):
    """What a worker says."""

    module: str
    lms: dict[str, str]
    tools: list[str]
    predictors: list[dict[str, Any]]


async def describe(bus: Bus, app: str, asked: Resolved[Any], timeout: float) -> ProgramInfo:
    """What a program is made of. Raises what a call of it would raise before it asks a model; DecodeError where another answer
    comes.
    """
    record, _ = await ask(bus, app, asked._replace(topology="", node=""), {}, timeout=timeout, describe=True)
    said: _Described = checked(_Described, "a description of a program", record.outputs)
    predictors = [PredictorInfo(**checked(PredictorInfo, "a predictor", one)) for one in said["predictors"]]
    return ProgramInfo(
        kind=asked.spec.kind,
        target=asked.spec.target,
        pool=asked.pool,
        worker=record.worker,
        program=record.program,
        module=said["module"],
        lms=said["lms"],
        tools=said["tools"],
        predictors=predictors,
        state=record.state,
        warning=record.warning,
        dspy_version=record.dspy_version,
    )


class ProgramStore:
    """The saved programs of an application.

    Args:
        pools: more pools than the topologies use, that are to be told of what changes.
        replicas: of what is made on the server, where nothing is there yet.
    """

    def __init__(self, bus: Bus, app: str, pools: Iterable[str] = (), replicas: int = 1) -> None:
        self._bus, self._app, self._pools = bus, app, tuple(pools)
        self.states = SavedStates(bus, app, replicas)

    async def put(self, name: str, state: Mapping[str, Any]) -> tuple[SavedVersion, tuple[str, ...]]:
        """Save a state; its version, and the predictors whose language model was left out. Raises InvalidInput, ConfigError."""
        found = form.read(state)
        version = await self.states.put(name, found)
        await self._told("put", program=version.name, digest=version.digest)
        return version, found.models

    async def promote(self, name: str, version: int, alias: str) -> int:
        """Have an alias point to a version; the version. Raises RunError (DX627), ConfigError."""
        change = await self.states.promote(name, version, alias)
        await self._told("promote", program=f"{name}@{version}", alias=alias)
        return change.version

    async def rollback(self, name: str, alias: str) -> int:
        """Have an alias point to what it pointed to before; the version. Raises RunError (DX627), Fenced, ConfigError."""
        change = await self.states.rollback(name, alias)
        await self._told("rollback", program=f"{name}@{change.version}", alias=alias)
        return change.version

    async def _told(self, verb: str, **what: str) -> None:
        await audit.leave(self._bus, self._app, verb, **what)
        applied = await manifest.of_application(self._bus, self._app)
        for pool in {*self._pools, *(str(call["pool"]) for one in applied.values() for call in one.calls.values())}:
            await self._bus.send(subjects.control(self._app, pool), orjson.dumps({"kind": "programs"}))
