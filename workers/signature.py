"""A check of signature strings before DSPy sees them.

DSPy resolves a type that it does not know by importing a module of that name (`q -> a: this` runs `this`), so a signature
that came over the wire is code until it was checked. The engine checks it too, but a worker trusts nothing it was sent.
"""

from __future__ import annotations

import ast
from datetime import date, datetime, time, timedelta
from typing import Any

from dspex.bus.errors import InvalidInput, ProgramError

_BUILTINS = "str int float bool list tuple dict set frozenset complex bytes None NoneType"
_TYPING = "Any Optional Union Literal List Dict Tuple Set FrozenSet Sequence Mapping Iterable Annotated Field"
_NAMES = frozenset(f"{_BUILTINS} {_TYPING}".split())
_DATES: dict[str, type] = {"date": date, "datetime": datetime, "time": time, "timedelta": timedelta}
_MODULES: dict[str, frozenset[str]] = {
    "typing": frozenset(_TYPING.split()) - {"Field"},
    "datetime": frozenset(_DATES),
    "dspy": frozenset({"Image", "Audio", "File", "History", "Tool", "ToolCalls", "Code", "Reasoning"}),
}
_PLAIN = (ast.Subscript, ast.BinOp, ast.BitOr, ast.Tuple, ast.List, ast.Constant, ast.Load, ast.UnaryOp, ast.USub)
_RESERVED = frozenset({"signature", "new_signature", "demos", "config", "lm", "_trace"})  # DSPy's own keyword arguments
_MARKER = "<<CUSTOM-TYPE-START-IDENTIFIER>>"


def check(text: str) -> dict[str, Any]:
    """Raise ProgramError unless `text` is a signature of known types; the extra names that DSPy must be given."""
    sides = text.split("->")
    if len(sides) != 2:
        raise _bad(text, 'it must hold "->" exactly once')
    names: dict[str, Any] = {}
    for side in sides:
        try:
            tree = ast.parse(f"def f({side}): pass").body
        except SyntaxError as error:
            raise _bad(text, error.msg) from error
        function = tree[0]
        if len(tree) != 1 or not isinstance(function, ast.FunctionDef) or len(function.body) != 1:
            raise _bad(text, "it holds more than fields")
        for field in function.args.args:
            if field.arg in _RESERVED:
                raise _bad(text, f"{field.arg!r} is a keyword argument of DSPy's own; rename the field")
            if field.annotation is not None:
                _check_type(field.annotation, text, names)
    return {**names, "NoneType": type(None)} if names else {}  # DSPy forgets NoneType once it is given names


def _check_type(node: ast.AST, text: str, names: dict[str, Any]) -> None:
    if isinstance(node, ast.Attribute):
        module = node.value.id if isinstance(node.value, ast.Name) else ""
        if node.attr not in _MODULES.get(module, ()):
            raise _bad(text, f"unknown type {ast.unparse(node)!r}")
        return
    if isinstance(node, ast.Name):
        if node.id in _DATES:
            names[node.id] = _DATES[node.id]
        elif node.id not in _NAMES:
            raise _bad(text, f"unknown type {node.id!r}")
        return
    if isinstance(node, ast.Call):
        if not isinstance(node.func, ast.Name) or node.func.id != "Field":
            raise _bad(text, f"{ast.unparse(node)!r} is not a type")
    elif not isinstance(node, (*_PLAIN, ast.keyword)):
        raise _bad(text, f"{ast.unparse(node)!r} is not a type")
    for child in ast.iter_child_nodes(node):
        _check_type(child, text, names)


def _bad(text: str, why: str) -> ProgramError:
    return ProgramError(
        f"signature {text!r}: {why}",
        fix="use names of builtins, typing and datetime, and Literal[...]; see the engine's own check: dspex check",
    )


def check_text(value: Any, name: str) -> None:
    """Raise InvalidInput if a text holds DSPy's marker, which DSPy expands into content of another kind (an image, a file)."""
    if isinstance(value, str):
        if _MARKER in value:
            raise InvalidInput(f"{name}: the text holds DSPy's marker {_MARKER}, which would become content of its own")
    elif isinstance(value, dict):
        for key, item in value.items():
            check_text(item, f"{name}.{key}")
    elif isinstance(value, (list, tuple)):
        for item in value:
            check_text(item, name)
