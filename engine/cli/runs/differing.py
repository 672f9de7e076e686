"""Where a replayed run does something else than was recorded: by step and field, and the chain of causes that leads there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from dspex.bus.message import Message
from dspex.bus.port import NewMessage
from dspex.engine.cli.runs.drawing import said
from dspex.engine.cli.runs.natives import interpose
from dspex.engine.cli.runs.replaying import graph_of
from dspex.engine.client.runs.diff import Diff, compare
from dspex.engine.client.runs.judged.aligned import aligned
from dspex.engine.client.runs.then.masking import masked, secrets_of
from dspex.engine.client.runs.then.recorded import taken_by
from dspex.engine.client.runs.tree import Happening, Tree
from dspex.engine.log.build import build
from dspex.engine.replay.marks import of_runs
from dspex.engine.replay.natives import NativeValues
from dspex.engine.replay.topology import replayed_run
from dspex.engine.replay.watched import ReplayPlace

if TYPE_CHECKING:
    from dspex.engine.cli.terminal.terminal import Terminal
    from dspex.engine.client.client import Client
    from dspex.engine.graph.graph import Graph


@dataclass
class GivenAgain:
    """What came of entries of a run when they were handled again."""

    messages: dict[tuple[str, ReplayPlace], list[Message]] = field(default_factory=dict)


class SeenRun(NativeValues):
    """Collects values and messages of one run in one topology."""

    def __init__(self, run: str, graph: Graph, given: GivenAgain) -> None:
        super().__init__(run)
        self._of, self._topology, self._given = {run}, graph.name, given

    async def gave(self, where: ReplayPlace, messages: Sequence[NewMessage]) -> None:
        mine = [m for m in messages if of_runs(self._of, [m])]
        as_stored = [Message(m.subject, m.data, {**(m.headers or {})}, where.entry) for m in mine]
        self._given.messages[self._topology, where] = as_stored


@dataclass(frozen=True)
class RunDifference:
    """What one run does otherwise.

    Attributes:
        diff: what was recorded, beside what comes now. then, now: the trees as they are shown; that of now has the values of
            native operators.
    """

    run: str
    diff: Diff
    then: Happening
    now: Happening

    def explained(self) -> dict[str, list[Happening]]:
        """What leads to the first difference, then and now: as far as each of them came."""
        first = self.diff.first
        if first is None:
            return {}
        _, x, y = next(one for one in aligned(self.then, self.now) if one.step == first.step)
        ways = {"then": _way(self.then, x), "now": _way(self.now, y)}
        if not ways["now"]:  # it is not there any more: what became of the last cause that is there still
            last = next(one for one in reversed(ways["then"]) if any(told.id == one.id for told in self.now))
            here = next(told for told in self.now if told.id == last.id)
            ways["now"] = [*_way(self.now, here), *_ends(here)]
        return ways

    def lines(self, *, explain: bool) -> Iterator[str]:
        """As people read it."""
        yield f"run …{self.run[-8:]}: what was recorded → what comes now"
        yield from self.diff.lines()
        for name, way in self.explained().items() if explain else ():
            yield f"{name}:"
            yield from (f"{'   ' * depth}└─ {_line(told)}" for depth, told in enumerate(way))

    def as_dict(self, *, explain: bool) -> dict[str, Any]:
        """As `--json` has it."""
        found: dict[str, Any] = {"run": self.run, "steps": [vars(step) for step in self.diff.steps]}
        kept = ("label", "kind", "id", "cause", "recorded", "data", "note")
        if explain:
            found["explain"] = {
                name: [{key: getattr(told, key) for key in kept} for told in way] for name, way in self.explained().items()
            }
        return found


async def difference(
    t: Terminal,
    c: Client,
    run: str,
    target: str | None,
    only: str | None = None,
    watcher: Callable[[str, Graph, GivenAgain], SeenRun] = SeenRun,
) -> RunDifference | None:
    """What one run does otherwise, by itself, with the state of then; None for nothing.

    `only`: in this topology. `watcher`: makes what sees it, for each topology.
    """
    past, applied = await c.run(run).history()
    given, seen = GivenAgain(), dict[str, SeenRun]()
    for topology, taken in taken_by([past], only).items():
        graph = graph_of(t, topology, target)
        seen[topology] = values = watcher(past.run, graph, given)
        of = build(graph)
        await replayed_run(c.bus, c.app, graph, applied[topology], of, taken, past.run, values)
    again = [
        one._replace(messages=tuple(found), time=one.time)
        if (found := given.messages.get((one.partition[0], ReplayPlace(*one.partition[1:], one.sequence)))) is not None
        else one
        for one in past.taken
    ]
    again = [one._replace(messages=tuple(m._replace(time=one.time) for m in one.messages)) for one in again]
    then, now = Tree(past, applied).root, Tree(replace(past, taken=again), applied).root
    info = await c.run(past.run).info()
    diff = replace(compare(then, now, (info, info)), runs=None)
    if diff.same:
        return None
    for topology, values in seen.items():
        interpose(now, graph_of(t, topology, target), applied[topology], past, values.found)
    secrets = secrets_of(then, now)
    return RunDifference(past.run, diff, masked(then, secrets), masked(now, secrets))


def _way(root: Happening, to: Happening | None) -> list[Happening]:
    """What leads to a step, from the source event on; nothing where it is not there."""
    ways = [[root]] if to is not None else []
    while ways:
        way = ways.pop()
        if way[-1] is to:
            return way
        ways += [[*way, one] for one in way[-1].below]
    return []


def _ends(told: Happening) -> list[Happening]:
    """The operators behind it in which it came to its end."""
    for one in told.below:
        if one.kind == "native":
            return [one, *_ends(one)]
    return []


def _line(told: Happening) -> str:
    text = said(told, told.time)
    return text if told.kind == "native" else text.partition("  ")[2]
