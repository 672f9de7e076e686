"""A recorded operator as data: what a worker is asked to run."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property, lru_cache
from typing import Literal, Self, TypeAlias, cast, get_args

from typing_extensions import TypedDict

from dspex.bus import codecs
from dspex.bus.codecs.checking import checked
from dspex.bus.errors import DecodeError, is_seconds
from dspex.bus.serving.programs import modules
from dspex.bus.serving.programs.marks import marked
from dspex.bus.serving.programs.optimizers import OPTIMIZE, JobArguments, refs_of

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
        kind: "predict", "chain_of_thought", "react", "program" or "enrich"; "optimize" for a job of an optimizer.
        target: the signature for the first three, the ref `pkg.module:name` for a program and for a function that enriches.
        signature: "a, b: int -> c"; for a program too; "" for a function that enriches.
        instructions: of the signature; "" for DSPy's default.
        lm: profiles in the order they are tried; empty: the pool's.
        adapter: "chat", "json" or "xml"; None: the profile's.
        config: ModuleConfig (temperature, max_tokens, …).
        tools: refs, for react, and for those of DSPy's own modules that take some.
        max_iters: for react.
        state: name of a saved state of the program, `draft@4`, `draft@prod` or `draft`; None for none.
        fields: of the signature, what its text cannot say, by field: see `Signature.plain`. Absent between versions of
            dspex that do not know it; descriptions and defaults of class forms are then left out.
        types: of the signature, the user's own: their names, kinds and JSON Schemas. Absent: there are none.
        cache: seconds for which the answer to an equal call may be given again; 0: it never is.
        hedge: a Hedge; "" for none.
        first_token_timeout: seconds that a model may take until it begins to answer; 0: as long as it may take in all.
        route: who answers: "auto", "worker" (DSPy) or "native". Absent: "worker", the only route of older engines.
        arguments: of one of DSPy's own modules (`dspy:RLM` as the target of a program): see ModuleArguments; of a job: see
            JobArguments.
        effect: the function that enriches changes something elsewhere, and is called with an idempotency key.
        reconcile: ref of the function that tells what such a call did whose worker died; None for none.
        cost: slots that a call takes.
        lane: a CallLane.
        choose: a Choice.
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
    cache: float = 0.0
    arguments: Mapping[str, object] = field(default_factory=dict)
    effect: bool = False
    reconcile: str | None = None
    cost: int = 1
    hedge: str = ""
    first_token_timeout: float = 0.0
    lane: str = "live"
    choose: str = "listed"

    def plain(self) -> dict[str, object]:
        """The spec as a request carries it. Not a copy: descriptions of types are large, and nobody changes them."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    @cached_property
    def identity(self) -> bytes:
        """A digest of all that an answer depends on: not of how long it may be used again, nor of who gives it."""
        return hashlib.blake2b(
            replace(self, cache=0.0, route="", cost=1, hedge="", first_token_timeout=0.0, lane="live", choose="listed").packed,
            digest_size=16,
        ).digest()

    @property
    def refs(self) -> tuple[str, ...]:
        """What the allow-list of a pool has to name: the code of users that a worker imports, and modules that run code."""
        named = self.kind == "enrich" or (self.kind == "program" and modules.needs_permission(self.target))
        more = (self.reconcile,) if self.reconcile else ()
        if self.kind == OPTIMIZE:
            return (*self.optimized.refs, *refs_of(self.arguments))
        return (*((self.target,) if named else ()), *self.tools, *more, *modules.refs_in(self.target, self.arguments))

    @cached_property
    def secrets(self) -> frozenset[str]:
        """The names of fields that are marked secret: of the signature, of its types, and of what an optimizer makes better."""
        return marked(self.fields) | (self.optimized.secrets if self.kind == OPTIMIZE else frozenset())

    @property
    def asks_a_model(self) -> bool:
        """Whether it may: only a function that enriches never does."""
        return self.kind != "enrich"

    @property
    def runs_code(self) -> bool:
        """Whether it runs code of users that may keep data in its session."""
        return self.kind in ("react", "program", "enrich")

    @property
    def journaled(self) -> bool:
        """Whether its requests are, while it runs: each of them costs, or does something that must not be done twice."""
        return self.kind in ("react", "program", OPTIMIZE) or self.effect

    @cached_property
    def optimized(self) -> CallSpec:
        """The program that a job is to make better. Raises DecodeError where it names none."""
        if not isinstance(found := self.arguments.get("program"), Mapping):
            raise DecodeError("not a spec of a call: an optimizer has no program")
        inner = CallSpec.read(cast("Mapping[str, object]", found))
        if inner.kind in (OPTIMIZE, "enrich"):
            raise DecodeError(f"not a spec of a call: no optimizer makes {inner.kind} better")
        return inner

    @property
    def has_journal(self) -> bool:
        """Whether its calls may have one: of their requests, or of the batch that they are in."""
        return self.journaled or self.lane == "batch"

    @cached_property
    def packed(self) -> bytes:
        """The spec as MessagePack, which `unpack` takes."""
        return codecs.msgpack_bytes(self.plain())

    @classmethod
    def unpack(cls, packed: bytes) -> Self:
        """The spec that `packed` holds, which is the same object for the same bytes: specs repeat from call to call.

        Raises DecodeError for what is none.
        """
        return cast(Self, _kept(packed) if len(packed) <= _SMALL else _unpacked(packed))

    @cached_property
    def signature_json(self) -> str:
        """The signature as JSON, which `Signature.from_plain` reads: what compiled signatures are kept by."""
        plain: dict[str, object] = {"signature": self.signature or self.target, "instructions": self.instructions}
        plain |= {"fields": self.fields, **({"types": self.types} if self.types else {})}
        return json.dumps(plain, default=str)  # not sorted: a model sees the properties of a type in the order of the type

    @cached_property
    def program(self) -> str:
        """`predict#…`: the kind, and a digest of what the program is made from. The same for every answerer."""
        made_from = [self.signature or self.target, self.instructions, self.tools, self.max_iters]
        made_from += [self.arguments] if self.arguments else []
        text = json.dumps([*made_from, *(more for more in (self.fields, self.types) if more)], default=str)
        return f"{self.kind}#{hashlib.sha256(text.encode()).hexdigest()[:12]}"

    @cached_property
    def refused_config(self) -> str | None:
        """Why its config is none that a call may have. Whoever may ask a worker can write anything there, and one parameter is
        the address that a model's client sends its key to.
        """
        known = ModuleConfig.__annotations__
        try:
            checked(ModuleConfig, "the config of a call", {k: v for k, v in self.config.items() if k in known})
        except DecodeError as error:
            return error.message
        unknown = min(self.config.keys() - known.keys(), default=None)
        return None if unknown is None else f"a call may not set config.{unknown}"

    @classmethod
    def read(cls, raw: Mapping[str, object]) -> Self:
        """The spec of a request; keys of a newer version are left out. Raises DecodeError for what is none."""
        known = {f.name: raw[f.name] for f in fields(cls) if f.name in raw}
        known |= {name: tuple(found) for name in ("lm", "tools") if isinstance(found := known.get(name), list)}
        try:
            found = cls(**checked(cls, "a spec of a call", known))
            if found.kind == OPTIMIZE:
                checked(JobArguments, "the arguments of an optimizer", dict(found.arguments))
                _ = found.optimized
            if found.cost < 1:
                raise DecodeError("not a spec of a call: it takes one slot at least")
        except TypeError as e:
            raise DecodeError(f"not a spec of a call: {e}") from None
        if not is_seconds(found.cache) or not is_seconds(found.first_token_timeout):
            raise DecodeError("not a spec of a call: cache and first_token_timeout are numbers of seconds")
        if found.hedge and found.hedge not in get_args(Hedge):
            raise DecodeError(f"not a spec of a call: hedge is one of {', '.join(get_args(Hedge))}")
        if found.lane not in get_args(CallLane):
            raise DecodeError(f"not a spec of a call: lane is one of {', '.join(get_args(CallLane))}")
        if found.choose not in get_args(Choice):
            raise DecodeError(f"not a spec of a call: choose is one of {', '.join(get_args(Choice))}")
        return found


Hedge: TypeAlias = Literal["p50", "p75", "p90", "p95", "p99"]
"""Of the time that answers of a model took lately, the percentage that took no longer; then it is asked a second time."""

CallLane: TypeAlias = Literal["live", "batch"]
"""How a model is asked: at once; or through its provider's batch API, which is cheaper and may take a day."""

Choice: TypeAlias = Literal["listed", "cheapest"]
"""Which profile of a list comes first: that which is written first; or that with which the call is expected to cost least."""


def without_price(lm: str) -> tuple[str, str]:
    """Message and fix where a price would have to be known to choose the cheapest."""
    return f"choose is cheapest, and lm.{lm} has no price", f"say what it costs: lm.{lm}.price = {{ input = …, output = … }}"


LIVE_PART = 0.1  # of its deadline, in which a call is asked live that no batch has answered by then


def live_within(timeout: float, deadline: float) -> float:
    """Seconds before its deadline from which on a call of the batch lane is asked live: enough for two attempts."""
    return max(2 * timeout, LIVE_PART * deadline)


_SMALL = 16 << 10  # bytes of a spec that is kept: anybody who may ask can send any number of large ones


def _unpacked(packed: bytes) -> CallSpec:
    raw = codecs.decode(packed, codecs.MSGPACK)
    if not isinstance(raw, dict):
        raise DecodeError("not a spec of a call")
    return CallSpec.read(raw)


_kept = lru_cache(1024)(_unpacked)


def is_async(fn: object) -> bool:
    """Whether a function gives an awaitable: what enriches must, because a thread that blocks cannot be cancelled."""
    fn = inspect.unwrap(fn) if callable(fn) else fn
    return inspect.iscoroutinefunction(fn) or inspect.iscoroutinefunction(getattr(type(fn), "__call__", None))  # noqa: B004
