"""Topologies in YAML: the same graph as the fluent API gives, and every problem with its line."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias, cast

from dspex.bus.settings import not_built
from dspex.engine.graph.nodes import SourceLine
from dspex.operators.formats.yaml_document import Document, read_file
from dspex.operators.formats.yaml_read import Mapped
from dspex.operators.native.problems import did_you_mean, problem
from dspex.operators.plan import NodeDraft, shorten
from dspex.operators.registry import operators
from dspex.operators.stateless import sink, source
from dspex.operators.stream import AnyStream, Stream
from dspex.operators.topology import Topology
from dspex.operators.typing.refs import is_ref, resolve

Outlets: TypeAlias = tuple[AnyStream, ...]

_HEAD = ("dspex", "topology", "codec", "retention", "renamed_from", "drop", "types", "sources", "nodes", "sinks")
_PART = ("dspex", "types", "nodes", "sinks", "output")
_MERGE = "merge them first: { from: [...], merge: {} }"
_NO_CYCLES = "a topology has no cycles; a sink and a source of another topology make the loop visible"


def load(path: str) -> Topology:
    """The topology of a YAML file. `Topology.check` lists its problems.

    Raises TopologyError where nothing can be read: DX221 (no such file), DX222 (not YAML, a key twice, aliases).
    """
    document = read_file(path)
    head = {k: document[k] for k in ("codec", "retention", "renamed_from", "drop") if k in document}
    topology = Topology(str(document.get("topology", "")), **head)
    plan = topology._plan  # pyright: ignore[reportPrivateUsage]
    plan.place = SourceLine(shorten(os.path.abspath(path)), document.at("topology"))
    plan.problems = [(d, replace(p, file=plan.place.file, line=plan.place.line)) for d, p in plan.problems]
    loader = _Loader(plan, path, document)
    with loader.reading(document.line):
        loader.head(_HEAD)
        loader.sources()
        loader.nodes_and_sinks()
    return topology


@dataclass
class _Loader(Document):
    """Builds the nodes of one document, each after those that it takes its data from.

    Attributes:
        parents: files that include this one.
        done: the streams that come out of each source and node, by name.
        building: names of the nodes that are being built, each because the one before takes data from it.
    """

    parents: tuple[str, ...] = ()
    done: dict[str, Outlets] = field(default_factory=dict[str, Outlets])
    building: list[str] = field(default_factory=list[str])

    def sources(self) -> None:
        section = self.section("sources")
        for subject, value in section.items():
            with self.reading(section.at(subject), f"source {subject}", subject):
                given: dict[str, object] = {}
                for name, found in self.options(value, source.SOURCE_OPTIONS, not_built.OPTIONS["source"]).items():
                    with self.reporting():
                        given[name] = source.SOURCE_OPTIONS[name].load(name, found, self.types, given)
                self.done[subject] = (Stream(self.plan, source.add(self.plan, subject, given)),)

    def nodes_and_sinks(self) -> None:
        for name in self.section("nodes"):
            self.node(name)
        section = self.section("sinks")
        for subject, value in section.items():
            with self.reading(section.at(subject), f"sink {subject}", subject):
                o = self.options(value, ("from", *sink.SINK_OPTIONS))
                streams = self.inlets(value)
                o.pop("from", None)
                for stream in streams[:1]:
                    stream.sink(subject, **cast("dict[str, Any]", o))
                if len(streams) > 1:
                    self.report("DX206", f"{self.what} has several inputs", _MERGE)

    # -- nodes
    def node(self, name: str) -> Outlets:
        """The streams that come out of a node; builds it first, where that is still to be done."""
        if name not in self.done:
            section = self.section("nodes")
            self.building.append(name)
            with self.reading(section.at(name), f"node {name}", name):
                self.done[name] = self.built(name, section[name])
            self.building.pop()
        return self.done[name]

    def built(self, name: str, value: object) -> Outlets:
        if not isinstance(value, Mapped):
            self.report("DX204", f"{self.what} is a mapping, and this is {value!r}", "{ from: ..., map: ... }")
            return self.stand_in(name, [])
        found = [k for k in value if k in operators() or k == "through"]
        given = {option for k in found if k in operators() for option in operators()[k].one_of}
        found = [k for k in found if k not in given]  # a window and what it gives are one node
        streams = self.inlets(value)
        if len(found) != 1:
            self.report(*_which_operator(name, value, found))
        if len(found) != 1 or not streams:
            return self.stand_in(name, streams)
        self.what = f"{found[0]} {name}"
        if found[0] == "through":
            return self.through(name, value, streams[0])
        return self.declared(name, found[0], value, streams)

    def declared(self, name: str, op: str, value: Mapped, streams: list[AnyStream]) -> Outlets:
        """A node of a declared operator."""
        operator = operators()[op]
        o = self.options(value, ("from", op, *operator.keys), operator.not_built)
        main, _ = o.pop(op), o.pop("from")
        missing = [k for k in operator.required if k not in o]
        for key in missing:
            self.report("DX204", f"{self.what} needs the key {key!r}", f"add {key}: ...")
        if len(streams) > 1 and not operator.many_inputs:
            self.report("DX206", f"{self.what} takes one input", _MERGE, value.at("from"))
        others = streams[1:] if operator.many_inputs else ()
        if not missing:
            with self.reporting():
                loaded = operator.load(main, o, self.types)
                result = streams[0]._apply(operator, loaded, name, o, others)  # pyright: ignore[reportPrivateUsage]
                return result if isinstance(result, tuple) else (result,)
        return self.stand_in(name, streams)

    def through(self, name: str, value: Mapped, stream: AnyStream) -> Outlets:
        """The nodes of a part: of a file, or of a function that a ref names."""
        target = self.options(value, ("from", "through"))["through"]
        if not isinstance(target, str):
            self.report("DX221", f"{self.what} names no part: {target!r}", '"parts.yaml" or "pkg.module:name"')
            return self.stand_in(name, [stream])

        def part(stream: AnyStream) -> Any:
            if not is_ref(target):
                return self.included(target, stream)
            if not callable(found := resolve(target)):
                message = f"a part is a function of a stream, and {target} is of type {type(found).__name__}"
                raise problem("DX219", message, "def part(stream): return stream.map(...)")
            return found(stream)

        with self.reporting():
            result: Any = stream.through(part, name=name)
            outlets = result if isinstance(result, tuple) else () if result is None else (result,)
            for strange in (o for o in outlets if not isinstance(o, Stream)):
                message = f"a part gives streams, and {target} gives {type(strange).__name__}"
                raise problem("DX219", message, "return a stream, several as a tuple, or nothing where it ends in sinks")
            return cast("Outlets", outlets)
        return self.stand_in(name, [stream])

    def included(self, target: str, stream: AnyStream) -> Outlets:
        """The outputs of a part file: its nodes take `input`, and `output` names what comes out."""
        path = os.path.join(os.path.dirname(self.path), target)
        parents = (*self.parents, os.path.abspath(self.path))
        if os.path.abspath(path) in parents:
            raise problem("DX213", f"{target} includes itself", "a part cannot be part of itself")
        inner = _Loader(self.plan, path, read_file(path), parents, {"input": (stream,)})
        output = inner.document.get("output", [])
        with inner.reading(inner.document.line, "output"):
            inner.head(_PART)
            inner.nodes_and_sinks()
            with inner.reading(inner.document.at("output")):
                found = [inner.inlet(str(n)) for n in (output if isinstance(output, list) else [output])]
        return tuple(s for s in found if s is not None)

    def stand_in(self, name: str, streams: list[AnyStream]) -> Outlets:
        """In the place of a node that could not be built, so that no problem of its neighbours follows from it."""
        inputs = [(s._draft, s._outlet) for s in streams]  # pyright: ignore[reportPrivateUsage]
        return (Stream(self.plan, self.plan.add(NodeDraft("unknown", name, name, inputs=inputs))),)

    # -- edges
    def inlets(self, value: object) -> list[AnyStream]:
        """The streams that `from` of a node or a sink names."""
        names: Any = value.get("from") if isinstance(value, Mapped) else None
        if not isinstance(names, list):
            names = [names]
        if not names or not all(isinstance(n, str) for n in names):
            line = value.at("from") if isinstance(value, Mapped) else None
            self.report("DX206", f"{self.what} does not say where its data comes from", "add from: NODE", line)
            return []
        with self.reading(cast("Mapped", value).at("from")):
            found = [self.inlet(n) for n in names]
        return [s for s in found if s is not None]

    def inlet(self, text: str) -> AnyStream | None:
        """The stream of a source, of a node, or of one of its outlets: `branch.0`."""
        nodes = self.section("nodes")
        name, outlet = text, ""
        if text not in self.done and text not in nodes:
            name, _, outlet = text.rpartition(".")
        if name not in self.done and name not in nodes:
            known = [*self.done, *(n for n in nodes if n not in self.done)]
            self.report("DX206", f"{self.what}: there is no {text!r} to take data from", did_you_mean(text, known))
            return None
        if name in self.building:
            circle = " -> ".join([*self.building[self.building.index(name) :], name])
            self.report("DX213", f"{self.what} is part of a cycle: {circle}", _NO_CYCLES)
            return None
        streams = self.node(name)
        last = next(reversed(streams), None)  # a part may give none
        outlets = {str(i): s for i, s in enumerate(streams)} | {"" if len(streams) == 1 else "rest": last}
        if not streams:
            self.report("DX206", f"{self.what}: no data comes out of {name}", "it ends in sinks: take data from another node")
        elif outlets.get(outlet) is None:
            names = ", ".join(f"{name}.{k}" for k in outlets) if len(streams) > 1 else name
            self.report("DX206", f"{self.what}: {text} is no outlet", f"one of: {names}")
        return outlets.get(outlet, last)


def _which_operator(name: str, value: Mapping[str, Any], found: list[str]) -> tuple[str, str, str]:
    if found:
        return "DX204", f"node {name} has {len(found)} operators: {', '.join(found)}", "one operator a node; chain them by from"
    known = (*operators(), "through")
    if planned := next((k for k in value if k in not_built.OPERATORS), None):
        message = f"node {name}: the operator {planned!r} is not built in this version"
        return not_built.TOPOLOGY_CODE, message, f"one of: {', '.join(known)}"
    strange = [k for k in value if k != "from" and not any(k in o.keys for o in operators().values())]
    if strange:
        return "DX204", f"node {name}: there is no operator {strange[0]!r}", did_you_mean(strange[0], known)
    return "DX204", f"node {name} has no operator", f"one of: {', '.join(known)}"
