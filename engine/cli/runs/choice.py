"""What `dspex replay` is to replay, as its options say, and which of them do not go together."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Final

from dspex.bus.codecs.times import moment
from dspex.bus.errors import ConfigError
from dspex.bus.settings.duration import seconds

if TYPE_CHECKING:
    from dspex.engine.client.client import Client

_WAYS: Final = (
    "dspex replay RUN, --file FILE, --session ID, --range FROM:TO, or --topology NAME, all of it or with --partition STAGE/N"
)
_ALLOWED: Final = {
    "RUN": (),
    "--file": (),
    "--session": ("--topology", "--since", "--until"),
    "--range": ("--topology",),
    "--topology": ("--since", "--until", "--partition"),
}
"""What chooses, with what narrows that. The first that is given is what chooses."""


@dataclass(frozen=True)
class ReplayChoice:
    """What is to be replayed.

    Attributes:
        run, file, session, topology: as given. range: sequences of a source's stream. partition: a stage, and its number.
        since, until: in seconds since the epoch.
    """

    run: str | None = None
    file: Path | None = None
    session: str | None = None
    topology: str | None = None
    range: tuple[int, int] | None = None
    partition: tuple[str, int] | None = None
    since: float = 0.0
    until: float = inf

    @property
    def whole(self) -> bool:
        """All that a topology did in a time, and not certain runs."""
        return self.run is None and self.session is None and self.range is None

    def __str__(self) -> str:
        if self.range is not None:
            return f"{self.range[0]:,} to {self.range[1]:,}"
        return self.run or (f"session {self.session}" if self.session else self.topology or str(self.file))

    async def runs(self, c: Client) -> list[str]:
        """The runs, where it is certain ones. Raises RunNotFound, ConfigError, TopologyError."""
        from dspex.engine.client.runs.chosen import of_range, of_session

        if self.run is not None:
            return [self.run]
        applied = await c.manifests()
        if self.range is not None:
            return await of_range(c.bus, applied, *self.range, topology=self.topology)
        name, span = str(self.session), (self.since, self.until)
        return await of_session(c.bus, applied, name, topology=self.topology, span=span)


def chosen(given: dict[str, str | None]) -> ReplayChoice:
    """What the options say, by their names; the run is "RUN". Raises ConfigError (DX105) for nothing, or too much."""
    there = [name for name, value in given.items() if value is not None]
    chooses = next((name for name in _ALLOWED if name in there), None)
    if chooses is None:
        raise ConfigError("nothing says what is to be replayed", code="DX105", fix=_WAYS)
    if other := [name for name in there if name not in (chooses, *_ALLOWED[chooses])]:
        raise ConfigError(f"{chooses} and {other[0]} do not go together", code="DX105", fix=_WAYS)
    file, since = given.get("--file"), given.get("--since")
    return ReplayChoice(
        run=given.get("RUN"),
        file=Path(file) if file is not None else None,
        session=given.get("--session"),
        topology=given.get("--topology"),
        range=_range(given.get("--range")),
        partition=_partition(given.get("--partition")),
        since=time.time() - seconds(since) if since is not None else 0.0,
        until=_until(given.get("--until")),
    )


def _range(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    found = re.fullmatch(r"([0-9]{1,18}):([0-9]{1,18})", text)
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        fix = "as 100:200, both included, in the stream of the source: dspex watch SUBJECT --json shows them"
        raise ConfigError(f"{text!r} is no range of sequences", code="DX105", fix=fix)
    return int(found[1]), int(found[2])


def _partition(text: str | None) -> tuple[str, int] | None:
    if text is None:
        return None
    stage, _, number = text.rpartition("/")
    if not stage or not re.fullmatch(r"[0-9]{1,4}", number):
        raise ConfigError(f"{text!r} is no partition", code="DX105", fix="a source, a hop or a stage, and a number: s1/0")
    return stage, int(number)


def _until(text: str | None) -> float:
    try:
        return moment(text).timestamp() if text is not None else inf
    except (ValueError, OverflowError):
        raise ConfigError(f"{text!r} is no time", code="DX105", fix="as 2026-01-31T12:00:00Z") from None
