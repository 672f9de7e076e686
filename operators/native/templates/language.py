"""What of Jinja a template may use, and by how much it can make its data grow: found out before it is compiled.

minijinja bounds the number of steps and nothing else: `x ~ x`, assigned to `x` forty times, is forty steps and a
terabyte. A method that a template calls is Python's own, so `{{ items.append(1) }}` would change the user's data. So the
tokens of each tag are held against a list of what is allowed, and what makes text longer is counted. That needs no
parser.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dspex.bus.errors import TopologyError
from dspex.operators.native.suggestions import did_you_mean, problem
from dspex.operators.native.templates.growth import LIST_FILTERS, LONGER, growth_of, json_indent, multipliers, ranges
from dspex.operators.native.templates.tokens import WORDS, Tag, Token, call_arguments, is_value, refused, split

MAX_LENGTH = 64 * 1024
MAX_VALUE = 64 * 2**20  # characters that one value may come to

SPLIT = "write the parts one after the other, {{ a }}{{ b }}: fewer ~ and +, fewer lists, smaller numbers"

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

# names that dicts and lists of Python have anyway: without such a field the template would see the method
METHODS = frozenset(n for kind in (dict, list) for n in dir(kind) if not n.startswith("_"))
CALLED = ("items", "keys", "values")

_ARGUMENTS = (",", "=", "true", "false", "True", "False")
_LONGEST = {"string": 102, "number": 4}  # of literals that say how much longer a text becomes
_CONSTANTS = frozenset(("true", "false", "none", "True", "False", "None"))


@dataclass(frozen=True)
class Facts:
    """What is known of a template before it sees data.

    Attributes:
        growth: how many times as large as all that goes in one value can be.
        size: characters of what the template itself brings.
        items: of lists that it brings.
        searches: whether it looks for something in a list.
        text: characters of its longest piece of plain text.
        careful: whether it may ask a dict or a list for something that is a method in Python.
        indents: spaces a level that it asks of `tojson`.
        names: what it may read of the data. minijinja tells that too, and overlooks what stands in front of a slice.
        required: those of `names` that have to be there: it neither asks whether they are, nor has a default, nor binds them.
    """

    growth: int
    size: int
    items: int
    searches: bool
    text: int
    careful: bool
    indents: int
    names: frozenset[str]
    required: frozenset[str]


def examine(template: str) -> Facts:
    """Read a template. Raises TopologyError (DX225) for what is not allowed in one."""
    if not isinstance(template, str):  # pyright: ignore[reportUnnecessaryIsInstance]  # YAML may give anything
        raise problem("DX225", f"a template is text, and this is {template!r}", 'write "Dear {{ name }}"')
    if len(template) > MAX_LENGTH:
        raise problem("DX225", f"the template is longer than {MAX_LENGTH} characters", "split it in two operators")
    pieces = list(split(template))
    tags = [p for p in pieces if isinstance(p, Tag)]
    for tag in tags:
        _Check(tag).run()
    words = [tag.at(0).text for tag in tags if tag.start == "{%"]
    growth = growth_of(tags) * (1 + words.count("set"))
    items = sum(map(ranges, tags))
    size = 512 + sum(len(t.text) for tag in tags for t in tag.tokens) + 8 * items
    if growth * size > MAX_VALUE:  # now: minijinja computes what is constant when it compiles
        raise problem("DX225", "the template puts texts together in too many steps: they could grow without bound", SPLIT)
    return Facts(
        growth=growth,
        size=size,
        items=items,
        searches=any(t.text == "in" for tag in tags for t in (tag.tokens[4:] if tag.at(0).text == "for" else tag.tokens)),
        text=max((len(p) for p in pieces if isinstance(p, str)), default=0),
        careful=any(_careful(tag) for tag in tags),
        indents=max((json_indent(tag) for tag in tags), default=0),
        names=frozenset(_names(tags, _is_field)),
        required=frozenset(_names(tags, _is_field) - _names(tags, _is_guarded) - _names(tags, _is_bound)),
    )


class _Check:
    """Holds the tokens of one tag against the list of what is allowed."""

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
        # not `in`: it would look through a list for each item of another, in one step
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


def _names(tags: Sequence[Tag], test: Callable[[Tag, int], bool]) -> set[str]:
    return {t.text for tag in tags for i, t in enumerate(tag.tokens) if t.kind == "name" and test(tag, i)}


def _is_field(tag: Tag, i: int) -> bool:
    """Whether the name at `i` can be that of a field of the data."""
    name, before = tag.at(i).text, tag.at(i - 1).text
    statement = tag.start == "{%" and i == 0
    known = name in WORDS or name in _CONSTANTS or name == "loop" or (name in FUNCTIONS and tag.at(i + 1).text == "(")
    return not (statement or known or before in (".", "|", "is") or (before == "not" and tag.at(i - 2).text == "is"))


def _is_guarded(tag: Tag, i: int) -> bool:
    behind = [t.text for t in tag.tokens[i + 1 : i + 4]]
    asked = behind[:1] == ["is"] and {"defined", "undefined"}.intersection(behind)
    return tag.at(i - 1).text != "." and bool(asked or (behind[:1] == ["|"] and behind[1:2] in (["default"], ["d"])))


def _is_bound(tag: Tag, i: int) -> bool:
    """Whether the name at `i` is one that a loop or a `set` gives a value, or the keyword of an argument."""
    word = tag.at(0).text if tag.start == "{%" else ""
    end = next((n for n, t in enumerate(tag.tokens) if t.text == ("in" if word == "for" else "=")), 0)
    return (word in ("for", "set") and i < end) or (tag.at(i + 1).text == "=" and word != "set")


def _careful(tag: Tag) -> bool:
    for i, token in enumerate(tag.tokens):
        before, after = tag.at(i - 1), tag.at(i + 1)
        if token.text in METHODS and before.text == "." and after.text != "(" and tag.at(i - 2).text != "loop":
            return True
        if token.kind == "string" and (
            METHODS.intersection(token.text[1:-1].split(".")) or re.search(r"\\[^nrt\\'\"]", token.text)
        ):
            return True
        if token == Token("op", "[") and is_value(before) and not _fixed(tag, i):
            return True
    return False


def _fixed(tag: Tag, i: int) -> bool:
    """Whether the subscript at `i` is one literal, or a slice of numbers."""
    inside: list[Token] = []
    for token in tag.tokens[i + 1 :]:
        if token.text == "]":
            break
        inside.append(token)
    return (len(inside) == 1 and inside[0].kind in ("string", "number")) or all(
        t.kind == "number" or t.text in ("-", ":") for t in inside
    )
