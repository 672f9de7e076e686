"""The parts of Jinja that a template may use. The tokens of each tag are compared with lists of what is allowed."""

from __future__ import annotations

from collections.abc import Sequence

from dspex.bus.errors import TopologyError
from dspex.operators.native.problems import did_you_mean
from dspex.operators.native.templates.growth import LIST_FILTERS, LONGER, multipliers
from dspex.operators.native.templates.tokens import WORDS, Tag, Token, call_arguments, refused

STATEMENTS = ("if", "elif", "else", "endif", "for", "endfor", "set", "raw", "endraw")
FUNCTIONS = ("range",)
TESTS = (
    "defined", "undefined", "none", "true", "false", "boolean", "string", "number", "integer", "float", "mapping", "sequence",
    "iterable", "odd", "even", "divisibleby", "eq", "ne", "lt", "le", "gt", "ge", "in",
)  # fmt: skip
_PLAIN_FILTERS = (
    "abs", "capitalize", "count", "d", "default", "first", "float", "int", "last", "length", "lower", "max", "min", "round",
    "sum", "title", "trim", "upper",
)  # fmt: skip
FILTERS = sorted([*_PLAIN_FILTERS, *LIST_FILTERS, *LONGER, "indent", "join", "replace"])

# Names that Python's dicts and lists have: where the data has no field of this name, the template would get the method.
METHODS = frozenset(n for kind in (dict, list) for n in dir(kind) if not n.startswith("_"))
CALLED = ("items", "keys", "values")

_ARGUMENTS = (",", "=", "true", "false", "True", "False")
_LONGEST = {"string": 102, "number": 4}  # characters of a literal that tells how much longer a text becomes


def check(tag: Tag) -> None:
    """Raise TopologyError (DX225) for a tag that uses what is not allowed."""
    _Check(tag).run()


class _Check:
    """Compares the tokens of one tag with what is allowed."""

    def __init__(self, tag: Tag) -> None:
        self.tag = tag

    def refuse(self, what: str, fix: str) -> TopologyError:
        return refused(self.tag.line, what, fix)

    def run(self) -> None:
        if self.tag.start == "{%":
            self.statement()
        for i, token in enumerate(self.tag.tokens):
            if token.kind == "name":
                self.name(i, token.text)
            elif token.text == "(" and (
                self.tag.at(i - 1).kind in ("string", "number") or self.tag.at(i - 1).text in (")", "]", "}")
            ):
                raise self.refuse(
                    "the result of an expression is called", "functions: range; filters do the rest: {{ x|upper }}"
                )
            elif token.text == "*" and not multipliers(self.tag, i):
                what = "two fields are multiplied, and a text times a number has no bound"
                raise self.refuse(what, 'compute it before: .set({"total": "price * count"}); a number is fine: {{ x * 100 }}')

    def statement(self) -> None:
        word, tokens = self.tag.at(0).text, self.tag.tokens
        if word not in STATEMENTS:
            raise self.refuse(f"there is {{% {word} %}}, which is not allowed here", did_you_mean(word, STATEMENTS))
        if word == "set" and Token("op", "=") not in tokens:
            raise self.refuse("{% set %} takes a whole block", "{% set name = value %}")
        if word == "for" and Token("name", "recursive") in tokens:
            raise self.refuse("a loop calls itself (recursive)", "write one loop inside the other")

    def name(self, i: int, name: str) -> None:
        before, after = self.tag.at(i - 1).text, self.tag.at(i + 1).text
        if name.startswith("_"):
            raise self.refuse(f"there is {name!r}; names with a leading _ are not allowed", "use another field")
        if before == "|":
            self.filter(i, name)
        elif before == "is" or (before == "not" and self.tag.at(i - 2).text == "is"):
            if name != "not" and name not in TESTS:
                raise self.refuse(f"there is no test {name!r}", did_you_mean(name, TESTS))
        elif before == "." and after == "(":
            self.method(i, name)
        elif before != "." and after == "(" and name not in WORDS and name not in FUNCTIONS:
            raise self.refuse(f"there is no function {name!r}", _call_fix(name, FUNCTIONS))

    def method(self, i: int, name: str) -> None:
        cycle = name == "cycle" and self.tag.at(i - 2) == Token("name", "loop") and self.tag.at(i - 3).text != "."
        if not cycle and (name not in CALLED or self.tag.at(i + 2).text != ")"):
            raise self.refuse(f"the method .{name}() is called", _call_fix(name, [f"{c}()" for c in CALLED]))

    def filter(self, i: int, name: str) -> None:
        if name not in FILTERS:
            raise self.refuse(f"there is no filter {name!r}", did_you_mean(name, FILTERS))
        arguments = call_arguments(self.tag, i)
        if name in ("map", "select", "reject", "selectattr", "rejectattr"):
            self.by_name(name, arguments)
        elif name in ("join", "replace", "indent", "batch", "slice", "tojson") and not _literal(name, arguments):
            raise self.refuse(f"{name} takes literals here, not fields, and texts of at most 100 characters", _LITERALS[name])

    def by_name(self, name: str, arguments: Sequence[Token]) -> None:
        """Filters that take the name of a filter or a test: only as a literal, and only one that is allowed itself."""
        texts = [t.text[1:-1] if t.kind == "string" else None for t in arguments if t.text != ","]
        if name == "map" and arguments[:2] == [Token("name", "attribute"), Token("op", "=")]:
            return
        # Not `in`: it would search a list for each item of another list, in a single step.
        plain = [*_PLAIN_FILTERS, "list", "items", "string"] if name == "map" else [t for t in TESTS if t != "in"]
        at = 1 if name.endswith("attr") else 0
        if name.endswith("attr") and (not texts or texts[0] is None):
            raise self.refuse(f"{name} takes the name of a field first, in quotes", f'{name}("price", "gt", 5)')
        named = texts[at] if len(texts) > at else None
        if len(texts) > at and named not in plain:
            raise self.refuse(
                f"{name} uses {arguments[-1].text if named is None else repr(named)}", did_you_mean(named or "", plain)
            )
        if name == "map" and not texts:
            raise self.refuse("map maps to nothing", 'map(attribute="name"), or map("upper")')


def _call_fix(name: str, known: Sequence[str]) -> str:
    return f"use the filter: {{{{ x|{name} }}}}" if name in FILTERS else f"one of: {', '.join(known)}"


_LITERALS = {
    "join": '{{ x|join(", ") }}', "replace": '{{ x|replace("a", "b") }}', "indent": "{{ x|indent(4) }}",
    "batch": "{{ x|batch(3) }}", "slice": "{{ x|slice(3) }}", "tojson": "{{ x|tojson }}, or {{ x|tojson(indent=2) }}",
}  # fmt: skip


def _literal(name: str, arguments: Sequence[Token]) -> bool:
    """Whether all arguments are short literals, or keywords with such a literal."""
    if name in ("replace", "batch", "slice") and not arguments:
        return False
    return all(
        t.text in _ARGUMENTS or _is_keyword(arguments, i) or len(t.text) <= _LONGEST.get(t.kind, 0)
        for i, t in enumerate(arguments)
    )


def _is_keyword(arguments: Sequence[Token], i: int) -> bool:
    return arguments[i].kind == "name" and arguments[i + 1 : i + 2] == [Token("op", "=")]
