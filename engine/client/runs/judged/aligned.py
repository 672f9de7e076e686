"""The steps of two runs beside each other: what is the same is found also where more, fewer or other ones came before it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from dspex.engine.client.runs.judged.beside import text
from dspex.engine.client.runs.tree import Happening


class Aligned(NamedTuple):
    """A step of one run, and what it is in the other one; None: nothing. `step`: its id, in the first one that has it."""

    step: str
    a: Happening | None
    b: Happening | None


def by_step(root: Happening) -> dict[str, Happening]:
    """All that a run did, by step id; what its calls have one by themselves."""
    found: dict[str, Happening] = {}
    counts: dict[str, int] = {}
    for one in root:
        name = {"source": one.label, "letter": f"letter at {one.label}"}.get(one.kind, one.label)
        if one.kind == "call":
            found[one.label] = one
            continue
        counts[name] = ordinal = counts.get(name, -1) + 1
        found[f"{name}#{ordinal}"] = one
    return found


def aligned(a: Happening, b: Happening) -> Iterator[Aligned]:
    """The steps of two runs, in the order of the first one; then what the second one alone has.

    Of steps of one name, which differ in their number, those are one step that are wholly the same; then calls that were asked
    the same; then the others, in their order. So one more in front makes none of those behind it another one.
    """
    one, other = by_step(a), by_step(b)
    names, theirs = _by_name(one), _by_name(other)
    found = dict[str, str]()
    for name, steps in names.items():
        found |= _paired(one, other, steps, theirs.get(name, []))
    yield from (Aligned(step, x, other[found[step]] if step in found else None) for step, x in one.items())
    known = {*found.values()}
    yield from (Aligned(step, None, y) for step, y in other.items() if step not in known)


def _by_name(steps: dict[str, Happening]) -> dict[str, list[str]]:
    found = dict[str, list[str]]()
    for step in steps:
        found.setdefault(step.rpartition("#")[0], []).append(step)
    return found


def _paired(
    one: dict[str, Happening], other: dict[str, Happening], steps: Sequence[str], theirs: Sequence[str]
) -> dict[str, str]:
    """Which of the second ones each of the first ones is."""
    found = dict[str, str]()
    if len(steps) > 1 or len(theirs) > 1:
        for alike in (_whole, _asked):
            _same(found, {step: alike(one[step]) for step in steps}, {step: alike(other[step]) for step in theirs})
    known = {*found.values()}
    left, others = [step for step in steps if step not in found], [step for step in theirs if step not in known]
    return found | dict(zip(left, others))


def _same(found: dict[str, str], mine: dict[str, str | None], theirs: dict[str, str | None]) -> None:
    """Note which are the same: first what has the same number, then the first one that is left."""
    taken = {*found.values()}
    for step, what in mine.items():
        if what is not None and step not in found and step not in taken and theirs.get(step) == what:
            found[step] = step
            taken.add(step)
    left = dict[str, list[str]]()
    for step, what in theirs.items():
        if what is not None and step not in taken:
            left.setdefault(what, []).append(step)
    for step, what in mine.items():
        if what is not None and step not in found and (there := left.get(what)):
            found[step] = there.pop(0)


def _whole(one: Happening) -> str:
    """All that a step is compared by, but for who answered."""
    last = one.attempts[-1] if one.attempts else None
    return text([one.data, one.error, last.outputs if last is not None else None, last.error if last is not None else None])


def _asked(one: Happening) -> str | None:
    """What a call was asked."""
    return text(one.data) if one.kind == "call" else None
