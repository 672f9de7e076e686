"""What of Jinja a template may use, and by how much it can make its data grow: found out before it is compiled.

minijinja bounds the number of steps and nothing else: `x ~ x`, assigned to `x` forty times, is forty steps and a
terabyte. A method that a template calls is Python's own, so `{{ items.append(1) }}` would change the user's data. So the
tokens of each tag are held against a list of what is allowed, and what makes text longer is counted. That needs no
parser: a template that is read in another way here than by minijinja is refused by one of the two.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

from dspex.bus.errors import TopologyError
from dspex.operators.native.words import did_you_mean, problem

MAX_LENGTH = 64 * 1024
MAX_TOKENS = 500  # of one tag: minijinja reads `- - - - x` by recursion, and one of 60,000 ends the process
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
_LIST_FILTERS = (
    "batch", "dictsort", "groupby", "items", "list", "map", "reject", "rejectattr", "reverse", "select", "selectattr", "slice",
    "sort", "unique",
)  # fmt: skip
_LONGER: Mapping[str, int] = {"e": 6, "escape": 6, "string": 6, "tojson": 6, "urlencode": 3}
FILTERS = sorted([*_PLAIN_FILTERS, *_LIST_FILTERS, *_LONGER, "indent", "join", "replace"])

# names that dicts and lists of Python have anyway: without such a field the template would see the method
METHODS = frozenset(n for kind in (dict, list) for n in dir(kind) if not n.startswith("_"))
CALLED = ("items", "keys", "values")

_START = re.compile(r"(\{\{|\{%|\{#)[-+]?")
_RAW, _ENDRAW = (re.compile(r"\{%[-+]?\s*" + word + r"\s*[-+]?%\}") for word in ("raw", "endraw"))
_END = {"{{": re.compile(r"[-+]?\}\}"), "{%": re.compile(r"[-+]?%\}")}
_TOKEN = re.compile(
    r"""\s+ | (?P<name>[^\W\d]\w*) | (?P<number>\d+(?:\.\d+)?(?:[eE][-+]?\d+)?(?!\w))
    | (?P<string>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*') | (?P<op>//|\*\*|[=!<>]=|[-+*/%~|.,:()\[\]{}<>=])""",
    re.VERBOSE | re.DOTALL,
)
_WORDS = frozenset(("and", "or", "not", "in", "is", "if", "else", "elif", "for", "set"))
_CONSTANTS = frozenset(("true", "false", "none", "True", "False", "None"))
_TIGHTER = frozenset(("*", "/", "//", "%", "**", ".", "|"))  # what a number before `*` may belong to
_POSTFIX = frozenset(("**", "|", ".", "[", "("))  # what a number behind `*` may begin


class Token(NamedTuple):
    """`kind`: name, number, string or op."""

    kind: str
    text: str


_ARGUMENTS = (",", "=", "true", "false", "True", "False")
_LONGEST = {"string": 102, "number": 4}  # of literals that say how much longer a text becomes
_NONE = Token("", "")


class Tag(NamedTuple):
    """What stands between `{{` and `}}`, or `{%` and `%}`."""

    start: str
    line: int
    tokens: list[Token]

    def at(self, i: int) -> Token:
        return self.tokens[i] if 0 <= i < len(self.tokens) else _NONE


@dataclass(frozen=True)
class Facts:
    """What is known of a template before it sees data.

    Attributes:
        growth: how many times as large as all that goes in one value can be.
        size: characters of what the template itself brings.
        text: characters of its longest piece of plain text.
        loops: whether it repeats anything.
        careful: whether it may ask a dict or a list for something that is a method in Python.
        indents: spaces a level that it asks of `tojson`.
        names: what it may read of the data. minijinja tells that too, and overlooks what stands in front of a slice.
        required: those of `names` that have to be there: it neither asks whether they are, nor has a default, nor binds them.
    """

    growth: int
    size: int
    text: int
    loops: bool
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
    pieces = list(_split(template))
    tags = [p for p in pieces if isinstance(p, Tag)]
    for tag in tags:
        _Check(tag).run()
    words = [tag.at(0).text for tag in tags if tag.start == "{%"]
    growth = _growth(tags) * (1 + words.count("set"))
    size = 512 + sum(len(t.text) for tag in tags for t in tag.tokens) + sum(map(_ranges, tags))
    if growth * size > MAX_VALUE:  # now: minijinja computes what is constant when it compiles
        raise problem("DX225", "the template puts texts together in too many steps: they could grow without bound", SPLIT)
    return Facts(
        growth=growth,
        size=size,
        text=max((len(p) for p in pieces if isinstance(p, str)), default=0),
        loops="for" in words,
        careful=any(_careful(tag) for tag in tags),
        indents=max((_json_indent(tag) for tag in tags), default=0),
        names=frozenset(_names(tags, _is_field)),
        required=frozenset(_names(tags, _is_field) - _names(tags, _is_guarded) - _names(tags, _is_bound)),
    )


def _split(template: str) -> Iterator[str | Tag]:
    """Plain text and tags, in order; without comments."""
    at, line = 0, 1
    while start := _START.search(template, at):
        yield template[at : start.start()]
        line += template.count("\n", at, start.start())
        if start[1] == "{#":
            end = template.find("#}", start.end())
            stop = len(template) if end < 0 else end + 2
        elif raw := _RAW.match(template, start.start()):
            end_raw = _ENDRAW.search(template, raw.end())
            stop = end_raw.end() if end_raw else len(template)
            yield template[raw.end() : stop]
        else:
            tokens, stop = _tokens(template, start[1], start.end(), line)
            yield Tag(start[1], line, tokens)
        line += template.count("\n", start.start(), stop)
        at = stop
    yield template[at:]


def _tokens(template: str, start: str, at: int, line: int) -> tuple[list[Token], int]:
    found: list[Token] = []
    depth, end = 0, _END[start]
    while at < len(template):
        closing = end.match(template, at)
        if closing and depth == 0:
            return found, closing.end()
        if closing:
            raise _refused(line, f"{closing[0]!r} stands inside brackets", "put a space between the brackets: } }}")
        token = _TOKEN.match(template, at)
        if token is None:
            break
        if token.lastgroup:
            found.append(Token(token.lastgroup, token[0]))
            if len(found) > MAX_TOKENS:
                raise _refused(
                    line, f"a tag has more than {MAX_TOKENS} words and signs", "split it; or compute it before: .map(fn)"
                )
            depth += (token[0] in "([{") - (token[0] in ")]}") if token.lastgroup == "op" else 0
        at = token.end()
    near = template[max(at - 20, 0) : at + 10]
    raise _refused(line, f"a tag cannot be read, near {near!r}", f"close it: {'}}' if start == '{{' else '%}'}")


def _refused(line: int, what: str, fix: str) -> TopologyError:
    return problem("DX225", f"in line {line} of the template {what}", fix)


class _Check:
    """Holds the tokens of one tag against the list of what is allowed."""

    def __init__(self, tag: Tag) -> None:
        self.tag = tag

    def refuse(self, what: str, fix: str) -> TopologyError:
        return _refused(self.tag.line, what, fix)

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
            elif token.text == "*" and not _multipliers(self.tag, i):
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
        elif before != "." and after == "(" and name not in _WORDS and name not in FUNCTIONS:
            raise self.refuse(f"there is no function {name!r}", _call_fix(name, FUNCTIONS))

    def method(self, i: int, name: str) -> None:
        cycle = name == "cycle" and self.tag.at(i - 2) == Token("name", "loop") and self.tag.at(i - 3).text != "."
        if not cycle and (name not in CALLED or self.tag.at(i + 2).text != ")"):
            raise self.refuse(f"the method .{name}() is called", _call_fix(name, [f"{c}()" for c in CALLED]))

    def filter(self, i: int, name: str) -> None:
        if name not in FILTERS:
            raise self.refuse(f"there is no filter {name!r}", did_you_mean(name, FILTERS))
        arguments = _arguments(self.tag, i)
        if name in ("map", "select", "reject", "selectattr", "rejectattr"):
            self.by_name(name, arguments)
        elif name in ("join", "replace", "indent", "batch", "slice", "tojson") and not _literal(name, arguments):
            raise self.refuse(f"{name} takes literals here, not fields, and texts of at most 100 characters", _LITERALS[name])

    def by_name(self, name: str, arguments: Sequence[Token]) -> None:
        """Filters that take the name of a filter or a test: only as a literal, and only one that is allowed itself."""
        texts = [t.text[1:-1] if t.kind == "string" else None for t in arguments if t.text != ","]
        if name == "map" and arguments[:2] == [Token("name", "attribute"), Token("op", "=")]:
            return
        plain = [*_PLAIN_FILTERS, "list", "items", "string"] if name == "map" else TESTS
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


def _arguments(tag: Tag, i: int) -> list[Token]:
    """The tokens between the parentheses behind token `i`; none where there are none."""
    if tag.at(i + 1).text != "(":
        return []
    depth, found = 0, list[Token]()
    for token in tag.tokens[i + 1 :]:
        depth += (token.text in ("(", "[", "{")) - (token.text in (")", "]", "}"))
        if depth == 0:
            break
        found.append(token)
    return found[1:]


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


def _multipliers(tag: Tag, i: int) -> list[int]:
    """The numbers that the `*` at `i` multiplies by; none where neither side is plainly a number."""
    left, right = tag.at(i - 1), tag.at(i + 1)
    found = [left] if left.kind == "number" and tag.at(i - 2).text not in _TIGHTER else []
    found += [right] if right.kind == "number" and tag.at(i + 2).text not in _POSTFIX else []
    return [int(min(float(t.text), 1e12)) + 1 for t in found]


def _growth(tags: Sequence[Tag]) -> int:
    """By what factor a value can be larger than all that goes into the template.

    A value passes each place of a template at most once: what a loop sets is gone in its next round. What one tag binds
    the next may use, so those multiply; of the others the worst counts. A list as text escapes the texts in it, six
    characters for one, and a list of that text does it again.
    """
    weights = [(_weight(tag), tag.start == "{%" and tag.at(0).text in ("for", "set")) for tag in tags]
    return prod(w for w, binds in weights if binds) * max((w for w, binds in weights if not binds), default=1)


def _weight(tag: Tag) -> int:
    """By what factor a value of this tag can be larger than what goes into the tag."""
    tokens = tag.tokens
    weight: int = (1 + sum(t.kind == "op" and t.text in ("~", "+", ",") for t in tokens)) * 6 ** min(_lists(tag), 99)
    for i, token in enumerate(tokens):
        if token.kind == "name" and tag.at(i - 1).text == "|":
            weight *= _filter_weight(token.text, _arguments(tag, i))
        elif token == Token("op", "*"):
            weight *= min(_multipliers(tag, i))
    return weight


def _filter_weight(name: str, arguments: Sequence[Token]) -> int:
    numbers = [int(float(t.text)) for t in arguments if t.kind == "number"]
    texts = [max(len(t.text) - 2, 0) for t in arguments if t.kind == "string"]
    if name in ("indent", "slice", "batch"):
        return 1 + max(numbers, default=4)
    if name == "tojson":
        return 6 * (1 + sum(numbers))
    if name == "join":
        return 1 + (max(texts, default=0) + 1) // 2
    if name == "replace" and len(texts) > 1:
        return texts[1] + 1 if texts[0] == 0 else max(1, -(-texts[1] // texts[0]))
    return _LONGER.get(name, 1)


def _json_indent(tag: Tag) -> int:
    names = [i for i, t in enumerate(tag.tokens) if t.text == "tojson" and tag.at(i - 1).text == "|"]
    return max((int(float(t.text)) for i in names for t in _arguments(tag, i) if t.kind == "number"), default=0)


def _ranges(tag: Tag) -> int:
    """Characters that the numbers of its `range` make at most."""
    calls = [_arguments(tag, i) for i, t in enumerate(tag.tokens) if t == Token("name", "range") and tag.at(i - 1).text != "."]
    known = [
        [float(t.text) for t in a if t.kind == "number"] if all(t.kind == "number" or t.text == "," for t in a) else [1e6]
        for a in calls
    ]
    return sum(8 * int(min(max(numbers, default=0), 125_000)) for numbers in known)


def _lists(tag: Tag) -> int:
    """How often it makes a list of what may be a text: written out, or by a filter that does not just follow another such."""
    calls: list[bool] = []
    found, is_list = 0, False
    for i, token in enumerate(tag.tokens):
        before = tag.at(i - 1)
        if token.kind == "name" and before.text == "|":
            found += token.text in _LIST_FILTERS and not is_list
            is_list = token.text in _LIST_FILTERS
        elif token.kind == "op":
            written = token.text == "{" or (token.text == "[" and not _is_value(before))
            found += written or (token.text == "," and not (calls and calls[-1]) and tag.at(0).text != "for")
            if token.text in "([{":  # whether commas in it make a tuple: a list has been counted
                calls.append(token.text != "(" or (before.kind == "name" and before.text not in _WORDS))
            elif token.text in ")]}":
                is_list = is_list and bool(calls) and calls.pop() and token.text == ")"
            elif token.text not in (",", "|", "."):
                is_list = False
    return found


def _is_value(token: Token) -> bool:
    """Whether a `[` behind this token is a subscript."""
    return token.kind == "string" or token.text in (")", "]", "}") or (token.kind == "name" and token.text not in _WORDS)


def _names(tags: Sequence[Tag], test: Callable[[Tag, int], bool]) -> set[str]:
    return {t.text for tag in tags for i, t in enumerate(tag.tokens) if t.kind == "name" and test(tag, i)}


def _is_field(tag: Tag, i: int) -> bool:
    """Whether the name at `i` can be that of a field of the data."""
    name, before = tag.at(i).text, tag.at(i - 1).text
    statement = tag.start == "{%" and i == 0
    known = name in _WORDS or name in _CONSTANTS or name == "loop" or (name in FUNCTIONS and tag.at(i + 1).text == "(")
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
        if token == Token("op", "[") and _is_value(before) and not _fixed(tag, i):
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
