"""Refs: `pkg.module:name`, how functions and classes are named in YAML, digests and worker processes."""

from __future__ import annotations

import importlib
import re
import sys
from functools import reduce
from pathlib import Path
from typing import Any

from dspex.operators.native.problems import did_you_mean, problem

REF = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")


class Local(str):
    """Stands for a function or type that no ref can name: a lambda, a closure, a local class. Never exported."""


def ref_of(thing: object) -> str:
    """The ref of a function or class; a `Local` where none leads to it."""
    module, path = getattr(thing, "__module__", None), getattr(thing, "__qualname__", None)
    if not isinstance(module, str) or not isinstance(path, str):
        return Local(f"<{type(thing).__name__}>")
    try:
        found = reduce(getattr, path.split("."), sys.modules[module])
    except (KeyError, AttributeError):
        return Local(path if path.startswith("<") else f"<{path.rpartition('.')[2].strip('<>')}>")
    # a bound method is made anew at every access, so identity would not know it
    return f"{module_name(module)}:{path}" if found == thing else Local(f"<{path}>")


def module_name(module: str) -> str:
    """`triage` for `python triage.py`, so that the digest is the same as for `dspex run triage:topology`."""
    if module != "__main__":
        return module
    main = sys.modules["__main__"]
    spec, file = getattr(main, "__spec__", None), getattr(main, "__file__", None)
    if spec is not None:
        return str(spec.name)
    return Path(file).stem if file else module


def is_ref(text: str) -> bool:
    """Whether the text has the form `pkg.module:name`."""
    return bool(REF.fullmatch(text))


def _form(text: str) -> str:
    """What to write in place of what is no ref."""
    if text.endswith(".py") and is_ref(f"{(module := text.removesuffix('.py').replace('/', '.'))}:name"):
        return f'write "{module}:name", with the name that it has in that file'
    return 'write "pkg.module:name"'


def resolve(ref: str) -> Any:
    """What a ref names. Imports its module. Raises TopologyError (DX221)."""
    if not is_ref(ref):
        raise problem("DX221", f"{ref!r} is not a ref", _form(ref))
    module_name, _, path = ref.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as e:
        raise problem(
            "DX221",
            f"{ref!r} cannot be imported: {e}",
            "correct the module, or put its folder on the path: path = [...] in dspex.toml",
        ) from e
    found: Any = module
    for part in path.split("."):
        if not hasattr(found, part):
            names = [n for n in vars(found) if not n.startswith("_")] if hasattr(found, "__dict__") else []
            raise problem("DX221", f"{ref!r}: {module_name} has no {part!r}", did_you_mean(part, names[:40]))
        found = getattr(found, part)
    return found
