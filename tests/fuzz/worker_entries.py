"""What pools read: requests, questions about them, frames of their worker processes, and what those print."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import Callable
from contextlib import redirect_stderr, suppress
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import orjson
import structlog
from engine_entries import APP, HEADERS, NOW, POOL, TOPOLOGY, Take, lab
from fuzzing import Bug, Entry
from mutations import Case
from pool_bench import received

from dspex.bus import codecs, errors, subjects
from dspex.bus.errors import CallError, DataError
from dspex.bus.message import Message
from dspex.bus.records import CallRequest, PoolSize, RecordTo, Usage
from dspex.bus.serving import payloads
from dspex.bus.serving.call_spec import CallSpec
from dspex.bus.serving.record_store import RecordStore
from dspex.bus.serving.server_clock import ServerClock
from dspex.engine.cli.terminal import log
from dspex.operators.native.lm.batch_api import BatchApi, ProviderBatch
from dspex.operators.native.lm.endpoint import Endpoint
from dspex.operators.native.signature import Signature
from dspex.workers import frames
from dspex.workers.answer import Answer, error_map
from dspex.workers.answerers.attempt import Attempt, checked, enter_context
from dspex.workers.answerers.batches.batch import BatchNote
from dspex.workers.answerers.batches.provider import line_of
from dspex.workers.answerers.native import Native
from dspex.workers.config import PoolConfig, Profile
from dspex.workers.frames import (
    BatchesFrame,
    BatchRow,
    ChunkFrame,
    DoneFrame,
    FatalFrame,
    FurtherFrame,
    HelloFrame,
    JournalFrame,
    StatusFrame,
)
from dspex.workers.journal.entries import JournalEntry, JournalPart, kept, unpack_entry
from dspex.workers.pool.cache.shared import SharedAnswers
from dspex.workers.pool.children.handing import HandedCall
from dspex.workers.pool.children.holding import read_holder
from dspex.workers.pool.children.managing import read_order
from dspex.workers.pool.children.output import forward
from dspex.workers.pool.children.scaling import read_row
from dspex.workers.pool.status import PoolStatus

HEAD = 4  # bytes of the length of a frame
_ANSWERED = JournalEntry("model", "ab", 1, "main", {"messages": ["a"]}, answer={"outputs": ["b"]}, usage={"input_tokens": 3})
SIGNATURES = ["text -> label", "text: str, n: int, tags: list[str] -> label: Literal['a', 'b'], why: str"]


def requests() -> list[CallRequest]:
    """Durable calls and interactive ones."""
    found: list[CallRequest] = []
    for signature in SIGNATURES:
        fields = Signature(signature).plain().get("fields", {})
        spec = CallSpec("predict", signature, signature, "Say it.", ("main",), "chat", {"temperature": 0.5, "stop": ["."]})
        for one in (spec, CallSpec("react", signature, signature, tools=("pkg:tool",), fields=fields)):
            to = RecordTo(subjects.record(APP, POOL, TOPOLOGY, "s1", 0), f"{TOPOLOGY}.s1.0.3.1.nonce", 3, b"event")
            inputs = {"text": "hello", "n": 3, "tags": ["a"]}
            found.append(CallRequest("c", 1, 1, TOPOLOGY, "label", one, inputs, "r", "s", record=to))
            found.append(CallRequest("c", 1, 1, "", "", one, inputs, "c"))
        late = replace(spec, lane="batch")
        found.append(CallRequest("c", 1, 1, TOPOLOGY, "label", late, inputs, "r", record=to, batch=3600.0))
    return found


def _requests() -> list[Case]:
    own = {subjects.RECORD: f"{TOPOLOGY}.s1.0.3.1.nonce", subjects.CAUSE: "c", subjects.RUN: "r"}
    return [Case(request.pack(), own) for request in requests()]


def _take_request() -> Take:
    """All that a pool and its child do before a program or a model is asked."""
    pool = PoolConfig(APP, POOL, profiles={"main": Profile("main", "openai/x", base_url="http://127.0.0.1:1")})
    store, native = RecordStore(lab().client.bus, APP, POOL), Native(pool)
    subject = subjects.work(APP, POOL, TOPOLOGY, "label")

    def headers(case: Case) -> None:
        with suppress(DataError):
            store.check(payloads.named_in_headers(APP, Message(subject, b"", case.headers, 3, NOW)))

    def take(case: Case) -> object:
        headers(case)
        work = CallRequest.unpack(case.data)
        store.check(work)
        work.called_on(APP, POOL)
        attempt = Attempt(work, None, lm="main")
        enter_context(attempt, lambda text: None)
        attempt.work = checked(work)
        return attempt.work, native.refuses(attempt)

    return take


def _frames() -> list[Case]:
    answer = Answer(NOW, 1.0, {"label": "a"}, None, "native", "main", "predict#1", "", Usage(1, 2, 0.5))
    failed = Answer.failed(CallError("no"), "3.0")
    found = [
        HelloFrame(3, "3.0", "3.11", ["a:b"], {"c:*": "no"}),
        FatalFrame(error_map(CallError("no"))),
        StatusFrame(1, "half"),
        ChunkFrame(1, "label", "a"),
        JournalFrame(1, 1),
        JournalFrame(1, 2, _ANSWERED.pack()),
        FurtherFrame(1, "main", vars(Usage(1, 2, 0.5, requests=1))),
        BatchesFrame([BatchRow("main", "batch-1", "in_progress", 3, 5, 1)]),
    ]
    return [Case(frames.pack(one)) for one in (*found, DoneFrame(1, answer), DoneFrame(2, failed))]


def _journals() -> list[Case]:
    parts = [JournalPart("a", 1, 7, 1), JournalPart("a", 1, 7, 1, 0, [_ANSWERED]), JournalPart("b", 2, 7, 1, 1)]
    noted = BatchNote("key", "c.1", "batch-1").entry("main")
    return [*(Case(part.pack()) for part in parts), Case(_ANSWERED.pack()), Case(noted.pack())]


def _take_journal() -> Take:
    """What an attempt makes of what lies in the journal of its call; and what a parent takes from its child."""
    claim = JournalPart("c", 3, 7, 2, 1)

    def take(case: Case) -> object:
        with suppress(DataError):
            entry = unpack_entry(case.data)
            return entry.used, BatchNote.of([entry], "main")
        return kept([JournalPart.unpack(case.data)], claim)

    return take


def _answers() -> list[Case]:
    body = {"key": bytes(16), "outputs": {"label": "a"}, "lm": "main", "program": "predict#1", "dspy_version": "", "call": "c"}
    data = codecs.msgpack_bytes({**body, "warning": "", "at": NOW})
    return [Case(codecs.msgpack_bytes({"data": data, "headers": {subjects.SESSION: "s"}}))]


def _take_answer() -> Take:
    """What a pool makes of a value in the bucket of cached answers, before it gives it to a caller."""
    one = lab()
    bus = one.client.bus
    shared = SharedAnswers(bus, APP, POOL, ServerClock(bus, subjects.stream(APP)), ())
    one.run(bus.bucket(subjects.cache(APP)))
    where = subjects.cache_key(POOL, 60.0, bytes(16))

    async def read(value: bytes) -> object:
        await (await bus.bucket(subjects.cache(APP))).put(where, value)
        return await shared._opened(value, where, None)

    return lambda case: one.run(read(case.data))


def _batches() -> list[Case]:
    counts = {"total": 3, "completed": 1, "failed": 0}
    good = {"status_code": 200, "body": {"choices": [{"message": {"content": "a"}}], "usage": {"prompt_tokens": 3}}}
    failed = {"object": "list", "data": [{"code": "token_limit_exceeded", "message": "full"}]}
    batch = {"id": "batch-1", "status": "in_progress", "request_counts": counts, "output_file_id": "file-1", "metadata": {}}
    lines = [{"custom_id": "c.1", "response": good, "error": None}, {"custom_id": "c.1", "error": {"code": "batch_expired"}}]
    return [Case(orjson.dumps(one)) for one in (batch, {**batch, "status": "failed", "errors": failed}, *lines)]


def _take_batch() -> Take:
    """What a worker makes of what a provider says of a batch, and of a line of its answers."""
    api = BatchApi(Endpoint("http://127.0.0.1:1/v1"))

    def take(case: Case) -> object:
        found = line_of(case.data)
        with suppress(CallError):
            return ProviderBatch.read(found, "a provider")
        return api.read(found)

    return take


def _bodies() -> list[Case]:
    return [Case(case.data[HEAD:]) for case in _frames()]


def _take_body() -> Take:
    """The same, with the length in front that the body has."""
    take = _take_frame()
    return lambda case: take(Case(len(case.data).to_bytes(HEAD, "big") + case.data))


def _take_frame() -> Take:
    work = requests()[0]

    def take(case: Case) -> object:
        frame = received(case.data)
        if isinstance(frame, DoneFrame):
            return frame.answer.record(work, "w").pack()
        return errors.from_dict(frame.error).as_dict() if isinstance(frame, FatalFrame) else frame

    return take


def _lines() -> list[Case]:
    said = [
        {"event": "hello", "level": "info", "call": "c", "n": 3},
        {"event": "failed", "level": "error", "exception": "Trace\n back"},
    ]
    return [*(Case(orjson.dumps(line) + b"\n") for line in said), Case(b"plain words\n\xff\n"), Case(b"a\nb")]


def _take_line() -> Take:
    """Into the logs as `dspex run` writes them: for people, and as JSON."""
    loop = lab().loop

    async def all_of(data: bytes) -> None:
        stream = asyncio.StreamReader(limit=1 << 16)
        stream.feed_data(data)
        stream.feed_eof()
        await forward(stream, "stdout", POOL, 3)

    def take(case: Case) -> object:
        written = [_logged(people, lambda: loop.run(all_of(case.data))) for people in (True, False)]
        if "\x1b[2J" in written[0] or not all(isinstance(json.loads(line), dict) for line in written[1].splitlines()):
            raise Bug("what a program printed reaches the terminal as a command, or breaks a line of the log")
        return [max(text.splitlines(), key=len, default="") for text in written]  # the log adds time and names to each line

    return take


def _logged(people: bool, do: Callable[[], None]) -> str:
    root, out = logging.getLogger(), io.StringIO()
    handlers, level, before = list(root.handlers), root.level, structlog.get_config()
    try:
        log.configure(people=people)
        root.handlers[0].handleError = _raise  # type: ignore[method-assign]
        with redirect_stderr(out):
            do()
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
        structlog.configure(**before)
    return out.getvalue()


def _raise(record: logging.LogRecord) -> None:
    raise


def _take_control() -> Take:
    loop = lab().loop
    pool: Any = SimpleNamespace(config=SimpleNamespace(name=POOL))  # only a question that can be answered needs the whole pool
    asked = PoolStatus(pool)
    subject = subjects.control(APP, POOL)
    return lambda case: loop.run(asked._on_request(Message(subject, case.data, case.headers, 0, 0.0, "")))


def _orders() -> list[Case]:
    orders: list[dict[str, object]] = [{"kind": "drain", "process": "p", "grace": 3.5}, {"kind": "look", "process": None}]
    return [Case(orjson.dumps(order)) for order in orders]


def _parents() -> list[Case]:
    row = {"host": "h", "boot": "b", "pids": "n", "pid": 7, "starting": False, "busy": 1, "waiting": 2}
    return [Case(orjson.dumps({**row, **more})) for more in ({"most": None, "decided": 3}, {"most": 4, "decided": None})]


def _handed() -> list[Case]:
    data = requests()[0].pack()
    calls = (HandedCall("a", {subjects.SESSION: "s"}, data, "_INBOX.1"), HandedCall("a", {}, data, token="3.1"))
    return [Case(call.pack()) for call in calls]


def _take_handed() -> Take:
    """What a process makes of a call that another one hands over, until it is as if it had got it itself."""

    def take(case: Case) -> object:
        call = HandedCall.unpack(case.data)
        if call.token:
            return subjects.band_of(APP, POOL, call.subject)
        return CallRequest.unpack(call.data).call

    return take


def _holders() -> list[Case]:
    return [Case(orjson.dumps({"process": "p", "child": 3, "at": NOW}))]


QUESTIONS = [Case(b'{"kind":"status"}'), Case(b'{"kind":"other"}')]
ENTRIES = [
    Entry("request", _requests, _take_request, headers=HEADERS, subject="work", slice=300),
    Entry("child frame", _bodies, _take_body, slice=400),
    Entry("child bytes", _frames, _take_frame, "bytes", slice=200),
    Entry("journal", _journals, _take_journal, slice=300),
    Entry("cached answer", _answers, _take_answer, slice=300),
    Entry("provider batch", _batches, _take_batch, "json", slice=300),
    Entry("log line", _lines, _take_line, "text", slice=60),
    Entry("control", lambda: QUESTIONS, _take_control, "json", HEADERS, "control", slice=500),
    Entry("order", _orders, lambda: lambda case: read_order(case.data), "json"),
    Entry("parent", _parents, lambda: lambda case: read_row(case.data), "json"),
    Entry("handed", _handed, _take_handed, slice=300),
    Entry("holder", _holders, lambda: lambda case: read_holder(case.data), "json"),
    Entry(
        "pool size",
        lambda: [Case(PoolSize(n).pack()) for n in (None, 3)],
        lambda: lambda case: PoolSize.read(case.data),
        "json",
    ),
]
