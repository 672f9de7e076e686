"""What the demo prints: a row as soon as a message is done with, and in the end what was counted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from dspex.bus.local.open import Found
from dspex.bus.settings.model import LOCAL_MODEL
from dspex.engine.cli.demo.rows import DEAD, DemoRow, Figures
from dspex.engine.cli.terminal.client import count
from dspex.engine.cli.terminal.terminal import Terminal
from dspex.engine.client.letters import DeadLetter

if TYPE_CHECKING:
    from dspex.engine.again.fork import Forked
    from dspex.engine.again.repeat import Repeated

COLUMNS = 100  # of a row
WIDTH = 51  # of the message in it


class Printed:
    """The output of one demo: rows and the summary are results, the rest are remarks."""

    def __init__(self, t: Terminal) -> None:
        self.t = t

    # -- what happens -------------------------------------------------------------------------------------------------
    def server(self, server: Found) -> None:
        where = "started; it ends with the demo, and its data too" if server.started else "yours"
        self.t.note(f"server    {server.url}  {where}")

    def engine(self, pid: int | None) -> None:
        self.t.note(f"engine    process {pid}  support.messages → classify → support.urgent, support.triaged")

    def pool(self, said: Mapping[str, Any]) -> None:
        self.t.note(f"pool      {said['pool']} {said['size']}/{said['size']} ready, DSPy {said['dspy_version']}, {LOCAL_MODEL}")

    def heading(self, sent: int) -> None:
        self.t.note(f"sent      {count(sent, 'message')}; each is printed as soon as it is done with")
        self.t.line("")
        self.t.line(f"    {'intent':<15} {'right':<5}  {'went to':<11} {'took':>5}  message")

    def row(self, row: DemoRow, number: int) -> None:
        text = _cut(" ".join(row.text.split()) or "(no text)", WIDTH)
        right = {None: "", True: "yes", False: "NO"}[row.right]
        place = row.went_to.removeprefix("support.")
        took = f"{row.seconds:.1f} s" if row.calls else ""
        line = f"{number:>2}  {row.intent or '':<15} {right:<5}  {place:<11} {took:>5}  {text}"
        self.t.emit(asdict(row) | {"right": row.right}, line, *([_cut(f"    {row.why}", COLUMNS)] if row.why else []))

    def killed(self, pid: int | None, left: int) -> None:
        said = f"--  engine {pid} killed (SIGKILL) with {count(left, 'message')} under way; the model works on"
        self._event("engine killed", said, pid)

    def back(self, pid: int | None, after: float, alone: int) -> None:
        said = f"--  engine {pid} takes over after {after:.1f} s; it reads back {count(alone, 'answer')} that came meanwhile"
        self._event("engine started", said, pid, seconds=round(after, 3), answers=alone)

    def redriven(self, letter: DeadLetter) -> None:
        said = f"--  dead letter {letter.sequence} redriven with its text in the field where it belongs"
        self._event("redriven", said, None, letter=letter.sequence)

    def _event(self, name: str, line: str, pid: int | None, **more: object) -> None:
        self.t.emit({"event": name} | ({"pid": pid} if pid else {}) | more, line)

    # -- what was counted -----------------------------------------------------------------------------------------
    def summary(self, f: Figures) -> None:
        """What was counted, and how often the model was right, beside what is to be had without it."""
        self.t.emit({"summary": asdict(f)}, "")
        waiting = count(f.dead, DEAD)
        self.t.line(f"{count(f.sent, 'event')} in: {f.out} at the sinks, {waiting} left; {f.lost} lost, {f.twice} twice")
        failed = f", {f.recorded - f.needed} more because an answer could not be used" if f.recorded > f.needed else ""
        self.t.line(
            f"{count(f.needed, 'call')} of the model needed{failed}, {f.made} made: {f.made - f.recorded} paid twice; "
            f"{count(f.tokens, 'token')}"
        )
        if f.labelled:
            self.t.line("")
            for start, number, how in (
                ("right", f.right, f"the model, shown the three most similar of {f.examples} labelled messages"),
                ("", f.nearest, "no model, the label of the most similar one: the search does most of it"),
                ("", f.most_frequent, "always the most frequent label"),
            ):
                self.t.line(f"{start:<5}  {number / f.labelled:4.0%}  {number:>2} of {f.labelled}  {how}")
        self.t.line("")
        self.t.line(f"first answer after {f.first_seconds:.0f} s, the last after {f.seconds:.0f} s")

    # -- the second act -------------------------------------------------------------------------------------------
    def replayed(self, run: str, found: Repeated) -> None:
        """One of the runs, done again from what was recorded."""
        said = {"same": found.diff.same, "served": found.served, "called": found.called, "tokens": found.tokens}
        what = "the same" if found.diff.same else "not the same"
        read = f"{count(found.served, 'answer')} of the model read back, {found.called} asked for, {found.tokens} tokens"
        self.t.emit({"event": "replayed", "run": run, **said}, "", f"--  run …{run[-8:]} replayed: {read}; {what}")

    def forked(self, found: Forked, at: str, change: Mapping[str, Any]) -> None:
        """The same run with one change, and what differs."""
        what = ", ".join(f"{name} = {value}" for name, value in change.items())
        line = f"--  forked at {at} with one change, {what}: {count(found.called, 'call')} made, {found.tokens} tokens"
        diff = [f"    {text}" for text in found.diff.lines()]
        self.t.emit({"event": "forked", **found.as_dict(), "diff": found.diff.as_dict()}, line, *diff)

    def end(self) -> None:
        """What to type next."""
        for line in NEXT.split("\n"):
            self.t.line(line)


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1].rstrip()}…"


NEXT = """
Where to look next:
  dspex init my-pipeline --no-key   a project of your own; it prints what to type next
  docs/getting-started.md           all of this, step by step
  topologies/support_triage.py      the pipeline that has just run"""
