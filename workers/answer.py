"""What one attempt at a call gave: from the program that answered, through the frame to the parent, into the record."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

from dspex.bus.codecs.checking import checked, made
from dspex.bus.errors import DecodeError, DspexError, is_seconds
from dspex.bus.records import CallRecord, CallRequest, Outputs, Tried, Usage

ErrorMap = Mapping[str, Any]  # DspexError.as_dict() with "traceback"


def error_map(error: DspexError, traceback: str = "") -> ErrorMap:
    """An error as a record holds it. `traceback`: at most 8 KiB."""
    return {**error.as_dict(), "traceback": traceback}


@dataclass(frozen=True)
class Answer:
    """Outputs, or an error.

    Attributes:
        outputs: by name; None with an error.
        error: None with outputs.
        route: "worker" (DSPy answered) or "native".
        lm: the profile that answered; "" for none.
        program: the kind and a digest of what the program is made from.
        dspy_version: whose behaviour it has; "" where there is no DSPy.
        usage: tokens and cost; None where nothing is known.
        requests: how many, by what became of them; see `Requests.counts`. exchanges: what they were asked and said.
        saved: what its program wants its session to keep; None for nothing.
        started: seconds since the epoch; elapsed: seconds.
        routing, cached_from: see CallRecord.
        warning: what may be wrong with it, though it is an answer; "" for nothing.
    """

    started: float
    elapsed: float = 0.0
    outputs: Outputs | None = None
    error: ErrorMap | None = None
    route: str = "worker"
    lm: str = ""
    program: str = ""
    dspy_version: str = ""
    usage: Usage | None = None
    routing: list[Tried] = field(default_factory=list[Tried])
    warning: str = ""
    cached_from: str = ""
    requests: Mapping[str, int] = field(default_factory=dict[str, int])
    exchanges: bytes = b""
    saved: Mapping[str, Any] | None = None

    @classmethod
    def failed(cls, error: DspexError, dspy_version: str, *, started: float | None = None) -> Answer:
        """What the parent answers where no child did. `started`: when a child got the call; None: none ever did."""
        now = time.time()
        begun = now if started is None else started
        return cls(begun, max(0.0, now - begun), error=error_map(error), dspy_version=dspy_version)

    @classmethod
    def read(cls, raw: dict[str, Any]) -> Self:
        """What a child says. Raises DecodeError, also for counts and times that are none, because limits and the router reckon
        with them, and for an error without a name or a message: a program may have written it. KeyError where it has no usage.
        """
        if raw["usage"] is not None:
            raw["usage"] = Usage.read(raw["usage"])
        found = made(cls, checked(cls, "an answer", raw))
        times = (time for tried in found.routing for time in (tried.ms, tried.wait)) if found.routing else ()
        if not (is_seconds(found.started) and is_seconds(found.elapsed) and all(map(is_seconds, times))):
            raise DecodeError("an answer whose times are no numbers of seconds")
        error = found.error
        if error is not None and not all(isinstance(error.get(name), str) for name in ("type", "message")):
            raise DecodeError("an answer with an error that has no name, or no message")
        return found

    def given_up(self, error: DspexError) -> Answer:
        """The answer of a child that was told to give the call up, and had none: why it was told so, and what it cost."""
        tried = [*self.routing[:-1], *(last._replace(why=type(error).__name__) for last in self.routing[-1:])]
        return replace(self, outputs=None, error=error_map(error), routing=tried)

    def record(self, work: CallRequest, worker: str, state: str = "") -> CallRecord:
        """The record of the attempt. `worker`: name of the pool's process; `state`: the saved state that it was given."""
        about: dict[str, Any] = {
            **vars(self),  # they have the names of the record's
            "call": work.call,
            "try_number": work.try_number,
            "attempt": work.attempt,
            "topology": work.topology,
            "node": work.node,
            "worker": worker,
            "usage": dict(vars(self.usage)) if self.usage else {},
            "state": state,
            "saved": self.saved if work.kept is not None and self.outputs is not None else None,
        }
        return made(CallRecord, about)
