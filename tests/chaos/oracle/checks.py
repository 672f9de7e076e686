"""The checks: each is one promise, a generator of violations. Later work adds its own to `CHECKS`."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from typing import Any

import orjson
from workload import BEFORE, BEHIND, HOP, INTENTS, ORDERED, SINKS, is_good

from dspex.bus import subjects
from dspex.bus.message import Message, partition_of
from dspex.bus.port import NewMessage
from dspex.bus.records import unpack_event, unpack_frame
from dspex.engine.client import letters
from dspex.engine.graph.nodes import KEYED_PARTITIONS
from dspex.engine.log.entries import requests_in
from dspex.engine.log.rows import NONE, OpenCall
from oracle.case import Case
from oracle.ledger import Ledger, Violation, content

STUCK = 60.0  # seconds
WAITING = 600.0  # seconds that a partition may wait while a slow model answers others
Check = Callable[[Case], Iterator[Violation]]


def accounted(case: Case) -> Iterator[Violation]:
    """Every event has its outputs, or its dead letter, exactly once: by content."""
    ledger = Ledger(case.app, case.events)
    ledger.again = case.facts.again
    ledger.forgive(case.facts.unread)
    for m in case.stored:
        ledger.take(m)
    yield from (Violation("nothing is lost", what) for what in ledger.lost())
    yield from (Violation("nothing is doubled", what) for what in ledger.extra)


def unique(case: Case) -> Iterator[Violation]:
    """No two stored outputs have one event id, but where their source event was read again from an older copy."""
    count = Counter[str]()
    for m in case.outputs:
        id = m.headers.get(subjects.EVENT_ID, "")
        count[id] += 1
        if count[id] > 1 + case.facts.again[m.headers.get(subjects.RUN, "")] or not id:
            yield Violation("event ids are unique", f"{id!r} is stored {count[id]} times")


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
    late = {e.id for e in case.events if e.late or case.facts.again[e.id]}
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
        again = case.facts.again[m.headers[subjects.RUN]]
        if (at := orjson.loads(m.data).get("at")) is not None and not again:
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


def record_id(request: Message | NewMessage) -> str:
    """Of the record that a request asks for."""
    return (request.headers or {}).get(subjects.RECORD, "")


def covered(case: Case) -> Iterator[Violation]:
    """Every output, dead letter, piece of work and frame stands in exactly one commit, right before its entry. Work may be in
    the entry instead, and is then sent once.

    A frame that names a letter is a client's: it redrives.
    """
    kinds = {m.sequence: m.subject for m in case.stored}
    inside: Counter[int] = Counter()
    asks = {record_id(ask) for entries in case.logs.values() for _, entry in entries for ask in requests_in(entry).values()}
    sent: dict[str, list[int]] = defaultdict(list)
    for m in case.stored:
        if (name := record_id(m)) in asks:
            sent[name].append(m.sequence)
    for name, sequences in sent.items():
        inside.update(sequences)
        if len(sequences) > 1:
            yield Violation("commits are whole", f"the request {name} was sent as {sequences}")
    for subject, entries in case.logs.items():
        for m, entry in entries:
            before = range(m.sequence - entry.get("covers", 0), m.sequence)
            inside.update(before)
            if any(kinds.get(s) in case.logs for s in before):
                yield Violation("commits are whole", f"{subject} {m.sequence} covers another entry")
    patterns = [f"{subjects.prefix(case.app)}.{what}.>" for what in ("work", "edge")] + [subjects.dead_pattern(case.app)]
    redriven = {m.sequence for m in case.stored if subjects.LETTER in m.headers}
    for sequence, subject in kinds.items():
        ours = sequence not in redriven and (subject in SINKS or any(subjects.matches(p, subject) for p in patterns))
        if inside[sequence] > 1 or (ours and not inside[sequence]):
            yield Violation("commits are whole", f"{subject} {sequence} stands in {inside[sequence]} commits")


def forward(case: Case) -> Iterator[Violation]:
    """Positions never go back, but where an entry says that there was a gap in the source."""
    for subject, entries in case.logs.items():
        before: dict[str, tuple[Any, ...]] = {}
        for m, entry in entries:
            for name, row in case.changes(m, entry).get("positions", ()):
                sequence, item, created, _, mark = row
                if name.startswith("time"):
                    sequence = mark  # a watermark has no place
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
    """A call has one record of a good answer at most, and an attempt has one record.

    Two events have one id, and so have their calls, where a stream was rolled back to an older copy and the server's clock was
    set back with it, so that another event came to the same place in the same millisecond. Their runs tell them apart.
    """
    good = (o for _, o in case.records if o.error is None and is_good(o.outputs or {}))
    answered = Counter((o.call, unpack_event(o.event).origin.run) for o in good)
    most = 1 + max(case.facts.again.values(), default=0)  # a call of an event that is read again is made again
    attempts = Counter(m.headers.get(subjects.MESSAGE_ID, "") for m, _ in case.records)
    yield from (
        Violation("a call is recorded once", f"{call} of run {run} succeeded {count} times")
        for (call, run), count in answered.items()
        if count > most
    )
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


def told(case: Case) -> Iterator[Violation]:
    """A partition of which events were lost with a source stream has a gap in its log."""
    ledger = Ledger(case.app, case.events)
    ledger.forgive(case.facts.unread)
    for m in case.stored:
        ledger.take(m)
    keys = {e.id: e.key for e in case.events}
    for p in {partition_of(keys[run], case.facts.partitions) for run in ledger.gone}:
        subject = subjects.log(case.app, "chaos", BEFORE, p)
        if not any(_gap(entry, "source") for _, entry in case.logs.get(subject, ())):
            yield Violation("a gap is told", f"events of {subject} were lost with their stream, and no entry says so")


def crossed(case: Case) -> Iterator[Violation]:
    """Every event crosses the hop once, to the partition of its key, and there in the order of its key."""
    count, last = Counter[str](), dict[str, int]()
    given = {e.id: e for e in case.events if e.data is not None}
    for m in case.of(subjects.edge(case.app, "chaos", BEHIND, "*")):
        for event in [event for event in unpack_frame(m.data) if event.node == HOP and not event.call]:
            origin, index = event.origin, int(m.subject.rpartition(".")[2])
            count[origin.id] += 1
            event_of = given.get(origin.run)
            where = f"{origin.key!r} of run {origin.run} in {m.subject} {m.sequence}"
            if count[origin.id] > 1 + case.facts.again[origin.run]:
                yield Violation("an event crosses a hop once", where)
            if event_of is None or origin.key != event_of.key or partition_of(event_of.key, KEYED_PARTITIONS) != index:
                yield Violation("an event goes to the partition of its key", where)
            elif not case.facts.again[origin.run] and not event_of.waits:
                n, key = event_of.data["n"], event_of.key
                if n <= last.get(key, -1):
                    yield Violation("a key keeps its order over a hop", f"{n} after {last[key]}, {where}")
                last[key] = n


def progressing(case: Case) -> Iterator[Violation]:
    """No partition stands still for a minute while it has work and a majority of the servers runs.

    Those that share a slow model wait longer, but not all of them at once.
    """
    limits = [(case.facts.slow, STUCK), *([(False, WAITING)] if case.facts.slow else ())]
    for together, limit in limits:
        for subject, seconds, until in pauses(case, together):
            if seconds > limit:
                yield Violation("partitions make progress", f"{subject} stood still for {seconds:.0f} s, until {until:.0f}")


def pauses(case: Case, together: bool = False) -> Iterator[tuple[str, float, float]]:
    """For how many seconds, until when, a partition with work committed nothing; without those in which it could not.

    `together`: nor did any other partition.
    """
    for p, spans in _busy(case).items():
        subject, before = subjects.log(case.app, "chaos", BEHIND, p), p % case.facts.partitions
        mine = (subject, subjects.log(case.app, "chaos", BEFORE, before))
        logs = case.logs.values() if together else [case.logs.get(log, ()) for log in mine]
        commits = sorted(m.time for entries in logs for m, entry in entries if entry["kind"] == "commit")
        for begin, end in spans:
            for a, b in pairwise([begin, *(t for t in commits if begin < t < end), end]):
                away = sum(max(0.0, min(b, to) - max(a, since)) for since, to in case.facts.away)
                yield subject, b - a - away, b


def _busy(case: Case) -> dict[int, list[tuple[float, float]]]:
    """The spans of time in which a partition behind the hop has work: events that are stored and not finished.

    They may still be before the hop, in the partition of the source that its number gives: there are 1, 4 or 64 of those.
    """
    finished = dict[str, float]()
    for m in (*case.outputs, *case.dead):
        run = m.headers.get(subjects.RUN, "")
        finished[run] = max(finished.get(run, 0.0), m.time)
    spans: dict[int, list[tuple[float, float]]] = defaultdict(list)
    for e in sorted(case.events, key=lambda e: case.facts.published.get(e.id, 0.0)):
        begin, end = case.facts.published.get(e.id), finished.get(e.id)
        if begin is None or end is None:
            continue
        mine = spans[partition_of(e.key, KEYED_PARTITIONS)]
        if mine and begin <= mine[-1][1]:
            mine[-1] = (mine[-1][0], max(end, mine[-1][1]))
        else:
            mine.append((begin, end))
    return spans


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
    told,
    crossed,
    progressing,
]
