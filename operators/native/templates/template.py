"""Templates in Jinja: rendered by minijinja, over plain data, in bounded time.

    Template("Dear {{ customer.name }}{% for i in items %}\n- {{ i.title }}{% endfor %}").render(data)

A template sees data as JSON would: mappings, lists, texts, numbers, true, false, null. It has no loader, calls nothing of
Python's, and a field that is not there is an error. `template_language` tells what may stand in one.

How long may one run? A step of minijinja takes at most time in proportion to the largest value, and the largest value is
at most `growth` times what goes in. So the number of steps is bounded by the size of the data: most templates run with so
few that their output is bounded as well. One that needs more is run again with its output counted, which costs a call of
Python for each `{{ }}`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from threading import Lock
from typing import Any, cast

import orjson

from dspex.bus.codecs import json_bytes
from dspex.bus.errors import ExpressionError, InvalidInput
from dspex.operators.native.suggestions import nearest, problem
from dspex.operators.native.templates.language import CALLED, MAX_VALUE, METHODS, SPLIT, examine

MAX_OUTPUT = 16 * 2**20  # characters
_MAX_WORK = 2 * 10**10  # steps times the size of a value
_ITEM = 64  # characters that are looked through in the time of an item of a list
_MAX_STEPS = 1_000_000
_INT64 = 2**63
_NAME = "template"  # without .html, which would escape
_LONG_NUMBER = re.compile(rb"\de[-+]?\d")


class Template:
    """A compiled template. Frozen; may be used from several threads.

    Raises TopologyError (DX225), with the line, for what cannot be read or is not allowed.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self._facts = examine(text)
        self._counter = _Counter()
        self._compiled: dict[tuple[int, bool], Any] = {}
        self._counting = Lock()
        self._environment(14, counted=False)  # says what is wrong with it now, not at the first datum

    def __repr__(self) -> str:
        return f"Template({self.text!r})"

    @property
    def variables(self) -> set[str]:
        """Fields of the data that it may read."""
        return set(self._facts.names)

    @property
    def required(self) -> set[str]:
        """Those of `variables` that it cannot do without."""
        return set(self._facts.required)

    def render(self, data: Mapping[str, Any]) -> str:
        """The text for this data.

        Raises ExpressionError where a field is missing, or where a value does not fit what is done with it; InvalidInput
        for data that JSON does not have, or that is too large.
        """
        values, size = self._values(data)
        if not self._facts.careful:
            try:
                return self._run(values, min(_MAX_STEPS, MAX_OUTPUT // max(size, self._facts.text)), data, counted=False)
            except _OutOfSteps:
                pass
        items = (self._facts.items + _longest(values)) * self._facts.growth if self._facts.searches else 0
        steps = min(_MAX_STEPS, _MAX_WORK // (size + _ITEM * items), 2 * MAX_OUTPUT // max(self._facts.text, 1))
        with self._counting:
            self._counter.left = MAX_OUTPUT
            return self._run({n: _hidden(v) for n, v in values.items()}, steps, data, counted=True)

    def _values(self, data: Mapping[str, Any]) -> tuple[dict[str, Any], int]:
        """The fields that the template may read, as JSON has them; and how large a value can be that it makes of them."""
        facts = self._facts
        values = {n: data[n] for n in facts.names if n in data}
        size = 0
        for value in values.values():
            kind = value.__class__
            if kind is str and value.isascii():  # other text may have half characters: JSON finds them
                size += len(value)
            elif kind is not bool and value is not None and not (kind is int and -_INT64 <= value < _INT64):
                raw = json_bytes(values)
                values = orjson.loads(raw)
                size = len(raw) + 310 * len(_LONG_NUMBER.findall(raw))  # 1e308 is written out
                break
        size = (size + facts.size) * facts.growth
        if facts.indents:
            size *= max(1, _depth(values))
        if size > MAX_VALUE:
            what = f"the data is too much for the template, which could make {size} characters of it in one value"
            raise InvalidInput(what, fix=SPLIT)
        return values, size

    def _run(self, values: Mapping[str, Any], steps: int, data: Mapping[str, Any], *, counted: bool) -> str:
        size = steps.bit_length()  # steps are rounded down to a power of two: few environments do for all
        environment = self._compiled.get((size, counted)) or self._environment(size, counted=counted)
        try:
            return cast("str", environment.render_template(_NAME, **values))
        except self._template_error as e:
            if e.kind == "OutOfFuel" and not counted:
                raise _OutOfSteps from None
            raise _failure(e, self.text, {**dict.fromkeys(data), **values}) from e

    def _environment(self, size: int, *, counted: bool) -> Any:
        """The template, compiled to run at most 2 ** (size - 1) steps."""
        from minijinja import Environment, TemplateError

        fuel = 1 << max(size - 1, 0)
        environment = Environment(fuel=fuel, undefined_behavior="strict", finalizer=self._counter if counted else None)
        try:
            environment.add_template(_NAME, self.text)
        except TemplateError as e:
            what = f"the template cannot be read: {e.detail or e.message}, in line {e.line or 1}"
            raise problem("DX225", what, "correct the template") from e
        self._template_error: Any = TemplateError
        self._compiled[size, counted] = environment
        return environment


class _OutOfSteps(Exception):
    """The steps for which no output has to be counted are used up."""


class _Counter:
    """Counts what a template puts out. `left`: characters that it still may."""

    left = 0

    def __call__(self, value: Any) -> Any:
        if value.__class__ is _Method:
            raise _missing(f".{value.name}", ())
        self.left -= len(value) if isinstance(value, str) else len(str(value))
        if self.left < 0:
            raise ExpressionError(f"the template makes more than {MAX_OUTPUT} characters", fix="give it less data")
        return value


# -- errors --------------------------------------------------------------------------------------------------------
def _failure(e: Any, text: str, values: Mapping[str, Any]) -> ExpressionError:
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


def _missing(path: str, values: Any, where: str = "") -> ExpressionError:
    name = re.split(r"\W+", path.rstrip("']\""))[-1]
    near = nearest(name, _names(values))
    fix = f"did you mean {near!r}?" if near else f'guard it: {{% if {path} is defined %}}, or {path}|default("")'
    return ExpressionError(f"the template wants {path!r}, which is not there{where}", fix=fix)


def _names(value: Any, depth: int = 0) -> Iterator[str]:
    """Names of all fields, as deep as it is worth looking for one that was misspelt."""
    if depth > 4:
        return
    if isinstance(value, Mapping):
        yield from (n for n in cast("Mapping[str, Any]", value))
    for v in value.values() if isinstance(value, Mapping) else value[:3] if isinstance(value, list) else ():
        yield from _names(v, depth + 1)


def _depth(value: Any) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + max(map(_depth, inner), default=0)


def _longest(value: Any) -> int:
    """Items of the longest list in it."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return max(len(value) if isinstance(value, list) else 0, max(map(_longest, inner), default=0))


# -- data without methods --------------------------------------------------------------------------------------------
# minijinja asks a dict for an item and then for an attribute. `{{ order.items }}` without such a field would print a
# method of Python's, with its address in it.
class _Method:
    """What an attribute gives that is a method: it can be called, and not printed."""

    def __init__(self, name: str, function: Any) -> None:
        self.name, self.function = name, function

    def __call__(self) -> Any:
        return self.function()


class _Shown:
    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, instance: Any, owner: Any = None) -> _Method:
        return _Method(self.name, getattr(dict, self.name).__get__(instance))


class _Hidden:
    def __get__(self, instance: Any, owner: Any = None) -> Any:
        raise AttributeError("not for templates")


_Fields = type("_Fields", (dict,), {n: _Shown(n) if n in CALLED else _Hidden() for n in METHODS if hasattr(dict, n)})
_Items = type("_Items", (list,), {n: _Hidden() for n in METHODS if hasattr(list, n)})


def _hidden(value: Any) -> Any:
    if isinstance(value, dict):
        return _Fields({n: _hidden(v) for n, v in cast("dict[str, Any]", value).items()})
    return _Items([_hidden(v) for v in value]) if isinstance(value, list) else value
