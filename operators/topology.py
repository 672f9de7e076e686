"""Topologies: a named graph of operators, built in Python or YAML, checked as a whole, frozen, then run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from os import PathLike, fspath
from types import MappingProxyType
from typing import Any, Self, cast

from typing_extensions import Unpack

from dspex.bus.duration import Duration, seconds
from dspex.bus.errors import InvalidInput, Problem, TopologyError
from dspex.engine.graph.graph import Graph, Source
from dspex.operators.check import check
from dspex.operators.expressions import language as expressions
from dspex.operators.formats.describe import TopologyInfo, describe, mermaid
from dspex.operators.native.suggestions import did_you_mean
from dspex.operators.options import Codec, SourceOptions, V
from dspex.operators.plan import NodeDraft, Plan, caller
from dspex.operators.problems import problem, wrong
from dspex.operators.recorded.spec import type_option
from dspex.operators.stateless.sink import CODECS
from dspex.operators.stream import Stream
from dspex.operators.typing import stream_checks as fits
from dspex.operators.typing.refs import resolve
from dspex.operators.typing.shape import shape_of, validator

_NONE: Mapping[str, str] = MappingProxyType({})


class Topology:
    """A named graph of operators. Grows until it is frozen; then it is read-only.

    Args:
        name: `[a-z][a-z0-9_-]{0,47}`.
        codec: how sinks encode data: "json", "msgpack", "arrow", or "auto".
        retention: how far back replay reaches.
        renamed_from: {new: old} names of nodes, for a change of a running topology.
        drop: names of nodes that are given up, with their calls and state.

    What is wrong in it is told by `check`, all at once; only `freeze`, and what freezes, raises.
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
        self.name = name
        self._plan = Plan(name, codec, caller())
        self._renamed_from, self._drop = renamed_from, drop
        self._graph: Graph | None = None
        self._retention = 0.0
        with self._plan.collecting(None):
            self._retention = seconds(retention)
        with self._plan.collecting(None):
            if codec not in CODECS:
                self._plan.codec = "json"
                raise wrong("codec", codec, f"one of: {', '.join(CODECS)}")
        with self._plan.collecting(None):  # YAML has no type checker
            if not isinstance(renamed_from, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise wrong("renamed_from", renamed_from, '{"new": "old"}')
            if isinstance(drop, str) or not isinstance(drop, Sequence):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise wrong("drop", drop, 'a list of names: ["draft"]')

    def source(self, subject: str, type: type[V] | None = None, **o: Unpack[SourceOptions]) -> Stream[V]:
        """The events of a subject, which may have wildcards. `type`: checks and types their data.

        An event whose data does not fit the type goes to the dead letters.
        """
        given = cast("Mapping[str, Any]", o)
        options = {**({} if type is None else {"type": type_option(type)}), **_plain_source(given)}
        draft = NodeDraft("source", "source", subject, subject, options=options, shape=shape_of(type))
        self._plan.add(draft)
        draft.source = Source(subject)
        with self._plan.collecting(draft):
            draft.source = _source(subject, None if type is None else validator(type), given)
            if isinstance(given.get("time"), str):
                fits.fields_exist(given["time"], draft.shape)
        return Stream(self._plan, draft)

    def check(self) -> list[Problem]:
        """Every problem: code, node, file:line, message, fix. Errors first, then warnings."""
        return check(self._plan)

    def freeze(self) -> Self:
        """End the growing. Raises one TopologyError that carries all problems."""
        if self._graph is None:
            errors = [p for p in self.check() if p.level == "error"]
            if errors:
                lines = "\n".join(f"error[{p.code}] {p.place}: {p.message}\n  fix: {p.fix}" for p in errors)
                raise TopologyError(lines, code=errors[0].code, fix=errors[0].fix, problems=errors)
            self._graph = self._build()
            self._plan.frozen = True
        return self

    def _build(self) -> Graph:
        names = self._plan.names()
        return Graph(
            name=self.name,
            nodes={names[d]: d.node(names) for d in self._plan.drafts},
            codec=self._plan.codec,
            retention=self._retention,
            renamed_from=dict(self._renamed_from),
            drop=tuple(self._drop),
            file=self._plan.place.file if self._plan.place else None,
        )

    @property
    def graph(self) -> Graph:
        """The frozen graph: what engines run. Freezes the topology."""
        self.freeze()
        assert self._graph is not None
        return self._graph

    @property
    def digest(self) -> str:
        """12 hex digits over names, operators, options and refs; not over function bodies. Freezes the topology."""
        return self.graph.digest

    def describe(self) -> TopologyInfo:
        """Nodes, edges, signatures, pools and refs, as plain data. Freezes the topology."""
        return describe(self.graph)

    def to_yaml(self) -> str:
        """The topology in YAML, with the same digest. Raises TopologyError (DX223) for lambdas, naming the node."""
        from dspex.operators.formats import yaml

        return yaml.dump(self.graph)

    def to_mermaid(self) -> str:
        """A Mermaid flow chart; the same text for the same graph."""
        return mermaid(self.graph)

    @classmethod
    def load(cls, target: str | PathLike[str]) -> Topology:
        """The topology of "triage:topology" or "triage.yaml". Its problems are told by `check`.

        Raises TopologyError where there is no topology to be read: DX221 (no such ref or file), DX222 (no YAML).
        """
        text = fspath(target)
        if text.endswith((".yaml", ".yml")):
            from dspex.operators.formats import yaml

            return yaml.load(text)
        found = resolve(text)
        if not isinstance(found, Topology):
            raise problem("DX221", f"{text} is {type(found).__name__}, not a Topology", 'name the topology: "triage:topology"')
        return found

    def __repr__(self) -> str:
        return f"Topology({self.name!r}, {len(self._plan.drafts)} nodes)"


def _plain_source(given: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v.isoformat() if isinstance(v, datetime) else v for k, v in given.items()}


def _source(subject: str, accept: Callable[[Any], Any] | None, given: Mapping[str, Any]) -> Source:
    """The source with its options. Raises TopologyError for an unknown option (DX204) or a wrong value (DX205)."""
    for name in given:
        if name not in SourceOptions.__annotations__:
            raise problem("DX204", f"a source has no option {name!r}", did_you_mean(name, SourceOptions.__annotations__))
    partitions, on_gap = given.get("partitions", 1), given.get("on_gap", "stop")
    if not isinstance(partitions, int) or isinstance(partitions, bool) or not 1 <= partitions <= 1024:
        raise wrong("partitions", partitions, "a whole number from 1 to 1024")
    if on_gap not in ("stop", "skip"):
        raise wrong("on_gap", on_gap, "one of: stop, skip")
    time, stream = given.get("time"), given.get("stream")
    if stream is not None and not isinstance(stream, str):
        raise wrong("stream", stream, "the name of a JetStream stream")
    return Source(
        subject,
        stream,
        _start(given.get("start", "all")),
        partitions,
        on_gap,
        None if time is None else _event_time(time),
        accept,
    )


def _start(value: Any) -> Any:
    if value in ("new", "all") or (isinstance(value, int) and not isinstance(value, bool) and value >= 0):
        return value
    if isinstance(value, str):
        with suppress(ValueError):
            value = datetime.fromisoformat(value)
    if not isinstance(value, datetime):
        raise wrong("start", value, '"new", "all", a sequence, or a time: datetime, or "2026-01-01T00:00:00Z"')
    return (value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp()


def _event_time(text: str) -> Callable[[Any], datetime]:
    """data → event time, by an expression that gives RFC 3339 text, seconds since the epoch, or a datetime."""
    expression = expressions.compile(text)

    def time(data: Any) -> datetime:
        value = expression.function(data)
        try:
            if isinstance(value, str):
                value = datetime.fromisoformat(value)
            elif isinstance(value, (int, float)):
                value = datetime.fromtimestamp(value, tz=UTC)
        except (ValueError, OverflowError, OSError) as e:
            raise InvalidInput(f'"{text}" gives {value!r}, which is no time: {e}') from e
        if not isinstance(value, datetime):
            raise InvalidInput(f'"{text}" gives {type(value).__name__}, which is no time')
        return value if value.tzinfo else value.replace(tzinfo=UTC)

    return time
