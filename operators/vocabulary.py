"""The operators as YAML writes them: for each, its keys, and how it becomes a call of the fluent API.

YAML goes through the same methods as Python does, so that both give the same graph by construction.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from dspex.operators.native.adapters import ADAPTERS
from dspex.operators.native.fields.grammar import parse_type
from dspex.operators.native.signature import Signature
from dspex.operators.options import CallOptions
from dspex.operators.problems import problem
from dspex.operators.stream import Stream
from dspex.operators.typing.refs import is_ref, resolve

Types = Mapping[str, Any]
Make = Callable[[Stream[Any, Any], Any, dict[str, Any], str, Types], Any]


@dataclass(frozen=True)
class Operator:
    """One operator key. `main`: JSON Schema of its main argument. `options`: the other keys it takes."""

    make: Make
    main: Mapping[str, Any]
    options: tuple[str, ...] = ()
    required: tuple[str, ...] = ()


def type_of(value: Any, types: Types) -> Any:
    """The type that a YAML value names: a ref, a name of `types:`, or the text of a builtin type."""
    if isinstance(value, Mapping):
        return dict(cast("Mapping[str, Any]", value))
    if not isinstance(value, str):
        raise problem("DX221", f"{value!r} names no type", 'write "pkg.module:Name"')
    return resolve(value) if is_ref(value) else parse_type(value, types)


def _function(value: Any) -> Any:
    if not isinstance(value, str):
        raise problem("DX221", f"{value!r} names no function", 'write "pkg.module:name"')
    return resolve(value)


def _test(value: Any) -> Any:
    """A test: a ref is never an expression, because a colon is not part of the language."""
    return resolve(value) if isinstance(value, str) and is_ref(value) else value


def _typed(o: dict[str, Any], types: Types) -> dict[str, Any]:
    return {**o, "into": type_of(o["into"], types) if "into" in o else None}


def _map(s: Stream[Any, Any], main: Any, o: dict[str, Any], name: str, types: Types) -> Any:
    return s.map(_function(main), name=name)


def _flat_map(s: Stream[Any, Any], main: Any, o: dict[str, Any], name: str, types: Types) -> Any:
    return s.flat_map(_function(main), name=name)


def _filter(s: Stream[Any, Any], main: Any, o: dict[str, Any], name: str, types: Types) -> Any:
    return s.filter(_test(main), name=name)


def _branch(s: Stream[Any, Any], main: Any, o: dict[str, Any], name: str, types: Types) -> Any:
    if not isinstance(main, list) or not main:
        raise problem("DX205", f"branch takes a list of tests, and this is {main!r}", 'branch: ["urgency >= 4"]')
    tests = [_test(t) for t in main]
    return cast("Any", s).branch(*tests, name=name)  # as many tests as there are: beyond the overloads


def _merge(s: Stream[Any, Any], main: Any, o: dict[str, Any], name: str, types: Types) -> Any:
    return s.merge(*o.pop("others"), name=name)


def _set(s: Stream[Any, Any], main: Any, o: dict[str, Any], name: str, types: Types) -> Any:
    if not isinstance(main, dict):
        raise problem("DX205", f"set takes fields, and this is {main!r}", 'set: { total: "price * count" }')
    return s.set(cast("dict[str, str]", main), name=name, **_typed(o, types))


def _validate(s: Stream[Any, Any], main: Any, o: dict[str, Any], name: str, types: Types) -> Any:
    return s.validate(type_of(main, types), name=name, **o)


def _render(s: Stream[Any, Any], main: Any, o: dict[str, Any], name: str, types: Types) -> Any:
    if not isinstance(main, dict):
        return s.render(main, name=name, **_typed(o, types))
    main = cast("dict[str, Any]", main)
    unknown = next((k for k in main if k not in _RENDER_SIGNATURE), None)
    if unknown is not None or not isinstance(main.get("signature"), str):
        what = "needs a signature" if unknown is None else f"has no key {unknown!r}"
        raise problem("DX204", f"render {what}: {main!r}", 'render: { signature: "text -> answer", adapter: chat }')
    signature = Signature(main["signature"], instructions=str(main.get("instructions", "")), types=types)
    return s.render(signature, adapter=main.get("adapter", "chat"), name=name, **_typed(o, types))


def _parse(s: Stream[Any, Any], main: Any, o: dict[str, Any], name: str, types: Types) -> Any:
    return s.parse(_signature(main, o, types), name=name, **_typed(o, types))


def _score(s: Stream[Any, Any], main: Any, o: dict[str, Any], name: str, types: Types) -> Any:
    return s.score(_test(main), name=name, **_typed(o, types))


def _signature(text: Any, o: dict[str, Any], types: Types) -> Any:
    """The signature; as text where it is not text, so that the operator says what is wrong with it."""
    if not isinstance(text, str):
        raise problem("DX210", f"{text!r} is not a signature", 'write "text -> answer"')
    instructions = str(o.pop("instructions", ""))
    # plain text is left to the operator, which tells what is wrong with it together with what is wrong with its options
    return Signature(text, instructions=instructions, types=types) if types or instructions else text


def _model_call(kind: str) -> Make:
    def make(s: Stream[Any, Any], main: Any, o: dict[str, Any], name: str, types: Types) -> Any:
        return getattr(s, kind)(_signature(main, o, types), name=name, **_typed(o, types))

    return make


def _program(s: Stream[Any, Any], main: Any, o: dict[str, Any], name: str, types: Types) -> Any:
    return s.program(main, _signature(o.pop("signature"), o, types), name=name, **_typed(o, types))


_TEXT = {"type": "string"}
_REF = {"type": "string", "description": "pkg.module:name"}
_TEST = {"type": "string", "description": "an expression, or the ref of a function"}
_METRIC = {"type": "string", "description": "a name of dspex.metrics, or the ref of a function"}
_RENDER_SIGNATURE: Mapping[str, Any] = {"signature": _TEXT, "instructions": _TEXT, "adapter": {"enum": list(ADAPTERS)}}
_RENDER = {
    "type": "object",
    "properties": dict(_RENDER_SIGNATURE),
    "required": ["signature"],
    "additionalProperties": False,
}
_CALL = (*CallOptions.__annotations__, "into", "instructions")

OPERATORS: Mapping[str, Operator] = {
    "map": Operator(_map, _REF),
    "flat_map": Operator(_flat_map, _REF),
    "filter": Operator(_filter, _TEST),
    "branch": Operator(_branch, {"type": "array", "items": _TEST, "minItems": 1}),
    "merge": Operator(_merge, {"type": "object", "maxProperties": 0}),
    "set": Operator(_set, {"type": "object", "additionalProperties": _TEXT}, ("into",)),
    "validate": Operator(_validate, {"type": ["string", "object"]}, ("on_error",)),
    "render": Operator(_render, {"oneOf": [_TEXT, _RENDER]}, ("field", "syntax", "into"), ("field",)),
    "parse": Operator(_parse, _TEXT, ("field", "adapter", "into"), ("field",)),
    "score": Operator(_score, _METRIC, ("expected", "actual", "field", "into"), ("expected", "actual")),
    "predict": Operator(_model_call("predict"), _TEXT, _CALL),
    "chain_of_thought": Operator(_model_call("chain_of_thought"), _TEXT, _CALL),
    "react": Operator(_model_call("react"), _TEXT, (*_CALL, "tools", "max_iters"), ("tools",)),
    "program": Operator(_program, _REF, (*_CALL, "signature", "state"), ("signature",)),
}
