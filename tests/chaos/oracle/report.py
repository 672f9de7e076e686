"""The verdict on a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from workload import Given

from dspex.bus import subjects
from dspex.bus.errors import DecodeError
from dspex.bus.message import Message
from oracle.case import Case, Facts
from oracle.checks import CHECKS, pauses
from oracle.ledger import Violation


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


def judge(
    app: str, events: Sequence[Given], stored: Sequence[Message], heard: Sequence[Message] = (), facts: Facts | None = None
) -> Report:
    """All checks over one run."""
    case = Case(app, events, stored, heard, facts or Facts())
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
        "longest pause, in seconds": round(max((seconds for _, seconds, _ in pauses(case)), default=0.0)),
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
