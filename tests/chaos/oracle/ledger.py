"""What is still missing while a run goes on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import orjson
from workload import SINKS, Given

from dspex.bus import subjects
from dspex.bus.message import Message

ANY = "one output, or a dead letter"  # of an event that a real model answers
VOLATILE = ("at",)  # fields that hold the engine's clock: they need not be a given value, but one value per event


class Violation(NamedTuple):
    """A broken promise: which, and where it shows."""

    promise: str
    what: str


def content(subject: str, data: Mapping[str, Any]) -> str:
    """An output as text, equal for equal outputs; without what the clock decides."""
    kept = {k: v for k, v in data.items() if k not in VOLATILE}
    return f"{subject} {orjson.dumps(kept, option=orjson.OPT_SORT_KEYS).decode()}"


class Ledger:
    """What is still missing of the expected outputs and dead letters, while a run goes on.

    Attributes:
        missing: outputs and dead letters that have not come.
        open: events of which something is missing.
        extra: what came once too often.
        again: event → how often each thing of it may come once more.
    """

    def __init__(self, app: str, events: Sequence[Given]) -> None:
        self._dead = subjects.dead_pattern(app)
        self.wanted = {e.id: Counter([ANY] if e.loose else [content(*o) for o in e.outputs]) for e in events}
        self.dead = {e.id: e.dead for e in events}
        self._letters: Counter[str] = Counter()
        self.extra: list[str] = []
        self.again: Counter[str] = Counter()
        self._repeats: Counter[tuple[str, str]] = Counter()
        self._forgiven: set[str] = set()
        self._left = {e.id: self.wanted[e.id].total() + (e.dead is not None) for e in events}
        self._all = dict(self._left)
        self.missing = sum(self._left.values())
        self.open = len(self._left)

    def take(self, m: Message) -> None:
        """Count one message of a sink or of the dead letters."""
        run = m.headers.get(subjects.RUN, "")
        letter = subjects.matches(self._dead, m.subject)
        if ANY in self.wanted.get(run, ()) and (letter or m.subject in SINKS):
            self._counted(run, ANY, m)
        elif letter:
            self._letters[run] += 1
            good = self.dead.get(run) is not None and self._letters[run] == 1
            self._count(good, run, "dead letter", f"dead letter {m.subject} of run {run}, sequence {m.sequence}")
        elif m.subject in SINKS:
            self._counted(run, content(m.subject, orjson.loads(m.data)), m)

    def _counted(self, run: str, what: str, m: Message) -> None:
        wanted = self.wanted.get(run, Counter())
        good = wanted[what] > 0
        wanted[what] -= 1
        self._count(good, run, what, f"{what} of run {run}, {m.subject} {m.sequence}")

    def _count(self, good: bool, run: str, what: str, where: str) -> None:
        if not good and self._repeats[run, what] < self.again[run]:
            self._repeats[run, what] += 1
            return
        if not good:
            self.extra.append(where)
            return
        if run in self._forgiven:  # it was read, so all of it must come
            self._forgiven.remove(run)
            self.missing += self._left[run]
            self.open += 1
        self.missing -= 1
        self._left[run] -= 1
        self.open -= not self._left[run]

    def forgive(self, runs: Iterable[str]) -> set[str]:
        """Of these events nothing need come: those of which nothing has come. Once anything does, all of it must."""
        forgiven = {run for run in runs if not self.begun(run) and run not in self._forgiven}
        self._forgiven |= forgiven
        self.missing -= sum(self._left[run] for run in forgiven)
        self.open -= len(forgiven)
        return forgiven

    @property
    def gone(self) -> set[str]:
        """Forgiven events of which nothing has come."""
        return set(self._forgiven)

    def begun(self, id: str) -> bool:
        """Whether anything of an event has come."""
        return self._left[id] < self._all[id]

    def lost(self) -> Iterator[str]:
        """What has not come."""
        for run, wanted in self.wanted.items():
            if run in self._forgiven:
                continue
            yield from (f"{what} of run {run}" for what, count in wanted.items() for _ in range(count))
        dead = [(run, node) for run, node in self.dead.items() if run not in self._forgiven]
        yield from (f"dead letter of run {run}" for run, node in dead if node and not self._letters[run])
