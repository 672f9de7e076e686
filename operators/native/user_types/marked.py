"""Which fields of the user's own types are marked secret: a worker that lacks their code is told so by name."""

from __future__ import annotations

import typing
from collections.abc import Iterable, Iterator, Mapping

from dspex.operators.native.fields.fields import SECRET, Annotation
from dspex.operators.native.fields.types import declared_fields, hints_of, unmarked
from dspex.operators.native.prompts.values import classes_of


def marked(annotation: Annotation) -> list[str]:
    """The names of the fields in the classes of a type that are marked secret."""
    return sorted({name for one in set(classes_of(annotation, set())) for name in _marked(one)})


def _marked(one: type) -> Iterator[str]:
    infos: Mapping[str, object] | None = getattr(one, "__pydantic_fields__", None)
    if infos is not None:
        yield from (name for name, info in infos.items() if _is_secret([info]))
    elif declared_fields(one):
        for name, hint in hints_of(one, include_extras=True).items():
            if _is_secret(typing.get_args(unmarked(hint))[1:]):
                yield name


def _is_secret(infos: Iterable[object]) -> bool:
    said = [getattr(info, "json_schema_extra", None) for info in infos]
    return any(isinstance(extra, dict) and bool(extra.get(SECRET)) for extra in said)
