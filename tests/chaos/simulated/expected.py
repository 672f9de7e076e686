"""What must come out of the simulation of time, beside what did.

Whether an event is late depends on when engines live: letters say it. All else follows from what was published and from these
letters. An event that a walk refuses has no effect in all of that walk: of the first one, behind the hop, or of the one behind
the model's answer, of which `gather` has the other branches then, and says after its time what it lacks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from math import floor
from typing import Any

from oracle import Violation

from dspex.bus import subjects
from dspex.bus.errors import ProgramError
from dspex.bus.message import Message
from dspex.bus.records import Letter
from simulated import timed
from simulated.timed import GAP, NEAR, SIZE, Timed, start

FAILED = ProgramError.code
Place = tuple[str, int]  # a key, and the number of an event of it


@dataclass
class Refused:
    """What the letters say that are there. `first`, `behind`: late events, by the walk that refused them. `failed`: what the
    model failed at. `lacking`: of which `gather` has not got all branches. `rejected`: by people. `strange`: what nothing here
    should make.
    """

    first: Counter[Place] = field(default_factory=Counter)
    behind: Counter[Place] = field(default_factory=Counter)
    failed: Counter[Place] = field(default_factory=Counter)
    lacking: Counter[Place] = field(default_factory=Counter)
    rejected: Counter[Place] = field(default_factory=Counter)
    strange: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, letters: Sequence[Letter], runs: Mapping[str, Timed]) -> Refused:
        """`runs`: the events by the ids of their runs, whatever data is left of them."""
        found = cls()
        kinds = {**dict.fromkeys([(hop, "DX504") for hop in timed.HOPS], found.first), ("ask", "DX504"): found.behind}
        kinds |= {("met", "DX515"): found.lacking, ("people", "DX505"): found.rejected, ("ask", FAILED): found.failed}
        for letter in letters:
            late, event = letter.error["code"] == "DX504", runs.get(letter.event.origin.run)
            kind = kinds.get((letter.event.node if late else letter.node, letter.error["code"]))
            if kind is None or event is None:
                found.strange.append(f"{letter.node}: {letter.error['message']} ({letter.event.origin.run})")
            else:
                kind[event.place] += 1
        return found

    @property
    def late(self) -> int:
        return self.first.total() + self.behind.total()

    @property
    def unanswered(self) -> Counter[Place]:
        """What has no effects behind the model's answer."""
        return self.behind + self.failed


@dataclass
class Expected:
    """Checks what came out.

    Attributes:
        times: of events that were redriven with another event time: that in the first walk, and that behind the answer.
        broken: the model fails.
        displaced: what may come behind later events of its key. on_time: nothing may be late. strays: events may come so late
            that what they would have joined has ended, and yet be in time for a session of their own.
    """

    given: Sequence[Timed]
    refused: Refused
    out: Callable[[str], list[tuple[Message, Any]]]
    times: Mapping[Place, tuple[float, float]] = field(default_factory=dict)
    displaced: Collection[Place] = ()
    on_time: bool = True
    broken: bool = False
    strays: bool = False

    def __post_init__(self) -> None:
        unanswered = self.refused.unanswered
        self.entered = [e for e in self.given if e.place not in self.refused.first]
        self.answered = [e for e in self.entered if e.place not in unanswered]

    def _time(self, event: Timed, *, behind: bool) -> float:
        """The event time in the first walk, or behind the answer."""
        return self.times.get(event.place, (event.time, event.time))[behind]

    @property
    def undecided(self) -> int:
        """How many events wait for people, or will."""
        return len(self.entered) - len(self.out(timed.DECIDED)) - self.refused.rejected.total()

    def settled(self, *, people: bool, enriched: bool, lacking: bool) -> bool:
        """Whether all is there that is to come. `lacking`: letters of events that lack a branch, too."""
        closed, over = (sum(w["value"] for _, w in self.out(subject)) for subject in (timed.WINDOWS, timed.SESSIONS))
        batched = sum(len(d["n"]) for _, d in self.out(timed.BATCHES))
        halves = self.refused.lacking.keys() - self.refused.unanswered.keys()  # their answer came when the others were given up
        seen = [len(self.out(timed.COUNTS)) - len(self.entered), len(self.out(timed.MET)) + len(halves) - len(self.answered)]
        seen += [closed - len(self.answered), over - len(self.entered), batched - len(self.entered)]
        seen += [self.refused.lacking.total() - len(self.refused.unanswered)] * lacking
        if people:
            seen.append(-self.undecided)
        if enriched:
            seen.append(len(self.out(timed.FOUND)) - len(self.entered))
        return min(seen) >= 0

    def violations(self, *, people: bool, enriched: bool) -> Iterator[Violation]:
        yield from self._of_letters()
        yield from self._of_counts()
        yield from self._of_windows()
        yield from self._of_sessions()
        yield from self._of_lists()
        yield from self._of_pairs()
        yield from self._of_gather()
        if people:
            yield from self._of_people()
        if enriched:
            yield from self._of_found()

    def _of_letters(self) -> Iterator[Violation]:
        r = self.refused
        for what in r.strange:
            yield Violation("nothing is refused but what is late", what)
        if r.late and self.on_time:
            yield Violation("nothing that comes within the lateness is late", f"{r.first} {r.behind}")
        if r.failed != Counter(e.place for e in self.entered if self.broken and timed.breaks(e.n)):
            yield Violation("what the model fails at is a letter", f"{r.failed}")
        # People are asked in the first walk: what is late behind the answer may be rejected there, too.
        for refusals in (r.first + r.behind, r.first + r.rejected):
            for place, times in refusals.items():
                if times > 1:
                    yield Violation("an event is refused once", f"{place}: {times} letters")

    def _once(self, promise: str, subject: str, wanted: Collection[Place]) -> Iterator[Violation]:
        found, one = Counter((d["k"], d["n"]) for _, d in self.out(subject)), Counter(wanted)
        if found != one:
            yield Violation(promise, f"too many {found - one}, too few {one - found}")

    def _of_counts(self) -> Iterator[Violation]:
        yield from self._once("an event is counted once", timed.COUNTS, [e.place for e in self.entered])
        for key in sorted({e.key for e in self.given}):
            counts = [d["count"] for _, d in self.out(timed.COUNTS) if d["k"] == key]
            if counts != list(range(1, len(counts) + 1)):
                yield Violation("a state changes in order", f"{key}: {counts}")
        for id, times in Counter(m.headers[subjects.EVENT_ID] for s in timed.SINKS for m, _ in self.out(s)).items():
            if times > 1:
                yield Violation("an id is given once", f"{id}: {times} times")

    def _of_windows(self) -> Iterator[Violation]:
        wanted = Counter((e.key, floor(self._time(e, behind=True) / SIZE) * SIZE) for e in self.answered)
        seen = [(d["key"], start(d), d["value"]) for _, d in self.out(timed.WINDOWS)]
        if Counter(seen) != Counter((*place, many) for place, many in wanted.items()):
            yield Violation(
                "a window has one result, with its events", f"{sorted(seen)}, and there are {sorted(wanted.items())}"
            )

    def _of_sessions(self) -> Iterator[Violation]:
        seen = Counter((d["key"], d["value"]) for _, d in self.out(timed.SESSIONS))
        if not self.refused.late and not self.times and not self.strays:
            if seen != (wanted := Counter(self._sessions())):
                yield Violation("a session has its events", f"too many {seen - wanted}, too few {wanted - seen}")
            return
        totals = Counter[str]()  # a late event may have been what would have made two one
        for (key, value), times in seen.items():
            totals[key] += value * times
        if totals != Counter(e.key for e in self.entered):
            yield Violation("every event is in one session", f"{totals}, and there are {Counter(e.key for e in self.entered)}")

    def _sessions(self) -> Iterator[tuple[str, int]]:
        for key in {e.key for e in self.given}:
            times, count = sorted(e.time for e in self.given if e.key == key), 0
            for time, before in zip(times, [times[0], *times]):
                if time - before > GAP:
                    yield key, count
                    count = 0
                count += 1
            yield key, count

    def _in_order(self, key: str, numbers: Sequence[int]) -> bool:
        """Whether the events of each source came in its order; between sources there is none."""
        source, came = {e.n: e.source for e in self.given if e.key == key}, dict[str, list[int]]()
        for n in numbers:
            if (key, n) not in self.displaced:
                came.setdefault(source[n], []).append(n)
        return all(those == sorted(those) for those in came.values())

    def _of_lists(self) -> Iterator[Violation]:
        """Of batches and dedupe, which depend on the order in which events come."""
        for key in sorted({e.key for e in self.entered}):
            wanted = [e.n for e in self.entered if e.key == key]
            batches = [d["n"] for _, d in self.out(timed.BATCHES) if d["k"] == key]
            numbers = [n for batch in batches for n in batch]
            if sorted(numbers) != wanted or not self._in_order(key, numbers) or max(map(len, batches)) > 3:
                yield Violation("a batch has its events in order", f"{key}: {batches}, and there are {wanted}")
        passed = Counter((d["k"], d["n"] // 3) for _, d in self.out(timed.ONCE))
        groups: dict[Place, list[Timed]] = {}
        for e in self.entered:
            groups.setdefault((e.key, e.n // 3), []).append(e)
        firsts = {(d["k"], d["n"]) for _, d in self.out(timed.ONCE)}
        wrong = [
            place
            for place, events in groups.items()
            if not {e.place for e in events} & {*self.displaced}
            and firsts.isdisjoint({e.source: e.place for e in reversed(events)}.values())  # of each source the first
        ]
        if passed != Counter(groups.keys()) or wrong:
            yield Violation("dedupe lets the first through", f"{passed}, and there are {groups}; not the first: {wrong}")

    def _of_pairs(self) -> Iterator[Violation]:
        found = Counter((d["k"], *d["n"]) for _, d in self.out(timed.PAIRS))
        left = [(e.key, e.n, self._time(e, behind=False)) for e in self.entered]
        right = [(e.key, e.n, self._time(e, behind=True)) for e in self.answered]
        near = Counter((k, n, m) for k, n, a in left for other, m, b in right if k == other and abs(a - b) <= NEAR)
        if found != near:
            yield Violation("a pair is joined once", f"too many {found - near}, too few {near - found}")
        found = Counter((d["k"], *d["n"]) for _, d in self.out(timed.TWO))
        sides = ([e for e in self.entered if e.source == source] for source in (timed.SOURCE, timed.OTHER))
        near = Counter(
            (a.key, a.n, b.n)
            for a, b in product(*sides)
            if a.key == b.key and abs(self._time(a, behind=False) - self._time(b, behind=False)) <= NEAR
        )
        if found != near:
            yield Violation("a pair of two sources is joined once", f"too many {found - near}, too few {near - found}")

    def _of_gather(self) -> Iterator[Violation]:
        yield from self._once("branches meet", timed.MET, [e.place for e in self.answered])
        if self.refused.lacking != Counter(dict.fromkeys(self.refused.unanswered, 1)):
            what = f"{self.refused.lacking}, and without an answer that counts are {self.refused.unanswered}"
            yield Violation("what lacks a branch is a letter", what)

    def _of_people(self) -> Iterator[Violation]:
        wanted = [e for e in self.entered if not timed.rejects(e.n)]
        yield from self._once("a decision is carried out once", timed.DECIDED, [e.place for e in wanted])
        if self.refused.rejected != Counter(e.place for e in self.entered if timed.rejects(e.n)):
            yield Violation("what people reject is a letter", f"{self.refused.rejected}")
        if wrong := [d for _, d in self.out(timed.DECIDED) if (d["text"] == timed.EDITED) != timed.edits(d["n"])]:
            yield Violation("what people edit goes on so", f"{wrong}")

    def _of_found(self) -> Iterator[Violation]:
        yield from self._once("an event is enriched once", timed.FOUND, [e.place for e in self.entered])
        for key in sorted({e.key for e in self.entered}):
            found = [d for _, d in self.out(timed.FOUND) if d["k"] == key]
            if not self._in_order(key, [d["n"] for d in found]) or any(d["found"] != d["n"] + 1 for d in found):
                yield Violation("what was found goes on in the order of its key", f"{key}: {found}")
