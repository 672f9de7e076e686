"""What a connection reads: headers that a publisher wrote, and answers that anybody may send to its inbox."""

from __future__ import annotations

import orjson
from engine_entries import HEADERS, Take
from fuzzing import Entry
from mutations import Case

from dspex.bus.nats import consumer, protocol, stored
from dspex.bus.nats.failures import answer_of, refused

INFO = {
    "config": {"name": "S", "subjects": ["in"]},
    "state": {"first_seq": 1, "last_seq": 9},
    "created": "2026-01-01T00:00:00Z",
}
MESSAGE = {"subject": "in", "seq": 7, "data": "aGVsbG8=", "hdrs": "TkFUUy8xLjANCg0K", "time": "2026-01-01T00:00:00.5Z"}
ANSWERS = [{"message": MESSAGE}, INFO, {"error": {"code": 404, "err_code": 10037, "description": "no message found"}}]


def _blocks() -> list[Case]:
    own = protocol.header_block(dict.fromkeys(HEADERS, "a value"))
    status = b"NATS/1.0 408 Request Timeout\r\nNats-Pending-Messages: 3\r\n\r\n"
    return [Case(own), Case(status), Case(b"NATS/1.0\r\nname:value\r\n\r\n"), Case(b"NATS/1.0 503\r\n\r\n"), Case(b"")]


def _take_block() -> Take:
    def take(case: Case) -> object:
        found = protocol.headers(case.data)
        return found, protocol.in_batch(case.data), consumer.rest(found)

    return take


def _take_answer() -> Take:
    def take(case: Case) -> object:
        answer = answer_of(case.data)
        if "error" in answer:
            raise refused(answer["error"], "S")
        return stored._read(answer) if "message" in answer else answer

    return take


ENTRIES = [
    Entry("headers", _blocks, _take_block, "text", slice=400),
    Entry(
        "answer",
        lambda: [Case(orjson.dumps(one)) for one in ANSWERS],
        _take_answer,
        "json",
        slice=400,
        refused=("", "ServerRefusal"),
    ),
]
