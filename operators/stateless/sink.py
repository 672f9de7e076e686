"""sink: publish data to a subject, which may be made of its fields: `replies.{intent}`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from dspex.bus import subjects
from dspex.bus.codecs.cloud_events import CloudEventMode
from dspex.bus.errors import InvalidInput
from dspex.engine.graph.nodes import Sink
from dspex.operators.expressions import template
from dspex.operators.native.problems import problem, wrong
from dspex.operators.parameters import ChoiceParameter, Parameter
from dspex.operators.parameters.parameter import checked
from dspex.operators.plan import NodeDraft, Plan
from dspex.operators.stateless.source import StreamNameParameter
from dspex.operators.typing.names import Codec
from dspex.operators.typing.shape import UNKNOWN, Shape
from dspex.operators.typing.stream_checks import missing_fields

CODEC = ChoiceParameter("json", of=Codec, doc="how the data is encoded; default: the topology's")
CLOUD_EVENTS = ChoiceParameter(
    None,
    of=CloudEventMode,
    doc="write each event as a CloudEvent 1.0: `structured` is one JSON object with the data in it, which every reader of "
    "CloudEvents on NATS knows; `binary` has the data as the body, and the attributes as headers `ce-…`",
)
STREAM = StreamNameParameter(
    None,
    doc="a stream of yours that gets a copy of every event; it is made if need be, and nothing of it is ever removed",
)
SINK_OPTIONS: Mapping[str, Parameter] = MappingProxyType({"codec": CODEC, "cloudevents": CLOUD_EVENTS, "stream": STREAM})


def add(plan: Plan, node: NodeDraft, outlet: int, shape: Shape, subject: str, given: Mapping[str, object]) -> None:
    """Add a sink behind an outlet of a node, and note what is wrong with it."""
    o, errors = checked(SINK_OPTIONS, given, has="a sink has")
    if not isinstance(subject, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        errors.append(wrong("sink", subject, 'the subject to publish to: "support.replies"'))
        subject = str(subject)
    payload = Sink(subject, subject)
    draft = NodeDraft("sink", subject, subject, payload=payload, inputs=[(node, outlet)], options=dict(o), shape=shape)
    plan.add(draft)
    for e in errors:
        plan.refuse(draft, e)
    with plan.collecting(draft):
        made = make(subject, codec=o.get("codec", plan.codec), shape=shape)
        draft.payload = replace(made, cloudevents=o.get("cloudevents"), stream=_public(o.get("stream")))
    for text in template.fields(subject):
        for e in missing_fields(text, shape):
            plan.refuse(draft, e)


def make(subject: str, *, codec: str, shape: Shape = UNKNOWN) -> Sink:
    """The sink of a subject for data of this shape.

    Raises TopologyError: DX217 for a bad subject, DX229 for Arrow where records come.
    """
    if codec == "arrow" and (shape.fields is not None or shape.type == dict[str, Any]):
        what = f"codec arrow is for arrays and tables, and what comes to {subject} are records"
        raise problem("DX229", what, 'codec="json", or "auto", which takes Arrow for arrays and tables only')
    pattern = pattern_of(subject)
    if not subjects.is_pattern(pattern) or not subject.isprintable() or "*" in subject or ">" in subject:
        raise problem(
            "DX217",
            f"{subject!r} is not a subject that can be published to",
            "tokens with dots between them, no spaces, wildcards or control characters, no $ or _INBOX in front; "
            "fields in braces: replies.{intent}",
        )
    return Sink(subject, pattern, _address(subject) if pattern != subject else None, codec=codec)


def _public(stream: str | None) -> str | None:
    """The name of a copy. Raises TopologyError (DX205) for one that a server uses for what is no copy."""
    if stream is not None and stream.startswith(subjects.RESERVED):
        raise wrong("stream", stream, f"a name of your own, which does not begin with {', '.join(subjects.RESERVED)}")
    return stream


def pattern_of(subject: str) -> str:
    """What the stream captures: a token with a field in it becomes `*`. Raises TopologyError (DX225)."""
    parts = template.parse(subject)
    text = "".join(p.text + ("" if p.field is None else "\0") for p in parts)
    return ".".join("*" if "\0" in token else token for token in text.split("."))


def _address(subject: str) -> Callable[[Any], str]:
    fill = template.renderer(template.parse(subject), _token(subject))
    return lambda data: fill(data, None)


def _token(subject: str) -> Callable[[Any], str]:
    def encode(value: object) -> str:
        text = template.as_text(value)
        # a dot would change the number of tokens, and so which subject the stream captures
        if not text or not subjects.is_subject(text) or "." in text:
            raise InvalidInput(
                f"sink {subject}: {text[:60]!r} cannot be part of a subject",
                fix="clean the field before the sink: no dots, spaces, * or >, nor characters that cannot be seen",
            )
        return text

    return encode
