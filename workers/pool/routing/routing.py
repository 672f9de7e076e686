"""The step that chooses the models of a call: those whose breaker is closed, the better ones first."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import structlog
from structlog.typing import FilteringBoundLogger

from dspex.bus import telemetry
from dspex.bus.errors import CircuitOpen, ConfigError
from dspex.bus.records import ANSWERED, BEGAN, HEDGED, SILENT, CallRecord, Tried
from dspex.bus.serving.call_spec import CallSpec, without_price
from dspex.bus.serving.programs.optimizers import OPTIMIZE
from dspex.workers.config import PoolConfig
from dspex.workers.pool.routing.behind import ListOrders
from dspex.workers.pool.routing.breaker import Breaker, BreakerRule
from dspex.workers.pool.routing.measured import Measured
from dspex.workers.pool.routing.spending import Spending

if TYPE_CHECKING:
    from dspex.workers.pool.execution import Execution

log: FilteringBoundLogger = structlog.get_logger("dspex.workers")

TIMEOUTS: Final = ("CallTimeout", SILENT)  # which say that a model hangs, where it had long enough
# kinds of calls that run code of users, which may hang by itself
OF_USERS: Final = frozenset({"program", "react", "enrich", OPTIMIZE})
LOOK_AGAIN: Final = 20  # one call in so many takes the list as written: else nobody would learn that a profile is well again
_LISTS: Final = 64  # of which it is kept who is left out
PROGRAMS: Final = 256  # whose breakers are kept: whoever may ask could name any number
NOT_ASKED: Final = frozenset(("open", "behind", "dearer", "limited", BEGAN, HEDGED))  # said besides what became of it
TOO_LONG: Final = 1.0  # seconds without an answer that count as a failure, while nothing is measured


@dataclass
class LmHealth:
    """What a pool's process knows of a profile.

    `measured`: of single requests; `of_programs`: of calls that run code of users, which make many and do more. `beginnings`:
    how long it took to begin, where that was limited.
    """

    breaker: Breaker
    measured: Measured = field(default_factory=Measured)
    of_programs: Measured = field(default_factory=Measured)
    beginnings: Measured = field(default_factory=Measured)

    def blames(self, seconds: float, *, silent: bool) -> bool:
        """Whether a timeout after so long is its fault: a caller who waits a moment only could close it to all others.

        silent: it had not begun to answer, which takes less than an answer does.
        """
        usual = (self.beginnings if silent else self.measured).p95
        return seconds >= (TOO_LONG if usual is None else usual)


class Routing:
    """Knows the profiles of one process of a pool, and the programs it runs. Each process learns by itself.

    Args:
        now: the time of the event loop, in seconds.
    """

    def __init__(self, config: PoolConfig, now: Callable[[], float]) -> None:
        default = config.default_profile()
        self._now, self._pool = now, config.name
        self._default = (default.name,) if default else ()
        self.lms = {name: LmHealth(Breaker(BreakerRule(**profile.breaker))) for name, profile in config.profiles.items()}
        self._troubled = set[str]()  # those whose breaker is not closed
        self._without: dict[Sequence[str], tuple[float, Sequence[str], Sequence[Tried]]] = {}  # list → until, without the open
        self._behind = ListOrders({name: found.measured for name, found in self.lms.items()})
        self._programs_behind = ListOrders({name: found.of_programs for name, found in self.lms.items()})
        self._spending = Spending(config.profiles)
        self._programs: dict[str, Breaker] = {}
        self._probes: dict[Execution, list[Breaker]] = {}
        self._turn, self._choice = itertools.count(1), itertools.count(1)

    # -- before
    def before(self, execution: Execution) -> None:
        """Choose `execution.lms`. Raises CircuitOpen where none of them may be asked, or the program may not be run; and
        ConfigError where a price would have to be known.
        """
        if execution.batch:  # how a model is when it is asked live says nothing of its batches
            return
        spec, now = execution.work.spec, self._now()
        of_users = spec.kind in OF_USERS
        program = self._programs.get(spec.target) if of_users and self._programs else None
        if program is not None and (wait := program.wait(now)):
            raise self._open(spec.target, wait, execution.work.node)
        first: Breaker | None = None
        if names := (execution.lms or spec.lm or self._default) if spec.asks_a_model else ():
            usable = self._usable(names, now, execution) if self._troubled else names
            if len(names) > 1:
                if spec.choose == "cheapest":
                    usable = self._by_cost(usable, execution)
                order = (self._programs_behind if of_users else self._behind).order(tuple(usable))
                if order.said and next(self._turn) % LOOK_AGAIN:
                    usable = order.names
                    execution.routing += order.said
                execution.lms = usable
            if usable[0] in self._troubled:
                first = self.lms[usable[0]].breaker
            if spec.hedge and not of_users:
                execution.hedge = self._usual(usable, int(spec.hedge[1:]))
        if program is not None or first is not None:
            self._begin(execution, [breaker for breaker in (program, first) if breaker is not None and breaker.begin(now)])

    def _begin(self, execution: Execution, probes: list[Breaker]) -> None:
        if probes:
            self._probes[execution] = probes

    def _usual(self, names: Sequence[str], percent: int) -> dict[str, float]:
        """How long each of them takes, where that is known."""
        known = {name: found.measured.percentile(percent) for name in names if (found := self.lms.get(name)) is not None}
        return {name: seconds for name, seconds in known.items() if seconds is not None}

    def _usable(self, names: Sequence[str], now: float, execution: Execution) -> Sequence[str]:
        """The names without those whose breaker is open. One that no profile has is kept: the child says what is wrong."""
        kept = self._without.get(names := tuple(names))
        if kept is None or now >= kept[0]:
            if self._troubled.isdisjoint(names):
                return names
            waits = {n: wait for n in names if n in self._troubled and (wait := self.lms[n].breaker.wait(now))}
            if not waits:
                return names
            if len(waits) == len(names):
                raise self._open(", ".join(f"lm.{name}" for name in names), min(waits.values()), execution.work.node)
            kept = self._left_out(names, waits, now)
        execution.routing += kept[2]
        return kept[1]

    def _left_out(
        self, names: Sequence[str], waits: Mapping[str, float], now: float
    ) -> tuple[float, Sequence[str], Sequence[Tried]]:
        """A list without those that have to wait. Kept until the first of them has waited, if all that are not well do."""
        usable = tuple(name for name in names if name not in waits)
        found = now + min(waits.values()), usable, [Tried(name, "open") for name in waits]
        if self._troubled.isdisjoint(usable) and all(self.lms[name].breaker.state(now) == "open" for name in waits):
            if len(self._without) >= _LISTS:
                self._without.clear()
            self._without[names] = found
        return found

    def _by_cost(self, names: Sequence[str], execution: Execution) -> Sequence[str]:
        """The names, those first with which the call is expected to cost less."""
        found = self._spending.by_cost(execution.work.spec.program, names, curious=next(self._choice) % LOOK_AGAIN == 0)
        if found is None:
            said, fix = without_price(next(name for name in names if name in self._spending.priceless))
            raise ConfigError(said, fix=fix, code="DX105", node=execution.work.node)
        if found.dearer:
            execution.routing += found.dearer
        return found.names

    def _open(self, what: str, wait: float, node: str) -> CircuitOpen:
        said = f"{what} failed too often lately, and is not asked for {wait:.1f} s"
        return CircuitOpen(f"pool {self._pool}: {said}", node=node, retry_after=wait)

    # -- after
    def after(self, execution: Execution, record: CallRecord) -> None:
        """Learn from the record."""
        if execution.batch:
            return
        spec, now = execution.work.spec, self._now()
        of_users, learned = spec.kind in OF_USERS, False
        for one in record.routing:
            if one.why == BEGAN and one.lm in self.lms:
                self.lms[one.lm].beginnings.add(one.ms / 1000)
        if spec.choose == "cheapest":
            self._spending.learn(spec.program, record.lm, record.usage)
        for one in record.routing:
            if one.why not in NOT_ASKED:
                self._learn(one, now, of_users)
                learned = True
        if of_users or not learned:
            why = str(record.error.get("type", "")) if record.error else ANSWERED
            if not learned:
                self._learn(Tried(record.lm, why, record.elapsed * 1000), now, of_users)
            if of_users:
                self._learn_of(spec, why, execution, now)
        if self._probes:
            for probe in self._probes.pop(execution, ()):
                probe.released()

    def _learn(self, one: Tried, now: float, of_users: bool) -> None:
        if (found := self.lms.get(one.lm)) is None:
            return
        seconds = one.ms / 1000
        measured, behind = (found.of_programs, self._programs_behind) if of_users else (found.measured, self._behind)
        if one.why == ANSWERED:
            measured.add(seconds)
            if found.breaker.succeeded(now):
                self._troubled.discard(one.lm)
                self._tell(f"lm.{one.lm}", "closed")
        elif one.why == "LMUnavailable" or (  # a timeout of user's code is no sign of the model: the code may hang
            one.why in TIMEOUTS and not of_users and found.blames(seconds, silent=one.why == SILENT)
        ):
            measured.add(None)
            if found.breaker.failed(now):
                self._troubled.add(one.lm)
                self._tell(f"lm.{one.lm}", "open")
        behind.learned(measured)

    def _learn_of(self, spec: CallSpec, why: str, execution: Execution, now: float) -> None:
        """Of a program: that it hangs, or ends its process, and of a call only the first such attempt. What it raises is about
        what it was given, and a bad event harms no other one.
        """
        breaker = self._programs.get(spec.target)
        ended = execution.ended_worker and execution.work.try_number == 1
        if ended or (why == "CallTimeout" and execution.ran >= TOO_LONG):
            if breaker is None:
                if len(self._programs) >= PROGRAMS:
                    del self._programs[next(iter(self._programs))]
                breaker = self._programs[spec.target] = Breaker(BreakerRule())
            if breaker.failed(now):
                self._tell(spec.target, "open")
        elif why != "CallTimeout" and why != "WorkerLost" and breaker is not None:
            if breaker.succeeded(now):
                self._tell(spec.target, "closed")
            if breaker.state(now) == "closed":
                del self._programs[spec.target]

    def _tell(self, what: str, state: str) -> None:
        self._without.clear()
        telemetry.emit("breaker", pool=self._pool, what=what, state=state)
        (log.warning if state == "open" else log.info)("breaker", pool=self._pool, of=what, state=state)

    # -- status
    def rows(self) -> list[dict[str, object]]:
        """Of each profile that was asked, and each program that hung: what `status` shows."""
        now = self._now()
        rows: list[dict[str, object]] = [
            {"lm": name, **_state_of(found.breaker, now, found.measured, found.of_programs)} for name, found in self.lms.items()
        ]
        return rows + [{"program": name, **_state_of(one, now)} for name, one in self._programs.items()]


def _state_of(breaker: Breaker, now: float, *measured: Measured) -> dict[str, object]:
    """`measured`: of the calls that count; how long they take is told of the first of them that knows it."""
    known = next((one for one in measured if one.p50 is not None), Measured())
    return {
        "breaker": breaker.state(now),
        "retry_after": round(breaker.wait(now), 1),
        "calls": sum(one.calls for one in measured),
        "errors": sum(one.errors for one in measured),
        "p50": known.p50,
        "p95": known.p95,
    }
