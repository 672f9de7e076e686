"""Steps of runs: the attempts at calls, as their records say."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from hashlib import blake2b
from typing import Any, Final, TypeVar

from dspex.bus import codecs
from dspex.bus.errors import DataError
from dspex.bus.message import Message
from dspex.bus.records import CallRecord, NodeEvent, Usage, unpack_event
from dspex.bus.serving.call_spec import CallSpec
from dspex.bus.serving.programs.exchanges import read_exchanges

T = TypeVar("T")


@dataclass(frozen=True)
class Step:
    """One attempt at a call, as recorded.

    Attributes:
        id: `node#ordinal` within the run; it does not depend on worker or attempt.
        inputs: of the call, where `steps` was told how nodes make them; else the data of the event that it was made for.
        asked: what was asked, see `what_is_asked`; "" where that is not known. state: the saved state that it had, `draft@4`.
        damaged: its record is not what was stored, and says nothing. missing: its record was removed.
        exchanges: what models and tools were asked and said, as far as the record keeps it: the fields of an Exchange each.
    """

    id: str
    node: str
    event: str
    inputs: Any
    outputs: Any
    route: str | None
    lm: str | None
    program: str | None
    worker: str | None
    started: datetime
    elapsed: timedelta
    usage: Usage
    error: str | None
    run: str = ""
    call: str = ""
    attempt: int = 1
    asked: str = ""
    state: str = ""
    damaged: bool = False
    missing: bool = False
    exchanges: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])

    @property
    def ended(self) -> bool:
        """Whether it has a record."""
        return self.outputs is not None or self.error is not None or self.wrong is not None

    @property
    def wrong(self) -> str | None:
        """What is wrong with its record; None where nothing is known to be."""
        return "missing" if self.missing else "damaged" if self.damaged else None


def frozen(kind: type[T], made: Mapping[str, Any]) -> T:
    """`kind(**made)`, which sets each field of a frozen dataclass by itself: that takes three times as long."""
    if not isinstance(made, dict) or made.keys() != kind.__dataclass_fields__.keys():  # type: ignore[attr-defined]
        return kind(**made)  # of another version; or says what is missing
    found = object.__new__(kind)
    vars(found).update(made)
    return found


def what_is_asked(spec: CallSpec) -> str:
    """A digest of all that an answer depends on besides the inputs, for what is kept: without the saved state, whose name may
    mean another version later, and equal for dspex of another version, which knows options that are not set here.
    """
    return _asked(spec.packed)


@lru_cache(64)
def _asked(packed: bytes) -> str:
    spec, blank = CallSpec.unpack(packed), CallSpec("", "", "")
    said = {name: value for name, value in spec.plain().items() if name not in _HOW and value != getattr(blank, name)}
    return blake2b(codecs.msgpack_bytes(dict(sorted(said.items()))), digest_size=16).hexdigest()


_HOW: Final = frozenset({"state", "cache", "route", "cost", "hedge", "first_token_timeout", "lane", "choose"})


def steps(stored: Iterable[Message], inputs: Mapping[str, Callable[[object], Any]] | None = None) -> list[Step]:
    """The records among stored messages, in their order. What is no record is left out.

    `inputs`: node → what makes the inputs of a call of an event's data.
    """
    found: list[Step] = []
    ordinals: dict[tuple[str, str], list[str]] = {}
    for message in stored:
        try:
            record = CallRecord.unpack(message.data)
            event = unpack_event(record.event)
            data = codecs.decode(event.data, event.content_type)
        except DataError:
            continue  # anybody may write to a stream: the engine passes it over as well
        if inputs and record.node in inputs:
            data = inputs[record.node](data)
        calls = ordinals.setdefault((event.origin.run, record.node), [])
        if record.call not in calls:
            calls.append(record.call)
        found.append(_step(record, event, data, calls.index(record.call)))
    return found


def _step(o: CallRecord, event: NodeEvent, inputs: Any, ordinal: int) -> Step:
    return Step(
        id=f"{o.node}#{ordinal}",
        node=o.node,
        event=event.origin.id,
        inputs=inputs,
        outputs=None if o.outputs is None else dict(o.outputs),
        route=o.route,
        lm=o.lm or None,
        program=o.program or None,
        worker=o.worker or None,
        started=datetime.fromtimestamp(o.started, tz=UTC),
        elapsed=timedelta(seconds=o.elapsed),
        usage=Usage(**o.usage),
        error=None if o.error is None else str(o.error.get("message", "")),
        run=event.origin.run,
        call=o.call,
        attempt=o.attempt,
        state=o.state,
    )


def exchanges_of(record: CallRecord, spec: CallSpec) -> list[dict[str, Any]]:
    """What models and tools were asked and said, as a step has it: of a call with a secret field nothing."""
    try:
        if spec.secrets:
            return []
        return [one._asdict() for one in read_exchanges(record.exchanges).exchanges]
    except DataError:
        return []  # whoever wrote the record has written no such thing
