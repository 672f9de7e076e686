"""An evaluation as people read it, as Markdown for a review, and as JUnit for what runs tests."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final
from xml.sax.saxutils import escape, quoteattr

from dspex.engine.client.runs.judged.evaluation import Evaluation, JudgedRun

FEW: Final = 10  # cases of a kind that are printed, unless all are


def lines(found: Evaluation, *, every: bool = False) -> Iterator[str]:
    """For people. `every`: each case."""
    yield f"{found.metric} of {found.topology}  {_runs(found)}"
    yield f"mean    {_score(found.before)} → {_score(found.mean)}  {_signed(found.change)}".rstrip()
    yield f"calls   {found.served:,} read back, {found.called:,} made  {found.tokens:,} tokens  ${found.cost:.4f}"
    worse, missing = found.regressions, found.missing
    yield from _cut([f"worse   {case.run}  {_change(case)}" for case in worse], every)
    yield from _cut([f"missing {case.run}  {case.missing}" for case in missing], every)
    if every:
        others = [case for case in found.cases if case not in worse and case not in missing]
        yield from (f"        {case.run}  {_change(case)}  {case.note}".rstrip() for case in others)
    yield from (f"stopped: {found.stopped}" for _ in range(bool(found.stopped)))
    if found.open:
        yield f"{len(found.open):,} more have not ended, and are no cases"
    if found.more:
        yield "there are more runs than the limit"
    yield f"{'passed' if found.passed else 'failed'}{_verdict(found)}"


def _cut(said: list[str], every: bool) -> list[str]:
    left = len(said) - FEW
    return said if every or left <= 0 else [*said[:FEW], f"        … and {left:,} more: --all shows them"]


def _verdict(found: Evaluation) -> str:
    """Why."""
    if not found.judged:
        return ": there is no case"
    policy = [f"{found.policy}: {'held' if found.held else 'NOT held'}"] if found.policy is not None else []
    why = [*policy, *([f"{len(found.missing):,} could not be judged"] if found.missing else [])]
    return f": {', '.join(why)}" if why else ""


def _runs(found: Evaluation) -> str:
    since = f" since {found.since}" if found.since else ""
    return f"{len(found.cases):,} runs{since}, {len(found.judged):,} judged, {len(found.regressions):,} worse"


def _score(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _signed(value: float | None) -> str:
    return "" if value is None else f"({value:+.4f})"


def _change(case: JudgedRun) -> str:
    return f"{_score(case.before)} → {_score(case.after)}"


def markdown(found: Evaluation, *, every: bool = False) -> str:
    """For a review. `every`: each case, and not only those that got worse or are missing."""
    head = (
        f"**{'passed' if found.passed else 'failed'}{_verdict(found)}**, `{found.metric}` of `{found.topology}`: {_runs(found)}"
    )
    spent = f"{found.served:,} calls read back, {found.called:,} made, {found.tokens:,} tokens, ${found.cost:.4f}"
    shown = found.cases if every else [*found.regressions, *found.missing]
    rows = [
        f"| `{case.run}` | {_score(case.before)} | {_score(case.after)} | {_signed(case.change).strip('()')} "
        f"| {(case.missing or case.note).replace('|', chr(92) + '|')} |"
        for case in shown
    ]
    table = ["", "| run | before | after | change | |", "|---|---|---|---|---|", *rows] if rows else []
    mean = f"mean {_score(found.before)} → {_score(found.mean)} {_signed(found.change)}; {spent}"
    more = [f"stopped: {found.stopped}"] if found.stopped else []
    return "\n".join([head, "", mean, *more, *table]) + "\n"


def junit(found: Evaluation) -> str:
    """One test case for each run, which fails where it could not be judged; and one for the policy."""
    missing = len(found.missing)
    unheld = found.policy is not None and not found.held
    tests = len(found.cases) + (found.policy is not None)
    name = quoteattr(f"eval {found.metric} of {found.topology}")
    parts = ['<?xml version="1.0" encoding="utf-8"?>']
    parts.append(f'<testsuites><testsuite name={name} tests="{tests}" failures="{missing + unheld}" errors="0">')
    parts += [_testcase(found, case) for case in found.cases]
    if found.policy is not None:
        said = quoteattr(f"mean {_score(found.before)} → {_score(found.mean)} {_signed(found.change)}")
        inner = f"<failure message={said}/>" if unheld else ""
        parts.append(f"<testcase classname={name} name={quoteattr(f'policy: {found.policy}')}>{inner}</testcase>")
    return "\n".join([*parts, "</testsuite></testsuites>"]) + "\n"


def _testcase(found: Evaluation, case: JudgedRun) -> str:
    inner = f"<failure message={quoteattr(_plain(case.missing))}/>" if case.missing else ""
    said = escape(_plain(f"{_change(case)} {case.note}".strip()))
    name = quoteattr(f"eval {found.metric} of {found.topology}")
    return f'<testcase classname={name} name="{escape(case.run)}">{inner}<system-out>{said}</system-out></testcase>'


def _plain(text: str) -> str:
    """Without what no XML may hold."""
    return "".join(c for c in text if c in "\t\n" or (c >= " " and not 0xD800 <= ord(c) <= 0xDFFF and c not in "\ufffe\uffff"))
