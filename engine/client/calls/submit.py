"""Calls that outlive who asks: submitted as events of the application's own topology, and their results."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from hashlib import blake2b
from typing import Any

from dspex.bus import subjects
from dspex.bus.codecs import encode
from dspex.bus.codecs.plain import check_writable
from dspex.bus.errors import (
    CallError,
    ConfigError,
    DecodeError,
    Fenced,
    InvalidInput,
    NotStored,
    RunFailed,
    RunNotFound,
    from_dict,
)
from dspex.bus.message import id_time
from dspex.bus.port import Ack, Bus, NewMessage
from dspex.bus.records import CallRecord
from dspex.bus.serving import payloads
from dspex.bus.serving.keys.secret_fields import need_key
from dspex.bus.serving.sessions.line import without_history
from dspex.bus.serving.sessions.state import check_inputs, used
from dspex.bus.serving.sessions.store import SessionStore
from dspex.bus.settings.duration import Duration
from dspex.engine.client import publish as publishing
from dspex.engine.client.call import Result
from dspex.engine.client.calls.answers import Submission, SubmittedCalls, result_of
from dspex.engine.client.following.waits import RunWaits
from dspex.engine.client.resolve import HasCall, Nodes
from dspex.engine.client.run import Run
from dspex.engine.graph.nodes import Call
from dspex.engine.graph.submitted import event_of
from dspex.engine.log.positions import pages, sequence_before

_TOKEN = 16  # bytes of what an id becomes in a subject


async def submit(
    bus: Bus,
    nodes: Nodes,
    calls: SubmittedCalls,
    what: HasCall[Any] | str,
    data: Any,
    *,
    id: str | None,
    session: str | None,
    above: int,
    waits: RunWaits | None,
) -> Run:
    """See `Client.submit`."""
    asked, _ = await nodes.resolve(bus, what, durable=True)
    if asked.affinity == "require" and session is None:
        fix = 'submit it with session=, or with affinity="prefer"'
        raise ConfigError('affinity="require" asks for the worker of a session, and the call has none', code="DX105", fix=fix)
    need_key(bus, asked.spec, "a submitted call", asked.node)
    call = asked.call or Call[Any](asked.spec, asked.pool, dict, lambda data, outputs: outputs, affinity=asked.affinity)
    if not isinstance(data, Mapping) and asked.call is None:
        raise InvalidInput(f"a call takes fields, and this is {type(data).__name__}", fix='give a mapping: {"text": "…"}')
    inputs = call.inputs(data) if session is None else await _of_turn(bus, nodes.app, call, data, session)
    check_writable(inputs, "inputs")
    user = calls.user(bus)
    token = token_of(user, call.spec.kind, publishing.named(id))
    turn = None if session is None else id or token
    body, content_type = encode(event_of(call, inputs, calls.client, turn), "msgpack")
    subject = subjects.submit(nodes.app, call.pool, call.spec.kind, user, token)
    headers = publishing.headers_of(token, session, session, None, None, content_type)
    draft = NewMessage(subject, body, headers, expect=0)  # the same id twice is one call, however much later
    told = await calls.told(bus, call.pool, token)
    try:
        ack = await publishing.store(bus, nodes.app, draft, above)
    except NotStored as error:
        fix = "set engine.submit = true in dspex.toml, and start the engine anew: dspex run"
        raise NotStored("nothing takes submitted calls, so the call would be lost", code=error.code, fix=fix) from None
    except Fenced:
        ack = Ack("", 0, True)  # submitted before, and long ago
    name = Submission(call.pool, token, told)
    return Run(bus, nodes.app, f"{name.pool}/{token}", subject, ack.stream, ack.sequence, ack.duplicate, waits, name)


async def _of_turn(bus: Bus, app: str, call: Call[Any], data: Any, session: str) -> Mapping[str, Any]:
    """The inputs of a call that is to be a turn, without the history: the worker fills it. The session is there from then on.

    Raises SessionEnded; ConfigError for a call that may wait for a day, and would hold up its session; InvalidInput.
    """
    if call.spec.lane == "batch":
        fix = 'leave out session=, or lane="batch"'
        raise ConfigError('a turn of a session cannot wait for a batch: lane="batch"', code="DX105", fix=fix)
    inputs = without_history(call.spec, data, call.inputs)
    check_inputs(inputs)
    await SessionStore(bus, app).change(session, lambda state, now: used(session, state, now, None))
    return inputs


def token_of(user: str, kind: str, id: str) -> str:
    """What the id of a submitted call becomes in a subject."""
    # Of two users each has its own, and so has each kind: who has an id first does not decide who is told.
    return blake2b(f"{user}.{kind}.{id}".encode(), digest_size=_TOKEN).hexdigest()


async def _recorded(bus: Bus, app: str, run: str) -> Result[Any]:
    """The result of a submitted call that is over, by the last record of its run.

    Raises the call's error; RunFailed where no worker has answered it; RunNotFound where it is no submitted call, or its record
    is not kept any more.
    """
    info, began = await bus.stream(subjects.stream(app)), id_time(run)
    if info is None or began is None:
        raise RunNotFound(f"run {run} is not known", run=run)
    found: CallRecord | None = None
    after = await sequence_before(bus, info, (began - timedelta(seconds=2)).timestamp())
    async for page in pages(bus, info.name, [subjects.record(app, "*", subjects.SUBMITTED, "*", "*")], start=after + 1):
        for message in page:
            if message.headers.get(subjects.RUN) == run:
                try:
                    found = CallRecord.unpack((await payloads.required(bus, app, message)).data)
                except DecodeError:
                    continue  # no worker wrote it
    if found is None:
        raise RunNotFound(f"no record of a submitted call is kept for run {run}", run=run)
    if found.error is not None:
        error = from_dict(found.error)
        raise error.of_call() if isinstance(error, CallError) else error
    return result_of(found)


async def finished(run: Run, bus: Bus, app: str, timeout: Duration | None) -> Result[Any]:
    """Wait for a submitted call by the id of its run, and give its result. Raises as `_recorded`, and CallTimeout."""
    try:
        await run.wait(timeout)
    except RunFailed as failed:
        try:
            return await _recorded(bus, app, run.id)
        except RunNotFound:
            raise failed from None
    return await _recorded(bus, app, run.id)
