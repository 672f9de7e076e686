"""Which dead letters a verb is about. A name that nothing has is an error: a misspelt one would look as if nothing waited."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from difflib import get_close_matches
from typing import TYPE_CHECKING

from dspex.bus import errors
from dspex.bus.errors import ConfigError, DspexError, RunError, TopologyError
from dspex.bus.settings.similar import did_you_mean
from dspex.engine.cli.terminal.terminal import Terminal

if TYPE_CHECKING:
    from dspex.engine.client.client import Client
    from dspex.engine.client.letters import DeadLetter
    from dspex.engine.graph.graph import Graph

_MOST = 12  # names that an error lists


@dataclass(frozen=True)
class Selection:
    """Which dead letters: those that every part of it takes."""

    sequences: Sequence[int] = ()
    topology: str | None = None
    node: str | None = None
    reason: str | None = None
    since: str | None = None

    def check(self, verb: str, everything: bool) -> None:
        """Refuse to act on all letters by accident. Raises ConfigError (DX136)."""
        if not everything and not any((self.sequences, self.topology, self.node, self.reason, self.since)):
            fix = f"name some: dspex dlq {verb} SEQ, --node, --reason, --since, …; or say --all"
            raise ConfigError(f"dlq {verb} without a selection would take every dead letter", code="DX136", fix=fix)

    async def each(self, t: Terminal, c: Client) -> AsyncIterator[DeadLetter]:
        """The letters, oldest first, in pages. At the end: RunError (DX623) for a sequence that is none, TopologyError (DX235)
        or ConfigError (DX105) for a name that nothing has."""
        from dspex.bus.settings.duration import seconds

        after = datetime.now(UTC) - timedelta(seconds=seconds(self.since)) if self.since else None
        missing, found = set(self.sequences), False
        async for d in self._listed(c):
            found = True
            if after is None or d.time >= after:
                missing.discard(d.sequence)
                yield d
        if not found:
            await _refuse_unknown(t, c, self.topology, self.node, self.reason)
        if missing:
            text = ", ".join(map(str, sorted(missing)))
            raise RunError(f"there is no such dead letter: {text}", code="DX623", fix="dspex dlq ls shows those there are")

    async def _listed(self, c: Client) -> AsyncIterator[DeadLetter]:
        from dspex.engine.client import letters
        from dspex.engine.client.status.names import names

        if not self.sequences:
            async for d in c.dead_letters(self.topology or "*", node=self.node, reason=self.reason):
                yield d
            return
        manifests = await c.manifests()
        for sequence in sorted(set(self.sequences)):
            one = await letters.find(c.bus, c.app, sequence)
            if one is None or self.topology not in (None, one.topology) or self.reason not in (None, one.reason, one.code):
                continue
            if self.node is None or self.node in names(manifests, one.topology, one.node):
                yield one


async def _refuse_unknown(t: Terminal, c: Client, topology: str | None, node: str | None, reason: str | None) -> None:
    """Raise for a topology or an operator that is neither applied, nor of the settings, nor has letters; and for no reason.

    Raises:
        TopologyError: DX235. ConfigError: DX105.
    """
    from dspex.engine.client.status.names import known, names

    if topology is node is None:
        return _refuse_reason(reason)
    manifests, graphs = await c.manifests(), _of_settings(t)
    failed = {(d.topology, d.node) async for d in c.dead_letters("*")}  # no letter is kept: each may hold megabytes
    topologies = {*manifests, *(g.name for g in graphs), *(name for name, _ in failed)}
    if topology is not None and topology not in topologies:
        raise _none("topology", topology, topologies)
    nodes = known(manifests) | {name for one in failed for name in names(manifests, *one)}
    nodes |= {name for g in graphs for n in g.nodes for name in (n, f"{g.name}/{n}")}
    if node is not None and node not in nodes:
        raise _none("operator", node, {name for name in nodes if "/" not in name} if "/" not in node else nodes)
    return _refuse_reason(reason)


def _of_settings(t: Terminal) -> list[Graph]:
    """The topologies of the settings, which know all their operators; none where they cannot be loaded now."""
    from dspex.engine.cli.topology.targets import load

    try:
        return [topology.graph for topology in load(t, None)]
    except DspexError:
        return []


def _none(what: str, name: str, there: Iterable[str]) -> TopologyError:
    fix = did_you_mean(name, sorted(there), "none is applied")
    return TopologyError(f"there is no {what} {name!r}", code="DX235", fix=fix)


def _refuse_reason(reason: str | None) -> None:
    kinds = {name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, DspexError)}
    if reason is None or reason in kinds or re.fullmatch(r"DX[0-9]{3}", reason):
        return
    listed = ", ".join(get_close_matches(reason, kinds, n=3) or sorted(kinds)[:_MOST])
    raise ConfigError(f"there is no reason {reason!r}", code="DX105", fix=f"a name or a code of errors: {listed}, DX502, …")
