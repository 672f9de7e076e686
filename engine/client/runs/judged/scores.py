"""Scores of runs: how good what was answered is, as somebody or something says later; kept, and credited to who answered."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from statistics import fmean
from typing import Any, Final, NamedTuple

from typing_extensions import TypedDict

from dspex.bus import codecs, subjects
from dspex.bus.codecs.checking import checked
from dspex.bus.errors import ConfigError, DecodeError, Fenced, RunNotFound, Unsettled
from dspex.bus.message import Message, in_session, new_id
from dspex.bus.port import Bucket, Bus, NewMessage
from dspex.bus.serving import audit
from dspex.bus.serving.keys.clear_text import may_store
from dspex.bus.settings.similar import did_you_mean
from dspex.engine.client.following.progress import RunInfo
from dspex.engine.client.runs.then.masking import secrets_of
from dspex.engine.client.runs.tree import Happening

MOST_NOTE: Final = 2000  # characters
_TRIES: Final = 5


class WhoAnswered(NamedTuple):
    """Who answered a call.

    Attributes:
        node: the operator. program: its saved state, `draft@4`; else the kind and a digest of what it is made from. lm: the
            profile.
    """

    node: str
    program: str
    lm: str


@dataclass(frozen=True)
class Score:
    """What somebody says of a run, or of what an operator answered in it.

    Attributes:
        run, topology: which, and of what.
        name: what is said: "helpful". value: how much.
        node: of which operator; None: of the run.
        note: why. None where it was sealed, and cannot be read any more.
        who: user@host, as the client says. time: when it was stored, by the server's clock.
        answered: who gets the credit: who answered the operator's calls, or all calls of the run.
    """

    run: str
    topology: str
    name: str
    value: float
    node: str | None
    note: str | None
    who: str
    time: datetime
    answered: tuple[WhoAnswered, ...]

    def as_dict(self) -> dict[str, Any]:
        """The `--json` object."""
        return {**vars(self), "time": self.time.isoformat(), "answered": [one._asdict() for one in self.answered]}


class Credited(NamedTuple):
    """What was said of what a program answered: the mean of the latest scores, one of each run and operator.

    Attributes:
        name: of the scores. answered: who answered. scores: how many there are. mean, lowest: of them.
    """

    name: str
    answered: WhoAnswered
    scores: int
    mean: float
    lowest: float


class _Stored(TypedDict):
    topology: str
    name: str
    value: float
    node: str | None
    who: str
    time: float
    answered: list[dict[str, str]]
    note: str
    session: str | None
    seal: str
    sealed: bytes


class Scores:
    """The scores of an application."""

    def __init__(self, bus: Bus, app: str) -> None:
        self._bus, self._app = bus, app
        self._opened: Bucket | None = None

    async def _bucket(self) -> Bucket:
        if self._opened is None:
            self._opened = await self._bus.bucket(subjects.kept(self._app))
        return self._opened

    async def add(
        self, info: RunInfo, root: Happening, session: str | None, name: str, value: float, node: str | None, note: str
    ) -> Score:
        """Keep one more. Those before it are kept, too. Raises ConfigError, RunNotFound where no such operator was asked."""
        subjects.token(name, "score")
        given: Any = value  # a caller may give anything
        if isinstance(given, bool) or not isinstance(given, int | float) or not math.isfinite(given):
            raise ConfigError(f"{value!r} is no score", code="DX105", fix="give a number")
        if len(note) > MOST_NOTE:
            raise ConfigError(f"a note of {len(note):,} characters", code="DX105", fix=f"at most {MOST_NOTE:,}")
        answered = _answered(root, node)
        if node is not None and not answered:
            there = sorted({one.node for one in root if one.kind == "call"})
            fix = did_you_mean(node, there, "see dspex runs show")
            raise RunNotFound(f"run {info.id} has no answer of {node!r}", run=info.id, fix=fix)
        note = secrets_of(root).text(note)
        time, who = await (await self._bucket()).time(), audit.whoami()
        score = Score(info.id, info.topology, name, float(value), node, note, who, datetime.fromtimestamp(time, UTC), answered)
        await self._put(subjects.score_key(info.id, new_id()), await self._packed(score, time, session))
        return score

    async def _put(self, key: str, value: bytes) -> None:
        bucket = await self._bucket()
        for tried in range(_TRIES):
            try:
                await bucket.put(key, value, revision=0)
            except Unsettled:
                if tried == _TRIES - 1:
                    raise
            except Fenced:
                if not tried:
                    raise
                return  # the write of which nobody knew: no other one has this key
            else:
                return

    async def _packed(self, score: Score, time: float, session: str | None) -> bytes:
        await may_store(self._bus, self._app)
        kept = {name: value for name, value in vars(score).items() if name != "run"}
        kept |= {"time": time, "session": session, "seal": "", "sealed": b""}
        if self._bus.sealing is not None and score.note:
            sealed = await self._bus.sealing.sealed(NewMessage("", score.note.encode(), _session(session)))
            kept |= {"note": "", "seal": (sealed.headers or {})[subjects.SEALED], "sealed": sealed.data}
        return codecs.msgpack_bytes(kept)

    async def of(self, run: str) -> list[Score]:
        """Those of a run, the oldest first. `run`: its full id."""
        return [score async for score in self._listed(subjects.score_key(run))]

    async def listing(self, topology: str | None = None, since: float = 0.0) -> AsyncIterator[Score]:
        """All, the oldest first; of one topology, and from then on."""
        async for score in self._listed(subjects.score_key()):
            if topology in (None, score.topology) and score.time.timestamp() >= since:
                yield score

    async def _listed(self, prefix: str) -> AsyncIterator[Score]:
        if self._opened is None and not await self._bus.has("bucket", subjects.kept(self._app)):
            return
        found = await (await self._bucket()).items(prefix)
        for key, (value, _) in sorted(found.items(), key=lambda item: item[1][1]):
            if (score := await self._read(subjects.scored_run(key), value)) is not None:
                yield score

    async def _read(self, run: str, stored: bytes) -> Score | None:
        """A score; None for what is none: who may write there can write anything."""
        try:
            raw: _Stored = checked(_Stored, "a score", codecs.decode(stored, codecs.MSGPACK))
            time = datetime.fromtimestamp(raw["time"], UTC)
        except (DecodeError, ValueError, OverflowError, OSError):
            return None
        note: str | None = raw["note"]
        if raw["seal"]:
            note = await self._note(raw)
        answered = tuple(WhoAnswered(*(one.get(name, "") for name in WhoAnswered._fields)) for one in raw["answered"])
        return Score(run, raw["topology"], raw["name"], raw["value"], raw["node"], note, raw["who"], time, answered)

    async def _note(self, raw: _Stored) -> str | None:
        if self._bus.sealing is None:
            return None
        headers = {subjects.SEALED: raw["seal"], **_session(raw["session"])}
        found = await self._bus.sealing.opened(Message("", raw["sealed"], headers, 0, 0.0))
        return found.data.decode(errors="replace") if found is not None else None


def _session(id: str | None) -> Mapping[str, str]:
    return in_session(id) if id is not None else {}


def _answered(root: Happening, node: str | None) -> tuple[WhoAnswered, ...]:
    """Who answered the calls of a run; `node`: those of this operator, or this step."""
    found = dict.fromkeys(
        WhoAnswered(one.node, last.state or last.program or "", last.lm or "")
        for one in root
        if one.kind == "call" and node in (None, one.node, one.label) and (last := one.attempts[-1]).outputs is not None
    )
    return tuple(found)


def latest(scores: Iterable[Score]) -> dict[tuple[str, str, str | None], Score]:
    """Of each run, name and operator the last one: that counts. `scores`: the oldest first."""
    return {(one.run, one.name, one.node): one for one in scores}


def credited(scores: Iterable[Score]) -> list[Credited]:
    """What was said of each program, by the name of the score. A score of a run is said of all that answered in it."""
    found: dict[tuple[str, WhoAnswered], list[float]] = {}
    for score in latest(scores).values():
        for answered in score.answered:
            found.setdefault((score.name, answered), []).append(score.value)
    return [
        Credited(name, answered, len(values), fmean(values), min(values)) for (name, answered), values in sorted(found.items())
    ]
