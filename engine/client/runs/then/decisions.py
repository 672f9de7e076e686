"""What people decided about the events of a run that waited for them: it is decided again where the run is done again."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any, NamedTuple

from dspex.bus import codecs, subjects
from dspex.bus.codecs.checking import checked
from dspex.bus.errors import ConfigError, DataError, InvalidInput
from dspex.bus.port import Bus
from dspex.bus.serving import payloads
from dspex.engine.client.following.progress import PartitionId
from dspex.engine.client.runs.history import History
from dspex.engine.graph.approvals import Decision, DecisionKind
from dspex.engine.graph.manifest import Manifest


class DecisionThen(NamedTuple):
    """A decision of then. `approval`: about what. `time`: when it was stored, in seconds since the epoch."""

    node: str
    approval: str
    decision: DecisionKind
    edit: dict[str, Any] | None
    note: str
    who: str
    time: float

    def about(self, digest: str) -> Decision:
        """The decision, about what waits now."""
        return Decision(self.approval, digest, self.decision, self.edit, self.note, self.who)

    def altered(self, fields: Mapping[str, Any]) -> DecisionThen:
        """Another one, as a fork says. Raises ConfigError (DX105) where that is none."""
        try:
            made = Decision.read({"approval": self.approval, "digest": "", "decision": "accept", **fields})
            if made.decision == "cancel":
                raise InvalidInput("that ends a whole run")
        except DataError as error:
            fix = "--set decision=reject, --set note=…, or --set edit:={…}"
            raise ConfigError(f"{self.node} waits for a decision, and {error.message}", code="DX105", fix=fix) from None
        return self._replace(decision=made.decision, edit=dict(made.edit) if made.edit else None, note=made.note)


def read_decision(row: Mapping[str, Any]) -> DecisionThen:
    """What a line of a file says. Raises DecodeError, KeyError."""
    found: DecisionThen = checked(DecisionThen, "a decision", {name: row[name] for name in DecisionThen._fields})
    return found


async def decisions_of(bus: Bus, app: str, past: History, applied: Mapping[str, Manifest]) -> tuple[DecisionThen, ...]:
    """What people decided in a run. Raises BusError."""
    spans = dict[PartitionId, tuple[int, int]]()
    for taken in past.taken:
        known = applied.get(taken.partition[0])
        if known is not None and "approve" in known.states.values():
            begin, end = spans.get(taken.partition, (taken.sequence, taken.sequence))
            spans[taken.partition] = min(begin, taken.sequence), max(end, taken.sequence)
    return tuple([one for where, span in spans.items() async for one in _decided(bus, app, past.run, where, span)])


async def _decided(bus: Bus, app: str, run: str, where: PartitionId, span: tuple[int, int]) -> AsyncIterator[DecisionThen]:
    stream, subject = subjects.stream(app), subjects.decision(app, *where)
    for message in await bus.scan(stream, [subject], start=span[0], stop=span[1]):
        if message.headers.get(subjects.RUN) != run:
            continue
        try:
            whole = await payloads.required(bus, app, message)
            one = Decision.read(codecs.decode(whole.data, codecs.JSON))
        except DataError:
            continue  # anybody may have stored it, or its session was forgotten
        edit = dict(one.edit) if one.edit else None
        node = message.headers.get(subjects.DECIDE, "")
        yield DecisionThen(node, one.approval, one.decision, edit, one.note, one.who, message.time)
