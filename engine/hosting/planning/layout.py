"""Which stream has which subject, and which streams, consumers and stores have to be made or widened."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from dspex.bus import subjects
from dspex.bus.errors import SubjectTaken
from dspex.engine.graph.graph import Graph
from dspex.engine.graph.nodes import Source
from dspex.engine.hosting.planning.there import There, consumers_of


@dataclass(frozen=True)
class PlannedChange:
    """One difference between what is declared and what is there. The fields are the keys of `--json`.

    Attributes:
        op: "create", "change", "reset" (what it holds is given up) or "delete".
        name: of the stream, consumer or bucket; of a node or a lane with its topology: "triage/classify".
        before, after: what it was and what it will be, as plain data; None where there is nothing.
        additive: nothing that is held is lost by it.
    """

    op: Literal["create", "change", "reset", "delete"]
    kind: Literal["stream", "consumer", "bucket", "node", "lane"]
    name: str
    before: Any
    after: Any
    additive: bool = True

    def as_dict(self) -> dict[str, Any]:
        """The `--json` object."""
        return dict(vars(self))


class Layout:
    """Which stream has which subject: decided for all topologies of the application together."""

    def __init__(self, app: str, graphs: Sequence[Graph], there: There) -> None:
        self._own, self._sources, self._there, self._graphs = subjects.stream(app), subjects.sources(app), there, graphs
        names = {g.name for g in graphs}
        known = {name: m for name in there.manifests if (m := there.last(name)) is not None}
        others = [m for name, m in known.items() if name not in names]
        self.sinks = {n.sink.pattern for g in graphs for n in g.sinks} | {s for m in others for s in m.sinks}
        self._before = {m.subject(source): m.streams[source] for m in known.values() for source in m.streams}

    def check_sinks(self) -> None:
        """Refuse a sink on a subject that another stream captures. Raises SubjectTaken."""
        for graph, pattern in [(g.name, n.sink.pattern) for g in self._graphs for n in g.sinks]:
            holder = self._there.holders.get(pattern)
            if holder == self._sources:
                raise SubjectTaken(
                    f"{graph}: {pattern!r} is a source of the application, and {holder} holds its events; "
                    "a commit, with its sinks, is kept whole within one stream",
                    node=pattern,
                    fix="sink to another subject; or use another application name (app), where source and sink begin together",
                )
            if holder not in (None, self._own):
                raise SubjectTaken(
                    f"{graph}: sink {pattern!r} is captured by stream {holder}; a commit is kept whole within one stream",
                    node=pattern,
                    fix=f"sink to another subject, or take {pattern!r} out of {holder}",
                )

    def stream_of(self, source: Source) -> str:
        """The stream that a source is read from. Raises SubjectTaken."""
        if source.stream:
            return source.stream
        sinks = [s for s in sorted(self.sinks) if subjects.overlap(source.subject, s)]
        if any(subjects.includes(s, source.subject) for s in sinks):
            return self._own
        if sinks:
            raise SubjectTaken(
                f"source {source.subject!r} takes in the sink {sinks[0]!r} and more, which no one stream of dspex holds",
                node=source.subject,
                fix=f"read sources that do not take in {sinks[0]!r}, or sink to another subject",
            )
        # A stream of others that is gone is not replaced by one of ours: the stage stops, and says that it is gone.
        return self._there.holders.get(source.subject) or self._before.get(source.subject) or self._sources


def wanted_subjects(app: str, graphs: Sequence[Graph], streams: Mapping[str, str]) -> dict[str, list[str]]:
    """The subjects of each stream that dspex makes."""
    own, name = subjects.stream(app), subjects.sources(app)
    sinks = [n.sink.pattern for g in graphs for n in g.sinks]
    wanted = subjects.own_subjects(app) + sinks + [subject for subject, stream in streams.items() if stream == own]
    found = {
        subjects.requests(app): [subjects.request_pattern(app)],
        own: without_overlap(wanted),
        subjects.told(app): [subjects.told_pattern(app)],
    }
    if any(g.name == subjects.SUBMITTED for g in graphs):
        found[subjects.answers(app)] = [subjects.answer_pattern(app)]
    captured = [subject for subject, stream in streams.items() if stream == name]
    return found | ({name: without_overlap(captured)} if captured else {})


def without_overlap(patterns: Iterable[str]) -> list[str]:
    """`patterns` less those that another one covers: the subjects of a stream may not overlap."""
    kept: list[str] = []
    for pattern in sorted(set(patterns), key=lambda p: (-p.count(">"), -p.count("*"), p)):
        if not any(subjects.includes(k, pattern) for k in kept):
            kept.append(pattern)
    return kept


def of_streams(wanted: Mapping[str, Sequence[str]], there: There) -> Iterator[PlannedChange]:
    for name, patterns in wanted.items():
        info = there.streams.get(name)
        if info is None:
            yield PlannedChange("create", "stream", name, None, {"subjects": list(patterns)})
            continue
        lacking = [p for p in patterns if not any(subjects.includes(have, p) for have in info.subjects)]
        if lacking:
            kept = [have for have in info.subjects if not any(subjects.includes(p, have) for p in lacking)]
            yield PlannedChange("change", "stream", name, {"subjects": list(info.subjects)}, {"subjects": [*kept, *lacking]})


def of_consumers(graphs: Sequence[Graph], there: There) -> Iterator[PlannedChange]:
    for name in consumers_of(graphs):
        if name not in there.consumers:
            yield PlannedChange("create", "consumer", name, None, {})


def of_stores(app: str, there: There) -> Iterator[PlannedChange]:
    for name in (*subjects.buckets(app), subjects.objects(app)):
        if name not in there.stores:
            yield PlannedChange("create", "bucket", name, None, {})
