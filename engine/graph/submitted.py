"""The topology that every application can have without writing it: calls that somebody submitted, each an event that says what
is asked. So they are as durable as any call of a topology: retries, deadlines, records and dead letters are the same.

The key of an event is the session that its answer is a turn of: calls of one session are made one after the other.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Mapping
from functools import partial
from typing import Any, Final, NotRequired

from typing_extensions import TypedDict

from dspex.bus import subjects
from dspex.bus.codecs.checking import checked, made
from dspex.bus.errors import DecodeError, NotAllowed, is_seconds
from dspex.bus.records import DEFAULT_POOL, Affinity, AnswerTo
from dspex.bus.serving.call_spec import CallSpec
from dspex.bus.settings.duration import seconds
from dspex.engine.graph.graph import Graph
from dspex.engine.graph.nodes import Call, CallNode, Inlet, Retry, Source, SourceNode

NODE: Final = "call"
PARTITIONS: Final = 8
_SAID: Final = ("pool", "timeout", "deadline", "priority", "turn", "affinity")  # of a call, as the event has it


class _Submitted(TypedDict):
    spec: str
    pool: str
    inputs: dict[str, Any]
    timeout: float
    deadline: float
    priority: int
    retry: dict[str, Any]
    client: str
    turn: NotRequired[str | None]
    affinity: NotRequired[Affinity]


def event_of(call: Call[Any], inputs: Mapping[str, Any], client: str, turn: str | None) -> dict[str, Any]:
    """The data of the event that submits a call. `client`: who is told of its answer. `turn`: the name of its turn."""
    retry = vars(call.retry) | {name: seconds(getattr(call.retry, name)) for name in ("backoff", "cap")}
    return {
        "spec": b64encode(call.spec.packed).decode(),  # as in a request: who reads many like it reads that once
        "pool": call.pool,
        "inputs": dict(inputs),
        "timeout": call.timeout,
        "deadline": call.deadline,
        "priority": call.priority,
        "retry": retry,
        "client": client,
        **({} if turn is None else {"turn": turn, "affinity": call.affinity}),
    }


def submitted(app: str, pools: tuple[str, ...]) -> Graph:
    """The graph. `pools`: those that its calls may go to; they are no part of what it is."""
    subject = subjects.submit_pattern(app)
    nothing: Call[Any] = Call(
        CallSpec("submit", "", ""), DEFAULT_POOL, _inputs, _outputs, order="serial", of=partial(_call, app)
    )
    source = SourceNode(name=subject, op="source", source=Source(subject, partitions=PARTITIONS, plain=False))
    node = CallNode(name=NODE, op="call", inputs=(Inlet(subject),), call=nothing)
    return Graph(subjects.SUBMITTED, {subject: source, NODE: node}, pools=pools)


def secrets_in(data: Any) -> frozenset[str]:
    """The names of the secret fields of a call that the data of an event submit; none where they are no such data."""
    if not isinstance(data, Mapping) or not data.keys() >= {"spec", "inputs"} or not isinstance(data["spec"], str):
        return frozenset()
    try:
        return _spec(data["spec"]).secrets
    except DecodeError:
        return frozenset()


def _call(app: str, data: Any, subject: str) -> Call[Any]:
    """What an event asks.

    Raises DecodeError for what is no submitted call; NotAllowed where it came on a subject that is not its own: the server lets
    who submits use the subjects that they may, and what is asked must be what they may ask.
    """
    found: _Submitted = checked(_Submitted, "a submitted call", data)
    spec, retry = _spec(found["spec"]), made(Retry, checked(Retry, "a submitted call", found["retry"]))
    times = (found["timeout"], found["deadline"], retry.backoff, retry.cap, retry.jitter)
    if not all(isinstance(time, (int, float)) and is_seconds(time) for time in times) or not 0 <= found["priority"] <= 9:
        raise DecodeError("not a submitted call of dspex: its times are no numbers of seconds, or its priority is none")
    if retry.attempts < 1 or not 1 <= retry.factor < 1e6 or not 0 <= retry.jitter <= 1:
        raise DecodeError("not a submitted call of dspex: nobody can try again so")
    if not subjects.is_token(spec.kind):  # "*" would fit any subject
        raise DecodeError("not a submitted call of dspex: there is no such kind")
    wanted = subjects.submit(app, found["pool"], spec.kind, "*", "*")
    if not subjects.matches(wanted, subject):
        raise NotAllowed(f"a call for {wanted} came on {subject}", fix="submit it on its own subject")
    to = AnswerTo(*subjects.submitted_by(subject), found["client"])
    if not to.sound:
        raise DecodeError("not a submitted call of dspex: nobody can be told of its answer")
    asked = {name: value for name, value in found.items() if name in _SAID}
    return made(Call, asked | {"spec": spec, "inputs": _inputs, "accept": _outputs, "retry": retry, "answer": to})


def _spec(text: str) -> CallSpec:
    try:
        return CallSpec.unpack(b64decode(text, validate=True))
    except ValueError as e:
        raise DecodeError(f"not a submitted call of dspex: {e}") from None


def _inputs(data: Any) -> Mapping[str, object]:
    given: Mapping[str, object] = data["inputs"]
    return given


def _outputs(data: Any, outputs: Mapping[str, object]) -> Mapping[str, object]:
    return outputs
