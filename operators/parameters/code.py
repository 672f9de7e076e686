"""Kinds of parameters that hold code: functions, tests, expressions over the data, refs of what a worker runs."""

from __future__ import annotations

from collections.abc import Iterable, MutableMapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar, cast

from dspex.operators.expressions import language as expressions
from dspex.operators.expressions.predicate import predicate
from dspex.operators.native.fields.fields import JsonSchema
from dspex.operators.native.problems import all_errors, problem, wrong
from dspex.operators.parameters.parameter import Arguments, Parameter, Types
from dspex.operators.parameters.values import TEXT, mapping
from dspex.operators.typing.functions import automatic_name, takes_context, takes_so_many
from dspex.operators.typing.refs import Local, is_ref, ref_of, resolve


@dataclass(frozen=True)
class FunctionParameter(Parameter):
    """A function of (data) or (data, ctx). YAML: its ref."""

    noun: ClassVar[str] = "a function of (data) or (data, ctx)"
    form: ClassVar[JsonSchema] = {**TEXT, "description": "pkg.module:name"}

    def check(self, name: str, value: object) -> object:
        takes_context(value, name)
        return value

    def plain(self, value: object, others: Arguments) -> object:
        return ref_of(value)

    def load(self, name: str, value: object, types: Types, others: MutableMapping[str, object]) -> object:
        if not isinstance(value, str):
            raise problem("DX221", f"{value!r} names no function", 'write "pkg.module:name"')
        return resolve(value)

    def automatic_name(self, value: object, operator: str) -> str:
        return automatic_name(value, operator)


@dataclass(frozen=True)
class CallableParameter(FunctionParameter):
    """A function of so many arguments. `takes`: what they are called in messages."""

    _: KW_ONLY
    takes: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        return f"a function of ({', '.join(self.takes)})"

    def check(self, name: str, value: object) -> object:
        if value is not self.default:
            takes_so_many(value, name, self.takes)
        return value

    def plain(self, value: object, others: Arguments) -> object:
        return value if value is self.default else ref_of(value)


@dataclass(frozen=True)
class TextOrFunctionParameter(Parameter):
    """A text that means something to the operator, or a function. YAML: a ref is the function that it names."""

    def plain(self, value: object, others: Arguments) -> object:
        return value if isinstance(value, str) else ref_of(value)

    def load(self, name: str, value: object, types: Types, others: MutableMapping[str, object]) -> object:
        return resolve(value) if isinstance(value, str) and is_ref(value) else value


@dataclass(frozen=True)
class TestParameter(TextOrFunctionParameter):
    """An expression, or a function of the data. YAML: a ref is never an expression, because a colon is no part of those."""

    noun: ClassVar[str] = "an expression, or a function of the data"
    form: ClassVar[JsonSchema] = {**TEXT, "description": "an expression, or the ref of a function"}

    def check(self, name: str, value: object) -> object:
        predicate(value, name)
        return value

    def reads(self, value: object, others: Arguments) -> Iterable[str]:
        return [value] if isinstance(value, str) else []

    def automatic_name(self, value: object, operator: str) -> str:
        return operator if isinstance(value, str) else automatic_name(value, operator)


@dataclass(frozen=True)
class TestsParameter(Parameter):
    """One test or more. Python gives them one by one, YAML as a list."""

    variadic: ClassVar[bool] = True
    _: KW_ONLY
    one: TestParameter = TestParameter()

    noun: ClassVar[str] = "tests: expressions, or functions of the data"

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

    def schema(self) -> JsonSchema:
        return {"type": "array", "items": self.one.schema(), "minItems": 1}

    def reads(self, value: object, others: Arguments) -> Iterable[str]:
        return [text for test in cast("Sequence[object]", value) for text in self.one.reads(test, others)]


@dataclass(frozen=True)
class ExpressionParameter(Parameter):
    """An expression over the data."""

    noun: ClassVar[str] = "an expression"
    form: ClassVar[JsonSchema] = TEXT

    def check(self, name: str, value: object) -> object:
        if value is not self.default:
            expressions.compile(cast("str", value))
        return value

    def reads(self, value: object, others: Arguments) -> Iterable[str]:
        return [value] if isinstance(value, str) else []


@dataclass(frozen=True)
class ExpressionsParameter(Parameter):
    """Expressions by name. `example`: for the message about what is none."""

    _: KW_ONLY
    example: str = ""

    noun: ClassVar[str] = "expressions by name"
    form: ClassVar[JsonSchema] = {"type": "object", "additionalProperties": TEXT}

    def check(self, name: str, value: object) -> object:
        texts = mapping(value)
        if texts is None:
            raise problem("DX205", f"{name} takes fields, and this is {value!r}", self.example)
        all_errors(expressions.compile, texts.values())
        return dict(texts)

    def reads(self, value: object, others: Arguments) -> Iterable[str]:
        return [str(text) for text in (mapping(value) or {}).values()]


@dataclass(frozen=True)
class RefParameter(Parameter):
    """What a worker runs: a ref, or a class or function that has one. Checked, it is the ref. `what`: for messages."""

    _: KW_ONLY
    what: str = "a program"

    noun: ClassVar[str] = 'a ref, `"pkg.module:name"`, or what it names'
    form: ClassVar[JsonSchema] = {**TEXT, "description": "pkg.module:name"}

    def check(self, name: str, value: object) -> object:
        if isinstance(value, str):
            if is_ref(value):
                return value
            raise problem("DX221", f"{value!r} is not a ref", 'write "pkg.module:name"')
        ref = ref_of(value)
        if isinstance(ref, Local):
            fix = 'define it at the top level of a module, and give its ref: "pkg.module:name"'
            raise problem("DX218", f"{self.what} runs in a worker, which cannot import {ref}", fix)
        return ref


@dataclass(frozen=True)
class RefsParameter(RefParameter):
    """One ref or more of what a worker runs. Checked, they are a tuple. `what`: for messages."""

    noun: ClassVar[str] = 'a list of refs: `["shop:find_order"]`'
    form: ClassVar[JsonSchema] = {"type": "array", "items": TEXT}

    def check(self, name: str, value: object) -> object:
        if isinstance(value, str) or not isinstance(value, Sequence) or not value:
            raise wrong(name, value, f'a list of refs: {name}=["shop:find_order"]')
        return tuple(super(RefsParameter, self).check(name, v) for v in cast("Sequence[object]", value))
