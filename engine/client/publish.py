"""Publishing: one event, stored before it is reported as such."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from datetime import UTC, datetime

from dspex.bus import codecs, subjects
from dspex.bus.errors import ConfigError, InvalidInput, NotStored, PayloadTooLarge
from dspex.bus.message import INHERITED
from dspex.bus.port import Bus, NewMessage
from dspex.bus.serving import payloads
from dspex.bus.serving.clear_text import may_store
from dspex.engine.client.run import AT, Run
from dspex.engine.graph import manifest


async def publish(bus: Bus, app: str, message: NewMessage, above: int = payloads.ABOVE) -> Run:
    """Store an event of a source; the run that it begins.

    `above`: bytes of data that is not stored in its message. Raises ConfigError for what is no subject, and (DX124) where the
    application's payloads are sealed, and there is no key here; NotStored, PayloadTooLarge.
    """
    subject = message.subject
    if not subjects.is_subject(subject):
        raise ConfigError(f"{subject!r} is not a subject", code="DX105", fix="tokens joined by dots, without wildcards")
    if (size := len(message.data)) > (most := payloads.most(bus)):
        text = f"{size:,} bytes for {subject}, and one payload may have {most:,}"
        raise PayloadTooLarge(text, node="publish", fix="store it elsewhere, and publish where it is")
    await may_store(bus, app)
    try:
        ack = await bus.publish(await payloads.checked_in(bus, app, message, above))
    except NotStored as e:
        raise await _suggested(bus, app, subject, e) from None
    return Run(bus, app, f"{ack.stream}{AT}{ack.sequence}", subject, ack.stream, ack.sequence, ack.duplicate)


async def _suggested(bus: Bus, app: str, subject: str, e: NotStored) -> NotStored:
    applied = await manifest.of_application(bus, app)
    known = {source: topology for topology, m in applied.items() for source in m.streams}
    close = difflib.get_close_matches(subject, known, n=1)
    fix = "apply a topology that reads it: dspex run"
    if close:
        fix = f"did you mean {close[0]} (source of {known[close[0]]})?  or {fix}"
    return NotStored(f"nothing stores {subject!r}, so the event would be lost", code=e.code, fix=fix, node="publish")


def headers_of(
    id: str | None,
    key: str | None,
    session: str | None,
    time: datetime | None,
    more: Mapping[str, str] | None,
    content_type: str,
) -> dict[str, str]:
    """The headers of an event. Raises ConfigError (DX107) where `more` has one that dspex sets itself; InvalidInput where what
    is handed on to all that follows from the event is too long.
    """
    if len(key or "") + len(session or "") > INHERITED // 2:  # ids of the engine, and the trace, need the rest
        raise InvalidInput(f"key and session have more than {INHERITED // 2:,} characters together", fix="use shorter ones")
    ours = [h for h in more or {} if h in subjects.OWN_HEADERS or h.lower().startswith(subjects.FROM_SERVER.lower())]
    if ours:
        raise ConfigError(f"header {ours[0]!r} is set by dspex", code="DX107", fix="use publish's own options, or another name")
    headers = dict(more or {})
    if id is not None:
        headers[subjects.MESSAGE_ID] = id
    if key is not None:
        headers[subjects.KEY] = key
    if session is not None:
        headers[subjects.SESSION] = session
    if time is not None:
        headers[subjects.TIME] = (time if time.tzinfo else time.replace(tzinfo=UTC)).isoformat()
    if content_type != codecs.JSON:
        headers[subjects.CONTENT_TYPE] = content_type
    return headers
