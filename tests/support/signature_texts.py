# ruff: noqa: RUF005  # the spellings are the point; lists are read best in long lines
"""Texts of signatures for generated tests, and an independent reading of them: Python's own parser and evaluator.

DSPy imports a module of any name that it does not know, so it is only ever given texts whose names are all in SAFE.
"""

from __future__ import annotations

import ast
import datetime
import decimal
import keyword
import typing
import unicodedata
import uuid
import warnings
from typing import Any

from hypothesis import strategies as st

from dspex.operators.native.fields.constraints import CONSTRAINTS, misfit, wrong_value
from dspex.operators.native.fields.field_names import SHADOWING
from dspex.operators.native.fields.type_names import NAMES

PLAIN = [
    "str",
    "int",
    "float",
    "bool",
    "bytes",
    "complex",
    "list",
    "dict",
    "tuple",
    "set",
    "frozenset",
    "Any",
    "Text",
    "NoneType",
]
DOTTED = ["datetime.date", "datetime.datetime", "datetime.time", "datetime.timedelta", "uuid.UUID", "decimal.Decimal"]
DOTTED += ["typing.Any", "typing.Text"]
OWN = ["dspy.Image", "dspy.Audio", "dspy.File", "dspy.History", "dspy.Tool", "dspy.ToolCalls", "dspy.Code", "dspy.Reasoning"]
ONE = [
    "list",
    "set",
    "frozenset",
    "List",
    "Set",
    "FrozenSet",
    "Sequence",
    "MutableSequence",
    "AbstractSet",
    "MutableSet",
    "Deque",
]
TWO = ["dict", "Dict", "Mapping", "MutableMapping", "OrderedDict"]
FORMS = ["Optional", "Union", "Literal", "Annotated"]
SAFE = {*PLAIN, *ONE, *TWO, *FORMS, "Tuple", "Counter", "typing", "datetime", "uuid", "decimal", "dspy", "Field"}
SAFE |= {
    "DefaultDict",
    "Iterable",
    "Iterator",
    "Callable",
    "Type",
    "Hashable",
    "bytearray",
    "ClassVar",
    "Final",
    "Sized",
    "Pattern",
}
MODULES = {"typing": typing, "datetime": datetime, "uuid": uuid, "decimal": decimal}

KEYS = st.sampled_from(["str", "int", "bool", "datetime.date", "Literal['a', 'b']"])
constants = st.one_of(
    st.sampled_from(["'x'", '"y"', "'a b'", "1", "0", "12", "1_000", "0x1F", "True", "False", "None", "'é'", "u'u'", "r'\\d'"]),
    st.sampled_from(
        ["'\\n'", "'\\x41'", "'\\d'", "'a' 'b'", '"""z"""', "'''l\nm'''", "'#'", "',]'", "'\\'\"'", "'\\N{BULLET}'", "R'\\n'"]
    ),
    st.text(alphabet="ab \"'\\[],:|é€\U0001f600\u0301\t", max_size=6).map(repr),
)
literals = st.lists(constants, min_size=1, max_size=4).map(lambda found: f"Literal[{', '.join(found)}]")


def _wider(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    several = st.lists(inner, min_size=1, max_size=3).map(", ".join)
    return st.one_of(
        st.builds("{}[{}]".format, st.sampled_from(ONE), inner),
        st.builds("{}[{}, {}]".format, st.sampled_from(TWO), KEYS, inner),
        st.builds("{}[{}]".format, st.sampled_from(["tuple", "Tuple", "Union", "typing.Union", "typing.Tuple"]), several),
        st.builds("{}[{}, ...]".format, st.sampled_from(["tuple", "Tuple"]), inner),
        st.builds("{}[{}]".format, st.sampled_from(["Optional", "typing.Optional", "typing.List", "Counter"]), inner),
        st.builds("{} | {}".format, inner, inner),
        st.builds("{} | None".format, inner),
        st.builds("({})".format, inner),
    )


base = st.one_of(st.sampled_from(PLAIN), st.sampled_from(DOTTED), st.sampled_from(OWN), literals, st.just("tuple[()]"))
types = st.recursive(base, _wider, max_leaves=4)
said = st.sampled_from(["ge=0", "gt=1.0", "lt=10", "le=1e3", "multiple_of=2", "default=5", "ge=-1"])
lengths = st.sampled_from(["min_length=1", "max_length=5", "default='x'", "pattern='a+'", "max_length=0x10"])
annotated = st.one_of(
    st.builds("Annotated[{}, Field({})]".format, st.sampled_from(["int", "float", "int | None", "Optional[float]"]), said),
    st.builds("Annotated[{}, Field({})]".format, st.sampled_from(["str", "str | None", "Text"]), lengths),
    st.builds("Annotated[{}, Field({}, {})]".format, st.just("int"), st.just("ge=0"), st.just("le=9")),
    st.just("Annotated[list[int], Field(min_length=1), Field(max_length=3)]"),
)
names = st.one_of(
    st.sampled_from(
        [
            "question",
            "answer",
            "a",
            "b",
            "HTMLParser",
            "text2number",
            "camelCase",
            "x_1",
            "Ünï",
            "问题",
            "हिन्दी",
            "ﬁne",
            "match",
        ]
    ),
    st.from_regex(r"[a-z][a-zA-Z0-9_]{0,8}", fullmatch=True).filter(lambda n: usable(n)),
)
spaces = st.sampled_from(["", "", " ", "  ", "\n", "\t", " # a comment\n", "\\\n", "\f", "\r\n"])


def usable(name: str) -> bool:
    """Whether a name may be a field's."""
    name = unicodedata.normalize("NFKC", name)
    refused = name in SHADOWING or name.startswith(("_", "model_")) or keyword.iskeyword(name)
    return name.isidentifier() and not refused


@st.composite
def fields(draw: st.DrawFn, names: list[str]) -> str:
    made = []
    for name in names:
        annotation = draw(st.one_of(st.none(), types, types, annotated))
        colon = f"{draw(spaces)}:{draw(spaces)}"
        made.append(name if annotation is None else f"{name}{colon}{annotation}")
    end = draw(st.sampled_from(["", "", ","])) if made else ""
    return f"{draw(spaces)},{draw(spaces)}".join(made) + end + draw(spaces)


@st.composite
def signatures(draw: st.DrawFn) -> str:
    """A text that dspex and DSPy both take."""
    found = draw(st.lists(names, min_size=1, max_size=4, unique_by=lambda n: unicodedata.normalize("NFKC", n)))
    cut = draw(st.integers(0, len(found) - 1))
    return f"{draw(spaces)}{draw(fields(found[:cut]))}->{draw(spaces)}{draw(fields(found[cut:]))}"


ODD = list("()[]{},:|=*/-+.#'\"\\ \n\t\r\f\x0b\x00_aI10é·\u0301ª½\u2028\xa0;@~^&%!?<>`$\u200b\ufeff٣") + [
    "->",
    "None",
    "...",
    "\ud800",
]


@st.composite
def mutated(draw: st.DrawFn) -> str:
    """A text that both take, with some characters removed, inserted, replaced or repeated."""
    text = draw(signatures())
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, max(len(text) - 1, 0)))
        how = draw(st.sampled_from(["delete", "insert", "insert", "replace", "copy"]))
        new = draw(st.sampled_from(ODD)) if how in ("insert", "replace") else ""
        if how == "copy":
            end = draw(st.integers(at, min(at + 8, len(text))))
            text = text[:at] + text[at:end] * 2 + text[end:]
        else:
            text = text[:at] + new + text[at + (how != "insert") :]
    return text


# -- the independent reading ----------------------------------------------------------------------------------------
class Refused(Exception):
    """A text that is no signature, with a short reason."""


def parsed(text: str) -> ast.Module:
    """The syntax tree, without Python's warnings about unknown escapes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ast.parse(text)


def arguments(side: str) -> ast.arguments:
    """One side read as a parameter list, as DSPy reads it. Raises Refused for anything more than that."""
    try:
        tree, closed = parsed(f"def f({side}): pass"), parsed(f"def f({side}\n) -> end: pass")
    except (SyntaxError, ValueError, MemoryError, RecursionError) as e:
        raise Refused("not Python") from e
    function, again = tree.body[0], closed.body[0]
    if len(tree.body) != 1 or len(closed.body) != 1 or not isinstance(again, ast.FunctionDef) or again.returns is None:
        raise Refused("more than fields")
    assert isinstance(function, ast.FunctionDef)
    if ast.dump(function.args) != ast.dump(again.args):
        raise Refused("more than fields")
    return function.args


def used_names(text: str) -> set[str]:
    """All names in the types of a text that DSPy can read; {"?"} for a text that it cannot."""
    if text.count("->") != 1:
        return {"?"}
    found: set[str] = set()
    for side in text.split("->"):
        try:
            tree = parsed(f"def f({side}): pass")
        except (SyntaxError, ValueError, MemoryError, RecursionError):
            return {"?"}
        found |= {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}
    return found


def read(text: str) -> list[tuple[str, Any]]:
    """(name, type) of each field, by Python's own rules. Raises Refused."""
    if text.count("->") != 1:
        raise Refused("arrow")
    made: list[tuple[str, Any]] = []
    for side in text.split("->"):
        a = arguments(side)
        if a.posonlyargs or a.kwonlyargs or a.vararg or a.kwarg or a.defaults:
            raise Refused("dropped")
        if any(not usable(arg.arg) for arg in a.args):
            raise Refused("name")
        made += [(arg.arg, str if arg.annotation is None else _field(arg.annotation)) for arg in a.args]
        outputs = bool(a.args)
    if not outputs:
        raise Refused("no output")
    if len({n for n, _ in made}) < len(made):
        raise Refused("twice")
    return made


def _field(node: ast.expr) -> Any:
    annotation, said = _annotated(node)
    if annotation is None:
        raise Refused("None as a type")
    if annotation in [NAMES[n] for n in (*ONE, *TWO, "Tuple", "Counter") if not isinstance(NAMES[n], type)]:
        raise Refused("bare")
    constraints = {k: v for k, v in said.items() if k in CONSTRAINTS}
    if misfit(annotation, constraints):
        raise Refused("constraint")
    return annotation


def _annotated(node: ast.expr) -> tuple[Any, dict[str, Any]]:
    if not (isinstance(node, ast.Subscript) and _name(node.value) in ("Annotated", "typing.Annotated")):
        return _type(node), {}
    parts = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
    annotation, said = _annotated(parts[0])
    if len(parts) < 2:
        raise Refused("Annotated")
    for part in parts[1:]:
        if not isinstance(part, ast.Call) or _name(part.func) != "Field" or part.args:
            raise Refused("Annotated")
        for k in part.keywords:
            value = _constant(k.value)
            if k.arg not in (*CONSTRAINTS, "description", "default") or k.arg in said or value is ...:
                raise Refused("Annotated")
            if (k.arg in CONSTRAINTS and wrong_value(k.arg, value)) or (k.arg == "description" and not isinstance(value, str)):
                raise Refused("Annotated")
            said[k.arg] = value
    return annotation, said


def _constant(node: ast.expr) -> Any:
    """The constant; `...` for a value that a signature may not have."""
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) and isinstance(node.operand, ast.Constant):
        value = node.operand.value
        return -value if isinstance(value, (int, float)) and not isinstance(value, bool) else ...
    if isinstance(node, ast.Constant) and isinstance(node.value, (str, int, float, type(None))):
        return ... if isinstance(node.value, float) and node.value - node.value else node.value
    return ...


def _name(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        outer = _name(node.value)
        return f"{outer}.{node.attr}" if outer else ""
    return node.id if isinstance(node, ast.Name) else ""


def _type(node: ast.expr) -> Any:
    if isinstance(node, ast.Constant) and node.value is None:
        return None
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return typing.Union[_type(node.left), _type(node.right)]  # noqa: UP007
    if isinstance(node, ast.Subscript):
        return _subscript(node)
    found = NAMES.get(_name(node)) or {"uuid.UUID": uuid.UUID, "decimal.Decimal": decimal.Decimal}.get(_name(node))
    if found is None or _name(node).rpartition(".")[2] in FORMS:
        raise Refused("name of a type")
    return found


def _subscript(node: ast.Subscript) -> Any:
    name = _name(node.value)
    short = name.removeprefix("typing.")
    parts = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
    if name not in (short, f"typing.{short}") or name not in NAMES:
        raise Refused("subscript")
    if short == "Literal":
        return typing.Literal[tuple(v for p in parts for v in _literal(p))] if parts else _refuse("Literal")
    if short in ("tuple", "Tuple") and not parts:
        return NAMES[name][()]
    if short in ("tuple", "Tuple") and len(parts) == 2 and isinstance(parts[1], ast.Constant) and parts[1].value is ...:
        return NAMES[name][_type(parts[0]), ...]
    wanted = {1: (*ONE, "Counter", "Optional"), 2: TWO}
    arity = next((n for n, known in wanted.items() if short in known), None)
    if (
        short not in (*ONE, *TWO, "Counter", "Optional", "Union", "tuple", "Tuple")
        or not parts
        or len(parts) != (arity or len(parts))
    ):
        raise Refused("parameters")
    inner = tuple(_type(p) for p in parts)
    return NAMES[name][inner[0] if len(inner) == 1 else inner]


def _literal(node: ast.expr) -> tuple[Any, ...]:
    if isinstance(node, ast.Subscript) and _name(node.value) in ("Literal", "typing.Literal"):
        return typing.get_args(_type(node))
    value = _constant(node)
    return (value,) if value is not ... and not isinstance(value, float) else _refuse("Literal")


def _refuse(why: str) -> Any:
    raise Refused(why)
