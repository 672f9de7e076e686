"""Which fields of a signature are marked secret, as the spec of a call tells it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import cast


def marked(fields: Mapping[str, Mapping[str, object]]) -> frozenset[str]:
    """The names of fields that are marked secret, and of those in their types. `fields`: see `CallSpec.fields`."""
    return frozenset(_names(fields))


def _names(fields: Mapping[str, Mapping[str, object]]) -> Iterator[str]:
    for name, said in fields.items():
        if said.get("secret") is True:
            yield name
        inner = said.get("secrets")
        yield from map(str, cast("Iterable[object]", inner) if isinstance(inner, (list, tuple)) else ())
