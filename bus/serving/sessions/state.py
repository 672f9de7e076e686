"""A session as it is stored: data, turns, and the line of those who want to take a turn. Changes of it are pure functions.

One key of one bucket holds all of it, and each change is a compare and set. So the turn of a call and the end of its place in
the line are one write, and whoever comes next sees either both or none.

Whoever stands first in the line has the session. A place is renewed every few seconds, by whoever waits and by the pool that
runs the call; one that was not is passed over by the next who looks. Time is that of the server.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal, NamedTuple, TypeAlias, cast

from dspex.bus import codecs
from dspex.bus.codecs.plain import unwritable
from dspex.bus.errors import Cancelled, InvalidInput, OutputTooLarge, SessionBusy, SessionConflict, SessionEnded
from dspex.bus.records import KeptInSession
from dspex.bus.serving.call_spec import CallSpec

Policy: TypeAlias = Literal["queue", "reject", "interrupt", "latest"]
"""What a call does where another one has the session: waits behind all others; raises; ends the one that runs and goes before
those that wait; ends those that wait, and waits for the one that runs.
"""

HISTORY: Final = "history"
"""The input of a signature that is filled with the turns of its session."""
BEAT: Final = 5.0  # seconds after which a place is renewed
SILENT: Final = 15.0  # seconds after which a place that was not renewed does not count
MOST_TURNS: Final = 200  # of a session that are kept: the last ones
MOST_BYTES: Final = 256 << 10  # of the turns that are kept together, of the inputs of one, and of what is saved
MOST_HEAD: Final = 128 << 10  # bytes of what is stored beside data and turns: a full line
MOST_PLACES: Final = 1000  # of a line
LEFT_OUT: Final = "… (cut: {} bytes)"
REMEMBERED: Final = 3600.0  # seconds at most for which an id cannot be used that was ended: calls of it may be under way
TTL: Final = 30 * 86400.0  # seconds that a session lives where nobody said so


class InLine(NamedTuple):
    """A place in the line.

    Attributes:
        call: id of the call that wants its turn. until: when it counts no more, in seconds since the epoch.
        pool: of the call. turn: what its caller named it by; "" for nothing.
    """

    call: str
    until: float
    pool: str = ""
    turn: str = ""


class StoredTurn(NamedTuple):
    """A call that was answered.

    Attributes:
        call: its id, which is that of its record.
        id: what its caller named it by; a second call of that name is answered from here.
        time: when it was answered, in seconds since the epoch.
        inputs, outputs: of the call, without the history.
        cut: the outputs were too large to be stored: of long texts these are the beginnings. The record has them whole.
        secrets: the names of fields that are not shown.
    """

    call: str
    id: str
    time: float
    inputs: Mapping[str, Any]
    outputs: Mapping[str, Any]
    cut: bool = False
    secrets: Sequence[str] = ()

    def stored(self) -> dict[str, Any]:
        """As it is stored. Without names it is as versions read it that know of none."""
        found = self._asdict()
        if not self.secrets:
            del found["secrets"]
        return found


@dataclass(frozen=True)
class SessionState:
    """A session.

    Attributes:
        ttl: seconds after `touched` at which it ends by itself. touched: when it was used last, in seconds since the epoch.
        ended: it was ended; nothing is left of it but this.
        count: turns that there were, those included that are kept no more. revision: how often data was saved.
        line: who has the session, and who waits for it.
        data: what was saved. turns: the last ones. saver: drawn by whoever saved last.
    """

    ttl: float
    touched: float
    ended: bool = False
    count: int = 0
    revision: int = 0
    line: list[InLine] = field(default_factory=list[InLine])
    data: Mapping[str, Any] = field(default_factory=dict[str, Any])
    turns: list[StoredTurn] = field(default_factory=list[StoredTurn])
    saver: str = ""

    def over(self, now: float) -> bool:
        """Whether it has ended, or its time has run out while nobody took a turn."""
        return self.ended or (now > self.touched + self.ttl and not self.standing(now))

    def forgotten(self, now: float) -> bool:
        """Whether nothing has to remember any more that it has ended: its id may be used for another session."""
        return now > self.touched + (min(self.ttl, REMEMBERED) if self.ended else 2 * self.ttl) and self.over(now)

    def standing(self, now: float) -> list[InLine]:
        """The line without those that are gone."""
        return [place for place in self.line if place.until >= now]

    def turn(self, id: str) -> StoredTurn | None:
        """The turn of this name, if it is kept."""
        return next((turn for turn in reversed(self.turns) if turn.id == id), None)


def used(id: str, state: SessionState | None, now: float, ttl: float | None) -> SessionState:
    """The session, used now; a new one where there was none, or it is forgotten. `ttl`: None: it keeps its own.

    Raises SessionEnded.
    """
    if state is None or state.forgotten(now):
        return SessionState(TTL if ttl is None else ttl, now)
    if state.over(now):
        raise SessionEnded(f"session {id} was ended" if state.ended else f"the time to live of session {id} has run out")
    return replace(state, ttl=state.ttl if ttl is None else ttl, touched=now)


def joined(id: str, state: SessionState, now: float, place: InLine, policy: Policy) -> SessionState:
    """With a place for a call in the line. Raises SessionBusy."""
    line = state.standing(now)
    if place.call in [other.call for other in line]:
        return state  # it was written, and whoever did that was not told
    if place.turn and place.turn in [other.turn for other in line]:
        policy = "queue"  # it is asked for again: the answer to the first will be this one's
    if policy == "reject" and line:
        raise SessionBusy(f"session {id} is taken: call {line[0].call} runs")
    if policy == "interrupt":
        line = [place, *line[1:]]
    else:
        line = [*(line[:1] if policy == "latest" else line), place]
    if len(line) > MOST_PLACES:
        raise SessionBusy(f"{MOST_PLACES} calls wait for session {id}")
    return replace(state, line=line)


def renewed(state: SessionState, now: float, call: str) -> SessionState:
    """With the place of a call renewed, and without those that are gone. Raises Cancelled where it has none any more."""
    if call not in [place.call for place in state.line]:
        raise Cancelled("another call has taken its place in the session, or it was silent for too long")
    line = [p._replace(until=now + SILENT) if p.call == call else p for p in state.line]
    return replace(state, line=[place for place in line if place.until >= now])


def left(state: SessionState, call: str) -> SessionState:
    """Without the place of a call."""
    return replace(state, line=[place for place in state.line if place.call != call])


def check_inputs(inputs: Mapping[str, Any]) -> None:
    """Raise InvalidInput for inputs of a call that can be no turn, before a model is asked and paid."""
    if (size := len(codecs.msgpack_bytes({k: v for k, v in inputs.items() if k != HISTORY}))) > MOST_BYTES:
        why = f"the inputs of a turn have {size:,} bytes, and may have {MOST_BYTES:,}"
        raise InvalidInput(why, fix="give less, or call without a session")


def most_of_turn(message: int) -> int:
    """Bytes of the last turn of a session that is stored in a message of so many bytes."""
    return max(MOST_BYTES, message - MOST_BYTES - MOST_HEAD)


def taken(state: SessionState, now: float, turn: StoredTurn, most: int = MOST_BYTES) -> SessionState:
    """With the turn of a call, which leaves its place. Raises SessionConflict where it has none.

    `most`: bytes of the turn. The outputs of a larger one are cut: the answer was paid for, and its caller gets it.
    """
    if any(known.call == turn.call for known in state.turns):
        return state  # it was written, and whoever did that was not told
    line = state.line
    while line and line[0].call != turn.call and line[0].until < now:
        line = line[1:]
    if not line or line[0].call != turn.call:
        raise SessionConflict("another call has taken its place in the session: the answer is no turn of it")
    if _size([turn]) > most:
        turn = turn._replace(outputs=_cut(turn.outputs, most - _size([turn._replace(outputs={})])), cut=True)
    turns = [*state.turns, turn][-MOST_TURNS:]
    while len(turns) > 1 and (over := _size(turns) - MOST_BYTES) > 0:
        while over > 0 and len(turns) > 1:
            over -= _size([turns.pop(0)])
    return replace(state, touched=now, count=state.count + 1, line=line[1:], turns=turns)


def _cut(outputs: Mapping[str, Any], most: int) -> dict[str, Any]:
    """Outputs in so many bytes: those that are small as they are, of the others what fits of their texts."""
    share, found = max(0, most) // max(1, len(outputs)), dict[str, Any]()
    for name, value in outputs.items():
        size, left = len(codecs.msgpack_bytes({name: value})), share - len(name.encode()) - 2 * len(LEFT_OUT)
        text = value.encode()[: max(0, left)].decode(errors="ignore") if isinstance(value, str) else ""
        found[name] = value if size <= share else f"{text}{LEFT_OUT.format(size)}"
    return found


def _size(turns: list[StoredTurn]) -> int:
    return len(codecs.msgpack_bytes([one.stored() for one in turns]))


def saved(id: str, state: SessionState, data: Mapping[str, Any], revision: int, saver: str) -> SessionState:
    """With other data, if that of `revision` is the latest. Raises SessionConflict, OutputTooLarge, InvalidInput.

    `saver`: drawn for this change. Equal data proves nothing: two that add one to the same number save the same.
    """
    if state.revision == revision + 1 and state.saver == saver:
        return state  # it was written, and whoever did that was not told
    if state.revision != revision:
        raise SessionConflict(f"the data of session {id} is at revision {state.revision}, and not at {revision}")
    check_data(id, data)
    return replace(state, data=data, revision=revision + 1, saver=saver)


def check_data(id: str, data: object) -> None:
    """Raise InvalidInput and OutputTooLarge for what no session can keep."""
    if (size := len(packed := codecs.msgpack_bytes(data))) > MOST_BYTES:
        raise OutputTooLarge(f"{size:,} bytes for the data of session {id}, which may have {MOST_BYTES:,}")
    found = codecs.decode(packed, codecs.MSGPACK)
    if not _is_record(found):  # nobody could read the session any more, turns included
        raise InvalidInput(f"the data of session {id} has to be a mapping of texts to values", fix='give {"cart": […]}')
    if (why := unwritable(found, "data")) is not None:
        raise InvalidInput(f"the data of session {id} cannot be kept: {why}", fix="write it as text, or None")


def kept_for(spec: CallSpec, state: SessionState) -> KeptInSession | None:
    """What a turn is given of the session, whose place is the first of the line; None where no code of users runs."""
    return KeptInSession(state.data, state.revision) if spec.runs_code else None


def _is_record(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(key, str) for key in cast("dict[object, object]", value))


def ended(state: SessionState, now: float) -> SessionState:
    """What is left of a session that is ended."""
    return SessionState(state.ttl, now, ended=True, count=state.count, revision=state.revision)
