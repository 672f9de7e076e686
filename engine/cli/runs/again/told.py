"""What `dspex replay` says of the logs that it has replayed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from dspex.engine.cli.runs.again.repeated import other_builds
from dspex.engine.cli.terminal.client import count
from dspex.engine.cli.terminal.terminal import Terminal

if TYPE_CHECKING:
    from dspex.engine.cli.runs.again.sending import SendAgain
    from dspex.engine.cli.runs.differing import RunDifference
    from dspex.engine.replay.pieces import Diverged
    from dspex.engine.replay.topology import Replayed

_MOST: Final = 10  # differences that are printed
_WIDEST: Final = 200  # characters of what differs, where it is bytes; --json has all


class ReplayTold(NamedTuple):
    """What is said of a replay. `runs`: how many it were. `differs`: of the first run that differs, where that is known."""

    name: str
    runs: int
    found: Replayed
    differs: RunDifference | None = None
    sent: SendAgain | None = None

    @property
    def first(self) -> str:
        """The first difference, in words."""
        step = self.differs.diff.first if self.differs is not None else None
        if self.differs is None or step is None:
            return _said(self.found.diverged[0])
        return f"at {step.step}{f' ({step.field})' if step.field else ''} of run …{self.differs.run[-8:]}"


def markdown(told: ReplayTold) -> str:
    """For a review: what differs, and of the first run at which steps."""
    from dspex.engine.client.runs.then.recorded import undone

    found, served = told.found, told.found.taken["records"]
    head = f"{told.name}  {count(told.runs, 'run')}, {count(served, 'call')} read back, 0 made"
    rows = [f"| `{_place(one)}` | {', '.join(f'`{run}`' for run in one.runs)} |" for one in found.diverged]
    places = ["", "| place | runs |", "|---|---|", *rows] if rows else ["", "**same**"] if found.same else []
    places += ["", *(f"- {line}" for line in undone(found.incomplete))] if found.incomplete else []
    steps = ["", told.differs.diff.markdown()] if told.differs is not None else [""]
    return "\n".join([head, *places, *steps])


def print_told(t: Terminal, told: ReplayTold, seconds: float, *, explain: bool) -> None:
    """To the terminal. `seconds`: how long it took."""
    from dspex.engine.client.runs.then.recorded import undone

    found, differs, served = told.found, told.differs, told.found.taken["records"]
    first = found.diverged[0] if found.diverged else None
    said: dict[str, Any] = {"same": found.same, "mode": "strict", "runs": told.runs, "served": served, "live": 0, "tokens": 0}
    said |= {"cost": 0.0, "steps": list[Any]()}
    said["diverged"] = {"step": _place(first), "field": None, "a": None, "b": first.what} if first is not None else None
    if differs is not None:
        said |= {"diverged": vars(differs.diff.first), **differs.as_dict(explain=explain)}
    said |= {"what": told.name, "differences": len(found.diverged), "builds": found.builds, "seconds": round(seconds, 3)}
    said["places"] = [{"place": _place(one), "runs": one.runs, "excused": one.excused} for one in found.diverged[:_MOST]]
    lacking = [{"run" if e.run else "place": name, "code": e.code, "error": e.message} for name, e in found.incomplete.items()]
    said |= {"incomplete": lacking} if lacking else {}
    said |= {"published": told.sent.as_dict()} if told.sent is not None else {}
    lines = [f"{told.name}  {count(told.runs, 'run')}, {count(served, 'call')} read back, 0 made  {seconds:.1f} s"]
    lines += [*other_builds(found.builds), *undone(found.incomplete)]
    lines += differs.lines(explain=explain) if differs is not None else []
    lines += [f"differs {_said(one, brief=differs is not None)}" for one in found.diverged[:_MOST]]
    if len(found.diverged) > _MOST:
        lines.append(f"… and {len(found.diverged) - _MOST:,} more")
    t.emit(said, *lines, *([str(told.sent)] if told.sent is not None else []), *(["same"] if found.same else []))


def _place(one: Diverged) -> str:
    return f"{one.stage}.{one.partition}@{one.entry}"


def _said(one: Diverged, *, brief: bool = False) -> str:
    """`brief`: which runs, and not the bytes."""
    excuse = " (something failed there, or is not kept any more)" if one.excused else ""
    runs = f"run …{', …'.join(run[-8:] for run in one.runs[:3])}{' and others' if len(one.runs) > 3 else ''}"
    what = one.what if len(one.what) <= _WIDEST else f"{one.what[: _WIDEST - 1]}…"
    return f"at {_place(one)}: {runs if brief and one.runs else what}{excuse}"
