"""The names of types that users write, and the options that several operators share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Literal, TypeAlias, TypedDict

from typing_extensions import TypeVar

from dspex.bus.codecs import Codec as Codec
from dspex.bus.duration import Duration
from dspex.engine.graph.graph import Retry

Record: TypeAlias = dict[str, Any]
"""Data without a declared type."""

T_co = TypeVar("T_co", covariant=True)
K_co = TypeVar("K_co", covariant=True, default=None)
V = TypeVar("V", default=Record)
"""What `into=` names; a Record where it is left out."""

Adapter: TypeAlias = Literal["chat", "json", "xml"]
Route: TypeAlias = Literal["auto", "worker", "native"]
OnError: TypeAlias = Literal["dead_letter", "skip"]
Name: TypeAlias = str | None


class ModuleConfig(TypedDict, total=False):
    """Parameters of a DSPy module; they reach the language model."""

    temperature: float
    max_tokens: int
    top_p: float
    n: int
    stop: list[str]
    rollout_id: int


class CallOptions(TypedDict, total=False):
    """What every recorded operator takes.

    Keys:
        pool: resource class; default "lightweight".
        lm: LM profile; a list is tried in order when one is open or down; default: the pool's.
        inputs: signature input → expression; default: the field of that name.
        config: parameters of the DSPy module.
        adapter: default: the profile's.
        timeout: one attempt; default "60s".
        deadline: all attempts together; default "10m".
        retry: default `Retry()`; dspex is the only layer that retries.
        fallback: a native function of the data, constant outputs, or a ref; used when the attempts are spent.
        on_error: after retry and fallback; default "dead_letter".
        order: "any" (default): as they finish; "key": released in the order of their key.
        route: who answers in the worker. "auto" (default): native Predict where it gives what DSPy gives, else DSPy;
            "worker": always DSPy; "native": never DSPy.
    """

    pool: str
    lm: str | Sequence[str]
    inputs: Mapping[str, str]
    config: ModuleConfig
    adapter: Adapter
    timeout: Duration
    deadline: Duration
    retry: Retry
    fallback: Callable[[Any], Mapping[str, Any]] | Mapping[str, Any] | str
    on_error: OnError
    order: Literal["any", "key"]
    route: Route


class SourceOptions(TypedDict, total=False):
    """What a source takes.

    Keys:
        stream: JetStream stream to bind; default: the one that captures the subject.
        start: where to begin at the first apply: "all" (default), "new", a sequence, or a time.
        time: expression for event time (RFC 3339 text, seconds or a datetime); default: stored time.
        partitions: default 1; spread by key, else session, else subject.
        on_gap: the source was trimmed or made anew: "stop" (default), or "skip": record the hole and go on.
    """

    stream: str
    start: Literal["new", "all"] | int | datetime
    time: str
    partitions: int
    on_gap: Literal["stop", "skip"]
