"""What clients read of the bus: dead letters, marks of redrives, and the answers of workers and pools."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime

import orjson
from engine_entries import APP, HEADERS, NOW, POOL, SOURCE, TOPOLOGY, Take, engine, lab
from fuzzing import Entry
from mutations import Case

from dspex.bus import codecs, subjects
from dspex.bus.errors import CallError, from_dict
from dspex.bus.memory.server import MemoryServer
from dspex.bus.message import Message
from dspex.bus.port import NewMessage
from dspex.bus.records import CallRecord
from dspex.bus.serving import audit
from dspex.bus.serving.programs import form
from dspex.bus.serving.programs.states import SavedStates
from dspex.bus.serving.sayings import ACCEPTED, RESULT, SAID, Said, Saying
from dspex.bus.serving.sessions.state import InLine, SessionState, StoredTurn
from dspex.bus.serving.sessions.store import SessionStore
from dspex.engine.client import letters
from dspex.engine.client.calls.answers import HeardAnswer, result_of
from dspex.engine.client.status import pools
from dspex.engine.client.status.limits import limit_rows
from dspex.engine.graph import pauses
from dspex.engine.graph.approvals import Decision
from dspex.engine.log import redriven


def _letters() -> list[Case]:
    return [Case(m.data, dict(m.headers)) for m in engine().lab.messages(subjects.dead_pattern(APP))]


def _take_letter() -> Take:
    e = engine()
    subject = subjects.dead(APP, TOPOLOGY, SOURCE)

    def take(case: Case) -> object:
        message = Message(subject, case.data, case.headers, 9, NOW)
        shown = e.run(letters._shown(e.bus, APP, message)).as_dict(traceback=True)
        letter = letters._letter(message)
        e.run(redriven.check_places(e.bus, APP, letter, 9))
        e.run(letters._frame(e.bus, letter, None, None))
        return shown

    return take


def _sessions() -> list[Case]:
    one = lab()
    session = one.client.session("s")
    one.run(session.save({"cart": [1, None, "x"]}, 0))

    def with_turn(state: SessionState | None, now: float) -> SessionState:
        assert state is not None
        turn = StoredTurn("c", "c", now, {"text": "a"}, {"reply": "b"})
        return replace(state, turns=[turn], line=[InLine("d", now + 5, POOL)], count=1)

    one.run(SessionStore(one.client.bus, one.client.app).change("s", with_turn))
    return [Case(one.server.buckets[subjects.sessions(one.client.app)]["s"][0])]


def _take_session() -> Take:
    """All that a client reads of a session, whoever wrote it."""
    one = lab()
    session = one.client.session("s")
    one.run(session.save({}, 0))

    async def read() -> object:
        listed = [info.as_dict() async for info in one.client.sessions()]
        info = await session.info()
        turns = [turn.as_dict() async for turn in session.history()]
        return listed, info and info.as_dict(), turns, await session.load()

    def take(case: Case) -> object:
        one.server.buckets[subjects.sessions(one.client.app)]["s"] = case.data, 1
        return one.run(read())

    return take


def _decisions() -> list[Case]:
    made = [Decision("a", "b", "accept"), Decision("a", "b", "accept", {"n": 1, "x": [None]}, "why", "ann@host")]
    return [Case(one.pack()) for one in [*made, Decision("a", "b", "reject", note="no")]]


def _take_decision() -> Take:
    return lambda case: Decision.read(codecs.decode(case.data, codecs.JSON))


def _take_marker() -> Take:
    e = engine()

    async def once(data: bytes) -> None:
        await e.bus.publish(NewMessage(subjects.redriven(APP), data))
        await redriven.finish(e.bus, APP)
        info = await e.bus.stream(subjects.stream(APP))
        assert info is not None
        await e.bus.purge(info.name, subjects.redriven(APP), below=info.last + 1)  # each is tried alone, and none is read again

    return lambda case: e.run(once(case.data))


def _replies() -> list[Case]:
    record = CallRecord("c", 1, 1, "", "", outputs={"label": "a"}, usage={"input_tokens": 1, "output_tokens": 2, "cost": 0.1})
    failed = CallRecord("c", 1, 1, "", "", error=CallError("no", retry_after=2.0).as_dict())
    return [Case(one.pack(), {subjects.KIND: RESULT}) for one in (record, failed)]


def _take_reply() -> Take:
    """A worker accepts each call, and then answers with what is tried."""
    one = lab()
    bus, found = one.server.connect(), [Case(b"")]

    async def answer(request: Message) -> None:
        await bus.send(request.reply, found[0].data, headers={subjects.KIND: ACCEPTED})
        await bus.send(request.reply, found[0].data, headers=found[0].headers)

    one.run(bus.subscribe(subjects.call_pattern(APP, POOL), answer, queue=POOL))

    def take(case: Case) -> object:
        found[0] = case
        return one.run(one.client.call("text -> label", {"text": "a"}, timeout=1.0)).as_dict()

    return take


def _given() -> list[Case]:
    record = CallRecord("c", 1, 1, "_submit", "call", outputs={"reply": "b"}, usage={"input_tokens": 3}, routing=[])
    return [Case(record.pack()), Case(b"")]


def _take_given() -> Take:
    """What a worker tells who has submitted a call, or stores for it, and what becomes of it there."""

    def take(case: Case) -> object:
        told = HeardAnswer()
        told.take(Message(subjects.notice(APP, POOL, "_INBOX", "c", "0"), case.data, case.headers))
        return None if told.answer is None else result_of(told.answer).as_dict()

    return take


def _sayings() -> list[Case]:
    return [Case(Saying(1, [Said("label", 0, "a"), Said("", 0, "half of it"), Said("label", 1, "b")]).pack())]


def _take_saying() -> Take:
    """A worker says of each call what is tried, and then answers."""
    one = lab()
    bus, found = one.server.connect(), [Case(b"")]

    async def answer(request: Message) -> None:
        bus.tell(request.reply, b"", headers={subjects.KIND: ACCEPTED})
        bus.tell(request.reply, found[0].data, headers={subjects.KIND: SAID, **found[0].headers})
        bus.tell(request.reply, _replies()[0].data, headers={subjects.KIND: RESULT})

    one.run(bus.subscribe(subjects.call_pattern(APP, POOL), answer, queue=POOL))

    async def streamed() -> object:
        async with one.client.stream("text -> label", {"text": "a"}, timeout=1.0) as answer:
            return [event async for event in answer.events()]

    def take(case: Case) -> object:
        found[0] = case
        return one.run(streamed())

    return take


def _pool_rows() -> list[Case]:
    row = {"pool": POOL, "id": "p", "host": "h", "pid": 1, "size": 1, "slots": 4, "busy": 0, "ready": 1, "restarts": 0}
    return [
        Case(orjson.dumps(row)),
        Case(orjson.dumps({**row, "failed": False, "served": 3, "children": [{"pid": 2, "rss": 5}]})),
    ]


def _take_pool_row() -> Take:
    """A pool answers a question about it, for `status` and for a call that no worker takes."""
    one = lab()
    bus, found = one.server.connect(), [b""]

    async def answer(request: Message) -> None:
        await bus.send(request.reply, found[0])

    one.run(bus.subscribe(subjects.control(APP, POOL), answer))

    def take(case: Case) -> object:
        found[0] = case.data
        rows = one.run(pools.pool_rows(one.client.bus, APP, [POOL]))
        one.run(one.client.call("text -> label", {"text": "a"}, timeout=0.1))
        return rows

    return take


def _audited() -> list[Case]:
    return [
        Case(orjson.dumps({"who": "a@b", "what": {"subject": "in", "events": 3}})),
        Case(b'{"who":"a","what":{"letters":[1]}}'),
    ]


def _take_audited() -> Take:
    subject = subjects.audit(APP, "publish")
    return lambda case: audit.read(Message(subject, case.data, case.headers, 9, NOW)).as_dict()


def _errors() -> list[Case]:
    return [Case(orjson.dumps(CallError("no", retry_after=1.0, node="n", run="r").as_dict()))]


def _take_error() -> Take:
    def take(case: Case) -> object:
        data = codecs.decode(case.data)
        return from_dict(data).as_dict() if isinstance(data, dict) else None

    return take


def _take_pause() -> Take:
    def take(case: Case) -> object:
        names = pauses.names_of(case.data)
        end = pauses.Pauses(names, 1).until({"in"}, NOW) if names is not None else None
        return [names, datetime.fromtimestamp(end, UTC).isoformat() if end else end]

    return take


def _take_saved(key: str) -> Take:
    async def once(value: bytes) -> object:
        bus = MemoryServer().connect()
        bucket = await bus.bucket(subjects.applied(APP), once=True)
        states = SavedStates(bus, APP)
        await states.put("draft", form.unpack(_STATE))
        await bucket.put(key, value, revision=0)
        found = (await states.listing())["draft"]
        await states.promote("draft", max(found.versions), "prod")
        await bus.close()
        return [found.versions, found.aliases]

    return lambda case: asyncio.run(once(case.data))


def _take_state() -> Take:
    return lambda case: form.unpack(case.data)


def _limits() -> list[Case]:
    tally = {"window": int(NOW // 60), "settled": 12.5, "shares": {"p1": [900.0, 100.0]}}
    value = {"about": {"lm": "main"}, "limits": {"tokens": [1000.0, 60.0]}, "tallies": {"tokens": tally}, "seen": {"p1": NOW}}
    return [Case(orjson.dumps({**value, "at": NOW}))]


def _take_limit() -> Take:
    async def once(value: bytes) -> object:
        bus = MemoryServer().connect()
        await (await bus.bucket(subjects.limits(APP))).put("lm.main", value)
        rows = await limit_rows(bus, APP, NOW)
        await bus.close()
        return rows

    return lambda case: asyncio.run(once(case.data))


_STATE = b'{"write":{"demos":[{"a":1}],"signature":{"instructions":"x","fields":[{"prefix":"A:","description":"a"}]}}}'
_VERSION = {
    "digest": "a" * 64,
    "size": 9,
    "predictors": ["write"],
    "dspy_version": "3",
    "time": NOW,
    "who": "a@b",
    "headers": {},
}
_CHANGE = b'{"version":1,"back":0,"time":1.5,"who":"a@b"}'
_PAUSES = [Case(b'{"paused":{"":0.0,"in":9e9}}'), Case(b'{"paused":{}}')]
ENTRIES = [
    Entry("letter", _letters, _take_letter, headers=HEADERS, subject="dead"),
    Entry("session", _sessions, _take_session, slice=150),
    Entry("decision", _decisions, _take_decision, "json"),
    Entry("marker", lambda: [Case(b'{"letter":4}')], _take_marker, "json", subject="redriven"),
    Entry("saying", _sayings, _take_saying, slice=150),
    Entry("reply", _replies, _take_reply, headers=HEADERS, slice=150, refused=("", "CallError")),
    Entry("submitted answer", _given, _take_given, headers=HEADERS, slice=150, refused=("", "CallError")),
    Entry("pool row", _pool_rows, _take_pool_row, "json", slice=80, refused=("CallTimeout", "Saturated")),
    Entry("audit", _audited, _take_audited, "json", subject="audit", slice=300),
    Entry("limit", _limits, _take_limit, "json", subject="limit"),
    Entry("pause", lambda: _PAUSES, _take_pause, "json", subject="pause"),
    Entry(
        "saved version", lambda: [Case(orjson.dumps(_VERSION))], lambda: _take_saved("program.draft.2"), "json", subject="saved"
    ),
    Entry("alias", lambda: [Case(_CHANGE)], lambda: _take_saved("alias.draft.prod.1"), "json", subject="alias"),
    Entry("saved state", lambda: [Case(_STATE)], _take_state, "json"),
    Entry("error", _errors, _take_error, "json", slice=500),
]
