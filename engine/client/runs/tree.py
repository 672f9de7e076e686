"""What a run did, as a tree: each event, call, output and dead letter below what caused it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal

from dspex.bus import codecs, subjects
from dspex.bus.errors import DataError, RecordingIncomplete
from dspex.bus.message import Message, cause_of, content_type, plain
from dspex.bus.records import CallRecord, CallRequest, Letter, NodeEvent, Usage, unpack_event, unpack_frame
from dspex.bus.serving import payloads
from dspex.bus.serving.keys.hashes import is_damaged
from dspex.engine.client.following.progress import PartitionId
from dspex.engine.client.runs.history import History
from dspex.engine.client.runs.steps import Step, exchanges_of, what_is_asked
from dspex.engine.client.runs.then.taken import Taken
from dspex.engine.graph.manifest import Manifest
from dspex.engine.graph.submitted import secrets_in

Kind = Literal["source", "hop", "call", "output", "letter", "native"]


@dataclass
class Happening:
    """Something of a run.

    Attributes:
        id: of the event or the call. cause: of what it came of; "" for the source event.
        node: the operator: of an output, its subject. label: as people see it: `node#ordinal` of a call.
        time: when it was stored. where: the partition, as `stage.partition`.
        data: of the event; of a call, its inputs.
        attempts: of a call, one step each; the last one has no record yet where it has neither outputs nor an error.
        error: of a letter, or of a native operator that raised. failures: of each attempt its error, or None.
        recorded: that it is, and below what it stands, lies in a stream. Else it is inferred, or made again: of a native one.
        executions: of a call, for each attempt its pool, what was asked, and the record.
        waits: of a call, that it is open: another attempt follows. secrets: of a source event, fields that are not shown.
        changed: of a source event, the entries of the run's commits that are not what was stored.
        gives, note: of a native operator: what it handed on, each with its outlet; and what it did, in words.
    """

    kind: Kind
    id: str
    cause: str
    node: str
    label: str
    time: datetime
    where: str
    data: Any
    attempts: list[Step] = field(default_factory=list)
    error: Mapping[str, Any] | None = None
    failures: list[Mapping[str, Any] | None] = field(default_factory=list)
    recorded: bool = True
    waits: bool = False
    gives: list[tuple[int, Any]] = field(default_factory=list)
    note: str = ""
    executions: list[tuple[str, CallRequest, CallRecord | None]] = field(default_factory=list, compare=False)
    secrets: frozenset[str] = field(default=frozenset(), compare=False)
    changed: tuple[int, ...] = field(default=(), compare=False)
    below: list[Happening] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """As the CLI prints it, without what is below."""
        kept = ("kind", "id", "cause", "node", "label", "time", "where", "data", "error", *(("waits",) if self.waits else ()))
        found = {name: getattr(self, name) for name in kept} | {"attempts": [vars(step) for step in self.attempts]}
        found |= {"recorded": self.recorded} | ({"changed": list(self.changed)} if self.changed else {})
        if self.kind == "native":
            found |= {"note": self.note, "gives": [{"outlet": outlet, "data": data} for outlet, data in self.gives]}
        return found

    def __iter__(self) -> Iterator[Happening]:
        """It, and all below it."""
        left: list[Happening] = [self]
        while left:
            yield (one := left.pop())
            left += reversed(one.below)


class StepLabels:
    """Step ids, in the order in which they are asked for. They do not depend on who ran a step, nor on how often."""

    def __init__(self, manifests: Mapping[str, Manifest]) -> None:
        self._manifests, self._ordinals = manifests, dict[str, int]()

    def next(self, partition: PartitionId, node: str, key: str | None) -> str:
        """That of the next step of a node: `node#ordinal`, or behind a hop `node/key#ordinal`."""
        topology, stage, _ = partition
        applied = self._manifests.get(topology)
        keyed = applied is not None and stage in {id for id, _ in applied.hops.values()}
        name = f"{node}/{key}" if key is not None and keyed else node
        self._ordinals[name] = ordinal = self._ordinals.get(name, -1) + 1
        return f"{name}#{ordinal}"


FORGOTTEN: Final = "(forgotten: nobody can read it any more)"
"""Stands for data whose key was deleted, or that are stored nowhere any more. What headers say of them is still told."""


class Tree:
    """Reads a history into a tree. Messages must be whole, but those that nobody can have whole any more."""

    def __init__(self, of: History, manifests: Mapping[str, Manifest]) -> None:
        self._run, self._labels = of.run, StepLabels(manifests)
        self._known: dict[str, Happening] = {}
        self._calls: dict[str, Happening] = {}
        records = {(r.call, r.try_number): r for m in of.records if (r := _record(m)) is not None}
        source, self._missing, self._damaged = of.source, of.missing, of.damaged
        self.root = self._add(
            Happening("source", of.run, "", source.subject, source.subject, _time(source.time), "", _data(source))
        )
        self.root.changed = tuple(of.changed)
        for taken in of.taken:
            for message in taken.messages:
                self._take(taken, message, records)
        for told in self._calls.values():
            told.waits = told.id in of.open
        asked = (asked.spec.secrets for told in self._calls.values() for _, asked, _ in told.executions)
        self.root.secrets = secrets_in(self.root.data).union(*(one.secrets for one in manifests.values()), *asked)

    @property
    def steps(self) -> list[Step]:
        """The attempts at calls, in the order in which they were asked for."""
        return [step for told in self._calls.values() for step in told.attempts]

    def _add(self, told: Happening) -> Happening:
        self._known.setdefault(told.id, told)
        if told.kind != "source":
            told.recorded = told.cause in self._known
            self._known.get(told.cause, self.root).below.append(told)
        return told

    def _take(self, taken: Taken, m: Message, records: Mapping[tuple[str, int], CallRecord]) -> None:
        try:
            if subjects.is_work(m.subject):
                self._request(taken, m, records)
            elif ".dead." in m.subject and m.subject.startswith("dspex.") and _is_gone(m):
                id, cause, node = f"letter {m.sequence}", m.headers.get(subjects.CAUSE) or self._run, m.subject.split(".")[-1]
                self._add(Happening("letter", id, cause, node, node, _time(m.time), _where(taken), FORGOTTEN))
            elif ".edge." in m.subject and m.subject.startswith("dspex."):
                for event in unpack_frame(m.data):
                    if event.origin.run == self._run:
                        self._hop(taken, m, event)
            elif ".dead." in m.subject and m.subject.startswith("dspex."):
                self._letter(taken, m)
            else:
                id, cause = m.headers.get(subjects.EVENT_ID, ""), cause_of(m.headers) or self._run
                self._add(Happening("output", id, cause, m.subject, m.subject, _time(m.time), _where(taken), _data(m)))
        except DataError:
            return  # what no engine wrote lies between its messages: it is none of the run's

    def _request(self, taken: Taken, m: Message, records: Mapping[tuple[str, int], CallRecord]) -> None:
        gone = _is_gone(m)
        asked = payloads.named_in_headers(m.subject.split(".")[1], m) if gone else CallRequest.unpack(m.data)
        event = unpack_event(asked.record.event) if asked.record is not None and not gone else None
        told = self._calls.get(asked.call)
        if told is None:
            origin = event.origin if event is not None else None
            cause = origin.id if origin is not None else self._run
            label = self._labels.next(taken.partition, asked.node, origin.key if origin is not None else None)
            inputs = FORGOTTEN if gone else dict(asked.inputs)
            told = Happening("call", asked.call, cause, asked.node, label, _time(m.time), _where(taken), inputs)
            self._calls[asked.call] = self._add(told)
        record = records.get((asked.call, asked.try_number))
        told.executions.append((m.subject.split(".")[3], asked, record))
        told.failures.append(record.error if record is not None else None)
        step = _step(told, asked, record, event.origin.id if event is not None else "")
        id = asked.record.id if asked.record is not None else ""
        damaged = any(f"{one}.".startswith(f"{id}.") for one in self._damaged)  # under a fresh id, more is behind it
        missing = record is None and (asked.call, asked.try_number) in self._missing
        told.attempts.append(replace(step, damaged=damaged, missing=missing and not damaged))

    def _hop(self, taken: Taken, m: Message, event: NodeEvent) -> None:
        label = f"{event.node}/{event.origin.key}" if event.origin.key is not None else event.node
        cause = event.origin.cause or self._run
        data = _decoded(event.data, event.content_type)
        self._add(Happening("hop", event.origin.id, cause, event.node, label, _time(m.time), _where(taken), data))

    def _letter(self, taken: Taken, m: Message) -> None:
        letter = Letter.unpack(m.data)
        event, node, error = letter.event, letter.node, letter.error
        id, cause, data = f"letter {m.sequence}", event.call or event.origin.id, _decoded(event.data, event.content_type)
        self._add(Happening("letter", id, cause, node, node, _time(m.time), _where(taken), data, error=error))


def _record(m: Message) -> CallRecord | None:
    try:
        return CallRecord.unpack(m.data) if not is_damaged(m) else None
    except DataError:
        return None


def _step(told: Happening, asked: CallRequest, record: CallRecord | None, event: str) -> Step:
    r = record or CallRecord(asked.call, asked.try_number, asked.attempt, asked.topology, asked.node, route="")
    return Step(
        id=told.label,
        node=asked.node,
        event=event,
        inputs=dict(asked.inputs),
        outputs=None if r.outputs is None else dict(r.outputs),
        route=r.route or None,
        lm=r.lm or None,
        program=r.program or None,
        worker=r.worker or None,
        started=_time(r.started) if record is not None else told.time,
        elapsed=timedelta(seconds=r.elapsed),
        usage=Usage.read(r.usage),
        error=None if r.error is None else str(r.error.get("message", "")),
        run=asked.run,
        call=asked.call,
        attempt=asked.try_number,
        asked=what_is_asked(asked.spec),
        state=r.state,
        exchanges=exchanges_of(r, asked.spec),
    )


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, tz=UTC)


def _where(taken: Taken) -> str:
    return f"{taken.partition[1]}.{taken.partition[2]}"


def _is_gone(m: Message) -> bool:
    """Whether a message has not its own body, though whoever reads it has asked for that."""
    return subjects.SEALED in m.headers or (subjects.CLAIM_CHECK in m.headers and not m.data)


def _data(m: Message) -> Any:
    """The data of a message; its bytes where they cannot be read."""
    if _is_gone(m):
        return FORGOTTEN
    try:
        m = plain(m)
        return codecs.decode(m.data, content_type(m.headers))
    except DataError:
        return m.data


def _decoded(data: bytes, media: str) -> Any:
    try:
        return codecs.decode(data, media)
    except DataError:
        return data


def changed(root: Happening) -> RecordingIncomplete:
    """The error of a run of which something is not what was stored."""
    where = ", ".join(map(str, root.changed))
    why = f"of run {root.id}, what was committed at {where} is damaged: what is there is not what was stored"
    return RecordingIncomplete(why, run=root.id, fix=f"it is shown as it is now: dspex runs show {root.id}")


def paths(root: Happening) -> Iterable[tuple[Happening, int]]:
    """All of a tree with the depth of each, from the top."""
    waiting = [(root, 0)]
    while waiting:
        told, depth = waiting.pop()
        yield told, depth
        waiting += [(one, depth + 1) for one in reversed(told.below)]
