"""A topology while it grows: nodes without final names, and everything that is wrong with them.

An operator method never raises for what the user wrote: it notes the problem and gives a stream to go on with, so that
`check` can show every problem at once. Raising at the first would make users fix a topology one error at a time.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass, field, replace
from functools import cached_property
from typing import Any, Final, Literal, TypeAlias

from dspex.bus.errors import ConfigError, Problem, TopologyError
from dspex.engine.graph.context import Build, Handler
from dspex.engine.graph.nodes import (
    Call,
    CallNode,
    Hop,
    HopNode,
    Inlet,
    NativeNode,
    Node,
    Sink,
    SinkNode,
    Source,
    SourceLine,
    SourceNode,
    State,
    StateNode,
)
from dspex.operators.typing.shape import UNKNOWN, Shape, reader

HOP: Final = "hop"
"""The operator's word of a hop that an operator takes by itself, so that what belongs together meets. It is not written."""
Payload: TypeAlias = Source | Call | Hop | Sink | State | Build
"""What makes a node the kind of node that it is: see engine/graph/nodes.py."""


def _refused(outlets: Sequence[Handler]) -> Handler:
    """Stands in for an operator with a problem while the graph is checked; a topology with a problem never runs."""
    raise TopologyError("an operator with a problem cannot run", fix="see the problems that `check` gives")


@dataclass(eq=False)
class NodeDraft:
    """One node that is being built. `automatic`: the name that it gets where the user gave none. `uses`: functions,
    among others, that run where it does.
    """

    op: str
    automatic: str
    name: str | None = None
    _: KW_ONLY
    payload: Payload = _refused
    inputs: list[tuple[NodeDraft, int]] = field(default_factory=list)
    options: Mapping[str, object] = field(default_factory=dict)
    outlets: int = 1
    place: SourceLine | None = None
    shape: Shape = UNKNOWN
    code: str = ""
    uses: Sequence[object] = ()

    @cached_property
    def keyed(self) -> bool:
        """Whether its events have a key that says which partition they belong to."""
        return self.op == "key_by" or (bool(self.inputs) and all(draft.keyed for draft, _ in self.inputs))

    def node(self, names: Mapping[NodeDraft, str]) -> Node:
        """The draft as a node of a graph."""
        common: dict[str, Any] = {
            "name": names[self],
            "op": self.op,
            "inputs": tuple(Inlet(names[d], outlet) for d, outlet in self.inputs),
            "options": self.options,
            "outlets": self.outlets,
            "place": self.place,
            "type": self.shape.name,
            "fields": self.shape.texts,
            "named": self.name is not None,
            "code": self.code,
        }
        match self.payload:
            case Source() as source:
                return SourceNode(**common, source=source)
            case Call() as call:
                return CallNode(**common, call=call)
            case Hop() as hop:
                return HopNode(**common, hop=replace(hop, read=reader(self.shape.type)))
            case Sink() as sink:
                return SinkNode(**common, sink=sink)
            case State() as state:
                inputs = [names[d] + (f".{outlet}" if d.outlets > 1 else "") for d, outlet in self.inputs]
                named = replace(state.named(inputs), shown=state.shown) if state.named is not None else state
                return StateNode(**common, state=named)
            case build:
                return NativeNode(**common, build=build)


@dataclass(eq=False)
class Unfinished:
    """Something that is no node yet, because what follows decides what it does. `what`: for messages, with what is missing."""

    what: str
    fix: str
    place: SourceLine | None
    done: bool = False


@dataclass
class Plan:
    """The drafts of one topology, and the problems found so far. `at`: overrides the place of the caller (YAML)."""

    topology: str
    codec: str = "json"
    place: SourceLine | None = None
    drafts: list[NodeDraft] = field(default_factory=list)
    problems: list[tuple[NodeDraft | None, Problem]] = field(default_factory=list)
    unfinished: list[Unfinished] = field(default_factory=list)
    prefix: str = ""
    at: SourceLine | None = None
    frozen: bool = False

    def add(self, draft: NodeDraft) -> NodeDraft:
        """Take in a node. Raises TopologyError (DX224) once the topology is frozen."""
        if self.frozen:
            raise TopologyError(
                f"topology {self.topology} is frozen: {draft.op} cannot be added any more",
                code="DX224",
                fix="add all operators before check, freeze, digest, or handing the topology to an engine",
            )
        draft.place = self.at or caller()
        if self.prefix and not isinstance(draft.payload, Source | Sink):
            draft.automatic = self.prefix + draft.automatic
            draft.name = self.prefix + draft.name if draft.name else None
        self.drafts.append(draft)
        return draft

    def begin(self, what: str, fix: str) -> Unfinished:
        """Note something that is no node yet."""
        begun = Unfinished(what, fix, self.at or caller())
        self.unfinished.append(begun)
        return begun

    def report(
        self,
        draft: NodeDraft | None,
        code: str,
        message: str,
        fix: str,
        *,
        level: Literal["error", "warning"] = "error",
        place: SourceLine | None = None,
        node: str | None = None,
    ) -> None:
        """Note a problem of a draft; or, without one, of `node` or of the topology."""
        where = place or (draft.place if draft else self.at or caller())
        file, line = where or (None, None)
        self.problems.append((draft, Problem(code, level, self.topology, node, file, line, message, fix)))

    def refuse(self, draft: NodeDraft | None, error: TopologyError) -> None:
        """Note what an error says, each of its problems where it has several."""
        for p in error.problems or (error,):
            self.report(draft, p.code, p.message, p.fix)

    @contextmanager
    def collecting(self, draft: NodeDraft | None) -> Generator[None]:
        """Note the error that the block raises about what the user wrote, and go on."""
        try:
            yield
        except TopologyError as e:
            self.refuse(draft, e)
        except ConfigError as e:
            self.report(draft, "DX205", e.message, e.fix)

    def lengths(self) -> dict[NodeDraft, int]:
        """How many nodes are in a row up to each, on the longest way to it."""
        found = dict[NodeDraft, int]()
        for d in self.drafts:  # every one comes after its inputs
            found[d] = 1 + max((found.get(before, 0) for before, _ in d.inputs), default=0)
        return found

    def names(self) -> dict[NodeDraft, str]:
        """The final names: those given first, then the automatic ones in order, with `_2`, `_3` when taken."""
        names = {d: d.name for d in self.drafts if d.name is not None}
        taken = set(names.values())
        for d in self.drafts:
            if d.name is None:
                names[d] = name = next(n for n in _numbered(d.automatic) if n not in taken)
                taken.add(name)
        return names


def _numbered(name: str) -> Iterator[str]:
    yield name
    number = 2
    while True:
        yield f"{name}_{number}"
        number += 1


def caller() -> SourceLine | None:
    """Where the user's code called into dspex: the first frame outside the operators."""
    # inspect.stack() would read the source file of every frame
    frame = sys._getframe(1)  # pyright: ignore[reportPrivateUsage]
    while frame is not None:
        module = str(frame.f_globals.get("__name__", ""))
        if not module.startswith("dspex.operators") and module != "contextlib":
            return SourceLine(shorten(frame.f_code.co_filename), frame.f_lineno)
        frame = frame.f_back  # type: ignore[assignment]
    return None


def shorten(file: str) -> str:
    """The path as people write it: relative, where it is below the working directory."""
    here = os.getcwd() + os.sep
    return file[len(here) :] if file.startswith(here) else file
