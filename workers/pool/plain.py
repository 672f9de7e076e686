"""Calls as any NATS client makes them: `nats req dspex.APP.call.POOL.TOPOLOGY.NODE '{"text": "hi"}'`.

The inputs of a deployed node are a JSON object, and its outputs come back as one, in one message. Errors are told as the NATS
service protocol (ADR-32) has them, in headers, whoever asks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import orjson

from dspex.bus import codecs, subjects
from dspex.bus.codecs import tracing
from dspex.bus.errors import DecodeError, DspexError, InvalidInput, OutputTooLarge, Saturated
from dspex.bus.message import Message, new_id
from dspex.bus.port import Bus, NewMessage
from dspex.bus.records import CallRecord, CallRequest
from dspex.bus.serving.deployed import Deployed
from dspex.bus.serving.sayings import BUSY, RESULT
from dspex.workers.answer import error_map

TIMEOUT: Final = 60.0  # seconds for such a call, as for one of which nothing is said
MOST_SAID: Final = 500  # characters of an error in a header
# As HTTP has them, by the class of the error; 500 for all others.
_CODES: Final[Mapping[str, int]] = {
    **dict.fromkeys(("InvalidInput", "DecodeError", "ConfigError", "TopologyError", "PayloadTooLarge"), 400),
    **dict.fromkeys(("NotAllowed",), 403),
    **dict.fromkeys(("Saturated", "RateLimited", "BudgetExceeded"), 429),
    **dict.fromkeys(("LMUnavailable", "CircuitOpen", "WorkerLost"), 503),
    **dict.fromkeys(("CallTimeout",), 504),
}


def is_plain(message: Message) -> bool:
    """Whether whoever sent a request reads JSON: what dspex itself sends is a map in MessagePack, and no text begins as one."""
    first = message.data[0] if message.data else 0
    return not (first >> 4 == 0x8 or first in (0xDE, 0xDF) or subjects.CLAIM_CHECK in message.headers)


async def request_of(message: Message, deployed: Deployed) -> CallRequest:
    """The call that a plain request asks for. Raises InvalidInput, DecodeError; BusError where nodes cannot be read."""
    if subjects.SESSION in message.headers:
        raise InvalidInput("a call in JSON is no turn of a session", fix="dspex call --session ID, or leave the header out")
    node, inputs = await deployed.on(message.subject), codecs.decode(message.data, codecs.JSON)
    if node.required:
        raise InvalidInput('affinity="require" asks for the worker of a session, and a call in JSON has none')
    if not isinstance(inputs, dict):
        raise InvalidInput("a call takes fields: a JSON object")
    call = new_id()
    node_of = (node.topology, node.node, node.spec)
    trace = tracing.joined(message.headers.get(subjects.TRACEPARENT), message.headers.get(subjects.TRACESTATE))
    return CallRequest(call, 1, 1, *node_of, inputs, call, timeout=TIMEOUT, left=TIMEOUT, trace=trace)


def answer_to(reply: str, record: CallRecord, most: int) -> NewMessage:
    """What a plain request hears. `most`: bytes of a message."""
    error: Mapping[str, Any] | None = record.error
    data = b""
    if error is None:
        try:
            data = codecs.encode(dict(record.outputs or {}))[0]
            if len(data) > most:
                raise OutputTooLarge(f"the answer has {len(data):,} bytes, and one message may have {most:,}")
        except DspexError as unfit:  # what JSON does not hold
            error = error_map(unfit)
    headers = {subjects.KIND: RESULT, "Content-Type": codecs.JSON}
    if error is not None:
        said = {name: error.get(name) for name in ("code", "message", "fix", "node", "run", "retryable")}
        data, headers = orjson.dumps({"v": 1, "error": said}), {**headers, **error_headers(error)}
    return NewMessage(reply, data, headers)


def tell_busy(bus: Bus, message: Message, pool: str) -> None:
    """Have a request sent again, or tell a client that knows no such thing. Raises BusError."""
    if is_plain(message):
        busy = Saturated(f"pool {pool} is saturated", fix="ask again in a moment")
        said = answer_to(message.reply, refusal(busy), bus.max_payload)
        bus.tell(said.subject, said.data, headers=said.headers)
    else:
        bus.tell(message.reply, b"", headers={subjects.KIND: BUSY})


def error_headers(error: Mapping[str, Any]) -> dict[str, str]:
    """The headers of an answer that is an error."""
    said = " ".join(str(error.get("message", "")).split())[:MOST_SAID]
    return {subjects.SERVICE_ERROR: said, subjects.SERVICE_ERROR_CODE: str(_CODES.get(str(error.get("type")), 500))}


def refusal(error: DspexError) -> CallRecord:
    """What the caller gets. What is no request names no call: the caller knows its own by the subject of the answer."""
    said = InvalidInput(error.message) if isinstance(error, DecodeError) else error
    return CallRecord("", 1, 1, "", "", error=error_map(said))
