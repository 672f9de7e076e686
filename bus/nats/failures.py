"""What NATS says went wrong, in the terms of the port. The one place that knows nats-py's classes and the server's codes."""

from __future__ import annotations

import ssl
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import orjson
from nats import errors as nats

from dspex.bus.errors import (
    BusError,
    ConfigError,
    DspexError,
    Fenced,
    NotAllowed,
    PayloadTooLarge,
    StreamFull,
    SubjectTaken,
    Unreachable,
    Unsettled,
)

NO_STREAM: Final = 10059
NO_MESSAGE: Final = 10037
NO_CONSUMER: Final = 10014
NAME_IN_USE: Final = 10058
NO_PEERS: Final = 10005  # of a cluster: no server has room for a replica
IN_PROGRESS: Final = 10164  # another write to the subject is being decided (clustered): ask again
ID_IN_PROCESS: Final = 10158  # another write with the same message id is being decided (clustered): ask again
TOO_MANY_BATCHES: Final = 10210  # 50 staged on the stream or 1000 on the server

NO_LIMIT: Final = 10113  # the account wants every stream to say how large it may become
OVER_LIMIT: Final = 10122  # and this one would be larger than a stream of the account may be
_MOST_REACHED: Final = {
    10026: "raise max_consumers of the stream and of the account, or remove consumers that nobody uses any more",
    10027: "raise max_streams of the account: an application has eleven streams",
}
NO_LEADER: Final = {10008, 10009, 10074}  # what a node answers that sees no leader or no quorum

_CODES: Final[Mapping[int, type[BusError]]] = {
    10002: StreamFull,  # resource limits exceeded for account
    10023: StreamFull,  # insufficient resources
    10028: StreamFull,  # memory resources exceeded
    10047: StreamFull,  # storage resources exceeded
    10077: StreamFull,  # maximum messages or bytes exceeded
    10167: StreamFull,  # too many requests: the stream cannot write as fast as it is asked to
    10054: PayloadTooLarge,  # the stream's own max_msg_size
    10065: SubjectTaken,
    10071: Fenced,
    10176: Unsettled,  # "batch is incomplete": what a full disk gives; some of it may be stored
    10008: Unreachable,  # JetStream system temporarily unavailable
    10009: Unreachable,  # no quorum or leader
    10074: Unreachable,  # replicas cannot be placed now
    TOO_MANY_BATCHES: StreamFull,
    IN_PROGRESS: Unreachable,
}
_NO_JETSTREAM: Final = {10039, 10076}  # not enabled for the account, not enabled at all
JETSTREAM_OFF: Final = "start the server with JetStream (nats-server -js), or leave out --server and dspex starts its own"

_CLASSES: Final[Mapping[type[Exception], type[DspexError]]] = {
    nats.TimeoutError: Unreachable,
    nats.FlushTimeoutError: Unreachable,
    nats.DrainTimeoutError: Unreachable,
    nats.NoRespondersError: Unreachable,
    nats.StaleConnectionError: Unreachable,
    nats.UnexpectedEOF: Unreachable,
    nats.ConnectionClosedError: Unreachable,
    nats.ConnectionDrainingError: Unreachable,
    nats.ConnectionReconnectingError: Unreachable,
    nats.NoServersError: Unreachable,
    nats.OutboundBufferLimitError: Unreachable,
    nats.SecureConnFailedError: Unreachable,
    nats.ProtocolError: Unreachable,
    nats.JsonParseError: Unreachable,
    nats.SlowConsumerError: BusError,
    nats.MaxPayloadError: PayloadTooLarge,
    nats.AuthorizationError: NotAllowed,
    nats.InvalidUserCredentialsError: NotAllowed,
    nats.SecureConnRequiredError: ConfigError,
    nats.SecureConnWantedError: ConfigError,
    nats.BadSubscriptionError: BusError,
    nats.BadSubjectError: BusError,
    nats.BadHeaderError: BusError,
    nats.BadTimeoutError: BusError,
    nats.InvalidCallbackTypeError: BusError,
    nats.ServerNotInPoolError: BusError,
    nats.NotJSMessageError: BusError,
    nats.MsgAlreadyAckdError: BusError,
}
_REFUSALS: Final = ("authorization violation", "authentication", "permissions violation", "user credentials")


def translated(error: Exception, what: str) -> DspexError:
    """`error` of nats-py, or of the socket below it, as one of ours; `what` was being tried."""
    text = str(error).removeprefix("nats: ").strip("'") or type(error).__name__
    if isinstance(error, ssl.SSLError):
        return NotAllowed(f"{what}: {text}", fix="give the certificate authority of the server (tls)")
    if isinstance(error, (OSError, TimeoutError, EOFError)) and not isinstance(error, nats.Error):
        return Unreachable(f"{what}: {text}")
    if type(error) is nats.Error:  # what the server said, as text
        return (NotAllowed if any(r in text.lower() for r in _REFUSALS) else Unreachable)(f"{what}: {text}")
    return _CLASSES.get(type(error), BusError)(f"{what}: {text}")


def refused(error: Mapping[str, Any], what: str) -> BusError:
    """The `error` object of a JetStream answer as one of ours, with the server's description."""
    code, text = error.get("err_code", 0), f"{what}: {error.get('description', error)}"
    if code in _NO_JETSTREAM:
        return BusError(text, fix=JETSTREAM_OFF)
    return ServerRefusal(text, code, _MOST_REACHED.get(code)) if code not in _CODES else _CODES[code](f"{text} ({code})")


def _is_error(found: object) -> bool:
    """Whether it can be the `error` of an answer."""
    if not isinstance(found, dict):
        return False
    code, text = found.get("err_code", 0), found.get("description", "")
    return type(code) is int and 0 <= code < 100_000 and isinstance(text, str)


def answer_of(data: bytes) -> dict[str, Any]:
    """What the server answers, as JSON. Raises Unreachable for what it cannot have said: others may publish to our inbox."""
    try:
        found = orjson.loads(data)
    except orjson.JSONDecodeError:
        found = None
    if not isinstance(found, dict) or ("error" in found and not _is_error(found["error"])):
        raise Unreachable("what came as an answer is none of the server's")
    return found


@contextmanager
def what_a_server_says() -> Generator[None, None, None]:
    """Read an answer, inside, as a server writes it. Raises Unreachable where it has not what every such answer has."""
    try:
        yield
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError) as e:
        raise Unreachable("what came as an answer is none of the server's") from e


class ServerRefusal(BusError):
    """The server refused for a reason that has no class of its own; `number` is its err_code."""

    def __init__(self, message: str, number: int, fix: str | None = None) -> None:
        super().__init__(f"{message} ({number})" if number else message, fix=fix)
        self.number = number
