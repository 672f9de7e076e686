"""Kinds of parameters that hold code: functions, tests, expressions over the data, refs of what a worker runs."""

from __future__ import annotations

from collections.abc import Iterable, MutableMapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar, cast

from dspex.operators.expressions import language as expressions
from dspex.operators.expressions.predicate import predicate
from dspex.operators.parameters.parameter import Arguments, Parameter, Schema, Types
from dspex.operators.parameters.values import TEXT, mapping
from dspex.operators.problems import all_errors, problem, wrong
from dspex.operators.typing.functions import automatic_name, takes_context
from dspex.operators.typing.refs import Local, is_ref, ref_of, resolve


@dataclass(frozen=True)
class Function(Parameter):
    """A function of (data) or (data, ctx). YAML: its ref."""

    @property
    def kind(self) -> str:
        return "a function of (data) or (data, ctx)"

    def check(self, name: str, value: object) -> object:
        takes_context(value, name)
        return value

    def plain(self, value: object, others: Arguments) -> object:
        return ref_of(value)

    def load(self, name: str, value: object, types: Types, others: MutableMapping[str, object]) -> object:
        if not isinstance(value, str):
            raise problem("DX221", f"{value!r} names no function", 'write "pkg.module:name"')
        return resolve(value)

    def schema(self) -> Schema:
        return {**TEXT, "description": "pkg.module:name"}

    def functions(self, value: object) -> Iterable[object]:
        return [value]

    def automatic_name(self, value: object, operator: str) -> str:
        return automatic_name(value, operator)


@dataclass(frozen=True)
class Test(Parameter):
    """An expression, or a function of the data. YAML: a ref is never an expression, because a colon is no part of those."""

    @property
    def kind(self) -> str:
        return "an expression, or a function of the data"

    def check(self, name: str, value: object) -> object:
        predicate(value, name)
        return value

    def plain(self, value: object, others: Arguments) -> object:
        return value if isinstance(value, str) else ref_of(value)

    def load(self, name: str, value: object, types: Types, others: MutableMapping[str, object]) -> object:
        return resolve(value) if isinstance(value, str) and is_ref(value) else value

    def schema(self) -> Schema:
        return {**TEXT, "description": "an expression, or the ref of a function"}

    def reads(self, value: object, others: Arguments) -> Iterable[str]:
        return [value] if isinstance(value, str) else []

    def functions(self, value: object) -> Iterable[object]:
        return [value]

    def automatic_name(self, value: object, operator: str) -> str:
        return operator if isinstance(value, str) else automatic_name(value, operator)


@dataclass(frozen=True)
class Tests(Parameter):
    """One test or more. Python gives them one by one, YAML as a list."""

    variadic: ClassVar[bool] = True
    _: KW_ONLY
    one: Test = Test()

    @property
    def kind(self) -> str:
        return "tests: expressions, or functions of the data"

    def check(self, name: str, value: object) -> object:
        tests = self._tests(name, value)
        all_errors(lambda test: self.one.check(name, test), tests)
        return tests

    def plain(self, value: object, others: Arguments) -> object:
        return [self.one.plain(test, others) for test in cast("Sequence[object]", value)]

    def load(self, name: str, value: object, types: Types, others: MutableMapping[str, object]) -> object:
        return [self.one.load(name, test, types, others) for test in self._tests(name, value)]

    def _tests(self, name: str, value: object) -> list[object]:
        if not isinstance(value, list) or not value:
            raise problem("DX205", f"{name} takes a list of tests, and this is {value!r}", f'{name}: ["urgency >= 4"]')
        return cast("list[object]", value)

    def schema(self) -> Schema:
        return {"type": "array", "items": self.one.schema(), "minItems": 1}

    def reads(self, value: object, others: Arguments) -> Iterable[str]:
        return [text for test in cast("Sequence[object]", value) for text in self.one.reads(test, others)]

    def functions(self, value: object) -> Iterable[object]:
        return cast("Sequence[object]", value)


@dataclass(frozen=True)
class Expression(Parameter):
    """An expression over the data."""

    @property
    def kind(self) -> str:
        return "an expression"

    def check(self, name: str, value: object) -> object:
        if value is not self.default:
            expressions.compile(cast("str", value))
        return value

    def schema(self) -> Schema:
        return dict(TEXT)

    def reads(self, value: object, others: Arguments) -> Iterable[str]:
        return [value] if isinstance(value, str) else []


@dataclass(frozen=True)
class Expressions(Parameter):
    """Expressions by name. `example`: for the message about what is none."""

    _: KW_ONLY
    example: str = ""

    @property
    def kind(self) -> str:
        return "expressions by name"

    def check(self, name: str, value: object) -> object:
        texts = mapping(value)
        if texts is None:
            raise problem("DX205", f"{name} takes fields, and this is {value!r}", self.example)
        all_errors(expressions.compile, texts.values())
        return dict(texts)

    def schema(self) -> Schema:
        return {"type": "object", "additionalProperties": dict(TEXT)}

    def reads(self, value: object, others: Arguments) -> Iterable[str]:
        return [str(text) for text in (mapping(value) or {}).values()]


@dataclass(frozen=True)
class Ref(Parameter):
    """What a worker runs: a ref, or a class or function that has one. Checked, it is the ref. `what`: for messages."""

    _: KW_ONLY
    what: str = "a program"

    @property
    def kind(self) -> str:
        return 'a ref, `"pkg.module:name"`, or what it names'

    def check(self, name: str, value: object) -> object:
        return worker_ref(value, self.what)

    def schema(self) -> Schema:
        return {**TEXT, "description": "pkg.module:name"}


@dataclass(frozen=True)
class Refs(Parameter):
    """One ref or more of what a worker runs. Checked, they are a tuple. `what`: for messages."""

    _: KW_ONLY
    what: str = "a tool"

    @property
    def kind(self) -> str:
        return 'a list of refs: `["shop:find_order"]`'

    def check(self, name: str, value: object) -> object:
        if isinstance(value, str) or not isinstance(value, Sequence) or not value:
            raise wrong(name, value, f'a list of refs: {name}=["shop:find_order"]')
        return tuple(worker_ref(v, self.what) for v in cast("Sequence[object]", value))

    def schema(self) -> Schema:
        return {"type": "array", "items": dict(TEXT)}


def worker_ref(thing: object, what: str) -> str:
    """The ref of what a worker shall import. Raises TopologyError: DX218 for what has none, DX221 for a bad one."""
    if isinstance(thing, str):
        if is_ref(thing):
            return thing
        raise problem("DX221", f"{thing!r} is not a ref", 'write "pkg.module:name"')
    ref = ref_of(thing)
    if isinstance(ref, Local):
        raise problem(
            "DX218",
            f"{what} runs in a worker, which cannot import {ref}",
            'define it at the top level of a module, and give its ref: "pkg.module:name"',
        )
    return ref
