"""A recorded operator as data: what a worker is asked to run."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Self

from typing_extensions import TypedDict

from dspex.bus.codecs.checking import checked
from dspex.bus.errors import DecodeError

MAX_ITERS = 10
"""The most steps of a `react` that does not say how many."""


class ModuleConfig(TypedDict, total=False):
    """Parameters of a DSPy module; they reach the language model."""

    temperature: float
    max_tokens: int
    top_p: float
    n: int
    stop: list[str]
    rollout_id: int


@dataclass(frozen=True)
class CallSpec:
    """A recorded operator as data: what a worker needs to run it. No code, no key, no secret.

    Attributes:
        kind: "predict", "chain_of_thought", "react", "program" or "enrich".
        target: the signature for the first three, the ref `pkg.module:name` for a program and for a function that enriches.
        signature: "a, b: int -> c"; for a program too; "" for a function that enriches.
        instructions: of the signature; "" for DSPy's default.
        lm: profiles in the order they are tried; empty: the pool's.
        adapter: "chat", "json" or "xml"; None: the profile's.
        config: ModuleConfig (temperature, max_tokens, …).
        tools: refs, for react.
        max_iters: for react.
        state: name of a stored compiled program; None for none.
        fields: of the signature, what its text cannot say, by field: see `Signature.plain`. Absent between versions of
            dspex that do not know it; descriptions and defaults of class forms are then left out.
        types: of the signature, the user's own: their names, kinds and JSON Schemas. Absent: there are none.
        route: who answers: "auto", "worker" (DSPy) or "native". Absent: "worker", the only route of older engines.
    """

    kind: str
    target: str
    signature: str
    instructions: str = ""
    lm: tuple[str, ...] = ()
    adapter: str | None = None
    config: Mapping[str, object] = field(default_factory=dict)
    tools: tuple[str, ...] = ()
    max_iters: int = MAX_ITERS
    state: str | None = None
    route: str = "worker"
    fields: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    types: Mapping[str, object] = field(default_factory=dict)

    def plain(self) -> dict[str, object]:
        """The spec as a request carries it. Not a copy: descriptions of types are large, and nobody changes them."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    @property
    def refs(self) -> tuple[str, ...]:
        """The code of users that a worker imports for it."""
        return (self.target, *self.tools) if self.kind in ("program", "enrich") else tuple(self.tools)

    @property
    def asks_a_model(self) -> bool:
        """Whether it may: only a function that enriches never does."""
        return self.kind != "enrich"

    @classmethod
    def read(cls, raw: Mapping[str, object]) -> Self:
        """The spec of a request; keys of a newer version are left out. Raises DecodeError for what is none."""
        known = {f.name: raw[f.name] for f in fields(cls) if f.name in raw}
        known |= {name: tuple(found) for name in ("lm", "tools") if isinstance(found := known.get(name), list)}
        try:
            return cls(**checked(cls, "a spec of a call", known))
        except TypeError as e:
            raise DecodeError(f"not a spec of a call: {e}") from None


def is_async(fn: object) -> bool:
    """Whether a function gives an awaitable: what enriches must, because a thread that blocks cannot be cancelled."""
    fn = inspect.unwrap(fn) if callable(fn) else fn
    return inspect.iscoroutinefunction(fn) or inspect.iscoroutinefunction(getattr(type(fn), "__call__", None))  # noqa: B004
