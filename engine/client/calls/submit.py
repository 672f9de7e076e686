"""Calls that outlive who asks: submitted as events of the application's own topology, and their results read from records."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from hashlib import blake2b
from typing import Any

from dspex.bus import subjects
from dspex.bus.codecs import encode
from dspex.bus.errors import CallError, DecodeError, Fenced, InvalidInput, NotStored, RunFailed, RunNotFound, from_dict
from dspex.bus.message import id_time, new_id
from dspex.bus.port import Ack, Bus, NewMessage
from dspex.bus.records import CallRecord, Usage
from dspex.bus.serving import payloads
from dspex.engine.client import publish as publishing
from dspex.engine.client.call import Result
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
    what: HasCall[Any] | str,
    data: Any,
    *,
    id: str | None,
    above: int,
    waits: RunWaits | None,
) -> Run:
    """See `Client.submit`."""
    asked, _ = await nodes.resolve(bus, what, durable=True)
    call = asked.call or Call[Any](asked.spec, asked.pool, dict, lambda data, outputs: outputs)
    if not isinstance(data, Mapping) and asked.call is None:
        raise InvalidInput(f"a call takes fields, and this is {type(data).__name__}", fix='give a mapping: {"text": "…"}')
    body, content_type = encode(event_of(call, call.inputs(data)), "msgpack")
    token = blake2b((id or new_id()).encode(), digest_size=_TOKEN).hexdigest()
    subject = subjects.submit(nodes.app, call.pool, call.spec.kind, token)
    headers = publishing.headers_of(token, None, None, None, None, content_type)
    draft = NewMessage(subject, body, headers, expect=0)  # the same id twice is one call, however much later
    try:
        return await publishing.publish(bus, nodes.app, draft, above, waits)
    except NotStored as error:
        fix = "set engine.submit = true in dspex.toml, and start the engine anew: dspex run"
        raise NotStored("nothing takes submitted calls, so the call would be lost", code=error.code, fix=fix) from None
    except Fenced:
        stored = await bus.last(subjects.sources(nodes.app), subject)
        if stored is None:
            raise
        return publishing.run_at(bus, nodes.app, subject, Ack(subjects.sources(nodes.app), stored.sequence, True), waits)


async def result_of(bus: Bus, app: str, run: str) -> Result[Any]:
    """The result of a submitted call that is over, by its last record.

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
    return Result(
        data=dict(found.outputs or {}),
        id=found.call,
        route=found.route,
        usage=Usage.read(found.usage),
        lm=found.lm,
        worker=found.worker,
        attempts=found.attempt,
        elapsed=timedelta(seconds=found.elapsed),
        dspy_version=found.dspy_version,
        state=found.state,
        warning=found.warning,
    )


async def finished(run: Run, bus: Bus, app: str, timeout: Any) -> Result[Any]:
    """Wait for a submitted call, and give its result. Raises as `result_of`, and CallTimeout."""
    try:
        await run.wait(timeout)
    except RunFailed as failed:
        try:
            return await result_of(bus, app, run.id)
        except RunNotFound:
            raise failed from None
    return await result_of(bus, app, run.id)
