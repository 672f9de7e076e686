"""Topologies in YAML: the same graph as the fluent API gives, and every problem with its line."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias, cast

from dspex.bus.errors import TopologyError
from dspex.engine.graph.nodes import SourceLine
from dspex.operators.formats.yaml_read import VERSION, Mapped, read
from dspex.operators.native.suggestions import did_you_mean
from dspex.operators.parameters.parameter import unknown
from dspex.operators.parameters.typed import type_of
from dspex.operators.plan import NodeDraft, Plan, shorten
from dspex.operators.problems import problem
from dspex.operators.registry import operators
from dspex.operators.stateless import sink, source
from dspex.operators.stateless.source import NOT_BUILT as SOURCE_NOT_BUILT
from dspex.operators.stateless.source import SOURCE_OPTIONS
from dspex.operators.stream import AnyStream, Stream
from dspex.operators.topology import Topology
from dspex.operators.typing.refs import is_ref, resolve

Outlets: TypeAlias = tuple[AnyStream, ...]

_HEAD = ("dspex", "topology", "codec", "retention", "renamed_from", "drop", "types", "sources", "nodes", "sinks")
_MERGE = "merge them first: { from: [...], merge: {} }"
_PART = ("dspex", "types", "nodes", "sinks", "output")


def load(path: str) -> Topology:
    """The topology of a YAML file. `Topology.check` lists its problems.

    Raises TopologyError where nothing can be read: DX221 (no such file), DX222 (not YAML, a key twice, aliases).
    """
    document = _read(path)
    head = {k: document[k] for k in ("codec", "retention", "renamed_from", "drop") if k in document}
    topology = Topology(str(document.get("topology", "")), **head)
    plan = topology._plan  # pyright: ignore[reportPrivateUsage]
    plan.place = SourceLine(shorten(os.path.abspath(path)), document.at("topology"))
    plan.problems = [(d, replace(p, file=plan.place.file, line=plan.place.line)) for d, p in plan.problems]
    loader = _Loader(plan, path, document, _HEAD)
    loader.sources()
    loader.build()
    plan.at = None
    return topology


def _read(path: str) -> Mapped:
    try:
        with open(path, encoding="utf-8") as f:
            return read(f.read(), shorten(os.path.abspath(path)))
    except (OSError, UnicodeDecodeError) as e:
        raise problem("DX221", f"{path} cannot be read: {e}", "correct the path") from e


@dataclass
class _Loader:
    """Builds the nodes of one document, each after those that it takes its data from."""

    plan: Plan
    path: str
    document: Mapped
    keys: tuple[str, ...]
    parents: tuple[str, ...] = ()  # files that include this one
    done: dict[str, Outlets] = field(default_factory=dict)
    building: list[str] = field(default_factory=list)
    about: str | None = None  # the node, source or sink that is being read: problems are reported for it

    def __post_init__(self) -> None:
        self.here(self.document.line)
        for key in self.document:
            if key not in self.keys:
                self.report("DX204", f"there is no key {key!r} here", did_you_mean(key, self.keys), self.document.at(key))
        if self.document.get("dspex") != VERSION:
            line = self.document.at("dspex")
            self.report("DX204", f"dspex: {self.document.get('dspex')!r} is not a version this dspex reads", "dspex: 1", line)
        self.types = dict(self._types())

    def here(self, line: int) -> SourceLine:
        """Makes this line the place of what is built next."""
        self.plan.at = SourceLine(shorten(os.path.abspath(self.path)), line)
        return self.plan.at

    def report(self, code: str, message: str, fix: str, line: int) -> None:
        self.plan.report(None, code, message, fix, place=self.here(line), node=self.about)

    def section(self, key: str) -> Mapped:
        """A mapping of the document; empty where it is missing or something else."""
        found = self.document.get(key)
        if isinstance(found, Mapped):
            return found
        if found is not None:
            self.report("DX204", f"{key} is a mapping, and this is {found!r}", f"{key}: {{ ... }}", self.document.at(key))
        return Mapped(self.document.at(key))

    def _types(self) -> Iterator[tuple[str, Any]]:
        section = self.section("types")
        for name, ref in section.items():
            self.here(section.at(name))
            with self.plan.collecting(None):
                yield name, type_of(ref, {})

    # -- sources, nodes, sinks
    def sources(self) -> None:
        section = self.section("sources")
        for subject, value in section.items():
            self.here(section.at(subject))
            self.about = subject
            what = f"source {subject}"
            o = self.options(value, SOURCE_OPTIONS, what, section.at(subject), not_built=SOURCE_NOT_BUILT)
            given: dict[str, object] = {}
            for name, found in o.items():
                with self.plan.collecting(None):
                    given[name] = SOURCE_OPTIONS[name].load(name, found, self.types, given)
            self.done[subject] = (Stream(self.plan, source.add(self.plan, subject, given)),)
        self.about = None

    def build(self) -> None:
        for name in self.section("nodes"):
            self.node(name)
        section = self.section("sinks")
        for subject, value in section.items():
            line = section.at(subject)
            self.about = subject
            o = self.options(value, ("from", *sink.SINK_OPTIONS), f"sink {subject}", line, not_built=sink.NOT_BUILT)
            streams = self.inlets(o.pop("from", None), f"sink {subject}", value, line)
            self.here(line)
            for stream in streams[:1]:
                stream.sink(subject, **cast("dict[str, Any]", o))
            if len(streams) > 1:
                self.report("DX206", f"sink {subject} has several inputs", _MERGE, line)
        self.about = None

    def options(
        self, value: object, allowed: Collection[str], what: str, line: int, *, not_built: Collection[str] = ()
    ) -> dict[str, object]:
        """A mapping's known keys; unknown ones are reported."""
        if not isinstance(value, Mapped):
            if value is not None:
                self.report("DX204", f"{what} is a mapping, and this is {value!r}", "{ from: ... }", line)
            return {}
        for key in value:
            if key not in allowed:
                e = unknown(key, allowed, f"{what} has", not_built)
                self.report(e.code, e.message, e.fix, value.at(key))
        return {k: _plain(v) for k, v in value.items() if k in allowed}

    def node(self, name: str) -> Outlets:
        """The streams that come out of a node; builds it first, where that is still to be done."""
        if name in self.done:
            return self.done[name]
        section = self.section("nodes")
        line = section.at(name)
        outer, self.about = self.about, name
        self.building.append(name)
        value = section[name]
        if isinstance(value, Mapped):
            self.done[name] = self.operator(name, value, line)
        else:
            self.report("DX204", f"node {name} is a mapping, and this is {value!r}", "{ from: ..., map: ... }", line)
            self.done[name] = self.stand_in(name, [], line)
        self.building.pop()
        self.about = outer
        return self.done[name]

    def operator(self, name: str, value: Mapped, line: int) -> Outlets:
        found = [k for k in value if k in operators() or k == "through"]
        streams = self.inlets(value.get("from"), f"node {name}", value, line)
        if len(found) != 1:
            self.report(*_which_operator(name, value, found), line)
            return self.stand_in(name, streams, line)
        op = found[0]
        if not streams:
            return self.stand_in(name, [], line)
        if op == "through":
            return self.through(name, value, streams, line)
        return self.known(name, op, value, streams, line)

    def known(self, name: str, op: str, value: Mapped, streams: list[AnyStream], line: int) -> Outlets:
        """A node of a declared operator."""
        operator = operators()[op]
        allowed = ("from", op, *operator.keys)
        o = self.options(value, allowed, f"{op} {name}", line, not_built=operator.not_built)
        main, _ = o.pop(op), o.pop("from", None)
        missing = [k for k in operator.required if k not in o]
        for key in missing:
            self.report("DX204", f"{op} {name} needs the key {key!r}", f"add {key}: ...", line)
        if len(streams) > 1 and not operator.many_inputs:
            self.report("DX206", f"{op} {name} takes one input", _MERGE, value.at("from"))
        if missing:
            return self.stand_in(name, streams, line)
        others = streams[1:] if operator.many_inputs else ()

        def make() -> AnyStream | Outlets:
            loaded = operator.load(main, o, self.types)
            return streams[0]._apply(operator, loaded, name, o, others)  # pyright: ignore[reportPrivateUsage]

        return self.made(name, streams, line, make)

    def made(self, name: str, streams: list[AnyStream], line: int, make: Callable[[], AnyStream | Outlets]) -> Outlets:
        """What `make` gives, as outlets; a stand-in where the user wrote something wrong."""
        self.here(line)
        try:
            result = make()
        except TopologyError as e:
            for p in e.problems or (e,):
                self.report(p.code, p.message, p.fix, line)
            return self.stand_in(name, streams, line)
        return result if isinstance(result, tuple) else (result,)

    def stand_in(self, name: str, streams: list[AnyStream], line: int) -> Outlets:
        """In the place of a node that could not be built, so that no problem of its neighbours follows from it."""
        self.here(line)
        inputs = [(s._draft, s._outlet) for s in streams]  # pyright: ignore[reportPrivateUsage]
        draft = self.plan.add(NodeDraft("unknown", name, name, inputs=inputs))
        return (Stream(self.plan, draft),)

    # -- edges
    def inlets(self, value: Any, what: str, where: Any, line: int) -> list[AnyStream]:
        """The streams that `from` names."""
        line = where.at("from") if isinstance(where, Mapped) else line
        names = value if isinstance(value, list) else [value]
        if value is None or not names or not all(isinstance(n, str) for n in names):
            self.report("DX206", f"{what} does not say where its data comes from", "add from: NODE", line)
            return []
        found = [self.inlet(str(n), what, line) for n in names]
        return [s for s in found if s is not None]

    def inlet(self, text: str, what: str, line: int) -> AnyStream | None:
        nodes = self.section("nodes")
        name, outlet = text, ""
        if text not in self.done and text not in nodes:
            name, _, outlet = text.rpartition(".")
        if name not in self.done and name not in nodes:
            known = [*self.done, *(n for n in nodes if n not in self.done)]
            self.report("DX206", f"{what}: there is no {text!r} to take data from", did_you_mean(text, known), line)
            return None
        if name in self.building:
            circle = " -> ".join([*self.building[self.building.index(name) :], name])
            fix = "a topology has no cycles; a sink and a source of another topology make the loop visible"
            self.report("DX213", f"{what} is part of a cycle: {circle}", fix, line)
            return None
        return self.outlet(self.node(name), name, outlet, what, line)

    def outlet(self, streams: Outlets, name: str, outlet: str, what: str, line: int) -> AnyStream | None:
        known = {str(i): s for i, s in enumerate(streams)} | ({"rest": streams[-1]} if len(streams) > 1 else {})
        if len(streams) == 1:
            known[""] = streams[0]
        if outlet in known:
            return known[outlet]
        names = [f"{name}.{k}" for k in known if k] if len(streams) > 1 else [name]
        self.report("DX206", f"{what}: {name}{'.' if outlet else ''}{outlet} is no outlet", f"one of: {', '.join(names)}", line)
        return streams[-1] if streams else None

    # -- parts
    def through(self, name: str, value: Mapped, streams: list[AnyStream], line: int) -> Outlets:
        o = self.options(value, ("from", "through"), f"through {name}", line)
        target = o["through"]
        if not isinstance(target, str):
            self.report("DX221", f"through {name} names no part: {target!r}", '"parts.yaml" or "pkg.module:name"', line)
            return self.stand_in(name, streams, line)

        def part(stream: AnyStream) -> Any:
            return resolve(target)(stream) if is_ref(target) else self.included(target, stream)

        return self.made(name, streams, line, lambda: streams[0].through(part, name=name) or ())

    def included(self, target: str, stream: AnyStream) -> Outlets:
        """The outputs of a part file: its nodes take `input`, and `output` names what comes out."""
        path = os.path.join(os.path.dirname(self.path), target)
        if os.path.abspath(path) in (*self.parents, os.path.abspath(self.path)):
            raise problem("DX213", f"{target} includes itself", "a part cannot be part of itself")
        parents = (*self.parents, os.path.abspath(self.path))
        inner = _Loader(self.plan, path, _read(path), _PART, parents, {"input": (stream,)})
        inner.build()
        output = inner.document.get("output", [])
        names = output if isinstance(output, list) else [output]
        found = [inner.inlet(str(n), "output", inner.document.at("output")) for n in names]
        return tuple(s for s in found if s is not None)


def _which_operator(name: str, value: Mapping[str, Any], found: list[str]) -> tuple[str, str, str]:
    if found:
        return "DX204", f"node {name} has {len(found)} operators: {', '.join(found)}", "one operator a node; chain them by from"
    known = (*operators(), "through")
    unknown = [k for k in value if k != "from" and not any(k in o.keys for o in operators().values())]
    if unknown:
        return "DX204", f"node {name}: there is no operator {unknown[0]!r}", did_you_mean(unknown[0], known)
    return "DX204", f"node {name} has no operator", f"one of: {', '.join(known)}"


def _plain(value: Any) -> Any:
    """The value without its lines: what the fluent API would have been given."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in cast("dict[str, Any]", value).items()}
    return [_plain(v) for v in value] if isinstance(value, list) else value
