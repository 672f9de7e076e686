"""Templates: `"Dear {customer.name}"`. Fields only, no expressions and no calls; `{{` and `}}` are braces.

Text goes in as it is, everything else as JSON (`true`, `3`, `["a"]`). `str.format` would do most of this, but it reads
attributes with `_` and so hands out what the data is made of. A template language (Jinja) would be a second language
beside the expressions.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from string import Formatter
from typing import Any, NamedTuple

from dspex.bus.codecs import json_bytes
from dspex.bus.errors import TopologyError
from dspex.engine.graph.context import Context
from dspex.operators.expressions import language as expressions
from dspex.operators.native.problems import problem

_PATH = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*|\[\d{1,9}\])*")


class Part(NamedTuple):
    """A piece of literal text, then a field (None at the end)."""

    text: str
    field: expressions.Expression | None


def parse(template: object) -> list[Part]:
    """The parts of a template. Raises TopologyError (DX225)."""
    if not isinstance(template, str):  # YAML may give anything
        raise problem("DX225", f"a template is text, and this is {template!r}", 'write "Dear {name}"')
    try:
        raw = list(Formatter().parse(template))
    except ValueError as e:
        raise problem("DX225", f"the template {template!r} cannot be read: {e}", "write {{ and }} for braces") from e
    return [Part(text, None if path is None else _field(template, path, spec, how)) for text, path, spec, how in raw]


def fields(template: object) -> list[str]:
    """The paths that a template reads; none where it cannot be read (`parse` says why)."""
    try:
        return [p.field.text for p in parse(template) if p.field is not None]
    except TopologyError:
        return []


def _field(template: str, path: str, spec: str | None, how: str | None) -> expressions.Expression:
    if spec or how or not _PATH.fullmatch(path):
        shown = path + (f"!{how}" if how else "") + (f":{spec}" if spec else "")
        raise problem(
            "DX225",
            f"the template {template!r} may hold field names only, and has {{{shown}}}",
            'compute it before: .set({"name": "expression"})',
        )
    return expressions.compile(path)


def renderer(parts: list[Part], encode: Callable[[Any], str]) -> Callable[[Any, Context | None], str]:
    """A function of (data, ctx) that fills in a template. `encode`: a field's value as text."""

    def render(data: object, ctx: Context | None = None) -> str:
        return "".join(p.text if p.field is None else p.text + encode(p.field.function(data, ctx)) for p in parts)

    return render


def as_text(value: object) -> str:
    """Text as it is, everything else as JSON."""
    return value if isinstance(value, str) else json_bytes(value).decode()
