"""What a replay gives, published again: to other subjects, or on purpose into sinks that are named."""

from __future__ import annotations

import re
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import TYPE_CHECKING, Final

import typer

from dspex.bus import subjects
from dspex.bus.errors import BusError, ConfigError, TopologyError
from dspex.bus.port import NewMessage
from dspex.bus.serving import audit, payloads
from dspex.bus.settings.similar import did_you_mean
from dspex.engine.replay.watched import ReplayPlace, Watcher

if TYPE_CHECKING:
    from dspex.engine.client.client import Client
    from dspex.engine.graph.manifest import Manifest

_TOGETHER: Final = 100  # messages that are on their way at once


@dataclass(frozen=True)
class ReplayTarget:
    """Where what a replay gives is published. `to`: a subject, or `prefix.>`; or else `sinks`, by name."""

    to: str = ""
    sinks: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.to or ", ".join(self.sinks)

    def subject(self, of: str) -> str:
        """Where a message goes that a sink would have on `of`."""
        return self.to[:-1] + of if self.to.endswith(".>") else self.to or of


def target_of(to: str | None, sinks: Sequence[str], app: str, *, yes: bool) -> ReplayTarget | None:
    """What the options say; None for nothing. Raises ConfigError, typer.Abort where somebody says no."""
    if to is not None and sinks:
        raise ConfigError("--to and --to-sinks do not go together", code="DX105", fix="give one of them")
    if yes and not sinks:
        fix = "leave it out, or name sinks: --to-sinks NAME"
        raise ConfigError("--yes says that sinks may be written, and none is named", code="DX105", fix=fix)
    if to is not None:
        if not subjects.is_subject(to.removesuffix(".>")):
            fix = "replay.all for all of it, or replay.> for that before each sink's own subject"
            raise ConfigError(f"{to!r} is no subject", code="DX105", fix=fix)
        return ReplayTarget(to=to)
    if not sinks:
        return None
    if not yes and not sys.stdin.isatty():
        why = f"to replay into {', '.join(sinks)} is seen by all who read there"
        raise ConfigError(why, code="DX136", fix="add --yes; or publish it elsewhere: --to replay.>")
    if not yes and typer.prompt(f"Type the name of the application to have {', '.join(sinks)} written", err=True) != app:
        raise typer.Abort
    return ReplayTarget(sinks=tuple(dict.fromkeys(sinks)))


def checked(target: ReplayTarget, applied: Mapping[str, Manifest], topologies: Collection[str]) -> list[str]:
    """The patterns of the sinks that are written; [] for other subjects.

    `topologies`: those that are replayed. Raises ConfigError (DX105) for what engines or sinks write, TopologyError (DX235).
    """
    known = {sink: name for name, manifest in applied.items() for sink in manifest.sinks}
    if target.to:
        taken = ["dspex.>", *known, *(applied[name].subject(one) for name in topologies for one in applied[name].streams)]
        if (hit := next((one for one in taken if subjects.overlap(target.to, one)), None)) is not None:
            why = f"{target.to} takes in {hit}, where engines or topologies write, or which is replayed"
            raise ConfigError(why, code="DX105", fix="take another prefix; into a sink: --to-sinks NAME")
        return []
    mine = [sink for sink, name in known.items() if name in topologies]
    patterns = list[str]()
    for name in target.sinks:
        pattern = re.sub(r"\{[^}]*\}", "*", name)
        if pattern not in mine:
            fix = did_you_mean(name, mine, "dspex show names them")
            raise TopologyError(f"what is replayed has no sink {name!r}", code="DX235", fix=fix)
        patterns.append(pattern)
        if other := [one for one in known if one not in (pattern, *patterns) and subjects.overlap(one, pattern)]:
            why = f"{name} and {other[0]} share subjects, so that nobody could tell which of them is meant"
            raise ConfigError(why, code="DX105", fix=f"name both: --to-sinks {name} --to-sinks {other[0]}")
    return patterns


@dataclass
class SendAgain(Watcher):
    """Publishes what a replay gives for sinks. `sent`: how many messages; `there`: so many of them were there already."""

    c: Client
    target: ReplayTarget
    patterns: Sequence[str]
    runs: Collection[str] | None = None
    sent: int = 0
    there: int = 0
    subjects: set[str] = field(default_factory=set)

    async def gave(self, where: ReplayPlace, messages: Sequence[NewMessage]) -> None:
        """See Watcher. Raises BusError where a message is not stored."""
        drafts = [self._draft(m) for m in messages if self._wanted(m)]
        for first in range(0, len(drafts), _TOGETHER):
            some = [await payloads.checked_in(self.c.bus, self.c.app, draft) for draft in drafts[first : first + _TOGETHER]]
            for ack in await self.c.bus.publish_all(some):
                if isinstance(ack, BusError):
                    raise ack
                self.there += ack.duplicate
                self.sent += 1
            self.subjects |= {draft.subject for draft in some}

    def _wanted(self, m: NewMessage) -> bool:
        if subjects.matches(f"{subjects.prefix(self.c.app)}.>", m.subject):
            return False  # what engines and workers say to each other
        if self.runs is not None and (m.headers or {}).get(subjects.RUN) not in self.runs:
            return False
        return not self.patterns or any(subjects.matches(pattern, m.subject) for pattern in self.patterns)

    def _draft(self, m: NewMessage) -> NewMessage:
        """The message, as it goes there: under an id that it has each time, so that it is not there twice within the window."""
        headers, to = dict(m.headers or {}), self.target.subject(m.subject)
        said = blake2b("\n".join((headers.get(subjects.EVENT_ID, ""), to)).encode() + m.data, digest_size=12).hexdigest()
        return NewMessage(to, m.data, headers | {subjects.MESSAGE_ID: f"replay/{said}"})

    async def audited(self, what: str) -> None:
        """Leave an entry of it, where anything was published."""
        if self.sent:
            to = sorted(self.subjects)[: audit.MOST_NAMED]
            await audit.leave(self.c.bus, self.c.app, "replay", replayed=what, to=to, messages=self.sent, there=self.there)

    def as_dict(self) -> dict[str, object]:
        """As `--json` has it."""
        return {"to": str(self.target), "messages": self.sent, "there": self.there}

    def __str__(self) -> str:
        there = f", {self.there:,} of them there already" if self.there else ""
        return f"published {self.sent:,} to {self.target}{there}"
