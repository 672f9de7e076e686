"""Scores as verbs print them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dspex.engine.client.client import Client
    from dspex.engine.client.runs.judged.scores import Credited, Score, Scores


def scores_in(c: Client) -> Scores:
    """The scores of an application."""
    from dspex.engine.client.runs.judged.scores import Scores

    return Scores(c.bus, c.app)


async def scores_of(scores: Scores, run: str) -> list[Score]:
    """Those of a run, the latest of each name and operator."""
    from dspex.engine.client.runs.judged.scores import latest

    return [*latest(await scores.of(run)).values()]


def plain(found: Iterable[Score]) -> list[dict[str, Any]]:
    """As `runs ls` and `show` have them with --json."""
    return [{name: getattr(one, name) for name in ("name", "value", "node", "note", "who", "time")} for one in found]


def score_lines(found: Iterable[Score]) -> Iterator[str]:
    """As `runs show` prints them."""
    return (f"score {said(one)}  by {one.who}" for one in found)


def said(one: Score) -> str:
    """A score in words."""
    at = f" of {one.node}" if one.node is not None else ""
    why = f"  {one.note}" if one.note else "  (its note cannot be read)" if one.note is None else ""
    return f"{one.name}{at} {one.value:g}{why}"


def credits_of(found: Iterable[Score], program: str | None = None) -> list[dict[str, object]]:
    """What was said of each program, or of this one, as rows."""
    from dspex.engine.client.runs.judged.scores import credited

    return [_row(one) for one in credited(found) if program in (None, one.answered.program)]


def credit_lines(found: Iterable[Score], program: str) -> Iterator[str]:
    """What was said of a program, for people."""
    for row in credits_of(found, program):
        mean = f"mean {row['mean']:g} of {row['runs']}, lowest {row['lowest']:g}"
        yield f"score {row['score']} of {row['node']}  {mean}  {row['lm']}"


def _row(one: Credited) -> dict[str, object]:
    node, program, lm = one.answered
    mean = round(one.mean, 6)
    return {
        "score": one.name,
        "node": node,
        "program": program,
        "lm": lm,
        "runs": one.scores,
        "mean": mean,
        "lowest": one.lowest,
    }
