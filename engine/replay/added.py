"""What a replay takes that its log has not taken, since it comes of a change alone."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any, Final, NamedTuple, TypeAlias

from dspex.bus.errors import DataError
from dspex.bus.message import Message
from dspex.bus.records import CallRecord, NodeEvent, unpack_event
from dspex.engine.log.rows import Timer
from dspex.engine.log.tables import Timers
from dspex.engine.replay.watched import Watcher
from dspex.engine.runtime.arrival import Answered

ALARMS: Final = ("wake", "mark")
Alarm: TypeAlias = tuple[str, str, str]
"""The operator, the key and the name of a timer."""
_To: TypeAlias = tuple[str, str, int]
"""Topology, stage and partition."""


async def nothing_recorded(call: str, event: NodeEvent) -> bool:
    """No call has a record."""
    return False


def answered_by(m: Message) -> Iterator[object]:
    """The id of the call that a record ends, and what that was made for; nothing where nobody can read it."""
    with suppress(DataError):  # in the object store, or sealed
        yield (record := CallRecord.unpack(m.data)).call
        yield what_is_answered(unpack_event(record.event))


def what_is_answered(event: NodeEvent) -> object:
    """What is the same of the event of a call, whatever id that has."""
    return event.node, event.origin.run, event.data


class Added(NamedTuple):
    """Something that arrives in a partition.

    Attributes:
        id: of the event or the call. entry: behind which it comes. due: by the clock of the engine.
        what: an event over a hop, the end of a call, or a message that a source reads.
    """

    id: str
    entry: int
    due: float
    what: NodeEvent | Answered | Message


class OnwardWatcher(Watcher):
    """What it sees goes on.

    Attributes:
        reaches: where else something arrives otherwise: topology, stage and partition → the entry from which on.
        renamed: calls by the ids that they have now → those that they had. topology: the one that is replayed.
        added: what arrives in a partition that did not then. clock: of what is taken now.
        is_recorded: whether the partition takes a record yet of a call, by its id, or of one for the same event.
    """

    topology = ""
    clock = 0.0
    is_recorded: Callable[[str, NodeEvent], Awaitable[bool]] = staticmethod(nothing_recorded)

    def __init__(self) -> None:
        self.reaches, self.renamed = dict[_To, int](), dict[str, str]()
        self.added = dict[_To, list[Added]]()

    def waits(self, stage: str, partition: int) -> bool:
        """Whether something is to be changed there yet, though all is as it was."""
        return bool(self.added.get((self.topology, stage, partition)))

    def add(self, to: _To, one: Added) -> None:
        """Have something arrive that did not then."""
        self.added.setdefault(to, []).append(one)
        self.reaches[to] = min(one.entry, self.reaches.get(to, one.entry))

    def add_answer(self, stage: str, partition: int, entry: int, record: CallRecord, event: NodeEvent | None) -> None:
        """Have a call end that was not made then, as much later as it took."""
        one = Added(record.call, entry, self.clock + record.elapsed, Answered(record, event))
        self.added.setdefault((self.topology, stage, partition), []).append(one)

    def drop_added(self, id: str) -> None:
        """Something came then, too: at another time."""
        for to, all in self.added.items():
            self.added[to] = [one for one in all if one.id != id]


class Alarms:
    """Those of the log. `alone`: what the replay has, and the log has not, or at another time."""

    def __init__(self) -> None:
        self._names, self._dues = dict[int, Alarm](), dict[Alarm, float]()  # by the numbers that the log has for them
        self._begun, self.alone = False, set[Alarm]()

    def begin(self, timers: Timers) -> None:
        """What there is before the first change, once."""
        if not self._begun:
            self._begun = True
            self._take(timers.rows.items())

    def number(self, number: int, timers: Timers) -> int:
        """The number that the replay has for a timer of the log: what set it then may not have, and something else may have."""
        alarm = self._names.get(number)
        found = timers.of(*alarm) if alarm is not None and number not in timers.rows else None
        return found if found is not None else number

    def note(self, theirs: Iterable[tuple[int, Any]], mine: Iterable[tuple[int, Any]], timers: Timers) -> None:
        """Note what an entry changed in the log, and in the replay, whose timers these are."""
        names = {*self._take(theirs), *(name for _, row in mine if row is not None for name in _names(Timer(*row)))}
        for name in names:
            number = timers.of(*name)
            alone = number is not None and timers.rows[number].due != self._dues.get(name)
            (self.alone.add if alone else self.alone.discard)(name)

    def _take(self, rows: Iterable[tuple[int, Any]]) -> list[Alarm]:
        """Those whose row is another one now."""
        found = list[Alarm]()
        for number, row in sorted(rows, key=lambda one: one[1] is not None):
            gone = self._names.get(number)
            if row is None:
                found += [gone] if gone is not None and self._dues.pop(gone, None) is not None else []
                continue
            for name in _names(timer := Timer(*row)):
                self._names[number], self._dues[name] = name, timer.due
                found.append(name)
        return found


def _names(timer: Timer) -> Iterator[Alarm]:
    if timer.kind in ALARMS:
        yield timer.node, timer.key, timer.name
