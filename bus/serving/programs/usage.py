"""What a call has cost, and which models were tried for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Self, cast

from dspex.bus.codecs.checking import checked, made
from dspex.bus.errors import DecodeError


@dataclass(frozen=True)
class Usage:
    """Tokens and money of one call, or of many together.

    Attributes:
        cost: in USD; None where the price is not known.
        cached_tokens: those of the input that the provider had in its cache.
        finish: the server's word for why the model stopped, of the last reply: "stop", "length"; "" where it has none.
        requests: that a model answered.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    cost: float | None = None
    cached_tokens: int = 0
    finish: str = ""
    requests: int = 0

    @classmethod
    def read(cls, raw: object) -> Self:
        """What a record says was used. Raises DecodeError for what is no usage."""
        if raw == _NOTHING:  # of a call that no model answered
            return cast("Self", NO_USAGE)
        plain = dict(cast("Mapping[str, Any]", raw)) if isinstance(raw, Mapping) else raw
        found = made(cls, checked(cls, "the usage of a call", plain))
        counts = found.input_tokens, found.output_tokens, found.cached_tokens, found.requests
        if not all(0 <= count <= _MOST_COUNTED for count in (*counts, found.cost or 0.0)):  # NaN among them
            raise DecodeError("not the usage of a call: its counts are below nothing, or no numbers")
        return found

    def __add__(self, other: Usage) -> Usage:
        costs = [c for c in (self.cost, other.cost) if c is not None]
        return Usage(
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            sum(costs) if costs else None,
            self.cached_tokens + other.cached_tokens,
            other.finish or self.finish,
            self.requests + other.requests,
        )


ANSWERED, HEDGED, BEGAN, SILENT = "answered", "hedged", "began", "silent"
"""Words of `Tried`."""


class Tried(NamedTuple):
    """One decision about who answers a call.

    Attributes:
        lm: the profile.
        why: ANSWERED; the class of the error that it ended in; "open", it was not asked because its breaker was; "behind",
            another one was asked first because it does better lately; "dearer", because that is expected to cost less;
            "limited", it had no room in a limit or budget; HEDGED, it was asked twice, since it took longer than usual; SILENT,
            it did not begin to answer in time; BEGAN, it did.
        ms: milliseconds that it took; with BEGAN, to begin.
        wait: seconds that its provider asked to wait.
    """

    lm: str
    why: str
    ms: float = 0.0
    wait: float = 0.0


NO_USAGE = Usage()
_NOTHING = vars(NO_USAGE)
_MOST_COUNTED = 1e18  # of tokens, requests or USD
