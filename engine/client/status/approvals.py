"""What waits for a person, and deciding about it.

A decision is stored in one batch with an entry of the audit, which is written only if the last one of a decision there is the
one that was looked at: so nobody else has decided in between, and who asks again is told what was decided.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from dspex.bus import subjects
from dspex.bus.errors import ConfigError, Fenced, RunError, Unsettled
from dspex.bus.message import Event, id_time, in_session
from dspex.bus.port import Bus, NewMessage
from dspex.bus.serving import audit, payloads
from dspex.bus.serving.audit import AuditEntry
from dspex.bus.settings.similar import did_you_mean
from dspex.engine.client.status.state import kept_by, tables_of
from dspex.engine.graph import manifest
from dspex.engine.graph.approvals import AcceptOrReject, Decision, DecisionKind, Waiting
from dspex.engine.log.positions import pages, sequence_before

VERB: Final = "decide"
_VERDICTS: Final = {"accept": "accepted", "reject": "rejected", "cancel": "cancelled with its run"}
_APART: Final = 60.0  # seconds by which the clocks of two servers may differ
_AGAIN: Final = 0.1  # seconds until it is looked again, after somebody else decided about something


@dataclass(frozen=True)
class Approval:
    """Something that waits for a decision.

    Attributes:
        id: of the approval, and of the event when it goes on. `Client.decide` takes a unique end of it, too (6 hex digits).
        topology, node: where it waits. stage, partition: and in which log.
        since: when it came; due: when its time is over, None: never (UTC).
        shown: the data, or the fields of it that `show=` names. digest: of the event and what is shown of it.
        event: as it goes on.
    """

    id: str
    topology: str
    node: str
    stage: str
    partition: int
    since: datetime
    due: datetime | None
    shown: Any
    digest: str
    event: Event[Any]

    def as_dict(self, *, event: bool = False) -> dict[str, Any]:
        """As the CLI prints it."""
        known = {name: value for name, value in vars(self).items() if name != "event"}
        known |= {"run": self.event.run, "key": self.event.key, "session": self.event.session}
        return known | ({"event": self.event.as_dict()} if event else {})


async def listing(bus: Bus, app: str, topology: str | None = None) -> AsyncIterator[Approval]:
    """What waits now, the oldest first. Raises BusError, ConfigError (DX105) for a topology that is not applied."""
    applied = await manifest.of_application(bus, app)
    if topology is not None and topology not in applied:
        fix = did_you_mean(topology, sorted(applied), "none is applied")
        raise ConfigError(f"there is no topology {topology!r}", code="DX105", fix=fix)
    found: list[Approval] = []
    for name, known in applied.items():
        for node in known.states if topology in (None, name) else ():
            if known.states[node] == "approve":
                kept = kept_by(name, node, known)
                for stage, partition, tables in await tables_of(bus, app, kept):
                    rows = [Waiting.unpack(row) for (of, _, _), row in tables.keyed.rows.items() if of == node]
                    found += [_approval(name, node, stage, partition, one) for one in rows if one.decided is None]
    for one in sorted(found, key=lambda one: (one.since, one.event.time, one.id)):
        yield one


def _approval(topology: str, node: str, stage: str, partition: int, one: Waiting) -> Approval:
    o, due = one.origin, None if one.due is None else _time(one.due)
    event = Event(o.id, o.subject, one.data, _time(o.time), o.run, o.cause, o.key, o.session, {}, o.sequence or None)
    return Approval(o.id, topology, node, stage, partition, _time(one.since), due, one.shown, one.digest, event)


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, tz=UTC)


async def find(bus: Bus, app: str, id: str) -> Approval | None:
    """What waits under an id, or under one that ends so; None for nothing. Raises RunError (DX626) where more than one does."""
    found = [one async for one in listing(bus, app) if one.id == id or (len(id) >= 6 and one.id.endswith(id))]
    if len(found) > 1:
        raise RunError(f"{len(found)} approvals end in {id}", code="DX626", fix="give more digits of the id")
    return found[0] if found else None


async def decide(
    bus: Bus,
    app: str,
    approval: str | Approval,
    decision: AcceptOrReject,
    *,
    edit: Mapping[str, Any] | None = None,
    note: str = "",
) -> None:
    """Decide about something that waits. Deciding the same again does nothing.

    Raises:
        RunError: DX626, it is decided otherwise already, is another than was shown, or does not wait.
        ConfigError: DX105 for what is no decision.
    """
    _check(decision, edit)
    await _settle(bus, app, approval, decision, edit, note)


async def withdraw(bus: Bus, app: str, run: str) -> int:
    """End what waits for a decision in a run that is cancelled; how much. Raises BusError, ConfigError."""
    found = [one async for one in listing(bus, app) if one.event.run == run]
    return sum([await _withdrawn(bus, app, one) for one in found])


async def _withdrawn(bus: Bus, app: str, one: Approval) -> bool:
    try:
        await _settle(bus, app, one, "cancel")
    except RunError:  # somebody has decided meanwhile, or its time is over: it has gone on, and ends there
        return False
    return True


async def _settle(
    bus: Bus,
    app: str,
    approval: str | Approval,
    decision: DecisionKind,
    edit: Mapping[str, Any] | None = None,
    note: str = "",
) -> None:
    """Store a decision, once. Raises RunError (DX626) where another one holds."""
    given = approval.id if isinstance(approval, Approval) else approval
    while True:
        last, before = await _decided(bus, app, given)
        if before is not None:
            return _same(before, decision, edit)
        found = await find(bus, app, given)
        if found is None:
            fix = "dspex approvals ls shows what waits; its time may be over: dspex dlq ls"
            raise RunError(f"nothing waits for a decision as {given}", code="DX626", fix=fix)
        await _refuse(bus, app, found, approval, edit)
        made = Decision(found.id, found.digest, decision, edit, note, audit.whoami())
        what: dict[str, Any] = {"approval": found.id, "topology": found.topology, "node": found.node, "decision": decision}
        what |= {"edited": sorted(edit)} if edit else {}
        what |= {"note": note} if note and bus.sealing is None else {}  # the audit is in clear text
        headers = {subjects.DECIDE: found.node} | ({subjects.RUN: found.event.run} if found.event.run.isprintable() else {})
        to = subjects.decision(app, found.topology, found.stage, found.partition)
        told = NewMessage(to, made.pack(), headers | in_session(found.event.session))
        batch = [audit.entry(app, VERB, **what)._replace(expect=last), await payloads.checked_in(bus, app, told)]
        try:
            await bus.commit(batch)
        except (Fenced, Unsettled):  # somebody decided about something meanwhile, or nobody knows whether this is stored
            await asyncio.sleep(_AGAIN)
            continue
        return None


def _check(decision: str, edit: Mapping[str, Any] | None) -> None:
    if decision not in ("accept", "reject"):
        raise ConfigError(f"{decision!r} is no decision", code="DX105", fix='"accept" or "reject"')
    if edit and decision == "reject":
        raise ConfigError("what is rejected is not edited", code="DX105", fix='decide "accept", or leave edit= out')


async def _refuse(bus: Bus, app: str, found: Approval, seen: str | Approval, edit: Mapping[str, Any] | None) -> None:
    """Raise RunError (DX626) where a decision about what waits would not hold; ConfigError where its data has no fields."""
    if isinstance(seen, Approval) and seen.digest != found.digest:
        raise RunError(f"what waits as {found.id} is not what was shown", code="DX626", fix="look at it again, then decide")
    info = await bus.stream(subjects.stream(app))
    if found.due is not None and info is not None and found.due.timestamp() <= info.now:
        raise RunError(f"the time of {found.id} was over at {found.due.isoformat()}", code="DX626", fix="see dspex dlq ls")
    if edit and not isinstance(found.event.data, dict):
        what = type(found.event.data).__name__
        raise ConfigError(f"edit changes fields, and the data is {what}", code="DX105", fix="accept or reject it as it is")


async def _decided(bus: Bus, app: str, id: str) -> tuple[int, AuditEntry | None]:
    """The sequence of the last decision about anything, 0 for none; and the one about this id."""
    stream, subject = subjects.stream(app), subjects.audit(app, VERB)
    newest, info, at = await bus.last(stream, subject), await bus.stream(stream), id_time(id)
    start = await sequence_before(bus, info, at.timestamp() - _APART) + 1 if info is not None and at is not None else 1
    last = newest.sequence if newest is not None else 0
    async for page in pages(bus, stream, [subject], start=start):
        for message in page:
            last, found = max(last, message.sequence), audit.read(message)
            named = found.what.get("approval")
            if isinstance(named, str) and (named == id or (len(id) >= 6 and named.endswith(id))):
                return last, found
    return last, None


def _same(before: AuditEntry, decision: str, edit: Mapping[str, Any] | None) -> None:
    """Raise RunError (DX626) where something else was decided."""
    what = before.what
    if what.get("decision") == decision and what.get("edited", []) == sorted(edit or ()):
        return
    how = _VERDICTS.get(str(what.get("decision")), "rejected")
    how += f", with {', '.join(map(str, what['edited']))} edited," if what.get("edited") else ""
    note = f": {what['note']}" if what.get("note") else ""
    why = f"{what.get('approval')} was {how} by {before.who} at {before.time.isoformat(timespec='seconds')}{note}"
    raise RunError(why, code="DX626", fix="a decision is final; a rejected or cancelled event waits again: dspex dlq redrive")
