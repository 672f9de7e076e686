"""Write engine/client/sync_client.py from the asynchronous client: `python scripts/make_sync.py`. A test holds it to that.

A method keeps its name, parameters, types and docstring. What is awaited runs on the loop of `background`, and its result is
handed on: a Run or an Answer as a synchronous one, an asynchronous iterator as a plain one.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOM = Path(__file__).parents[1] / "engine/client"
PAGE = ROOM / "sync_client.py"
CLASSES = {
    "Run": ROOM / "run.py",
    "Answer": ROOM / "calls/stream.py",
    "Session": ROOM / "calls/session.py",
    "Client": ROOM / "client.py",
}
MODULES = {name: f"_{path.stem}" for name, path in CLASSES.items()}
INNER = {"Answer": ("accepted", "said", "ended")}  # methods that are not for users
HEAD = '''"""Generated from the client's classes by scripts/make_sync.py: the same names without `await`. Do not edit."""
'''
Method = ast.FunctionDef | ast.AsyncFunctionDef


def generated() -> str:
    """The whole module, formatted."""
    trees = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in CLASSES.items()}
    classes = [_class(name, tree) for name, tree in trees.items()]
    used = {n.id for text in classes for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Name)}
    used |= {"V", "TypeVar"}
    found = {line for tree in trees.values() for line in _imports(tree, used)}
    imports = sorted(line for line in found if line.removeprefix(_TYPED) == line or line.removeprefix(_TYPED) not in found)
    own = (
        "from dspex.engine.client import background, client as _client, run as _run\n"
        "from dspex.engine.client.calls import session as _session, stream as _stream"
    )
    iterators = (
        "from collections.abc import Iterator\nfrom types import TracebackType\nfrom typing import Generic, Self, TYPE_CHECKING"
    )
    variable = next(
        ast.unparse(n) for n in trees["Client"].body if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "V"
    )
    lines = [HEAD, "from __future__ import annotations", iterators, *imports, own, variable, *classes]
    return _formatted("\n\n".join(lines))


def _imports(tree: ast.Module, used: set[str]) -> Iterator[str]:
    """What the annotations need; under TYPE_CHECKING it stays there."""
    for node in tree.body:
        inner = node.body if isinstance(node, ast.If) else [node]
        for one in inner:
            if isinstance(one, ast.ImportFrom) and one.module not in _ASYNCHRONOUS:
                names = [a.name for a in one.names if (a.asname or a.name) in used - {"background"}]
                if names and one.module != "__future__":
                    line = f"from {one.module} import {', '.join(names)}"
                    yield f"{_TYPED}{line}" if isinstance(node, ast.If) else line


_TYPED = "if TYPE_CHECKING:\n    "
_ASYNCHRONOUS = ("dspex.engine.client.run", "dspex.engine.client.calls.stream", "dspex.engine.client.calls.session")


def _class(name: str, tree: ast.Module) -> str:
    (found,) = [n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == name]
    methods = [n for n in found.body if isinstance(n, Method)]
    names = {m.name for m in methods}
    bases = ", ".join(map(ast.unparse, [*found.bases, *found.keywords]))
    generic = "[V]" if "Generic" in bases else ""
    parts = [
        f"class {name}({bases}):",
        _doc(found),
        f"    def __init__(self, of: {MODULES[name]}.{name}{generic}) -> None:\n        self._of = of",
        *(_attribute(*a) for a in _attributes(methods)),
        *(_method(m) for m in methods if not m.name.startswith("_") and m.name not in INNER.get(name, ())),
        *([_ENTER] if "__aenter__" in names else []),
        *([_ITER] if "__aiter__" in names else []),
        "    def __repr__(self) -> str:\n        return repr(self._of)",
    ]
    return "\n\n".join(parts)


_ENTER = """\
    def __enter__(self) -> Self:
        background.run(self._of.__aenter__())
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        background.run(self._of.__aexit__(kind, e, tb))"""

_ITER = """\
    def __iter__(self) -> Iterator[Chunk]:
        return background.each(self._of.__aiter__())"""


def _doc(node: ast.ClassDef | Method) -> str:
    inner = node.body[0]
    assert isinstance(inner, ast.Expr)
    indent = "    " if isinstance(node, ast.ClassDef) else "        "
    assert isinstance(inner.value, ast.Constant)
    assert isinstance(inner.value.value, str)
    return f'{indent}"""{inner.value.value.replace("`async with ", "`with ")}"""'


def _attributes(methods: list[Method]) -> Iterator[tuple[str, str]]:
    """Public attributes that `__init__` sets, with their types."""
    (init,) = [m for m in methods if m.name == "__init__"]
    types = {a.arg: ast.unparse(a.annotation) for a in init.args.args + init.args.kwonlyargs if a.annotation}
    for node in init.body:
        target = node.targets[0] if isinstance(node, ast.Assign) else node.target if isinstance(node, ast.AnnAssign) else None
        if isinstance(target, ast.Attribute) and not target.attr.startswith("_"):
            yield target.attr, ast.unparse(node.annotation) if isinstance(node, ast.AnnAssign) else types[target.attr]


def _attribute(name: str, type: str) -> str:
    return f"    @property\n    def {name}(self) -> {type}:\n        return self._of.{name}"


def _method(m: Method) -> str:
    assert m.returns is not None
    given = ast.unparse(m.returns)
    call = f"self._of.{m.name}({_arguments(m.args)})"
    if given.startswith("AsyncIterator"):
        given, call = given.removeprefix("Async"), f"background.each({call})"
    elif isinstance(m, ast.AsyncFunctionDef):
        call = f"background.run({call})"
    if any(ast.unparse(d) == "property" for d in m.decorator_list):
        call = f"self._of.{m.name}"
    call = f"{given.split('[')[0]}({call})" if given in ("Run", "Session") or given.startswith("Answer") else call
    body = call if given == "None" else f"return {call}"
    decorators = "".join(f"    @{ast.unparse(d)}\n" for d in m.decorator_list)
    return f"{decorators}    def {m.name}({ast.unparse(m.args)}) -> {given}:\n{_doc(m)}\n        {body}"


def _arguments(a: ast.arguments) -> str:
    positional = [p.arg for p in (*a.posonlyargs, *a.args) if p.arg != "self"]
    return ", ".join([*positional, *(f"{k.arg}={k.arg}" for k in a.kwonlyargs)])


def _formatted(text: str) -> str:
    ruff = [sys.executable, "-m", "ruff"]
    name = ["--stdin-filename", str(PAGE), "-"]
    sort = [*ruff, "check", "--quiet", "--select", "I,F401", "--fix", *name]
    for command in (sort, [*ruff, "format", "--quiet", *name]):
        text = subprocess.run(command, input=text, capture_output=True, text=True, check=True).stdout
    return text


if __name__ == "__main__":
    if len(sys.argv) > 1:
        sys.exit("make_sync: takes no arguments")
    PAGE.write_text(generated(), encoding="utf-8")
