"""Topologies: a named graph of operators, built in Python or YAML, checked as a whole, frozen, then run."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from os import PathLike, fspath
from types import MappingProxyType
from typing import Any, Final, Literal, Self, cast

from typing_extensions import Unpack

from dspex.bus import subjects
from dspex.bus.errors import Problem, TopologyError
from dspex.bus.settings.duration import Duration
from dspex.engine.graph.check import NAME
from dspex.engine.graph.graph import Graph
from dspex.operators.check import check
from dspex.operators.formats.describe import TopologyInfo, describe
from dspex.operators.formats.mermaid import mermaid
from dspex.operators.native.problems import problem, wrong
from dspex.operators.parameters.values import in_seconds
from dspex.operators.plan import HOP, Plan, caller
from dspex.operators.stateless import source
from dspex.operators.stateless.sink import CODEC
from dspex.operators.stateless.source import SourceOptions
from dspex.operators.stream import Stream
from dspex.operators.typing.files import files_of
from dspex.operators.typing.names import Codec, Record, V
from dspex.operators.typing.refs import resolve

_NONE: Mapping[str, str] = MappingProxyType({})
_FRAMES: Final = 16  # Python's calls that a node takes at most, as each calls the next one: where it is watched, and timed
_ROOM: Final = 500  # calls besides


def _names_by_name(value: object) -> Mapping[str, str]:
    """`renamed_from`, as YAML and Python without a type checker may say it. Raises TopologyError (DX205)."""
    found = cast("Mapping[object, object]", value) if isinstance(value, Mapping) else None
    if found is None or not all(isinstance(name, str) for name in (*found, *found.values())):
        raise wrong("renamed_from", value, '{"new": "old"}')
    return cast("Mapping[str, str]", found)


def _names(value: object) -> Sequence[str]:
    """`drop`, likewise. Raises TopologyError (DX205)."""
    found = cast("Sequence[object]", value) if isinstance(value, Sequence) and not isinstance(value, str) else None
    if found is None or not all(isinstance(name, str) for name in found):
        raise wrong("drop", value, 'a list of names: ["draft"]')
    return cast("Sequence[str]", found)


class Topology:
    """A named graph of operators. Grows until it is frozen; then it is read-only.

    Args:
        name: `[a-z][a-z0-9_-]{0,47}`.
        codec: how sinks encode data: "json", "msgpack", "arrow", or "auto".
        retention: how far back replay reaches.
        renamed_from: {new: old} names of nodes, for a change of a running topology.
        drop: names of nodes that are given up, with their calls and state.

    `check` lists all problems at once. Only `freeze`, and what freezes the topology, raises an error.
    """

    def __init__(
        self,
        name: str,
        *,
        codec: Codec = "json",
        retention: Duration = "7d",
        renamed_from: Mapping[str, str] = _NONE,
        drop: Sequence[str] = (),
    ) -> None:
        self.name = str(name)
        self._plan = Plan(self.name, place=caller())
        self._renamed_from, self._drop = _NONE, cast("Sequence[str]", ())
        self._graph: Graph | None = None
        self._retention = 0.0
        if not isinstance(name, str) or not NAME.fullmatch(name):  # pyright: ignore[reportUnnecessaryIsInstance]
            fix = "a name is a-z, then a-z, 0-9, _ or -, at most 48 characters"
            self._plan.report(None, "DX202", f"{name!r} is not a name for a topology", fix)
        if name == subjects.AD_HOC:  # who may call a node of it could run anything of that kind
            why = f"{name!r} is not a name for a topology: calls of what is in none have it"
            self._plan.report(None, "DX202", why, "give it another name")
        with self._plan.collecting(None):
            self._retention = float(in_seconds("retention", retention))
        with self._plan.collecting(None):
            CODEC.check("codec", codec)
            self._plan.codec = codec
        with self._plan.collecting(None):
            self._renamed_from = _names_by_name(renamed_from)
        with self._plan.collecting(None):
            self._drop = _names(drop)

    def source(self, subject: str, type: type[V] | None = None, **o: Unpack[SourceOptions]) -> Stream[V]:
        """The events of a subject, which may have wildcards. `type`: checks and types their data.

        An event whose data does not fit the type goes to the dead letters.
        """
        given = {**({} if type is None else {"type": type}), **cast("Mapping[str, object]", o)}
        return Stream(self._plan, source.add(self._plan, subject, given))

    def cron(
        self,
        schedule: str,
        *,
        name: str,
        data: Mapping[str, Any] | None = None,
        zone: str = "UTC",
        missed: Literal["skip", "last", "all"] = "last",
    ) -> Stream[Record]:
        """Events at the times of a schedule, each time once, whoever runs it then.

        An event has the fields of `data`, and `due`: when it was to be. Publish to `cron.<topology>.<name>` for one at once.

        Args:
            schedule: a cron expression, "0 3 * * *"; with six fields the first is the second.
            zone: the time zone of it. A time that a change of clocks leaves out comes right behind it; one that comes twice is
                taken once.
            missed: what was to be while no engine ran: "skip" it, the "last" one alone, or "all".
        """
        begins = Stream[Any](self._plan, source.add(self._plan, f"cron.{self.name}.{name}", {}))
        return begins.cron(schedule, zone=zone, data=data, missed=missed, name=name)

    def check(self) -> list[Problem]:
        """Every problem: code, node, file:line, message, fix. Errors first, then warnings."""
        return check(self._plan, self._renamed_from, self._drop)

    def freeze(self) -> Self:
        """Make it read-only. Raises one TopologyError that carries all problems."""
        self._frozen()
        return self

    @property
    def graph(self) -> Graph:
        """The frozen graph: what engines run. Freezes the topology."""
        return self._frozen()

    def _frozen(self) -> Graph:
        if self._graph is None:
            errors = [p for p in self.check() if p.level == "error"]
            if errors:
                lines = "\n".join(f"error[{p.code}] {p.place}: {p.message}\n  fix: {p.fix}" for p in errors)
                raise TopologyError(lines, code=errors[0].code, fix=errors[0].fix, problems=errors)
            deep = _ROOM + _FRAMES * max(self._plan.lengths().values(), default=0)
            sys.setrecursionlimit(max(sys.getrecursionlimit(), deep))
            self._graph = self._build()
            self._plan.frozen = True
        return self._graph

    def _build(self) -> Graph:
        names = self._plan.names()
        hops = {names[d] for d in self._plan.drafts if d.op == HOP}
        renamed = dict(self._renamed_from)
        renamed |= {f"{new}/{HOP}": f"{old}/{HOP}" for new, old in renamed.items() if f"{new}/{HOP}" in hops}
        return Graph(
            name=self.name,
            nodes={names[d]: d.node(names) for d in self._plan.drafts},
            codec=self._plan.codec,
            retention=self._retention,
            renamed_from=renamed,
            drop=tuple(self._drop),
            file=self._plan.place.file if self._plan.place else None,
            files=files_of([[*draft.uses, draft.shape.type] for draft in self._plan.drafts]),
        )

    @property
    def digest(self) -> str:
        """12 hex digits over names, operators, options and refs; not over function bodies. Freezes the topology."""
        return self.graph.digest

    def describe(self) -> TopologyInfo:
        """Nodes, edges, signatures, pools and refs, as plain data. Freezes the topology."""
        return describe(self.graph)

    def to_yaml(self) -> str:
        """The topology in YAML, with the same digest. Raises TopologyError (DX223) for lambdas, naming the node."""
        from dspex.operators.formats.yaml_dump import dump

        return dump(self.graph)

    def to_mermaid(self) -> str:
        """A Mermaid flow chart; the same text for the same graph."""
        return mermaid(self.graph)

    def to_asyncapi(self) -> dict[str, Any]:
        """An AsyncAPI 3.0 document: sources are received, sinks sent, and pools have queues."""
        from dspex.operators.formats.asyncapi import asyncapi

        return asyncapi(self.graph)

    @classmethod
    def load(cls, target: str | PathLike[str]) -> Topology:
        """The topology of "triage:topology" or "triage.yaml". `check` lists its problems.

        Raises TopologyError where there is no topology to be read: DX221 (no such ref or file), DX222 (no YAML).
        """
        text = fspath(target)
        if text.endswith((".yaml", ".yml")):
            from dspex.operators.formats.yaml_load import load

            return load(text)
        found = resolve(text)
        if not isinstance(found, Topology):
            raise problem("DX221", f"{text} is {type(found).__name__}, not a Topology", 'name the topology: "triage:topology"')
        return found

    def __repr__(self) -> str:
        return f"Topology({self.name!r}, {len(self._plan.drafts)} nodes)"
