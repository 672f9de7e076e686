"""Error answers of a model's server as dspex errors, classified as in DSPy. No error holds the key."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import cast

import orjson

from dspex.bus.errors import CallError, CallTimeout, LMRefused, LMUnavailable, RateLimited

_SHOWN = 600  # characters of a server's text in a message
_GUESSABLE = 3  # characters of a key that may be shown: "sk-"
NOT_NOW = (409, 425)  # a conflict with another request, and "too early": the same request may pass in a while
LONGEST_WAIT = 3600.0  # seconds: a server may send any number, and a call must not wait for ever

# Codes and types that are more precise than the status: a used-up quota comes with 429 too, and a retry does not help.
_REFUSALS = (
    "context_length_exceeded model_not_found model_not_available unsupported_model DeploymentNotFound "
    "insufficient_quota 1113 exceeded_current_quota_error invalid_api_key authentication_error"
)
_REFUSED_CODES = frozenset(_REFUSALS.split())
_RATE_CODES = frozenset({"rate_limit_exceeded", "rate_limit_error"})
# Codes and types of an error that came with status 200, or in a stream.
_LATE_REFUSED = _REFUSED_CODES | {"invalid_prompt"}
_LATE_RATE = _RATE_CODES | {"no_capacity", "too_many_requests"}


def of_status(status: int, body: bytes, headers: Mapping[str, str], where: str) -> CallError:
    """The error for an answer whose status is not 200. `where`: the server's name in the message."""
    message, codes = _message_and_codes(body)
    text = short(f"{where} answered {status}: {message}" if message else f"{where} answered {status}")
    after = retry_after_of(headers)
    return class_of(status, codes)(text + asks_to_wait(after), retry_after=after)


def of_body(error: object, where: str) -> CallError:
    """The error for an `error` object in an answer whose status was 200, or in the middle of a stream."""
    found = cast("Mapping[str, object]", error) if isinstance(error, Mapping) else {"message": error}
    codes = {word(found.get(k)) for k in ("code", "type")}
    reason = word(found.get("message")) or word(found.get("code")) or "no reason given"
    text = short(f"{where} answered with an error: {reason}")
    if codes & _LATE_RATE:
        return RateLimited(text)
    return LMRefused(text) if codes & _LATE_REFUSED else LMUnavailable(text)


def asks_to_wait(after: float | None) -> str:
    """The end of a message that says how long a server asks to wait; "" where it does not."""
    return f"; it asks to wait {after:,.{0 if after >= 1 else 1}f} s" if after else ""


def short(text: str) -> str:
    """A server's text, cut to the length that a message may have."""
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}… ({len(text)} characters)"


def without_key(text: str, key: str) -> str:
    """The text without the key, which a server may repeat in what it says, and without the start of a key that was cut."""
    for cut in [key, *(f"{key[:n]}…" for n in range(len(key) - 1, _GUESSABLE, -1))] if key else ():
        text = text.replace(cut, "…")
    return text


def excerpt(body: bytes) -> str:
    """The beginning of what a server sent, with "…" at the end where it was cut."""
    text = body[:_SHOWN].decode(errors="replace").strip()
    return text if len(body) <= _SHOWN else f"{text}…"


def word(value: object) -> str:
    """A text or number that a server sent, as text; "" for any other value, which may be nested too deeply for str()."""
    return str(value) if value and isinstance(value, (str, int, float)) else ""


def wait(seconds: float) -> float | None:
    """How long to wait where a server asks for this time, at most LONGEST_WAIT; None for a time that makes no sense."""
    return float(min(seconds, LONGEST_WAIT)) if seconds >= 0 else None


def class_of(status: int, codes: set[str]) -> type[CallError]:
    """What an answer of this status means. `codes`: "code" and "type" of the error in it."""
    if codes & _REFUSED_CODES:
        return LMRefused
    if status == 429 or codes & _RATE_CODES:
        return RateLimited
    if status in (408, 504):
        return CallTimeout
    if status in NOT_NOW:
        return LMUnavailable
    return LMRefused if 400 <= status < 500 else LMUnavailable


def _message_and_codes(body: bytes) -> tuple[str, set[str]]:
    """(message, codes) of an error's body; the body itself where it is not in OpenAI's form."""
    try:
        data = orjson.loads(body)
    except ValueError:
        return excerpt(body), set()
    found = cast("Mapping[str, object]", data).get("error") if isinstance(data, dict) else None
    if not isinstance(found, dict):
        return word(found) or excerpt(body), set()
    error = cast("Mapping[str, object]", found)
    return word(error.get("message")), {word(error.get(k)) for k in ("code", "type")}


def retry_after_of(headers: Mapping[str, str]) -> float | None:
    """Seconds that the server asks to wait: a number or a date, or milliseconds in a header of its own."""
    value = headers.get("Retry-After", "")
    if (seconds := _number(value)) is not None:
        return wait(seconds)
    try:
        return wait(max(0.0, parsedate_to_datetime(value).timestamp() - time.time()))
    except (ValueError, TypeError, OverflowError):
        pass  # no date either
    for name in ("retry-after-ms", "x-ms-retry-after-ms"):
        if (milliseconds := _number(headers.get(name, ""))) is not None:
            return wait(milliseconds / 1000)
    return None


def _number(text: str) -> float | None:
    try:
        found = float(text)
    except ValueError:
        return None
    return found if math.isfinite(found) and found >= 0 else None
