"""Runs by what people call them: by the place of their event, as calls that were submitted, by the end of their id."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from dspex.bus import subjects
from dspex.bus.errors import RunNotFound
from dspex.bus.message import PLACED, run_of
from dspex.bus.port import Bus
from dspex.engine.client.runs import kept
from dspex.engine.graph.manifest import Manifest

MOST_NAMED = 5  # runs that a message names
AT = "@"  # in `stream@sequence`: a run named by the place of its source event


async def full_ids(bus: Bus, app: str, ids: Iterable[str]) -> list[str]:
    """The same runs by their full ids, where some are named by the place of their event, or as calls that were submitted.

    Raises RunNotFound.
    """
    return [await at_place(bus, id) if AT in id else await _of_submitted(bus, app, id) if "/" in id else id for id in ids]


async def _of_submitted(bus: Bus, app: str, id: str) -> str:
    """The id of the run of a submitted call. Raises RunNotFound."""
    pool, _, call = id.partition("/")
    stream = subjects.sources(app)
    info = await bus.stream(stream) if subjects.is_subject(f"{pool}.{call}") else None
    message = await bus.last(stream, subjects.submit(app, pool, "*", "*", call)) if info is not None else None
    if info is None or message is None:
        raise RunNotFound(f"no submitted call {id} is stored", run=id)
    return run_of(stream, info.created, message)


async def at_place(bus: Bus, place: str) -> str:
    """The id of the run whose source event lies at `stream@sequence`. Raises RunNotFound."""
    stream, _, number = place.rpartition(AT)
    info = await bus.stream(stream) if number.isdecimal() else None
    message = await bus.get(stream, int(number)) if info is not None else None
    if info is None or message is None:
        raise RunNotFound(f"no event is stored at {place}", run=place)
    return run_of(stream, info.created, message)


async def find(bus: Bus, app: str, manifests: Mapping[str, Manifest], suffix: str) -> str:
    """The full id of the run that ends with `suffix` (6 hex digits or more). Raises RunNotFound."""
    if len(suffix) < 6:
        raise RunNotFound(f"{suffix!r} is too short for the end of a run's id", fix="give at least 6 of its last digits")
    digits = suffix[-PLACED:]
    if not {*digits} <= {*"0123456789abcdef"}:
        fix = "an id has the digits 0 to f: dspex runs ls shows those there are"
        raise RunNotFound(f"no run ends with {suffix!r}", fix=fix)
    found = {id for id in await kept.infos(bus, app) if id.endswith(suffix)}
    for stream, subject in {(stream, m.subject(source)) for m in manifests.values() for source, stream in m.streams.items()}:
        info = await bus.stream(stream)
        if info is None:
            continue
        apart = 1 << 4 * len(digits)
        first = info.first + (int(digits, 16) - info.first) % apart
        for sequence in range(first, info.last + 1, apart):  # an id ends with the sequence of its event, so few can be meant
            message = await bus.get(stream, sequence)
            if message is None or not subjects.matches(subject, message.subject):
                continue
            if (run := run_of(stream, info.created, message)).endswith(suffix):
                found.add(run)
    if not found:
        raise RunNotFound(f"no run ends with {suffix!r}")
    if len(found) > 1:  # of several streams, or imported from another application
        fix = f"name one by more of it: {', '.join(sorted(found)[:MOST_NAMED])}"
        raise RunNotFound(f"{len(found)} runs end with {suffix!r}", fix=fix)
    return found.pop()
