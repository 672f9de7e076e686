"""All operators by name, found where they are declared: a file beside the others is all that a new one needs."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from importlib import import_module
from pkgutil import iter_modules
from types import MappingProxyType

from dspex.operators import keyed, recorded, stateless
from dspex.operators.operator import Operator
from dspex.operators.recorded.calls import CallOperator

AnyOperator = Operator | CallOperator


@lru_cache(maxsize=1)
def operators() -> Mapping[str, AnyOperator]:
    """Native operators, then recorded ones, each by the order of their files."""
    found: dict[str, AnyOperator] = {}
    for package in (stateless, keyed, recorded):
        for file in iter_modules(package.__path__, f"{package.__name__}."):
            for thing in vars(import_module(file.name)).values():
                if isinstance(thing, (Operator, CallOperator)):
                    found.setdefault(thing.name, thing)
    return MappingProxyType(found)
