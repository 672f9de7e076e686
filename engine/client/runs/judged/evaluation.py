"""What came of an evaluation: a case for each recorded run, the mean, what got worse, and whether a policy holds."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, Final

from dspex.bus.codecs.checking import checked
from dspex.bus.codecs.json import load_json
from dspex.bus.errors import ConfigError, DecodeError

_POLICY: Final = re.compile(r"(no worse than|at least)\s+(\d*\.?\d+)(%?)")
_SAME: Final = 1e-9  # two means that differ by less are the same


@dataclass(frozen=True)
class JudgedRun:
    """One recorded run, and how it ends with the candidate.

    Attributes:
        run: its id.
        before: the score of what was recorded, or that of the baseline; None: there is none.
        after: with the candidate; None: it could not be judged, or there is nothing to judge.
        missing: why it could not be judged; "" where it was. note: what else there is to say: it sent nothing, then and now.
        called, tokens, cost: what was paid for it.
    """

    run: str
    before: float | None
    after: float | None
    missing: str = ""
    note: str = ""
    called: int = 0
    tokens: int = 0
    cost: float = 0.0

    @property
    def change(self) -> float | None:
        """By how much it got better."""
        return self.after - self.before if self.after is not None and self.before is not None else None


@dataclass(frozen=True)
class EvalPolicy:
    """What the means must be. `limit`: how much `kind` allows, or wants."""

    kind: str
    limit: float

    @classmethod
    def read(cls, text: str) -> EvalPolicy:
        """Raises ConfigError (DX105)."""
        if (found := _POLICY.fullmatch(" ".join(text.split()))) is None:
            raise ConfigError(f"{text!r} is no policy", code="DX105", fix='"no worse than 0.02", or "at least 0.8"')
        return cls(found[1], float(found[2]) / (100 if found[3] else 1))

    def holds(self, change: float | None, mean: float | None) -> bool:
        """Whether it does; not where there is nothing to compare."""
        of, least = (mean, self.limit) if self.kind == "at least" else (change, -self.limit)
        return of is not None and of >= least - _SAME

    def __str__(self) -> str:
        return f"{self.kind} {self.limit:g}"


@dataclass
class Evaluation:
    """What came of an evaluation.

    Attributes:
        topology, metric: of what, and by what. since: from when on, as it was asked for.
        cases: one for each run, the latest first.
        open: runs that have not ended: they are no cases yet.
        more: whether there are more runs than the limit.
        served, called: calls that were read back, and calls that were made. tokens, cost: of those.
        stopped: why no more calls were made, "" where all were.
        policy: what the means must be; None: nothing.
        builds: what is another one than when the runs were recorded: name → (then, now).
    """

    topology: str
    metric: str
    since: str = ""
    cases: list[JudgedRun] = field(default_factory=list)
    open: list[str] = field(default_factory=list)
    more: bool = False
    served: int = 0
    called: int = 0
    tokens: int = 0
    cost: float = 0.0
    stopped: str = ""
    policy: EvalPolicy | None = None
    builds: dict[str, tuple[str, str]] = field(default_factory=dict[str, tuple[str, str]])

    @property
    def judged(self) -> list[JudgedRun]:
        """The cases that have a score."""
        return [case for case in self.cases if case.after is not None]

    @property
    def missing(self) -> list[JudgedRun]:
        """The cases that could not be judged. One is enough to fail: what is not judged may be what got worse."""
        return [case for case in self.cases if case.missing]

    @property
    def regressions(self) -> list[JudgedRun]:
        """The cases that got worse, the worst first."""
        worse = [case for case in self.judged if case.change is not None and case.change < -_SAME]
        return sorted(worse, key=lambda case: case.change or 0.0)

    @property
    def mean(self) -> float | None:
        """Of the candidate; None without a case."""
        return _mean([case.after for case in self.judged])

    @property
    def before(self) -> float | None:
        """The mean before, of the cases that have a score before and after."""
        return _mean([case.before for case in self.judged])

    @property
    def change(self) -> float | None:
        """By how much these got better, in the mean."""
        return _mean([case.change for case in self.judged])

    @property
    def held(self) -> bool:
        """Whether the policy holds; so it does where there is none."""
        return self.policy is None or self.policy.holds(self.change, self.mean)

    @property
    def passed(self) -> bool:
        """Whether there is a case, none is missing, and the policy holds."""
        return bool(self.judged) and not self.missing and self.held

    def as_dict(self) -> dict[str, Any]:
        """The summary, as the CLI prints it."""
        counts = {"runs": len(self.cases), "judged": len(self.judged), "regressions": len(self.regressions)}
        plain = {name: getattr(self, name) for name in ("served", "called", "tokens", "cost", "stopped", "more", "builds")}
        policy = {"policy": str(self.policy) if self.policy is not None else None, "held": self.held, "passed": self.passed}
        means = {"before": self.before, "mean": self.mean, "change": self.change}
        head = {"kind": "evaluation", "topology": self.topology, "metric": self.metric, "since": self.since}
        return {**head, **means, **counts, "missing": len(self.missing), "open": len(self.open), **plain, **policy}

    def rows(self) -> Iterator[dict[str, Any]]:
        """One object for each case."""
        return ({"kind": "case", **vars(case)} for case in self.cases)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def earlier_scores(path: Path) -> dict[str, float]:
    """The scores of an earlier evaluation, by run: what `dspex eval --json` printed. Raises ConfigError (DX105)."""
    fix = "make one: dspex eval … --json > FILE"
    try:
        found = [checked(dict[str, Any], "a line of an evaluation", load_json(line)) for line in path.read_bytes().splitlines()]
        cases = [_score(row) for row in found if row.get("kind") == "case"]
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}", code="DX105", fix=fix) from None
    except (DecodeError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{path} is no evaluation: {error}", code="DX105", fix=fix) from None
    if not any(row.get("kind") == "evaluation" for row in found):
        raise ConfigError(f"{path} is no evaluation, or not a whole one", code="DX105", fix=fix)
    return {run: score for run, score in cases if score is not None}


def _score(row: Mapping[str, Any]) -> tuple[str, float | None]:
    return str(row["run"]), None if row["after"] is None else float(row["after"])
