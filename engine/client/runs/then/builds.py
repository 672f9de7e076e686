"""Which builds wrote what a run did, as the claims of its partitions say: its file says it, and a replay names what differs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeAlias

from dspex.bus import subjects
from dspex.bus.port import Bus
from dspex.engine.client.runs.history import History
from dspex.engine.log.build import differing
from dspex.engine.log.entries import facts, readable
from dspex.engine.log.positions import pages

Builds: TypeAlias = Mapping[str, list[dict[str, str]]]
"""By topology; each as `engine.log.build` makes it."""


async def builds_of(bus: Bus, app: str, past: History, known: dict[int, dict[str, str]] | None = None) -> Builds:
    """Those of a run, as far as its claims are kept. `known`: by claim, to read each of many runs' once. Raises BusError."""
    found, known = dict[str, list[dict[str, str]]](), {} if known is None else known
    for taken in past.taken:
        if taken.claim not in known:
            known[taken.claim] = await _said(bus, app, taken.claim)
        builds, one = found.setdefault(taken.partition[0], []), known[taken.claim]
        if one and one not in builds:
            builds.append(one)
    return found


async def builds_of_topology(bus: Bus, app: str, topology: str, span: tuple[float, float]) -> Builds:
    """Those of all that a topology committed in a time (in seconds since the epoch), as far as its claims are kept."""
    claims, builds = set[int](), list[dict[str, str]]()
    async for page in pages(bus, subjects.stream(app), [subjects.log(app, topology, "*", "*")]):
        entries = [readable(message.data) for message in page if span[0] <= message.time <= span[1]]
        claims |= {entry["claim"] for entry in entries if entry is not None and entry["kind"] == "commit"}
    for claim in sorted(claims):
        if (one := await _said(bus, app, claim)) and one not in builds:
            builds.append(one)
    return {topology: builds}


def merged(several: Iterable[Builds]) -> Builds:
    """Those of several runs."""
    found = dict[str, list[dict[str, str]]]()
    for topology, builds in (pair for one in several for pair in one.items()):
        known = found.setdefault(topology, [])
        known += [build for build in builds if build not in known]
    return found


async def _said(bus: Bus, app: str, claim: int) -> dict[str, str]:
    message = await bus.get(subjects.stream(app), claim)
    entry = readable(message.data) if message is not None else None
    return {k: str(v) for k, v in facts(entry).build.items()} if entry is not None and entry["kind"] == "claim" else {}


def others(then: Builds, now: Mapping[str, Mapping[str, str]]) -> dict[str, tuple[str, str]]:
    """What is another one now: its name → then and now."""
    pairs = [(one, now[topology]) for topology, builds in then.items() if topology in now for one in builds]
    return {name: both for one, of in pairs for name, both in differing(one, of).items()}
