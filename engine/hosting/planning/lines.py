"""A plan for people: one line for each change, and how many of each kind there are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from dspex.engine.hosting.planning.layout import PlannedChange
    from dspex.engine.hosting.planning.plan import ApplyPlan

OURS: Final = "dspex."  # how the subjects begin that say nothing to who has not made them
SIGNS: Final = {"create": "+", "change": "~", "reset": "!", "delete": "-"}
_HELD: Final = {
    "open_calls": ("open call", "open calls"),
    "rows": ("row of state", "rows of state"),
    "parked": ("parked event", "parked events"),
    "unread": ("unread event", "unread events"),
}


def lines_of(plan: ApplyPlan) -> Iterator[str]:
    """The changes, and their number."""
    widest = max((len(c.name) for c in plan.changes), default=0)
    for c in plan.changes:
        yield f"{SIGNS[c.op]} {c.kind:<8}  {c.name:<{min(widest, 60)}}  {_what(c)}".rstrip()
    counts = Counter[str](c.op for c in plan.changes)
    yield ", ".join(f"{counts[op]} to {op}" for op in SIGNS if counts[op]) or "nothing to change"


def _what(c: PlannedChange) -> str:
    before, after = (c.before or {}, c.after or {})
    held = held_words(before)
    lost = f"gives up {held}" if held else ""
    if c.kind == "stream":
        new = [s for s in after["subjects"] if s not in before.get("subjects", ())]
        return ", ".join(s for s in new if not s.startswith(OURS))
    if c.kind == "lane":
        return _of_lane(after)
    if c.kind != "node" or c.op == "create":
        return str(after.get("op", ""))
    if c.op == "delete":
        return "  ".join(part for part in (str(before.get("op") or ""), lost) if part)
    said = [f"was {before['name']}"] if "name" in before else []
    said += [f"{key} {_short(before.get(key))} → {_short(after.get(key))}" for key in _differing(before, after)]
    needs = lost or ("drops its state" if c.op == "reset" else "")
    return "  ".join(part for part in (", ".join(said) or str(after.get("op")), needs) if part)


def _of_lane(lane: Mapping[str, Any]) -> str:
    """What a lane builds, and from what; where there is less history than was asked for, from when on there is some."""
    said = [f"{', '.join(lane['operators'])} from {lane['since']}"]
    for subject, found in lane["sources"].items():
        begins = f" since {found['since']}" if found["since"] else ""
        said.append(f"{found['events']:,} {'event' if found['events'] == 1 else 'events'} of {subject}{begins}")
    return "; ".join(said)


def time_of(at: float) -> str:
    """A time, for people."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")


def _differing(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    keys = dict.fromkeys([*before, *after])
    return [key for key in keys if key not in (*_HELD, "name") and before.get(key) != after.get(key)]


def _short(value: object) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:39]}…"


def held_words(what: Mapping[str, Any] | None) -> str:
    """What is held, in words: `3 open calls, 1 row of state`."""
    found = [(int(what[name]), *words) for name, words in _HELD.items() if what and what.get(name)]
    return ", ".join(f"{n:,} {one if n == 1 else more}" for n, one, more in found)
