"""Which topologies are paused: nothing is admitted there any more, and what is open comes to its end.

It lies beside the manifests, in the bucket that takes one value of a key, and each change has a key of its own. Whoever may
publish can have an answer of the server put under a key: so one to come may hold anything, and is passed over, and none that is
there can be replaced. The latest that can be read counts, and what was before it is removed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple, NotRequired

import orjson
from typing_extensions import TypedDict

from dspex.bus import subjects
from dspex.bus.codecs.checking import checker
from dspex.bus.errors import Fenced
from dspex.bus.port import Bucket, Bus

WHOLE: Final = ""
"""In place of a name: the whole topology."""
LATEST: Final = 1e11
"""Until when a pause may last at most, in seconds since the epoch."""


class Rest(NamedTuple):
    """Where the sources of a topology stop, so that another version goes on exactly there.

    Attributes:
        at: they bring nothing that was stored at this time or later.
        until: how long that holds where no other version comes; else it holds for good. Both in seconds since the epoch.
        version: the last version of the manifest for whose engines it holds.
    """

    at: float
    until: float
    version: int


class _Stored(TypedDict):
    __pydantic_config__ = {"extra": "forbid", "allow_inf_nan": False}  # type: ignore[misc]  # noqa: RUF012

    paused: dict[str, float]
    rest: NotRequired[tuple[float, float, int]]


@dataclass(frozen=True)
class Pauses:
    """The pauses of a topology.

    Attributes:
        names: of what is paused: WHOLE, or a source or a key_by, behind which a stage begins → until when, in seconds since the
            epoch on the server's clock; 0: until somebody resumes it.
        number: of the change that made it so; 0 for none.
        rest: where its sources stop; None: nowhere.
    """

    names: Mapping[str, float] = field(default_factory=dict)
    number: int = 0
    rest: Rest | None = None

    def until(self, names: Collection[str], now: float) -> float | None:
        """Until when a stage that begins at one of these names is paused; 0: until it is resumed; None: it is not."""
        ends = [end for name, end in self.names.items() if (name == WHOLE or name in names) and (not end or end > now)]
        return None if not ends else 0.0 if 0.0 in ends else max(ends)

    def stop(self, version: int) -> Rest | None:
        """Where the sources of an engine stop that runs this version; None: nowhere."""
        return self.rest if self.rest is not None and version <= self.rest.version else None


async def read(bucket: Bucket) -> dict[str, Pauses]:
    """The pauses of each topology that ever had one. Raises BusError."""
    found: dict[str, Pauses] = {}
    for key, (value, _) in (await bucket.items(subjects.pause_prefix())).items():
        topology, number = subjects.paused_of(key)
        stored = _stored(value)
        if stored is not None and number > found.get(topology, Pauses()).number:
            found[topology] = replace(stored, number=number)
    return found


async def of_application(bus: Bus, app: str) -> dict[str, Pauses]:
    """The pauses of `app`. Makes no bucket: who only looks leaves no traces."""
    if not await bus.has("bucket", subjects.applied(app)):
        return {}
    return await read(await bus.bucket(subjects.applied(app)))


async def pause(bucket: Bucket, topology: str, name: str, until: float) -> Pauses:
    """Pause a topology, or the stage behind a name. `until`: see Pauses. Raises BusError."""
    return await _change(bucket, topology, {name: until}, ())


async def resume(bucket: Bucket, topology: str, name: str) -> Pauses:
    """Go on: with the stage behind a name, or with all that is paused of the topology. Raises BusError."""
    return await _change(bucket, topology, {}, (name,))


async def rest(bucket: Bucket, topology: str, where: Rest) -> Pauses:
    """Let the sources of a topology stop. Raises BusError."""
    return await _change(bucket, topology, {}, (), lambda before: where)


async def rest_no_more(bucket: Bucket, topology: str, where: Rest) -> Pauses:
    """Let the sources of a topology go on that stop there; those that stop elsewhere by now do so still. Raises BusError."""
    return await _change(bucket, topology, {}, (), lambda before: None if before == where else before)


async def _change(
    bucket: Bucket,
    topology: str,
    more: Mapping[str, float],
    less: Collection[str],
    where: Callable[[Rest | None], Rest | None] = lambda before: before,
) -> Pauses:
    taken: set[int] = set()  # by what nobody can read, or did not show yet
    while True:
        before = (await read(bucket)).get(topology, Pauses())
        kept = {} if WHOLE in less else {name: end for name, end in before.names.items() if name not in less}
        number = before.number + 1
        while number in taken:
            number += 1
        after = Pauses({**kept, **more}, number, where(before.rest))
        body = orjson.dumps({"paused": dict(after.names), **({"rest": list(after.rest)} if after.rest is not None else {})})
        try:
            await bucket.put(subjects.pause_key(topology, number), body, revision=0)
        except Fenced:
            stored = await bucket.get(subjects.pause_key(topology, number))
            if stored is not None and names_of(stored[0]) is None:
                taken.add(number)
            continue  # else somebody else made a change at the same moment: look at that
        for key in await bucket.items(subjects.pause_prefix(topology)):
            if subjects.paused_of(key)[1] < number:
                await bucket.delete(key)
        return after


def names_of(value: bytes) -> Mapping[str, float] | None:
    """What is paused; None for what nobody wrote who pauses."""
    stored = _stored(value)
    return stored.names if stored is not None else None


def _stored(value: bytes) -> Pauses | None:
    try:
        found: _Stored = checker(_Stored).validate_json(value, strict=True)
    except ValueError:
        return None
    rest = Rest(*found["rest"]) if "rest" in found else None
    times = [*found["paused"].values(), *(rest[:2] if rest is not None else ())]
    return Pauses(found["paused"], rest=rest) if all(0 <= end <= LATEST for end in times) else None
