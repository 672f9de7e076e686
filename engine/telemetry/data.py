"""What a span is, before anybody takes it for OpenTelemetry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from dspex.bus.codecs.tracing import TraceOf
from dspex.engine.telemetry.content import SaidInCall
from dspex.engine.telemetry.links import SpanLink


class SharedAttributes:
    """Attributes that many spans have: one object for all of them. `encoded`: their bytes, once somebody needed them."""

    __slots__ = ("attributes", "encoded")

    def __init__(self, attributes: Mapping[str, str]) -> None:
        self.attributes = attributes
        self.encoded: bytes | None = None


class SpanData(NamedTuple):
    """A span that has ended. `parent`: 0 for none. `error`: the class of what it ended in; "" for nothing. Times in ns.

    `links`: spans of the events that it is made of, where there are several. `said`: what may be told of its content. `shared`:
    attributes besides its own.
    """

    name: str
    kind: Literal["INTERNAL", "CONSUMER", "CLIENT"]
    of: TraceOf
    span: int
    parent: int
    start: int
    end: int
    attributes: Mapping[str, Any]
    error: str = ""
    links: Sequence[SpanLink] = ()
    said: SaidInCall | None = None
    shared: SharedAttributes | None = None

    def all_attributes(self) -> Mapping[str, Any]:
        """Its own, those that it shares, and what it ended in."""
        shared = self.shared.attributes if self.shared is not None else {}
        return {**shared, **self.attributes, "error.type": self.error} if self.error else {**shared, **self.attributes}
