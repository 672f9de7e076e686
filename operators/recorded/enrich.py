"""`enrich`: fields that a function of the user's finds, over HTTP, in a database, anywhere. It runs in a worker.

The engine never imports the function: it is a ref. What its annotations say is known where the function itself was given.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, cast

from typing_extensions import Unpack

from dspex.bus.errors import InvalidInput, InvalidOutput, TopologyError
from dspex.bus.records import Outputs
from dspex.bus.serving.call_spec import CallSpec, is_async
from dspex.bus.settings.not_built import OPTIONS
from dspex.operators.expressions import language as expressions
from dspex.operators.native.fields.types import declared_fields, fields_of, hints_of, required_fields, type_text
from dspex.operators.native.problems import all_of, nearest, problem
from dspex.operators.native.prompts.values import plain_input
from dspex.operators.native.signature import Signature
from dspex.operators.parameters import INTO, BooleanParameter, Parameter, RefParameter
from dspex.operators.parameters.parameter import checked
from dspex.operators.parameters.typed import type_option
from dspex.operators.recorded.calls import CallOperator
from dspex.operators.recorded.options import CALL_OPTIONS, CallOptions, EnrichOptions
from dspex.operators.recorded.spec import NOTHING, Spec, consistent
from dspex.operators.typing.functions import function_name, takes_data_and_key, takes_data_only
from dspex.operators.typing.names import T_co, V
from dspex.operators.typing.shape import UNKNOWN, Shape, record_of, shape_of, validator
from dspex.operators.typing.stream_checks import contradictions

_OF_MODELS = CallOptions.__annotations__.keys() - EnrichOptions.__annotations__.keys()
_OPTIONS: Mapping[str, Parameter] = {name: p for name, p in CALL_OPTIONS.items() if name not in _OF_MODELS}
_EFFECT: Mapping[str, Parameter] = {
    "effect": BooleanParameter(False, doc="it changes something elsewhere, and is called with (data, idempotency key)"),
    "reconcile": RefParameter(
        None,
        what="a function that reconciles",
        doc="an async function of (data, key) that tells what a call did whose worker died in the middle of it; None: nothing",
    ),
}
_NO_FIELDS = (str, bytes, int, float, bool, list, tuple, set, frozenset, type(None))


@lru_cache(maxsize=1)
def _any_fields() -> Signature:
    return Signature("data: dict[str, Any] -> found: dict[str, Any]")


@dataclass(frozen=True)
class Enrich(Spec[T_co]):
    """The spec of a function that enriches. `signature` is the same for all: any fields go in, and any come out.

    Attributes:
        wants: fields that the function cannot do without.
        adds: fields that it returns, with their types; None: that is known when it has run.
        effect, reconcile: see CallSpec.
    """

    wants: tuple[str, ...] = ()
    adds: Mapping[str, object] | None = None
    effect: bool = False
    reconcile: str | None = None

    takes: ClassVar[Mapping[str, Parameter]] = _OPTIONS
    not_built: ClassVar[tuple[str, ...]] = OPTIONS["call"]

    def plain(self) -> dict[str, object]:
        """The spec as a node's options: the ref, then the rest."""
        own: dict[str, object] = {} if self.into is None else {"into": type_option(self.into)}
        own |= {"effect": True} if self.effect else {}
        own |= {"reconcile": self.reconcile} if self.reconcile else {}
        return {"enrich": self.target, **own, **{n: _OPTIONS[n].plain(v, NOTHING) for n, v in self.options.items()}}

    @property
    def outputs(self) -> dict[str, object]:
        """The fields that it is known to add, with their types."""
        return dict(self.adds or {})

    def shape(self, data: Shape) -> Shape:
        """What is known of the result for data of this shape."""
        if self.into is not None:
            return shape_of(self.into)
        return UNKNOWN if self.adds is None else data.plus(self.adds)

    def misfits(self, shape: Shape) -> Iterator[TopologyError]:
        """Every way in which the function does not fit data of this shape, or its own `into`."""
        mapped = self.options.get("inputs")
        has = shape.fields if mapped is None else mapped
        for name in self.wants:
            if has is not None and name not in has:
                given = f"; the stream has {shape.describe()}" if mapped is None else f", and inputs= gives {', '.join(mapped)}"
                near = nearest(name, shape.fields or ()) or name
                fix = f'add it before: .set({{"{name}": …}}), or name all that it gets: inputs={{"{name}": "{near}", …}}'
                yield problem("DX207", f"{self.target} wants field '{name}'{given}", fix)
        if self.adds is not None:
            yield from contradictions(self.adds, self.into, shape, self.target)
        for name, value in self.options.items():
            yield from _OPTIONS[name].misfits(self.kind, value, shape, NOTHING)

    def contradictions(self) -> Iterator[TopologyError]:
        """What it gets and gives is for the function to say; but an effect is more than an answer."""
        if self.reconcile and not self.effect:
            why = "reconcile tells what an effect did, and there is none"
            yield problem("DX205", why, "effect=True, or leave reconcile out")
        if self.effect and self.options.get("cache"):
            yield problem("DX205", "an answer from the cache would have no effect", "leave cache out, or effect")

    def _work(self, o: Mapping[str, Any]) -> CallSpec:
        more: dict[str, Any] = {"effect": self.effect, "reconcile": self.reconcile, "cost": o["cost"]}
        return CallSpec(self.kind, self.target, "", route="auto", cache=float(o.get("cache", 0)), **more)

    def _inputs(self, mapped: Mapping[str, str]) -> Callable[[object], Outputs]:
        read = {name: expressions.compile(text).function for name, text in mapped.items()}

        def inputs(data: object) -> Outputs:
            record = record_of(data)
            given = {name: value(record) for name, value in read.items()} if read else record
            for name in given:
                if type(name) is not str:
                    raise InvalidInput(f"a field must be named by a text, and the data has {name!r}", node=self.target)
            return {name: plain_input(name, value, for_code=True) for name, value in given.items()}

        return inputs

    def _accept(self) -> Callable[[object, Outputs], Any]:
        typed = None if self.into is None else validator(self.into, InvalidOutput)

        def accept(data: object, outputs: Outputs) -> object:
            result = {**record_of(data), **outputs}
            return result if typed is None else typed(result)

        return accept


def enrich(
    fn: Callable[..., Awaitable[Any]] | str,
    *,
    into: type[V] | None = None,
    effect: bool = False,
    reconcile: Callable[[Any, str], Awaitable[Any | None]] | str | None = None,
    **o: Unpack[EnrichOptions],
) -> Spec[V]:
    """Fields that an async function finds: `async def fn(data) -> {...}`, or its ref. They are added to the data.

    Args:
        effect: it changes something elsewhere: `async def fn(data, key)`. The idempotency key is the same in every attempt.
        reconcile: `async def reconcile(data, key)` is asked after a death in the middle of it: what it did, or None.
    """
    own = {"into": into, "effect": effect, "reconcile": reconcile}
    given = {"enrich": fn, **own, **cast("Mapping[str, object]", o)}
    asks = "enrich asks no model: there is" if _OF_MODELS & given.keys() else "there is"
    found, errors = checked(ENRICH.parameters, given, has=asks, options=ENRICH.options, not_built=ENRICH.not_built)
    wants, adds = ((), None) if isinstance(fn, str) or errors else _annotated(fn, effect, errors)
    if callable(reconcile) and not errors:
        _annotated(reconcile, True, errors)
    all_of(errors)
    options, more = {name: found[name] for name in o}, {"effect": found["effect"], "reconcile": found["reconcile"]}
    return consistent(Enrich("enrich", found["enrich"], _any_fields(), found["into"], options, wants=wants, adds=adds, **more))


def _annotated(
    fn: Callable[..., Any], effect: bool, errors: list[TopologyError]
) -> tuple[tuple[str, ...], Mapping[str, object] | None]:
    """The fields that a function wants, and those that it gives; None: unknown. Notes why it cannot enrich.

    `effect`: whether it gets a key too.
    """
    try:
        if effect:
            takes_data_and_key(fn)
        else:
            takes_data_only(fn, "enrich", awaited=True)
    except TopologyError as e:
        errors.append(e)
        return (), None
    name = function_name(fn)
    if not is_async(fn):
        fix = f"async def {name}(data): …; what blocks goes into a thread: await asyncio.to_thread(…)"
        errors.append(problem("DX219", f"enrich awaits its function, and {name} is no async def", fix))
    hints = hints_of(inspect.unwrap(fn))
    gives, first = hints.pop("return", None), next(iter(inspect.signature(fn).parameters), "")
    if gives in _NO_FIELDS or getattr(gives, "__origin__", None) in _NO_FIELDS:
        message = f"enrich adds fields to the data, and {name} gives {type_text(gives)}"
        errors.append(problem("DX219", message, f'return a mapping: {{"{name}": …}}'))
    takes = hints.get(first)
    wants = () if takes is None or declared_fields(takes) is None else tuple(sorted(required_fields(takes)))
    return wants, None if gives is None else fields_of(gives)


ENRICH = CallOperator(
    "enrich",
    main=RefParameter(what="a function that enriches"),
    options={"into": INTO, **_EFFECT, **_OPTIONS},
    spec=enrich,
)
