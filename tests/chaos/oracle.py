"""The oracle: knows what went in, reads what came out, and says what is wrong. It trusts nothing that an engine says.

    ledger = Ledger(events)             # counts while the run goes on: ledger.take(message), ledger.missing
    report = judge(app, events, stored, heard)

`stored` is every message of the application stream as a durable reader sees it; `heard` is what a core NATS subscriber saw of
the sinks. Each check below is one promise, a generator of violations; later work adds its own to `CHECKS`.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple, cast

import msgpack
import orjson
from workload import INTENTS, ORDERED, SINKS, Given, is_good

from dspex.bus import subjects
from dspex.bus.errors import DecodeError
from dspex.bus.message import Message
from dspex.bus.records import CallRecord
from dspex.engine.client import letters
from dspex.engine.log.entries import unpack
from dspex.engine.log.rows import OpenCall
from dspex.engine.log.tables import NONE

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
    """

    def __init__(self, app: str, events: Sequence[Given]) -> None:
        self._dead = subjects.dead_pattern(app)
        self.wanted = {e.id: Counter([ANY] if e.loose else [content(*o) for o in e.outputs]) for e in events}
        self.dead = {e.id: e.dead for e in events}
        self._letters: Counter[str] = Counter()
        self.extra: list[str] = []
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
            self._count(good, run, f"dead letter {m.subject} of run {run}, sequence {m.sequence}")
        elif m.subject in SINKS:
            self._counted(run, content(m.subject, orjson.loads(m.data)), m)

    def _counted(self, run: str, what: str, m: Message) -> None:
        wanted = self.wanted.get(run, Counter())
        good = wanted[what] > 0
        wanted[what] -= 1
        self._count(good, run, f"{what} of run {run}, {m.subject} {m.sequence}")

    def _count(self, good: bool, run: str, what: str) -> None:
        if not good:
            self.extra.append(what)
            return
        self.missing -= 1
        self._left[run] -= 1
        self.open -= not self._left[run]

    def begun(self, id: str) -> bool:
        """Whether anything of an event has come."""
        return self._left[id] < self._all[id]

    def lost(self) -> Iterator[str]:
        """What has not come."""
        for run, wanted in self.wanted.items():
            yield from (f"{what} of run {run}" for what, count in wanted.items() for _ in range(count))
        yield from (f"dead letter of run {run}" for run, node in self.dead.items() if node and not self._letters[run])


@dataclass
class Case:
    """Everything a check may look at.

    Attributes:
        stored: all messages of the application stream, in order.
        heard: messages of the sinks that a core subscriber saw, in order.
    """

    app: str
    events: Sequence[Given]
    stored: Sequence[Message]
    heard: Sequence[Message] = ()

    @cached_property
    def outputs(self) -> list[Message]:
        return [m for m in self.stored if m.subject in SINKS]

    @cached_property
    def dead(self) -> list[Message]:
        return self.of(subjects.dead_pattern(self.app))

    @cached_property
    def records(self) -> list[tuple[Message, CallRecord]]:
        """Records of calls."""
        return [(m, CallRecord.unpack(m.data)) for m in self.of(subjects.record(self.app, "*", "*", "*", "*"))]

    @cached_property
    def logs(self) -> dict[str, list[tuple[Message, Mapping[str, Any]]]]:
        """The entries of each commit log."""
        found: dict[str, list[tuple[Message, Mapping[str, Any]]]] = defaultdict(list)
        for m in self.of(subjects.log(self.app, "*", "*", "*")):
            found[m.subject].append((m, unpack(m.data)))
        return found

    def changes(self, m: Message, entry: Mapping[str, Any]) -> Mapping[str, Any]:
        """What an entry changed in the tables: rows by table."""
        if "pieces" not in entry:
            return cast("Mapping[str, Any]", entry.get("tables", {}))
        first = m.sequence - entry["covers"]
        pieces = [self._by_sequence[s].data for s in range(first, first + entry["pieces"])]
        return cast("Mapping[str, Any]", msgpack.unpackb(b"".join(pieces), strict_map_key=False, use_list=False))

    @cached_property
    def _by_sequence(self) -> dict[int, Message]:
        return {m.sequence: m for m in self.stored}

    def of(self, pattern: str) -> list[Message]:
        return [m for m in self.stored if subjects.matches(pattern, m.subject)]


Check = Callable[[Case], Iterator[Violation]]


def accounted(case: Case) -> Iterator[Violation]:
    """Every event has its outputs, or its dead letter, exactly once: by content."""
    ledger = Ledger(case.app, case.events)
    for m in case.stored:
        ledger.take(m)
    yield from (Violation("nothing is lost", what) for what in ledger.lost())
    yield from (Violation("nothing is doubled", what) for what in ledger.extra)


def unique(case: Case) -> Iterator[Violation]:
    """No two stored outputs have one event id."""
    count = Counter(m.headers.get(subjects.EVENT_ID, "") for m in case.outputs)
    yield from (Violation("event ids are unique", f"{id!r} is stored {n} times") for id, n in count.items() if n > 1 or not id)


def right_letters(case: Case) -> Iterator[Violation]:
    """A dead letter is of the node that fails, and holds the event's data."""
    given = {e.id: e for e in case.events}
    for m in case.dead:
        letter = letters.read(m)
        event = given.get(letter.run)
        if event is None or letter.node != ("classify" if event.loose else event.dead):
            yield Violation("dead letters are right", f"{letter.node}: {letter.message} of run {letter.run}")
        elif letter.event.data != (event.raw or event.data):
            yield Violation("dead letters are right", f"run {letter.run} holds {letter.event.data!r}")


def right_answers(case: Case) -> Iterator[Violation]:
    """What a real model answered is at least of the types that were asked for."""
    real = {e.id for e in case.events if e.loose}
    for m in case.outputs if real else ():
        data = orjson.loads(m.data)
        if m.headers.get(subjects.RUN) in real and (data["intent"] not in INTENTS or type(data["urgency"]) is not int):
            yield Violation("answers have their types", f"{data['intent']!r}, {data['urgency']!r}")


def in_order(case: Case) -> Iterator[Violation]:
    """At each ordered sink, the events of a key stand in the order in which they were published; so do an event's outputs."""
    last: dict[tuple[str, str], tuple[int, int]] = {}
    late = {e.id for e in case.events if e.late}
    for m in case.outputs:
        if m.headers.get(subjects.RUN) in late:
            continue
        data = orjson.loads(m.data)
        place, now = (m.subject, data["key"]), (data["n"], data.get("i", 0))
        if m.subject in ORDERED and now <= last.get(place, (-1, -1)):
            yield Violation("a key keeps its order", f"{place}: {now} after {last[place]}, sequence {m.sequence}")
        last[place] = now


def one_clock(case: Case) -> Iterator[Violation]:
    """All outputs of an event saw the same clock."""
    clocks: dict[str, set[float]] = defaultdict(set)
    for m in case.outputs:
        if (at := orjson.loads(m.data).get("at")) is not None:
            clocks[m.headers[subjects.RUN]].add(at)
    yield from (Violation("an event has one clock", f"run {r}: {sorted(c)}") for r, c in clocks.items() if len(c) > 1)


def one_owner(case: Case) -> Iterator[Violation]:
    """Each log is a chain: claims count up by one, and what stands between two is by the owner of the first."""
    for subject, entries in case.logs.items():
        epoch, claim = 0, 0
        for m, entry in entries:
            if entry["kind"] == "claim":
                if entry["epoch"] != epoch + 1:
                    yield Violation("epochs are dense", f"{subject} {m.sequence}: {entry['epoch']} after {epoch}")
                epoch, claim = entry["epoch"], m.sequence
            elif entry["claim"] != claim:
                yield Violation("one owner commits", f"{subject} {m.sequence}: of claim {entry['claim']} behind claim {claim}")


def covered(case: Case) -> Iterator[Violation]:
    """Every output, dead letter and piece of work stands in exactly one commit, right before its entry."""
    kinds = {m.sequence: m.subject for m in case.stored}
    inside: Counter[int] = Counter()
    for subject, entries in case.logs.items():
        for m, entry in entries:
            before = range(m.sequence - entry.get("covers", 0), m.sequence)
            inside.update(before)
            if any(kinds.get(s) in case.logs for s in before):
                yield Violation("commits are whole", f"{subject} {m.sequence} covers another entry")
    work, dead = f"{subjects.prefix(case.app)}.work.>", subjects.dead_pattern(case.app)
    for sequence, subject in kinds.items():
        ours = subject in SINKS or subjects.matches(work, subject) or subjects.matches(dead, subject)
        if inside[sequence] > 1 or (ours and not inside[sequence]):
            yield Violation("commits are whole", f"{subject} {sequence} stands in {inside[sequence]} commits")


def forward(case: Case) -> Iterator[Violation]:
    """Positions never go back, but where an entry says that there was a gap in the source."""
    for subject, entries in case.logs.items():
        before: dict[str, tuple[Any, ...]] = {}
        for m, entry in entries:
            for name, row in case.changes(m, entry).get("positions", ()):
                sequence, item, created, _ = row
                now = (created, sequence, item if item >= 0 else NONE)  # the whole message is behind each event in it
                if now < before.get(name, now) and not _gap(entry, name):
                    yield Violation("positions go forward", f"{subject} {m.sequence}: {name} {now} after {before[name]}")
                before[name] = now


def _gap(entry: Mapping[str, Any], name: str) -> bool:
    """Whether a commit found a gap in an input."""
    return any(input == name and mark and mark[0][0] == "gap" for input, _, _, _, _, *mark in entry.get("taken", ()))


def calls_once(case: Case) -> Iterator[Violation]:
    """A number is of one call, which is opened once and closed once, and none is open at the end."""
    for subject, entries in case.logs.items():
        calls, closed = dict[int, str](), set[int]()
        for m, entry in entries:
            for number, raw in case.changes(m, entry).get("calls", ()):
                if raw is None:
                    if number in closed:
                        yield Violation("a call is closed once", f"{subject} {m.sequence}: number {number}")
                    closed.add(number)
                elif calls.setdefault(number, OpenCall(*raw).id) != OpenCall(*raw).id or number in closed:
                    yield Violation("a call is opened once", f"{subject} {m.sequence}: number {number}")
        yield from (Violation("no call stays open", f"{subject}: {n} {i}") for n, i in calls.items() if n not in closed)


def recorded_once(case: Case) -> Iterator[Violation]:
    """A call has one record of a good answer at most, and an attempt has one record."""
    answered = Counter(o.call for _, o in case.records if o.error is None and is_good(o.outputs or {}))
    attempts = Counter(m.headers.get(subjects.MESSAGE_ID, "") for m, _ in case.records)
    yield from (Violation("a call is recorded once", f"{c} succeeded {n} times") for c, n in answered.items() if n > 1)
    yield from (Violation("an attempt is recorded once", f"{a} is stored {n} times") for a, n in attempts.items() if n > 1)


def heard_is_stored(case: Case) -> Iterator[Violation]:
    """What a core subscriber saw is stored under the same id, with the same content."""
    stored = {m.headers[subjects.EVENT_ID]: m for m in case.outputs if subjects.EVENT_ID in m.headers}
    for m in case.heard:
        same = stored.get(m.headers.get(subjects.EVENT_ID, ""))
        if same is None:
            yield Violation("what is heard is stored", f"{m.subject} {dict(m.headers)} is in no stream")
        elif content(m.subject, orjson.loads(m.data)) != content(same.subject, orjson.loads(same.data)):
            yield Violation("a repeat is the same event", f"{m.subject} {m.data!r} and {same.subject} {same.data!r}")


CHECKS: list[Check] = [
    accounted,
    unique,
    right_letters,
    right_answers,
    in_order,
    one_clock,
    one_owner,
    covered,
    forward,
    calls_once,
    recorded_once,
    heard_is_stored,
]


@dataclass
class Report:
    """What a run did, and what is wrong with it. `numbers` are for people; `violations` decide. `again`: the command that does
    the same once more.
    """

    numbers: dict[str, Any] = field(default_factory=dict)
    violations: list[Violation] = field(default_factory=list)
    again: str = ""

    @property
    def good(self) -> bool:
        return not self.violations

    def as_dict(self) -> dict[str, Any]:
        return {**self.numbers, "violations": [v._asdict() for v in self.violations], "again": self.again}

    def __str__(self) -> str:
        lines = [f"{name:<28} {value}" for name, value in self.numbers.items()]
        counts = Counter(v.promise for v in self.violations)
        lines.append(f"{'violations':<28} {len(self.violations)}")
        for promise, count in counts.items():
            examples = [v.what for v in self.violations if v.promise == promise][:3]
            lines += [f"  {count} × {promise}", *(f"      {what[:300]}" for what in examples)]
        lines += [f"again: {self.again}"] if self.again and not self.good else []
        return "\n".join(lines)


def judge(app: str, events: Sequence[Given], stored: Sequence[Message], heard: Sequence[Message] = ()) -> Report:
    """All checks over one run."""
    case = Case(app, events, stored, heard)
    report = Report(_numbers(case))
    for check in CHECKS:
        try:
            report.violations += list(check(case))
        except (DecodeError, KeyError, ValueError) as e:
            report.violations.append(Violation("what is stored can be read", f"{check.__name__}: {e!r}"))
    return report


def _numbers(case: Case) -> dict[str, Any]:
    heard = Counter(m.headers.get(subjects.EVENT_ID, "") for m in case.heard)
    entries = [e for log in case.logs.values() for _, e in log]
    return {
        "events": len(case.events),
        "outputs": len(case.outputs),
        "dead letters": len(case.dead),
        "calls closed": sum(row is None for log in case.logs.values() for m, e in log for _, row in _rows(case, m, e, "calls")),
        "records": len(case.records),
        "records of errors": sum(o.error is not None for _, o in case.records),
        "records of lost workers": sum((o.error or {}).get("type") == "WorkerLost" for _, o in case.records),
        "commits": sum(e["kind"] == "commit" for e in entries),
        "claims": sum(e["kind"] == "claim" for e in entries),
        "events split over owners": _split(case),
        "heard by core subscriber": len(case.heard),
        "heard again (same id)": sum(n - 1 for n in heard.values()),
    }


def _rows(case: Case, m: Message, entry: Mapping[str, Any], table: str) -> Sequence[tuple[Any, Any]]:
    return cast("Sequence[tuple[Any, Any]]", case.changes(m, entry).get(table, ()))


def _split(case: Case) -> int:
    """Events of which one owner committed a part, and a later one the rest."""
    found = 0
    for entries in case.logs.values():
        begun: dict[Any, int] = {}
        for m, entry in entries:
            for place, row in _rows(case, m, entry, "splits"):
                if row is None:
                    found += begun.pop(place, entry["claim"]) != entry["claim"]
                else:
                    begun.setdefault(place, entry["claim"])
    return found
