"""Expressions: a small subset of Python over the fields of the data, compiled once to a Python function.

    urgency >= 4 and intent in ["lost_card", "fraud"]
    coalesce(customer.name, "friend")
    event.session

Fields by name, `.x`, `[i]`, literals, arithmetic without `**`, comparisons, `and or not in`, `a if c else b`, and the functions
of FUNCTIONS. `it` is the whole datum; `event.id|key|session|subject|time|headers` the event. A missing field is an
ExpressionError unless it stands inside `has(...)` or `coalesce(...)`; both take a null for missing.

What is not on the list of allowed nodes does not compile: a list of forbidden ones would miss what the next Python brings.
Nothing grows without bound: text and depth are limited, `*` and `%` take numbers only (`"a" * 10**9`), and
`matches` runs on a regular-expression engine of linear time (Rust's, as the JSON Schema library brings it) with a
literal pattern; Python's `re` can take hours on 30 characters.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from functools import lru_cache
from math import isinf
from typing import Any

from dspex.bus.errors import TopologyError
from dspex.operators.expressions import runtime as runtime
from dspex.operators.native.problems import nearest, problem

MAX_LENGTH = 1000
MAX_DEPTH = 40
EVENT_FIELDS = ("id", "key", "session", "subject", "time", "headers")
FUNCTIONS: Mapping[str, tuple[int, int]] = {  # name: fewest and most arguments
    "len": (1, 1), "str": (1, 1), "int": (1, 1), "float": (1, 1), "bool": (1, 1), "round": (1, 2), "abs": (1, 1),
    "min": (1, 9), "max": (1, 9), "lower": (1, 1), "upper": (1, 1), "strip": (1, 1), "startswith": (2, 2),
    "endswith": (2, 2), "contains": (2, 2), "matches": (2, 2), "coalesce": (1, 9), "has": (1, 1),
}  # fmt: skip
_OPERATORS: Mapping[type[ast.AST], str] = {
    ast.Add: "+", ast.Sub: "-", ast.Div: "/", ast.FloorDiv: "//", ast.Eq: "==", ast.NotEq: "!=", ast.Lt: "<",
    ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=", ast.In: "in", ast.NotIn: "not in", ast.Is: "is", ast.IsNot: "is not",
    ast.USub: "-", ast.UAdd: "+", ast.Not: "not ", ast.And: " and ", ast.Or: " or ",
}  # fmt: skip


class Expression:
    """A compiled expression.

    Attributes:
        text: as written.
        fields: root fields that must be there; those inside `has` and `coalesce` are not among them.
        uses_event: whether it reads `event`, and so needs a context.
        function: (data, ctx=None) → value; the fastest way to call it. Raises ExpressionError.
    """

    __slots__ = ("fields", "function", "text", "uses_event")

    def __init__(self, text: str, fields: tuple[str, ...], uses_event: bool, function: Callable[..., Any]) -> None:
        self.text, self.fields, self.uses_event, self.function = text, fields, uses_event, function

    def __call__(self, data: Any, ctx: Any = None) -> Any:
        """The value for this data. Raises ExpressionError."""
        return self.function(data, ctx)

    def __repr__(self) -> str:
        return f"Expression({self.text!r})"


def compile(text: str) -> Expression:
    """Compile an expression. Raises TopologyError (DX208) with the column of what is wrong."""
    if not isinstance(text, str):  # pyright: ignore[reportUnnecessaryIsInstance]  # users of YAML have no type checker
        raise problem("DX208", f"an expression is text, and this is {text!r}", 'write it in quotes: "urgency >= 4"')
    return _compile(text.strip())


@lru_cache(maxsize=1024)
def _compile(text: str) -> Expression:
    if len(text) > MAX_LENGTH:
        raise _error(text, 0, f"is longer than {MAX_LENGTH} characters", "move it to a function: .map(fn)")
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as e:
        column = getattr(e, "offset", None) or 1
        raise _error(text, column - 1, f"cannot be read ({getattr(e, 'msg', e)})", "correct the syntax") from e
    writer = _Writer(text)
    return writer.finish(writer.write(tree.body, 0))


def _error(text: str, column: int, what: str, fix: str) -> TopologyError:
    shown = text if len(text) <= 80 else text[:77] + "..."
    return problem("DX208", f'the expression "{shown}" {what}, at column {column + 1}', fix)


class _Writer:
    """Writes the Python source of one expression: constants by `repr`, names only as strings or from our own list."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.required: dict[str, None] = {}
        self.reads_fields = False
        self.uses_event = False
        self.optional = 0  # inside how many `has`/`coalesce`
        self.constants: dict[str, Any] = {}

    def finish(self, body: str) -> Expression:
        convert = "    it = _it if _it.__class__ is dict else _record(_it)\n" if self.reads_fields else ""
        source = (
            "def _expression(_it, _ctx=None):\n"
            "  try:\n"
            f"{convert}    return {body}\n"
            "  except _ERRORS as e:\n"
            "    raise _explain(_text, _it, e) from e\n"
        )
        space: dict[str, Any] = {"__builtins__": {}, **runtime.NAMES, "_text": self.text, **self.constants}
        # the source holds nothing of the user's but literals that were written by repr()
        exec(source, space)
        return Expression(self.text, tuple(self.required), self.uses_event, space["_expression"])

    def fail(self, node: ast.AST, what: str, fix: str) -> TopologyError:
        return _error(self.text, getattr(node, "col_offset", 0), what, fix)

    def write(self, node: ast.AST, depth: int) -> str:
        if depth > MAX_DEPTH:
            raise self.fail(node, f"is nested deeper than {MAX_DEPTH}", "move it to a function: .map(fn)")
        method: Callable[[Any, int], str] | None = getattr(self, f"_write_{type(node).__name__}", None)
        if method is None:
            raise self.fail(
                node,
                f"uses {_word(node)}, which is not part of the language",
                "fields, literals, arithmetic, comparisons, and/or/not/in, a if c else b, and functions; "
                "for more write a function: .map(fn)",
            )
        return method(node, depth + 1)

    def _write_Constant(self, node: ast.Constant, depth: int) -> str:
        if isinstance(node.value, float) and isinf(node.value):
            return "_inf"  # 1e999: its repr is a name
        if node.value is None or isinstance(node.value, (bool, int, float, str)):
            return f"({node.value!r})"
        raise self.fail(node, f"holds {type(node.value).__name__} data", "numbers, text, true/false and None only")

    def _write_Name(self, node: ast.Name, depth: int) -> str:
        if node.id == "it":
            return "_it"
        if node.id == "event":
            raise self.fail(node, "uses the whole event", f"read one of: {', '.join('event.' + f for f in EVENT_FIELDS)}")
        if node.id.startswith("_"):
            raise self.fail(node, f"uses {node.id!r}; names with a leading _ are not allowed", "use another field")
        self._need(node.id)
        self.reads_fields = True
        return f"it[{node.id!r}]"

    def _need(self, field: str) -> None:
        if not self.optional:
            self.required[field] = None

    def _write_Attribute(self, node: ast.Attribute, depth: int) -> str:
        if node.attr.startswith("_"):
            raise self.fail(node, f"uses {node.attr!r}; names with a leading _ are not allowed", "use another field")
        if isinstance(node.value, ast.Name) and node.value.id == "event":
            return self._event(node)
        if isinstance(node.value, ast.Name) and node.value.id == "it":
            self._need(node.attr)
        return f"_field({self.write(node.value, depth)}, {node.attr!r})"

    def _event(self, node: ast.Attribute) -> str:
        if node.attr not in EVENT_FIELDS:
            near = nearest(node.attr, EVENT_FIELDS)
            fix = f"did you mean event.{near}?" if near else f"one of: {', '.join('event.' + f for f in EVENT_FIELDS)}"
            raise self.fail(node, f"uses event.{node.attr}, which there is not", fix)
        self.uses_event = True
        return f"_event(_ctx).{node.attr}"

    def _write_Subscript(self, node: ast.Subscript, depth: int) -> str:
        if isinstance(node.slice, ast.Slice):
            raise self.fail(node, "uses a slice", "one item only: x[0]; for more write a function: .map(fn)")
        return f"_item({self.write(node.value, depth)}, {self.write(node.slice, depth)})"

    def _write_Call(self, node: ast.Call, depth: int) -> str:
        name = self._function(node)
        if name in ("has", "coalesce"):
            return self._lazy(node, name, depth)
        if name == "matches":
            return self._matches(node, depth)
        return f"_{name}({', '.join(self.write(a, depth) for a in node.args)})"

    def _function(self, node: ast.Call) -> str:
        if not isinstance(node.func, ast.Name):
            raise self.fail(node, "calls something that is not a function of the language", _method_fix(node.func))
        name = node.func.id
        if name not in FUNCTIONS:
            near = nearest(name, FUNCTIONS)
            fix = f"did you mean {near}?" if near else f"functions: {' '.join(FUNCTIONS)}"
            raise self.fail(node, f"calls {name!r}, which there is not", fix)
        fewest, most = FUNCTIONS[name]
        if node.keywords or not fewest <= len(node.args) <= most:
            count = str(fewest) if fewest == most else f"{fewest} to {most}"
            raise self.fail(node, f"gives {name} the wrong arguments", f"{name} takes {count}, without names")
        return name

    def _lazy(self, node: ast.Call, name: str, depth: int) -> str:
        self.optional += 1
        parts = [f"lambda: {self.write(a, depth)}" for a in node.args]
        self.optional -= 1
        return f"_{name}({', '.join(parts)})"

    def _matches(self, node: ast.Call, depth: int) -> str:
        pattern = node.args[1]
        if not isinstance(pattern, ast.Constant) or not isinstance(pattern.value, str):
            raise self.fail(pattern, "gives matches a pattern that is not literal text", 'matches(text, "^[a-z]+$")')
        try:
            search = runtime.searcher(pattern.value)
        except ValueError:
            raise self.fail(
                pattern, f"has a bad pattern {pattern.value!r}", "a regular expression without look-around and back-references"
            ) from None
        key = f"_pattern{len(self.constants)}"
        self.constants[key] = search
        return f"_matches({self.write(node.args[0], depth)}, {key})"

    def _write_BinOp(self, node: ast.BinOp, depth: int) -> str:
        left, right = self.write(node.left, depth), self.write(node.right, depth)
        if isinstance(node.op, ast.Mult):
            return f"_times({left}, {right})"
        if isinstance(node.op, ast.Mod):
            return f"_modulo({left}, {right})"
        return f"({left} {self._operator(node, node.op)} {right})"

    def _operator(self, node: ast.AST, op: ast.AST) -> str:
        if type(op) not in _OPERATORS:
            raise self.fail(node, f"uses {_word(op)}, which is not part of the language", "operators: + - * / // %")
        return _OPERATORS[type(op)]

    def _write_UnaryOp(self, node: ast.UnaryOp, depth: int) -> str:
        return f"({self._operator(node, node.op)}{self.write(node.operand, depth)})"

    def _write_BoolOp(self, node: ast.BoolOp, depth: int) -> str:
        return f"({self._operator(node, node.op).join(self.write(v, depth) for v in node.values)})"

    def _write_Compare(self, node: ast.Compare, depth: int) -> str:
        parts = [self.write(node.left, depth)]
        for op, right in zip(node.ops, node.comparators):
            if isinstance(op, (ast.Is, ast.IsNot)) and not (isinstance(right, ast.Constant) and right.value is None):
                raise self.fail(right, "uses `is` with something else than None", "write == or !=")
            parts += [self._operator(node, op), self.write(right, depth)]
        return f"({' '.join(parts)})"

    def _write_IfExp(self, node: ast.IfExp, depth: int) -> str:
        body, test, other = (self.write(n, depth) for n in (node.body, node.test, node.orelse))
        return f"({body} if {test} else {other})"

    def _write_List(self, node: ast.List, depth: int) -> str:
        return f"[{', '.join(self.write(e, depth) for e in node.elts)}]"

    def _write_Tuple(self, node: ast.Tuple, depth: int) -> str:
        return f"({''.join(self.write(e, depth) + ', ' for e in node.elts)})"

    def _write_Dict(self, node: ast.Dict, depth: int) -> str:
        if any(k is None for k in node.keys):
            raise self.fail(node, "uses ** in a mapping", "name the fields")
        pairs = [f"{self.write(k, depth)}: {self.write(v, depth)}" for k, v in zip(node.keys, node.values) if k is not None]
        return f"{{{', '.join(pairs)}}}"


def _word(node: ast.AST) -> str:
    words = {"Pow": "**", "ListComp": "a comprehension", "GeneratorExp": "a comprehension", "JoinedStr": "an f-string",
             "SetComp": "a comprehension", "DictComp": "a comprehension", "NamedExpr": ":="}  # fmt: skip
    return words.get(type(node).__name__, type(node).__name__.lower())


def _method_fix(func: ast.AST) -> str:
    if isinstance(func, ast.Attribute) and func.attr in FUNCTIONS:
        return f"write {func.attr}(x) for x.{func.attr}()"
    return f"functions: {' '.join(FUNCTIONS)}"
