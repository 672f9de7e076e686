"""The files of an application in which the functions of operators lie, and those that these import: a part of a build.

Their import statements are read, wherever they stand, and followed by the same paths that Python would; nothing is imported
for it. The files of Python, of installed packages and of dspex are left out. What is imported under a name that is made while
a program runs is not seen.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import sys
import sysconfig
import warnings
from collections.abc import Iterable, Iterator
from functools import cache, lru_cache, partial
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any, Final, NamedTuple, cast, get_args

from dspex.operators.typing.code import digest_of_module
from dspex.operators.typing.refs import module_name

_NOT_OURS: Final = sys.stdlib_module_names | {"dspex"}
_INSTALLED: Final = frozenset({"site-packages", "dist-packages"})
_REMEMBERED: Final = 256  # files; the parts of an application share them


class _Read(NamedTuple):
    """A file: its digest, and what it imports: how many packages up, from where, and the names."""

    digest: str
    imports: tuple[tuple[int, str, tuple[str, ...]], ...]


def files_of(used: Iterable[object]) -> dict[str, str]:
    """The files of what operators use, functions and types, and of what those import: name → digest. Their names are as Python
    finds them, `lib/text.py`, wherever they lie.
    """
    found, ways, seen = dict[str, str](), [module for one in used for module in _modules(one)], set[str]()
    while ways:
        name = ways.pop()
        if name in seen or name.partition(".")[0] in _NOT_OURS:
            continue
        seen.add(name)
        if "." in name:
            ways.append(name.rpartition(".")[0])  # a package runs before what is in it
        if (file := _file(name)) is None:
            continue
        package = file.stem == "__init__"
        try:
            read = _read(file.read_bytes())
        except OSError:  # nothing can import it
            continue
        found["/".join([*name.split("."), *(["__init__"] if package else [])]) + ".py"] = read.digest
        ways += _imported(read, name if package else name.rpartition(".")[0])
    return dict(sorted(found.items()))


def _modules(used: object) -> Iterator[str]:
    """The modules in which something lies that can be called, or is a type."""
    if isinstance(used, (list, tuple, dict)):
        several = cast("Iterable[object]", used.values() if isinstance(used, dict) else used)
        yield from (module for one in several for module in _modules(one))
        return
    if isinstance(used, partial):
        yield from _modules(cast("Any", used).func)
    yield from (module for one in get_args(used) for module in _modules(one))
    module = getattr(used, "__module__", None)
    if callable(used) and isinstance(module, str):
        yield module_name(module)


def _imported(read: _Read, package: str) -> Iterator[str]:
    """The modules that a file of a package may import: of a name that it takes from one, nobody knows yet whether it is one."""
    for up, where, names in read.imports:
        above = package.split(".") if package else []
        begin = above[: len(above) - up + 1] if up else []
        module = ".".join([*begin, *([where] if where else [])])
        if module:
            yield module
        yield from (f"{module}.{name}" if module else name for name in names)


def _file(module: str) -> Path | None:
    """The file of a module, where it is one of the application."""
    spec = _spec(module)
    loaded = sys.modules.get("__main__" if module == module_name("__main__") else module)
    origin = spec.origin if spec is not None else getattr(loaded, "__file__", None)
    if origin is None or not origin.endswith(".py"):
        return None
    file = Path(origin)
    return file if file.is_file() and not _is_installed(file.parent) else None


def _spec(module: str) -> ModuleSpec | None:
    """Where a module is found, without an import. None: nowhere, or nobody says."""
    if module in sys.modules:
        return getattr(sys.modules[module], "__spec__", None)
    above = module.rpartition(".")[0]
    if not above:
        return importlib.util.find_spec(module)
    parent = _spec(above)
    places = parent.submodule_search_locations if parent is not None else None
    return PathFinder.find_spec(module, places) if places is not None else None


@cache
def _is_installed(folder: Path) -> bool:
    paths = sysconfig.get_paths()
    of_python = any(folder.is_relative_to(paths[name]) for name in ("stdlib", "platstdlib", "purelib", "platlib"))
    return of_python or not _INSTALLED.isdisjoint(folder.parts)


@lru_cache(_REMEMBERED)
def _read(data: bytes) -> _Read:
    """What there is in a file. One that Python cannot read is its bytes, and imports nothing."""
    try:
        with warnings.catch_warnings(action="ignore"):  # whoever imports it is warned
            tree = ast.parse(data)
            digest = digest_of_module(compile(tree, "", "exec", dont_inherit=True, optimize=0))
    except (SyntaxError, ValueError):
        return _Read(hashlib.sha256(data).hexdigest()[:12], ())
    imports = list[tuple[int, str, tuple[str, ...]]]()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imports += [(0, one.name, ()) for one in node.names]
        elif isinstance(node, ast.ImportFrom):
            imports.append((node.level, node.module or "", tuple(one.name for one in node.names if one.name != "*")))
    return _Read(digest, tuple(imports))
