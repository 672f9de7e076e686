"""Templates in Jinja: rendered by minijinja, over plain data, in bounded time.

    Template("Dear {{ customer.name }}{% for i in items %}\n- {{ i.title }}{% endfor %}").render(data)

A template sees JSON data: mappings, lists, texts, numbers, true, false, null. It has no loader and calls no Python function,
and a missing field is an error. `language` and `allowed` define what it may contain.

The time of a template is bounded as follows. A step of minijinja takes at most time in proportion to the largest value, and
the largest value is at most `growth` times the data. So the number of steps is limited by the size of the data. With this
limit the output of most templates is limited too. A template that needs more steps is run again with its output counted,
which takes a call of Python for each `{{ }}`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from threading import Lock
from typing import TYPE_CHECKING, Any, TypeVar, cast

import orjson

from dspex.bus.codecs import json_bytes
from dspex.bus.errors import ExpressionError, InvalidInput
from dspex.operators.native.fields.fields import Values
from dspex.operators.native.problems import nearest, problem
from dspex.operators.native.templates.language import MAX_VALUE, SPLIT, examine
from dspex.operators.native.templates.plain_data import DictMethod, depth, hidden, longest

if TYPE_CHECKING:
    from minijinja import Environment, TemplateError

T = TypeVar("T")

MAX_OUTPUT = 16 * 2**20  # characters
_MAX_WORK = 2 * 10**10  # the number of steps times the size of a value
_ITEM = 64  # characters that are searched in the time that one item of a list takes
_MAX_STEPS = 1_000_000
_INT64 = 2**63
_NAME = "template"  # a name with .html would switch on escaping
_LONG_NUMBER = re.compile(rb"\de[-+]?\d")


class Template:
    """A compiled template. Frozen; may be used from several threads.

    Raises TopologyError (DX225), with the line, for what cannot be read or is not allowed.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self._facts = examine(text)
        self._counter = _Counter()
        self._compiled: dict[tuple[int, bool], Environment] = {}
        self._counting = Lock()
        self._environment(14, counted=False)  # an error in the template is raised now, not at the first event

    def __repr__(self) -> str:
        return f"Template({self.text!r})"

    @property
    def required(self) -> set[str]:
        """The fields that the data must have; others it may read where they are there."""
        return set(self._facts.required)

    def render(self, data: Mapping[str, object]) -> str:
        """The text for this data.

        Raises ExpressionError where a field is missing, or where a value does not fit the operation on it; InvalidInput for
        data that is no JSON data, or is too large.
        """
        values, size = self._values(data)
        if not self._facts.reads_methods:
            try:
                return self._run(values, min(_MAX_STEPS, MAX_OUTPUT // max(size, self._facts.text)), data, counted=False)
            except _OutOfSteps:
                pass
        items = (self._facts.items + longest(values)) * self._facts.growth if self._facts.searches else 0
        steps = min(_MAX_STEPS, _MAX_WORK // (size + _ITEM * items), 2 * MAX_OUTPUT // max(self._facts.text, 1))
        with self._counting:
            self._counter.left = MAX_OUTPUT
            return self._run({n: hidden(v) for n, v in values.items()}, steps, data, counted=True)

    def _values(self, data: Mapping[str, object]) -> tuple[Values, int]:
        """The fields that the template may read, as JSON data; and how large a value can be that it makes of them."""
        facts = self._facts
        values: Values = {n: data[n] for n in facts.names if n in data}
        size = 0
        for value in values.values():
            kind = value.__class__
            if kind is str and value.isascii():  # json_bytes below finds lone surrogates in other text
                size += len(value)
            elif kind is not bool and value is not None and not (kind is int and -_INT64 <= value < _INT64):
                raw = json_bytes(values)
                values = orjson.loads(raw)
                size = len(raw) + 310 * len(_LONG_NUMBER.findall(raw))  # 1e308 is written out
                break
        size = (size + facts.size) * facts.growth
        if facts.indents:
            size *= max(1, depth(values))
        if size > MAX_VALUE:
            what = f"the data is too much for the template, which could make {size} characters of it in one value"
            raise InvalidInput(what, fix=SPLIT)
        return values, size

    def _run(self, values: Values, steps: int, data: Mapping[str, object], *, counted: bool) -> str:
        size = steps.bit_length()  # steps are rounded down to a power of two, so that there are few environments
        environment = self._compiled.get((size, counted)) or self._environment(size, counted=counted)
        try:
            return environment.render_template(_NAME, **values)
        except self._template_error as e:
            if e.kind == "OutOfFuel" and not counted:
                raise _OutOfSteps from None
            raise _failure(e, self.text, {**dict.fromkeys(data), **values}) from e

    def _environment(self, size: int, *, counted: bool) -> Environment:
        """The template, compiled to run at most 2 ** (size - 1) steps."""
        from minijinja import Environment, TemplateError

        fuel = 1 << max(size - 1, 0)
        environment = Environment(fuel=fuel, undefined_behavior="strict", finalizer=self._counter if counted else None)
        try:
            environment.add_template(_NAME, self.text)
        except TemplateError as e:
            what = f"the template cannot be read: {e.detail or e.message}, in line {e.line or 1}"
            raise problem("DX225", what, "correct the template") from e
        self._template_error = TemplateError
        self._compiled[size, counted] = environment
        return environment


class _OutOfSteps(Exception):
    """The template needs more steps than it may take without its output being counted."""


class _Counter:
    """Counts the output of a template. `left`: the number of characters that it may still have."""

    left = 0

    def __call__(self, value: T) -> T:
        if isinstance(value, DictMethod):
            raise _missing(f".{value.name}", ())
        self.left -= len(value) if isinstance(value, str) else len(str(value))
        if self.left < 0:
            raise ExpressionError(f"the template makes more than {MAX_OUTPUT} characters", fix="give it less data")
        return value


# -- errors --------------------------------------------------------------------------------------------------------
def _failure(e: TemplateError, text: str, values: Mapping[str, object]) -> ExpressionError:
    detail = str(e.detail or e.message)[:300]
    if e.kind == "UndefinedError":
        path = re.search(r"`(.*)` is undefined", detail)
        start, end = e.range or (0, 0)
        return _missing(
            path[1] if path else text.encode()[start:end].decode(errors="replace")[:80], values, f" in line {e.line}"
        )
    if e.kind == "OutOfFuel":
        return ExpressionError("the template takes too many steps for data of this size", fix="fewer or shorter loops")
    return ExpressionError(f"the template failed in line {e.line}: {detail}", fix="correct the template or the data")


def _missing(path: str, values: object, where: str = "") -> ExpressionError:
    name = re.split(r"\W+", path.rstrip("']\""))[-1]
    near = nearest(name, _names(values))
    fix = f"did you mean {near!r}?" if near else f'guard it: {{% if {path} is defined %}}, or {path}|default("")'
    return ExpressionError(f"the template wants {path!r}, which is not there{where}", fix=fix)


def _names(value: Any, depth: int = 0) -> Iterator[str]:
    """The names of all fields, to a depth at which a misspelt name is still worth finding."""
    if depth > 4:
        return
    if isinstance(value, Mapping):
        yield from (n for n in cast("Mapping[str, object]", value))
    for v in value.values() if isinstance(value, Mapping) else value[:3] if isinstance(value, list) else ():
        yield from _names(v, depth + 1)
