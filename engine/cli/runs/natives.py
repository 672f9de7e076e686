"""What native operators gave in a run, put between what is recorded of it: made again with the code that is here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, NamedTuple

from dspex.bus.errors import BusError, DspexError
from dspex.engine.client.runs.info import info_of
from dspex.engine.client.runs.then.masking import masked, secrets_of
from dspex.engine.client.runs.tree import Happening, StepLabels, Tree, changed

if TYPE_CHECKING:
    from dspex.bus.serving.keys.secret_fields import Secrets
    from dspex.engine.cli.terminal.terminal import Terminal
    from dspex.engine.client.client import Client
    from dspex.engine.client.following.progress import RunInfo
    from dspex.engine.client.runs.history import History
    from dspex.engine.client.runs.then.decisions import DecisionThen
    from dspex.engine.client.runs.then.later import Later
    from dspex.engine.graph.graph import Graph
    from dspex.engine.graph.manifest import Manifest
    from dspex.engine.replay.natives import NativeValue
    from dspex.engine.replay.topology import Replayed
    from dspex.engine.replay.watched import ReplayPlace

_NOTHING: Final[Mapping[str, DecisionThen]] = {}


class ShownRun(NamedTuple):
    """What a run did.

    Attributes:
        info: what is known of it. builds: what is another one than then: name → (then, now).
        missing: why values are left out; "" where none are. secrets: what is not in `root`, where they are.
        later: what a fork has led to in other runs.
    """

    root: Happening
    info: RunInfo
    builds: Mapping[str, tuple[str, str]]
    missing: str
    secrets: Secrets
    later: Later | None = None

    @property
    def code(self) -> str:
        """Which code made what is made again, in words."""
        other = any(was for was, _ in self.builds.values())
        return "the code that is here, which is not that of then" if other else "the code that is here"

    @classmethod
    def of(
        cls, root: Happening, info: RunInfo, builds: Mapping[str, tuple[str, str]], missing: str, later: Later | None = None
    ) -> ShownRun:
        """The same without what is secret."""
        secrets = secrets_of(root)
        return cls(masked(root, secrets), info, builds, missing, secrets, later)


async def with_natives(t: Terminal, c: Client, run: str, target: str | None) -> ShownRun:
    """What a run did, with the values of its native operators where they can be made again. Raises RunNotFound, BusError.

    `target`: the code; None: that of dspex.toml. Then there are no values where it is not there, or gives something else.
    """
    from dspex.engine.client.runs.then.decisions import decisions_of
    from dspex.engine.client.runs.then.recorded import taken_by

    named = c.run(run)
    if (file := await named.kept()) is not None:
        return ShownRun.of(file.root, file.info, {}, "values between are not shown: the run is in no log", file.later)
    past, applied = await named.history()
    root, builds, missing = Tree(past, applied).root, dict[str, tuple[str, str]](), ""
    if root.changed:
        missing = changed(root).message
    decided = {one.approval: one for one in reversed(await decisions_of(c.bus, c.app, past, applied))}
    for topology, entries in taken_by([past]).items() if not root.changed else ():
        try:
            graph, values, found = await _values(t, c, past, applied, topology, entries, target)
        except DspexError as error:
            if target is not None or isinstance(error, BusError):
                raise
            missing = missing or f"values between are not shown: {error.message}"
            continue
        builds |= found.builds
        first = next((one for one in found.diverged if not one.excused), None)  # a letter has the traceback of this walk
        if first is not None and target is None:
            why = f"the code that is here gives something else at {first.stage}.{first.partition}@{first.entry}"
            missing = missing or f"values between are not shown: {why}; --build FOLDER with the code of then, or --with TARGET"
            continue
        interpose(root, graph, applied[topology], past, values, decided)
    return ShownRun.of(root, info_of(past, c.app, applied), builds, missing)


async def _values(
    t: Terminal,
    c: Client,
    past: History,
    applied: Mapping[str, Manifest],
    topology: str,
    entries: Mapping[tuple[str, int], set[int]],
    target: str | None,
) -> tuple[Graph, Mapping[ReplayPlace, Sequence[NativeValue]], Replayed]:
    from dspex.engine.cli.runs.replaying import graph_of
    from dspex.engine.log.build import build
    from dspex.engine.replay.natives import NativeValues
    from dspex.engine.replay.topology import replayed_run

    graph, values = graph_of(t, topology, target), NativeValues(past.run)
    of = build(graph)
    return graph, values.found, await replayed_run(c.bus, c.app, graph, applied[topology], of, entries, past.run, values)


def interpose(
    root: Happening,
    graph: Graph,
    applied: Manifest,
    past: History,
    values: Mapping[ReplayPlace, Sequence[NativeValue]],
    decided: Mapping[str, DecisionThen] = _NOTHING,
) -> None:
    """Put the values of a topology into the tree of a run, each below what it came of, and above what came of it.

    `decided`: what people decided in it, by what they decided about.
    """
    times = {(one.partition, one.sequence): one.time for one in past.taken}
    _Interposing(root, graph, applied, times, decided).put(values)


class _Interposing:
    """Puts the values of one topology into the tree of a run. `times`: of entries, by partition and sequence."""

    def __init__(
        self,
        root: Happening,
        graph: Graph,
        applied: Manifest,
        times: Mapping[tuple[tuple[str, str, int], int], float],
        decided: Mapping[str, DecisionThen],
    ) -> None:
        self._root, self._graph, self._times, self._decided = root, graph, times, decided
        self._labels = StepLabels({graph.name: applied})
        self._known = {one.id: one for one in root}
        self._above = {id(below): one for one in root for below in one.below}
        self._began: dict[str, Happening] = {}  # by the ids of events that came out of an operator later
        self._latest: dict[tuple[str, str | None], Happening] = {}  # by operator and key: what a timer of it may have come of
        self._kept: dict[tuple[str, str], Happening] = {}  # by operator and event: what of it a timer has come of

    def put(self, values: Mapping[ReplayPlace, Sequence[NativeValue]]) -> None:
        """Put all where it belongs, in the order in which it came about."""
        ordered = sorted(values.items(), key=lambda one: one[0].entry)
        for where, found in ordered:
            for value in found:
                self._place(value, self._under(value), where)
        for one in [told for told in self._root if not told.recorded and told.cause in self._began]:
            self._move(one, self._began[one.cause])
            one.recorded = True
        for one in list(self._root):
            one.below.sort(key=lambda told: told.time)

    def _under(self, value: NativeValue) -> Happening:
        """What it came of."""
        origin = value.origin
        known = self._began.get(origin.id) or self._known.get(origin.id)
        if known is None and value.timer:
            known = self._kept.get((value.node, value.cause)) or self._latest.get((value.node, origin.key))
        return known or self._known.get(origin.cause or "", self._root)

    def _place(self, value: NativeValue, under: Happening, where: ReplayPlace) -> None:
        partition = (self._graph.name, where.stage, where.partition)
        label = self._labels.next(partition, value.node, value.origin.key)
        time = datetime.fromtimestamp(self._times[partition, where.entry], tz=UTC)
        told = Happening("native", label, under.id, value.node, label, time, f"{where.stage}.{where.partition}", value.data)
        told.recorded, told.gives, told.note = False, value.given, self._note(value)
        if value.error:
            told.error = {"message": value.error}
        under.below.append(told)
        self._above[id(told)] = under
        self._latest[value.node, value.origin.key] = self._kept[value.node, value.origin.id] = told
        self._began |= dict.fromkeys(value.began, told)
        for inside in value.inside:
            if not isinstance(inside, str):
                self._place(inside, told, where)
            elif (there := self._known.get(inside)) is not None:
                self._move(there, told)
        if value.error:
            self._letter(value, told)

    def _move(self, there: Happening, under: Happening) -> None:
        above = self._above[id(there)]
        above.below = [one for one in above.below if one is not there]
        under.below.append(there)
        self._above[id(there)] = under

    def _letter(self, value: NativeValue, under: Happening) -> None:
        """The dead letter of what failed there goes below it."""
        for one in (self._known.get(value.origin.id, self._root)).below:
            if one.kind == "letter" and one.node == value.node:
                self._move(one, under)
                return

    def _note(self, value: NativeValue) -> str:
        """What it did, where the data alone do not say it."""
        node = self._graph.nodes[value.node]
        if value.timer:
            return next((_decision(self._decided[id]) for id in value.began if id in self._decided), "woken by a timer")
        if value.error:
            return "failed"
        if not value.given:
            if node.op == "approve":
                return "until a person decides"
            return "keeps it" if node.role == "state" else "dropped" if node.outlets == 1 else ""
        if node.outlets > 1:
            outlet, tests = value.given[0][0], node.options.get(node.op)
            said = tests[outlet] if isinstance(tests, Sequence) and outlet < len(tests) else "none of the tests"
            return f"outlet {outlet}: {said}"
        return "passes" if [data for _, data in value.given] == [value.data] else ""


def _decision(one: DecisionThen) -> str:
    """What somebody decided, in words."""
    said = {"accept": "accepted", "reject": "rejected", "cancel": "cancelled"}[one.decision]
    return f"{said}{f' by {one.who}' if one.who else ''}{f': {one.note}' if one.note else ''}"
