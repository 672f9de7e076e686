"""The verb `bench`: what dspex costs on this machine, beside its peers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dspex.bus.errors import ConfigError
from dspex.engine.cli.terminal.terminal import Terminal, terminal

if TYPE_CHECKING:
    from dspex.workers.bench.rows import Measurement

_COLUMNS = {
    "operation": "operation",
    "p50_us": "dspex, µs",
    "p99_us": "p99",
    "rate": "a second",
    "peer": "beside",
    "peer_p50_us": "µs",
    "peer_p99_us": "p99",
    "ratio": "ratio",
    "target": "goal",
    "met": "met",
    "worker_p50_us": "through a worker, µs",
}


def native(
    context: typer.Context,
    seconds: Annotated[float, typer.Option("--seconds", min=0.001, max=3600, help="For each operation.")] = 1.0,
    only: Annotated[str | None, typer.Option("--only", metavar="GROUP,...", help="signature, format, parse, …")] = None,
    against: Annotated[str | None, typer.Option("--against", metavar="dspy", help="Measure DSPy too, in turns.")] = None,
) -> None:
    """Time signatures, prompts, parsing, metrics, templates, schemas and Predict without DSPy; with --against dspy beside it.

    A goal that is missed is printed with its reason, and is no error.
    """
    from dspex.workers.bench import runs

    t = terminal(context)
    groups = _groups(only)
    if against is not None:
        _require(against)
    rows: list[Measurement] = []

    async def collect() -> None:
        with t.progress("measuring", runs.count(groups)) as bar:
            async for row in runs.native(seconds, groups, against=against is not None):
                rows.append(row)
                bar.advance(1, row.name)

    t.run(collect())
    t.table([_shown(row.as_dict(), t) for row in rows], _COLUMNS if against else dict(list(_COLUMNS.items())[:4]))
    _print(t, rows)


def _groups(only: str | None) -> Sequence[str]:
    from dspex.workers.bench.cases import GROUPS

    groups = [word.strip() for word in only.split(",")] if only else GROUPS
    if unknown := [word for word in groups if word not in GROUPS]:
        raise ConfigError(f"--only: there is no group {unknown[0]!r}", code="DX100", fix=f"one of: {', '.join(GROUPS)}")
    return groups


def _require(against: str) -> None:
    from dspex.workers.bench.runs import require_dspy

    if against != "dspy":
        raise ConfigError(f"--against: {against!r} is no peer", code="DX100", fix="--against dspy")
    require_dspy()


def _shown(row: dict[str, Any], t: Terminal) -> dict[str, Any]:
    """A row for people: as many digits as mean something."""
    if t.json:
        return row
    yes = {True: "yes", False: "NO", None: ""}
    numbers = {key: _digits(value) if isinstance(value, float) else value for key, value in row.items()}
    goal = "" if row["target"] is None else f"{row['target']:g}×"
    ratio = "" if row["ratio"] is None else f"{_digits(row['ratio'])}×"
    return {**numbers, "target": goal, "ratio": ratio, "met": yes[row["met"]]}


def _digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _print(t: Terminal, rows: Sequence[Measurement]) -> None:
    """Goals missed with their reasons, how to read the rest, and the verdict."""
    from dspex.workers.bench.runs import versions

    goals = [row for row in rows if row.met is not None]
    missed = [row for row in goals if not row.met]
    for row in rows:
        if row.met is False and row.ratio is not None:
            t.line(f"missed  {row.name}: {_digits(row.ratio)}× of {row.target:g}×. {row.reason}".rstrip())
    for note, names in _notes(rows).items():
        t.line(f"note    {', '.join(names)}: {note}")
    found = versions()
    verdict = f"{len(goals) - len(missed)} of {len(goals)} goals met" if goals else "no goal is judged"
    t.emit(
        {"goals": len(goals), "met": len(goals) - len(missed), "missed": [row.name for row in missed], "versions": found},
        f"{verdict} ({', '.join(f'{name} {version}' for name, version in found.items())})",
    )


def _notes(rows: Sequence[Measurement]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for row in rows:
        if row.note:
            found.setdefault(row.note, []).append(row.name)
    return found
