"""Sources: where events enter a topology. Their options, declared once, and the engine's `Source` made of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, ClassVar, Literal, TypedDict, cast

from dspex.bus import codecs
from dspex.bus.codecs.cloud_events import is_structured
from dspex.bus.errors import DecodeError, InvalidInput
from dspex.bus.settings.duration import Duration
from dspex.bus.settings.not_built import OPTIONS
from dspex.bus.subjects import is_stream_name
from dspex.engine.graph.nodes import MOST_PARTITIONS, OnGap, Source, Start
from dspex.operators.expressions import language as expressions
from dspex.operators.native.fields.fields import JsonSchema
from dspex.operators.native.problems import wrong
from dspex.operators.parameters import (
    Arguments,
    ChoiceParameter,
    DurationParameter,
    ExpressionParameter,
    IntegerParameter,
    Parameter,
    TextParameter,
    TypeParameter,
)
from dspex.operators.parameters.parameter import checked
from dspex.operators.plan import NodeDraft, Plan
from dspex.operators.typing.shape import shape_of, validator

_MEDIA_TYPE = re.compile(r"[A-Za-z0-9.+_-]+/[A-Za-z0-9.+_-]+")


class SourceOptions(TypedDict, total=False):
    """What a source takes. SOURCE_OPTIONS says what each is; docs/operators.md lists them."""

    stream: str
    start: Literal["new", "all"] | int | datetime
    time: str
    partitions: int
    on_gap: OnGap
    accept: Sequence[str]
    idle: Duration
    hold: Duration


@dataclass(frozen=True)
class StartParameter(Parameter):
    """Where a source begins when it is first applied."""

    noun: ClassVar[str] = '`"all"`, `"new"`, a sequence, or a time'
    form: ClassVar[JsonSchema] = {"type": ["string", "integer"]}

    def check(self, name: str, value: object) -> object:
        _start(value)
        return value

    def plain(self, value: object, others: Arguments) -> object:
        return value.isoformat() if isinstance(value, datetime) else value


@dataclass(frozen=True)
class MediaTypesParameter(Parameter):
    """Content types, one or more."""

    noun: ClassVar[str] = "a list of content types"
    form: ClassVar[JsonSchema] = {"type": "array", "items": {"type": "string"}, "minItems": 1}

    def check(self, name: str, value: object) -> object:
        names = list(cast("Sequence[object]", value)) if isinstance(value, (list, tuple)) else []
        if not names or not all(isinstance(n, str) and _MEDIA_TYPE.fullmatch(n) for n in names):
            raise wrong(name, value, f'content types: ["{codecs.JSON}", "{codecs.ARROW}"]')
        if any(is_structured(str(n)) for n in names):
            raise wrong(name, value, f'the content type of the data in a CloudEvent: ["{codecs.JSON}"]; any source takes those')
        return [str(n).lower() for n in names]


@dataclass(frozen=True)
class StreamNameParameter(TextParameter):
    """The name of a JetStream stream."""

    _: KW_ONLY
    fix: str = "the name of a JetStream stream"

    def check(self, name: str, value: object) -> object:
        if isinstance(value, str) and not is_stream_name(value):
            raise wrong(name, value, "the name of a JetStream stream has no spaces, no dots, no wildcards and no slashes")
        return super().check(name, value)


SOURCE_OPTIONS: Mapping[str, Parameter] = MappingProxyType(
    {
        "type": TypeParameter(None, doc="checks and types the data; an event that does not fit is a dead letter"),
        "stream": StreamNameParameter(None, doc="default: the one that captures the subject"),
        "start": StartParameter(
            "all", doc="where to begin when it is first applied; afterwards its position is what was stored"
        ),
        "time": ExpressionParameter(None, doc="event time: RFC 3339 text, seconds or a datetime; default: the stored time"),
        "partitions": IntegerParameter(
            1,
            most=MOST_PARTITIONS,
            doc="events are spread by key, else session, else subject, and a key stays in its partition",
        ),
        "on_gap": ChoiceParameter(
            "stop", of=OnGap, doc="the source lost events before they were read: stop, or note the gap and go on"
        ),
        "accept": MediaTypesParameter(
            None,
            doc="an event of another content type is a dead letter; default: all that are known, but Arrow only where it is "
            "the topology's codec, or that is `auto`",
        ),
        "idle": DurationParameter(
            30, zero=False, doc="after so long without an event the clock moves its event time on, so that windows end"
        ),
        "hold": DurationParameter(
            3600, doc="how long an event that waits (`at`, `after`, `RetryLater`) holds up the windows behind it, at most"
        ),
    }
)


def add(plan: Plan, subject: str, given: Mapping[str, object]) -> NodeDraft:
    """Add a source to a plan, and note what is wrong with it."""
    o, errors = checked(SOURCE_OPTIONS, given, has="a source has", not_built=OPTIONS["source"])
    options = {name: SOURCE_OPTIONS[name].plain(value, o) for name, value in o.items() if name in given}
    if not isinstance(subject, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        errors.append(wrong("source", subject, 'the subject to read: "support.messages"'))
        subject = str(subject)
    draft = NodeDraft("source", subject, subject, payload=Source(subject), options=options, shape=shape_of(o.get("type")))
    plan.add(draft)
    for e in errors:
        plan.refuse(draft, e)
    with plan.collecting(draft):
        draft.payload = _source(subject, {name: p.default for name, p in SOURCE_OPTIONS.items()} | o, plan.codec)
    for name, value in o.items():
        for e in SOURCE_OPTIONS[name].misfits("source", value, draft.shape, o):
            plan.refuse(draft, e)
    return draft


def _source(subject: str, o: Mapping[str, Any], codec: str) -> Source:
    time, tp, accept = o["time"], o["type"], o["accept"]
    return Source(
        subject,
        o["stream"],
        _start(o["start"]),
        o["partitions"],
        o["on_gap"],
        time=None if time is None else _event_time(time),
        accept=None if tp is None else validator(tp),
        media=_media(subject, accept, codec),
        idle=float(o["idle"]),
        hold=float(o["hold"]),
        plain=accept is None or codecs.JSON in accept,
    )


def _media(subject: str, accept: Sequence[str] | None, codec: str) -> Callable[[str], None]:
    """What is asked whether a content type is taken. The publisher names it, and a table can be large without many bytes."""
    columnar = codec in ("arrow", "auto")

    def check(content_type: str) -> None:
        name = codecs.media_type(content_type)
        kind = codecs.read_as(name)
        if not {name, kind} & set(accept) if accept is not None else kind == codecs.ARROW and not columnar:
            fix = f'publish another, or let the source take it: source("{subject}", accept=[…, "{name}"])'
            raise DecodeError(f"source {subject} takes no content type {name!r}", fix=fix)

    return check


def _start(value: object) -> Start:
    """As the engine takes it: a time in seconds. Raises TopologyError (DX205)."""
    if value in ("new", "all") or (isinstance(value, int) and not isinstance(value, bool) and value >= 0):
        return value
    if isinstance(value, str):
        with suppress(ValueError):
            value = datetime.fromisoformat(value)
    if not isinstance(value, datetime):
        raise wrong("start", value, '"new", "all", a sequence, or a time: datetime, or "2026-01-01T00:00:00Z"')
    return (value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp()


def _event_time(text: str) -> Callable[[Any], datetime]:
    """data → event time, by an expression that gives RFC 3339 text, seconds since the epoch, or a datetime."""
    expression = expressions.compile(text)

    def time(data: object) -> datetime:
        value = expression.function(data)
        try:
            if isinstance(value, str):
                value = datetime.fromisoformat(value)
            elif isinstance(value, (int, float)) and not isinstance(value, bool):
                value = datetime.fromtimestamp(value, tz=UTC)
        except (ValueError, OverflowError, OSError) as e:
            raise InvalidInput(f'"{text}" gives {value!r}, which is no time: {e}') from e
        if not isinstance(value, datetime):
            raise InvalidInput(f'"{text}" gives {type(value).__name__}, which is no time')
        return value if value.tzinfo else value.replace(tzinfo=UTC)

    return time
