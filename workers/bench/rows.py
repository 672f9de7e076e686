"""What `dspex bench native` prints: a row for each operation, its goal, and why it is missed."""

from __future__ import annotations

from dataclasses import dataclass

from dspex.bus.errors import DspexError
from dspex.workers.bench.cases import same
from dspex.workers.bench.measure import Timing

_SHORT_TEXT = "nine calls into C, each of a tenth of a microsecond; `text.lower().split()` alone takes a fifth"
_BOTH_TEXTS = "most of it is splitting both texts into words: ten calls into C, each of a tenth of a microsecond"

# Why a goal is missed, or DSPy is not ten times slower, from profiles (benchmarks/README.md)
REASONS: dict[str, str] = {
    "parse json, broken": "json_repair takes four fifths of it, and DSPy calls the same; another repairer would read otherwise",
    "parse chat, nested pydantic": "pydantic, which DSPy calls too, takes a quarter of it; the rest is spread over many steps",
    "parse chat, 1 str": "the way from Signature.parse to the parser takes longer than the parser",
    "parse json, 1 str": "the way from Signature.parse to the parser takes longer than the parser",
    "f1, 1 KB": "half of it is splitting both texts into words; a third is counting those that repeat, in Python",
    "exact_match, 1,000 rows": "half of it is what a batch costs beside its rows; then two calls of bytes.translate a row",
    "exact_match, 10,000 rows": "two calls of bytes.translate a row, from Python",
    "f1, 1,000 rows": "half of it is what a batch costs beside its rows: calls of pyarrow and numpy",
    "f1, 10,000 rows": "the words of each row are counted by numpy, in several passes over the column",
    "exact_match, same": "texts that differ in articles or spaces only are split into words, both of them",
    "exact_match, not the same": _BOTH_TEXTS,
    "f1": _BOTH_TEXTS,
    "hotpot_f1": _BOTH_TEXTS,
    "precision": _BOTH_TEXTS,
    "normalize_text, 17 B": _SHORT_TEXT,
    "normalize_text, 1 KB": "splitting the words takes two fifths of it, and the search for articles most of the rest",
    "predict": "aiohttp takes four fifths of it; a kept library is worth that to us; `predict, acall` is above ten",
}


@dataclass(frozen=True)
class Measurement:
    """One operation, measured.

    Attributes:
        name, group, target: of the case. peer: who else does it, for people; "" where nobody was asked.
        ours, theirs: None where a package is missing. worker: the peer's, through a worker and back.
        wire: what the bare exchange of bytes takes, which was taken from the others; None where there is none.
        note: what is missing, or how to read it.
    """

    name: str
    group: str
    target: float | None
    peer: str = ""
    ours: Timing | None = None
    theirs: Timing | None = None
    worker: Timing | None = None
    wire: Timing | None = None
    note: str = ""

    @property
    def ratio(self) -> float | None:
        """How many times as long the peer takes."""
        return self.theirs.p50 / self.ours.p50 if self.ours and self.theirs and self.ours.p50 else None

    @property
    def rate(self) -> float | None:
        """Operations a second, one after the other, the time on the wire included."""
        total = (self.ours.p50 if self.ours else 0.0) + (self.wire.p50 if self.wire else 0.0)
        return round(1e6 / total, 1) if total else None

    @property
    def met(self) -> bool | None:
        """Whether the goal is reached; None where there is none, or nothing to compare with."""
        return None if self.target is None or self.ratio is None else self.ratio >= self.target

    @property
    def reason(self) -> str:
        """Why the goal is missed, as far as it is known; "" where it is not missed."""
        return REASONS.get(self.name, "") if self.met is False else ""

    def as_dict(self) -> dict[str, object]:
        """As `--json` prints it: microseconds, operations a second, ratios."""

        def p(found: Timing | None, which: str) -> float | None:
            return round(getattr(found, which), 3) if found else None

        return {
            "operation": self.name,
            "group": self.group,
            "p50_us": p(self.ours, "p50"),
            "p99_us": p(self.ours, "p99"),
            "rate": self.rate,
            "peer": self.peer,
            "peer_p50_us": p(self.theirs, "p50"),
            "peer_p99_us": p(self.theirs, "p99"),
            "ratio": round(self.ratio, 2) if self.ratio is not None else None,
            "target": self.target,
            "met": self.met,
            "worker_p50_us": p(self.worker, "p50"),
            "worker_p99_us": p(self.worker, "p99"),
            "wire_us": p(self.wire, "p50"),
            "reason": self.reason,
            "note": self.note,
        }


def check(name: str, ours: object, theirs: object) -> None:
    """Raise DspexError where the two sides of an operation do not give the same: then their times say nothing."""
    if not same(ours, theirs):
        message = f"{name}: not compared, dspex and its peer do not give the same: {ours!r}, {theirs!r}"
        raise DspexError(message[:2000], node=name)
