"""Runs that are chosen together: those of a session, and those of a piece of a source's stream."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from math import inf

from dspex.bus import subjects
from dspex.bus.errors import ConfigError, DataError, RunNotFound, TopologyError
from dspex.bus.message import Message, plain, run_of
from dspex.bus.port import Bus
from dspex.bus.settings.similar import did_you_mean
from dspex.engine.graph.manifest import Manifest
from dspex.engine.log.positions import sequence_before

_PIECE = 8192  # sequences of a stream that are looked through at a time


async def of_session(
    bus: Bus,
    manifests: Mapping[str, Manifest],
    session: str,
    *,
    topology: str | None = None,
    span: tuple[float, float] = (0.0, inf),
) -> list[str]:
    """The runs that began with events of a session, in the order in which they did.

    `span`: when those were stored, in seconds since the epoch. Raises RunNotFound where there is none, TopologyError (DX235).
    """
    found = list[tuple[float, str]]()
    for stream, names in _sources(manifests, topology).items():
        if (info := await bus.stream(stream)) is None:
            continue
        begin = await sequence_before(bus, info, span[0]) + 1 if span[0] else info.first
        async for message in _stored(bus, stream, names, begin, info.last):
            if message.time > span[1]:
                break
            if span[0] <= message.time and _session(message) == session:
                found.append((message.time, run_of(stream, info.created, message)))
    if not found:
        raise RunNotFound(f"no run of the session {session} is there", fix="dspex sessions ls shows sessions, runs ls runs")
    return list(dict.fromkeys(run for _, run in sorted(found)))


async def of_range(
    bus: Bus, manifests: Mapping[str, Manifest], first: int, last: int, *, topology: str | None = None
) -> list[str]:
    """The runs whose events lie at these sequences of the stream of a topology's sources; of all where those have one.

    Raises ConfigError (DX105) where there are several, RunNotFound where there is none, TopologyError (DX235).
    """
    sources = _sources(manifests, topology)
    if len(sources) != 1:
        why = f"the sources lie in {len(sources)} streams ({', '.join(sorted(sources))}), and a range is of one"
        raise ConfigError(why, code="DX105", fix="name a topology whose sources lie in one stream: --topology NAME")
    ((stream, names),) = sources.items()
    info = await bus.stream(stream)
    found = list[str]()
    if info is not None:
        async for message in _stored(bus, stream, names, max(first, info.first), min(last, info.last)):
            found.append(run_of(stream, info.created, message))
    if not found:
        there = f"which has {info.first:,} to {info.last:,}" if info is not None else "which is not there"
        raise RunNotFound(f"no source event lies at {first:,} to {last:,} of {stream}, {there}", fix="dspex runs ls")
    return list(dict.fromkeys(found))


def _sources(manifests: Mapping[str, Manifest], topology: str | None) -> dict[str, list[str]]:
    """The streams of sources, with the subjects that are read there."""
    if topology is not None and topology not in manifests:
        fix = did_you_mean(topology, sorted(manifests), "dspex status shows those there are")
        raise TopologyError(f"there is no topology {topology!r}", code="DX235", fix=fix)
    found = dict[str, list[str]]()
    for name, applied in manifests.items():
        if topology != name and (topology is not None or name == subjects.SUBMITTED):
            continue
        for source, stream in applied.streams.items():
            subject, there = applied.subject(source), found.setdefault(stream, [])
            if subject not in there:
                there.append(subject)
    return found


async def _stored(bus: Bus, stream: str, names: list[str], first: int, last: int) -> AsyncIterator[Message]:
    """What lies on any of these subjects, which may overlap, in order."""
    while first <= last:
        stop, page = min(last, first + _PIECE - 1), dict[int, Message]()
        for name in names:
            page |= {m.sequence: m for m in await bus.scan(stream, [name], start=first, stop=stop)}
        for _, message in sorted(page.items()):
            yield message
        first = stop + 1


def _session(message: Message) -> str | None:
    try:
        return plain(message).headers.get(subjects.SESSION)
    except DataError:
        return None
