"""sink: publish data to a subject, which may be made of its fields: `replies.{intent}`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dspex.bus import subjects
from dspex.bus.errors import InvalidInput
from dspex.engine.graph.graph import Sink
from dspex.operators.expressions import template
from dspex.operators.problems import problem, wrong
from dspex.operators.typing.shape import UNKNOWN, Shape

CODECS = ("json", "msgpack", "arrow", "auto")


def make(subject: str, *, stream: str | None, codec: str, shape: Shape = UNKNOWN) -> Sink:
    """The sink of a subject for data of this shape.

    Raises TopologyError: DX217 for a bad subject, DX205 for a bad option, DX229 for Arrow where records come.
    """
    if codec == "arrow" and (shape.fields is not None or shape.type == dict[str, Any]):
        what = f"codec arrow is for arrays and tables, and what comes to {subject} are records"
        raise problem("DX229", what, 'codec="json", or "auto", which takes Arrow for arrays and tables only')
    if codec not in CODECS:
        raise wrong("codec", codec, f"one of: {', '.join(CODECS)}")
    if stream is not None:  # part of the API, and not built yet: ignored, it would look as if a copy were kept
        raise wrong("stream", stream, "left out: this version keeps no copy under another stream")
    pattern = pattern_of(subject)
    if not subjects.is_pattern(pattern) or "*" in subject or ">" in subject:
        raise problem(
            "DX217",
            f"{subject!r} is not a subject that can be published to",
            "tokens with dots between them, no spaces, no wildcards, no $ in front; fields in braces: replies.{intent}",
        )
    return Sink(subject, pattern, _address(subject) if pattern != subject else None, stream, codec)


def pattern_of(subject: str) -> str:
    """What the stream captures: a token with a field in it becomes `*`. Raises TopologyError (DX225)."""
    parts = template.parse(subject)
    text = "".join(p.text + ("" if p.field is None else "\0") for p in parts)
    return ".".join("*" if "\0" in token else token for token in text.split("."))


def _address(subject: str) -> Callable[[Any], str]:
    fill = template.renderer(template.parse(subject), _token(subject))
    return lambda data: fill(data, None)


def _token(subject: str) -> Callable[[Any], str]:
    def encode(value: Any) -> str:
        text = template.as_text(value)
        # a dot would change the number of tokens, and so which subject the stream captures
        if not text or not subjects.is_subject(text) or "." in text:
            raise InvalidInput(
                f"sink {subject}: {text[:60]!r} cannot be part of a subject",
                fix="clean the field before the sink: no dots, spaces, * or >",
            )
        return text

    return encode
