"""What engines and clients read of the bus: events, records, frames, logs, keys of the bucket, letters, markers, answers.

An engine runs on the in-memory bus, and its own inputs read what is tried. Nothing of it is committed, so that one input does
not change what the next one meets.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from functools import cache
from typing import Any, get_args

import orjson
from engine_lab import APP, STREAM, Lab
from fuzzing import Bug, Entry
from mutations import Case

from dspex.bus import codecs, subjects
from dspex.bus.codecs import cloud_events
from dspex.bus.errors import CallError, DataError, TopologyError, Unreachable
from dspex.bus.local.processes import is_dead
from dspex.bus.message import Message, spread_of, to_event
from dspex.bus.port import NewMessage
from dspex.bus.records import NodeEvent, Origin, pack_frame
from dspex.bus.serving.work_consumers import WorkConsumers
from dspex.engine.client import letters
from dspex.engine.client.following.follower import Follower
from dspex.engine.client.status import status
from dspex.engine.graph import manifest
from dspex.engine.hosting.host import Host
from dspex.engine.hosting.membership import Membership
from dspex.engine.log import entries, positions, reading
from dspex.engine.log.entries import LogAddress, packed
from dspex.engine.log.tables import Tables
from dspex.engine.log.torn_commits import TornCommits
from dspex.engine.runtime.failure import Failure
from dspex.engine.runtime.inputs.input import Input
from dspex.operators.topology import Topology

TOPOLOGY, SOURCE, POOL = "fuzz", "in", "lightweight"
NOW = 1.8e9
EVENTS: list[Any] = [
    {"text": "hello", "n": 1, "kind": "a"},
    {"text": "hello " * 50, "n": 7.5, "kind": "b", "list": [1, None, True, {"deep": [[1]]}], "map": {"a": {"b": 2}}},
]
HEADERS = (
    *(
        subjects.EVENT_ID,
        subjects.MESSAGE_ID,
        subjects.RUN,
        subjects.CAUSE,
        subjects.KEY,
        subjects.SESSION,
        subjects.TIME,
        subjects.AT,
    ),
    *(subjects.CLAIM_CHECK, subjects.STORED, subjects.RECORD, subjects.LETTER, subjects.FALLBACK, subjects.CONTENT_TYPE),
    *(subjects.TRACEPARENT, subjects.KIND, subjects.SEALED, "x-own"),
)
Take = Callable[[Case], object]
KEPT: list[Any] = []  # what is made once, until `close`
_labs: list[Lab] = []


def lab(*topologies: Topology) -> Lab:
    """A lab, which `close` closes."""
    _labs.append(Lab(*topologies))
    return _labs[-1]


def close() -> None:
    """End what was started here."""
    for kept in KEPT:
        kept.cache_clear()
    while _labs:
        _labs.pop().close()


def made() -> Topology:
    """Every way that an event can take: into expressions, sinks named by data, and calls."""
    topology = Topology(TOPOLOGY)
    source = topology.source(SOURCE, accept=[codecs.JSON, codecs.MSGPACK, codecs.ARROW])
    large, small = source.branch("n >= 4")
    large.set({"size": "len(text)"}).sink("large.{kind}")
    small.sink("small", codec="msgpack")
    source.predict("text -> label", name="label", fallback={"label": "none"}, on_error="skip").sink("out")
    source.predict("text -> label", name="ordered", order="key").sink("in.order")
    return topology


class Engine:
    """An engine on the in-memory bus, with an open call, dead letters, and nobody who answers."""

    def __init__(self) -> None:
        self.lab = lab(made())
        self.host: Host = self.lab.start()
        for data in EVENTS:
            self.lab.publish(SOURCE, data, key="k")
        self.lab.store(NewMessage(SOURCE, b"garbage"))
        self.lab.advance(1)
        self.runner = self.host.runners[0]
        self.stage = self.runner.stage.id
        self.partition = self.runner.partitions[0]
        self.bus, self.run = self.lab.client.bus, self.lab.run

    def input(self, name: str) -> Input:
        return self.runner.pumps[name].input

    def walked(self, name: str, message: Message) -> list[object]:
        """What an input makes of a message, and what comes of that. The engine must not take the blame off a user's code."""
        input, p, found = self.input(name), self.partition, list[object]()
        first = input.at_once(p, message, NOW)
        for arrival in [first] if first is not None else self.run(input.arrivals(p, message, NOW)):
            effects = p.process.handle(arrival, p.tables)
            if effects.failure is not None:
                _is_of_an_input(effects.failure)
            for output in effects.outputs:
                found.append(_read_again(output if isinstance(output, NewMessage) else output.message))
        return found

    def put(self, key: str, value: bytes) -> None:
        async def go() -> None:
            await (await self.bus.bucket(subjects.bucket(APP))).put(key, value)

        self.run(go())


def _is_of_an_input(failure: Failure) -> None:
    """There is no function of a user's here. What cannot be copied or written because it is too deep is refused like that."""
    error = failure.error
    blames = " raised " in error.message and "raised RecursionError" not in error.message
    if blames or not isinstance(error, (DataError, CallError, TopologyError)):
        raise Bug(f"{failure.error!r} {failure.traceback[-1000:]}")


def _read_again(output: NewMessage) -> object:
    """What the engine wrote, as whoever comes next reads it: nothing of its own may be refused."""
    message = Message(output.subject, output.data, output.headers or {}, 9, NOW)
    if any(not {"\r", "\n"}.isdisjoint(text) for text in message.headers.values()):
        raise Bug(f"a header with a line break: {message.headers}")
    if subjects.matches(subjects.dead_pattern(APP), message.subject):
        return letters.read(message).as_dict(traceback=True)
    if ".work." in message.subject:
        return message.data
    data = codecs.decode(message.data, message.headers.get(subjects.CONTENT_TYPE))
    return to_event(message, data).as_dict()


@cache
def engine() -> Engine:
    return Engine()


KEPT.append(engine)


# -- inputs of a stage ----------------------------------------------------------------------------------------------
def _source(content_type: str) -> Callable[[], list[Case]]:
    def seeds() -> list[Case]:
        if content_type == codecs.ARROW:
            import numpy
            import pyarrow

            tables = [pyarrow.table({"n": [1, 2], "text": ["a", None]}), numpy.ones((3, 2)), numpy.zeros(0, "complex128")]
            bodies = [codecs.encode(table, "arrow")[0] for table in tables]
        else:
            bodies = [codecs.encode(data, "msgpack" if content_type == codecs.MSGPACK else "json")[0] for data in EVENTS]
        own = {subjects.CONTENT_TYPE: content_type, subjects.KEY: "k", subjects.TIME: "2026-01-01T00:00:00Z"}
        return [
            *(Case(body, own) for body in bodies),
            Case(bodies[0], {**own, subjects.RUN: "r", "x-own": "1", subjects.AT: "+90"}),
            Case(bodies[0]),
        ]

    return seeds


def _cloud_events() -> list[Case]:
    attributes = {"id": "A-1", "source": "/s", "type": "t", "subject": "k é", "time": "2026-01-01T00:00:00Z", "x": "1"}
    return [
        Case(*cloud_events.write(mode, attributes, *codecs.encode(data, codec)))
        for mode in get_args(cloud_events.CloudEventMode)
        for codec in ("json", "msgpack")
        for data in EVENTS[:2]
    ]


def _of_input(name: str, subject: Callable[[Engine], str]) -> Callable[[], Take]:
    def taker() -> Take:
        e = engine()
        where = subject(e)

        def take(case: Case) -> object:
            message = Message(where, case.data, case.headers, 10**6, NOW)
            e.input(name).owner(message)
            spread_of(message)
            return e.walked(name, message)

        return take

    return taker


def _record_subject(e: Engine) -> str:
    return subjects.record(APP, POOL, TOPOLOGY, e.stage, 0)


def _edge_subject(e: Engine) -> str:
    return subjects.edge(APP, TOPOLOGY, e.stage, 0)


def _records() -> list[Case]:
    e, found = engine(), list[Case]()
    errors = [None, CallError("no", retry_after=1.0).as_dict(), {**DataError("no").as_dict(), "traceback": "at line 1"}]
    for request in e.lab.requests():
        for error in errors:
            outputs = None if error else {"label": "a"}
            draft = e.lab.result(
                request, outputs=outputs, error=error, usage={"input_tokens": 3, "output_tokens": 4, "cost": None}
            )
            found.append(Case(draft.data, dict(draft.headers or {})))
    return found


def _frames() -> list[Case]:
    e, data = engine(), orjson.dumps(EVENTS[0])
    origin = Origin("e", SOURCE, "r", "c", "k", "s", NOW, 3, None, {"x": "y"}, None)
    plain = NodeEvent(SOURCE, origin, codecs.JSON, data)
    called = [NodeEvent(name, origin, codecs.JSON, data, "call", {"label": "a"}, 1) for name in e.runner.stage.calls]
    bodies = [pack_frame([plain]), pack_frame([*called, plain]), pack_frame([called[0]._replace(outputs=None)])]
    return [*(Case(body, {subjects.RUN: "r"}) for body in bodies), Case(bodies[0], {subjects.STORED: f"{STREAM}:1"})]


# -- logs -----------------------------------------------------------------------------------------------------------
def _entries() -> list[Case]:
    e = engine()
    found = e.lab.messages(subjects.log(APP, TOPOLOGY, e.stage, 0))
    whole = entries.unpack(found[-1].data)
    snapshot = entries.Snapshot(1, 1, 1, b"0" * 32, 10)
    named = {**whole, "snapshot": snapshot, "epoch": 1, "owner": "a", "manifest": 1, "build": {}}
    pieces = {**{k: v for k, v in whole.items() if k != "tables"}, "pieces": 1}
    return [*(Case(m.data) for m in found), Case(packed(named)), Case(packed(pieces))]


def _take_entry() -> Take:
    e = engine()
    address = LogAddress.of(APP, TOPOLOGY, e.stage, 0)
    follower = Follower(e.bus, APP, {}, ["r"])

    def take(case: Case) -> object:
        entry, message = entries.readable(case.data), Message(address.subject, case.data, case.headers, 50, NOW)
        entries.version(case.data)
        if entry is not None:
            chain = reading.Chain(e.bus, address, entry.get("claim", 0), max(0, entry["after"]))
            changed = e.run(_unless_unreachable(chain.step(message)))
            if changed is not None:
                _applied(changed)
            entries.bases(50, entry)
        e.run(_unless_unreachable(follower.take(message)))
        return entry

    return take


async def _unless_unreachable(coroutine: Any) -> Any:
    with suppress(Unreachable):  # it names pieces that nobody has stored, and the leader may be behind
        return await coroutine


def _applied(changed: Mapping[str, Any]) -> object:
    """The changes of tables, as a recovery takes them over."""
    tables = Tables(frozenset({"ordered"}))
    tables.apply(changed, 60)
    positions.needed(tables)
    tables.timers.due(NOW)
    return tables.snapshot()


def _rows() -> list[Case]:
    e = engine()
    tables = e.partition.tables.snapshot()
    more = {"keyed": [(("n", "k", "s"), b"v")], "splits": [(("source", 4, -1), (1, NOW, 3, b"d"))], "number": 5}
    return [
        Case(packed(tables)),
        Case(packed({**tables, **more})),
        Case(packed({"timers": [(3, (NOW, "event", ("source", 4, -1)))]})),
    ]


def _take_rows() -> Take:
    def take(case: Case) -> object:
        rows = reading._rows(case.data)
        return _applied(rows) if rows is not None else None

    return take


# -- keys of the bucket ---------------------------------------------------------------------------------------------
async def _stored(key: str) -> bytes:
    bucket = subjects.applied(APP) if key == _manifest() else subjects.bucket(APP)
    found = await (await engine().bus.bucket(bucket)).get(key)
    assert found is not None
    return found[0]


def _key_seeds(key: Callable[[], str]) -> Callable[[], list[Case]]:
    return lambda: [Case(engine().run(_stored(key())))]


def _take_manifest() -> Take:
    key = subjects.manifest_key(TOPOLOGY, 1)

    def take(case: Case) -> object:
        found = manifest.versions_of(TOPOLOGY, {key: case.data})
        return [asdict(m) for m in found.known]

    return take


def _take_heartbeat() -> Take:
    e = engine()
    key = subjects.member_key("engine", "other")

    async def once(value: bytes) -> object:
        bucket = await e.bus.bucket(subjects.bucket(APP))
        await bucket.put(key, value)
        mine = Membership(bucket, await e.bus.bucket(subjects.applied(APP)), "mine", 1.0, e.host.clock, dict)
        mine.add(TOPOLOGY, 1, e.stage, 64, _Runner())
        await mine.once()
        return len(mine.listed)

    def take(case: Case) -> object:
        report = status._report(key, case.data)
        if report is not None:
            status._row(report, NOW)
            is_dead(report)
        e.run(once(case.data))
        return report

    return take


class _Runner:
    def own(self, index: int) -> None: ...
    def release(self, index: int) -> None: ...


def _take_work_key() -> Take:
    e = engine()
    used = (POOL, 1)
    consumers = WorkConsumers(e.bus, APP, [used])

    def take(case: Case) -> object:
        e.put(subjects.work_key(*used), case.data)
        e.run(consumers.look())
        if consumers.behind[used]:
            raise Bug(f"calls are asked again behind {consumers.behind}")
        return None

    return take


def _take_torn_key() -> Take:
    e = engine()

    def take(case: Case) -> object:
        e.put(subjects.torn_key(TOPOLOGY), case.data)
        return e.run(TornCommits(e.bus, APP, e.lab.graphs)._kept())

    return take


def _manifest() -> str:
    return subjects.manifest_key(TOPOLOGY, 1)


def _member() -> str:
    return subjects.member_key("engine", engine().host.engine)


def _work() -> str:
    return subjects.work_key(POOL, 1)


ENTRIES = [
    Entry("source json", _source(codecs.JSON), _of_input("source", lambda e: SOURCE), "json", HEADERS, "source"),
    Entry("cloud event", _cloud_events, _of_input("source", lambda e: SOURCE), "json", HEADERS, "source"),
    Entry("source msgpack", _source(codecs.MSGPACK), _of_input("source", lambda e: SOURCE), headers=HEADERS, subject="source"),
    Entry("source arrow", _source(codecs.ARROW), _of_input("source", lambda e: SOURCE), "bytes", HEADERS, "source", slice=60),
    Entry("record", _records, _of_input("records", _record_subject), headers=HEADERS, subject="record", slice=200),
    Entry("frame", _frames, _of_input("events", _edge_subject), headers=HEADERS, subject="edge", slice=150),
    Entry("log entry", _entries, _take_entry, subject="log"),
    Entry("rows", _rows, _take_rows, subject="pieces", slice=300),
    Entry("manifest", _key_seeds(_manifest), _take_manifest, "json", subject="manifest", slice=300),
    Entry("heartbeat", _key_seeds(_member), _take_heartbeat, "json", subject="heartbeat", slice=30),
    Entry("work key", _key_seeds(_work), _take_work_key, "json", subject="work key"),
    Entry("torn key", lambda: [Case(b"[1.5,3]"), Case(b"[0.0,0]")], _take_torn_key, "json", subject="torn key"),
]
