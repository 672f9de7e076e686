"""What one commit stored, beside what its arrivals give when they are taken again."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final, cast

from dspex.bus import subjects
from dspex.bus.errors import RecordingIncomplete
from dspex.bus.message import Message
from dspex.bus.port import Bus, NewMessage
from dspex.bus.serving import payloads
from dspex.engine.log.entries import is_changed, requests_in
from dspex.engine.log.rows import Timer
from dspex.engine.replay.marks import of_runs, outcome, runs_in, same_bytes, summary

_AROUND: Final = 60  # bytes that are shown on each side of where two messages differ


class StoredCommit:
    """The messages of one commit. `sequence`: of its entry."""

    def __init__(self, bus: Bus, app: str, sequence: int, entry: Mapping[str, Any]) -> None:
        self._bus, self._app, self._sequence, self._entry = bus, app, sequence, entry
        self._messages: list[Any] | None = None
        self._damaged = False  # the body of one is

    async def messages(self) -> list[Any]:
        """All, without pieces of the entry; None for what is gone."""
        if self._messages is None:
            if "asks" in self._entry:
                self._messages = [*requests_in(self._entry).values()]
            else:
                self._messages = [*await self._before(self._entry["covers"] - self._entry.get("pieces", 0))]
        return self._messages

    async def _before(self, count: int) -> list[Message | None]:
        """The messages that lie right before the entry."""
        stream = subjects.stream(self._app)
        found = [await self._bus.get(stream, at) for at in range(self._sequence - count, self._sequence)]
        looked = [await payloads.looked_at(self._bus, self._app, m) if m is not None else (None, False) for m in found]
        self._damaged = any(damaged for _, damaged in looked)
        return [whole or m for m, (whole, _) in zip(found, looked)]

    async def need_unchanged(self) -> None:
        """Raise RecordingIncomplete where what is there is not what was stored, as the entry says."""
        stored = [] if "asks" in self._entry else await self.messages()
        if self._damaged or (None not in stored and is_changed(self._entry, stored)):
            why = f"what was committed at {self._sequence} is damaged: its messages are not what the log says of them"
            raise RecordingIncomplete(why)

    async def failed(self, changed: Mapping[str, Any], runs: Collection[str]) -> bool:
        """Whether something of these runs failed then, or asked for more time; of any, where these are none. A letter that was
        redriven is gone: whose it was is not known.
        """
        timers = [Timer(*row) for _, row in changed.get("timers", ()) if row is not None]
        if any((timer.kind in ("event", "held") or timer.attempts) and _of(runs, timer.run) for timer in timers):
            return True
        dead, stored = subjects.dead_pattern(self._app), await self._before(self._entry["covers"])
        return any(
            m is None or (subjects.matches(dead, m.subject) and _of(runs, m.headers.get(subjects.RUN, ""))) for m in stored
        )

    async def same_of(self, runs: Collection[str], mine: Sequence[NewMessage]) -> bool:
        """Whether what is of these runs is the same."""
        return of_runs(runs, mine) == of_runs(runs, await self.messages())

    async def same_but_for_lines(self, mine: Sequence[NewMessage]) -> bool:
        """Whether it is the same but for the lines of code that dead letters name: other code has them elsewhere."""
        stored = await self.messages()
        if len(stored) != len(mine) or None in stored:
            return False
        return all(outcome(now) == outcome(was) and _has(was, now.headers or {}) for now, was in zip(mine, stored))

    async def differing(self, mine: Sequence[NewMessage], among: Collection[str] | None) -> tuple[str, ...]:
        """The runs of which there is something else now, in order. `among`: of these; None: of all."""
        there = dict.fromkeys([*runs_in(await self.messages()), *runs_in(mine)])
        return tuple([run for run in there if (among is None or run in among) and not await self.same_of({run}, mine)])

    async def other(self, mine: Sequence[NewMessage]) -> str:
        """In words: what is there now beside what was; or the first message that is another."""
        stored = await self.messages()
        if len(mine) != len(stored):
            return f"{summary(mine)}, not {summary([m for m in stored if m is not None])}"
        for (subject, data), was in zip(map(outcome, mine), stored) if self._bus.sealing is None else ():
            if was is not None and (subject, data) != (there := outcome(was)):
                at = max(0, same_bytes(data, there[1]) - _AROUND)
                new, old = data[at : at + 2 * _AROUND], there[1][at : at + 2 * _AROUND]
                return f"to {subject} …{new!r}… now, and …{old!r}… to {was.subject} then"
        return summary(mine)


def other_rows(mine: Mapping[str, Any], told: Mapping[str, Any], *, quoted: bool) -> str:
    """In words: where the changes of tables are others than those that the log tells. Not quoted is what is stored sealed."""
    differ = [name for name in sorted({*mine, *told}) if mine.get(name) != told.get(name)]
    if quoted:
        return "; ".join(f"{name}: {mine.get(name)}, not {told.get(name)}"[:600] for name in differ)
    return "; ".join(f"{name}: {_rows(mine.get(name))}, not {_rows(told.get(name))}" for name in differ)


def _rows(of: object) -> str:
    return f"{len(cast('Sequence[Any]', of))} rows" if isinstance(of, (list, tuple)) else str(of)


def _of(runs: Collection[str], run: str) -> bool:
    """Whether a run is one of these, where it is known, and they are."""
    return not run or not runs or run in runs


def _has(was: Message | NewMessage, headers: Mapping[str, str]) -> bool:
    """Whether a message has these headers; a server adds others."""
    return headers.items() <= (was.headers or {}).items()
