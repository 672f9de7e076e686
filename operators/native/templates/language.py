"""The facts about a template that are known before it is compiled: whether it is allowed, and how much its data can grow.

minijinja limits the number of steps and nothing else: `x ~ x`, assigned to `x` forty times, takes forty steps and makes a
terabyte. A method that a template calls is one of Python, so `{{ items.append(1) }}` would change the user's data. So the
tokens of each tag are compared with a list of what is allowed, and operations that make text longer are counted. That needs
no parser.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dspex.operators.native.problems import problem
from dspex.operators.native.templates.allowed import FUNCTIONS, METHODS, check
from dspex.operators.native.templates.growth import growth_of, json_indent, ranges
from dspex.operators.native.templates.tokens import WORDS, Tag, Token, is_value, split

MAX_LENGTH = 64 * 1024
MAX_VALUE = 64 * 2**20  # characters that one value may have

SPLIT = "write the parts one after the other, {{ a }}{{ b }}: fewer ~ and +, fewer lists, smaller numbers"

_CONSTANTS = frozenset(("true", "false", "none", "True", "False", "None"))


@dataclass(frozen=True)
class Facts:
    """The facts about a template that do not depend on data.

    Attributes:
        growth: the factor by which one value can be larger than all the data that goes in.
        size: the number of characters that the template itself contributes to a value.
        items: the number of list items that it makes itself.
        searches: whether it searches a list.
        text: the number of characters of its longest piece of plain text.
        reads_methods: whether it may read a name from a dict or list that is a method there.
        indents: the spaces per level that it gives to `tojson`.
        names: the fields of the data that it may read. minijinja tells them too, but overlooks a name in front of a slice.
        required: those of `names` that must be there: the template has no test, no default and no binding for them.
    """

    growth: int
    size: int
    items: int
    searches: bool
    text: int
    reads_methods: bool
    indents: int
    names: frozenset[str]
    required: frozenset[str]


def examine(template: str) -> Facts:
    """Read a template. Raises TopologyError (DX225) for one that is not allowed."""
    if not isinstance(template, str):  # pyright: ignore[reportUnnecessaryIsInstance]  # YAML may give anything
        raise problem("DX225", f"a template is text, and this is {template!r}", 'write "Dear {{ name }}"')
    if len(template) > MAX_LENGTH:
        raise problem("DX225", f"the template is longer than {MAX_LENGTH} characters", "split it in two operators")
    pieces = list(split(template))
    tags = [p for p in pieces if isinstance(p, Tag)]
    for tag in tags:
        check(tag)
    words = [tag.at(0).text for tag in tags if tag.start == "{%"]
    growth = growth_of(tags) * (1 + words.count("set"))
    items = sum(map(ranges, tags))
    size = 512 + sum(len(t.text) for tag in tags for t in tag.tokens) + 8 * items
    if growth * size > MAX_VALUE:  # now: minijinja evaluates constant expressions when it compiles
        raise problem("DX225", "the template puts texts together in too many steps: they could grow without bound", SPLIT)
    return Facts(
        growth=growth,
        size=size,
        items=items,
        searches=any(t.text == "in" for tag in tags for t in (tag.tokens[4:] if tag.at(0).text == "for" else tag.tokens)),
        text=max((len(p) for p in pieces if isinstance(p, str)), default=0),
        reads_methods=any(_reads_methods(tag) for tag in tags),
        indents=max((json_indent(tag) for tag in tags), default=0),
        names=frozenset(_names(tags, _is_field)),
        required=frozenset(_names(tags, _is_field) - _names(tags, _is_guarded) - _names(tags, _is_bound)),
    )


def _names(tags: Sequence[Tag], test: Callable[[Tag, int], bool]) -> set[str]:
    return {t.text for tag in tags for i, t in enumerate(tag.tokens) if t.kind == "name" and test(tag, i)}


def _is_field(tag: Tag, i: int) -> bool:
    """Whether the name at `i` can be a field of the data."""
    name, before = tag.at(i).text, tag.at(i - 1).text
    statement = tag.start == "{%" and i == 0
    known = name in WORDS or name in _CONSTANTS or name == "loop" or (name in FUNCTIONS and tag.at(i + 1).text == "(")
    return not (statement or known or before in (".", "|", "is") or (before == "not" and tag.at(i - 2).text == "is"))


def _is_guarded(tag: Tag, i: int) -> bool:
    behind = [t.text for t in tag.tokens[i + 1 : i + 4]]
    tested = behind[:1] == ["is"] and {"defined", "undefined"}.intersection(behind)
    return tag.at(i - 1).text != "." and bool(tested or (behind[:1] == ["|"] and behind[1:2] in (["default"], ["d"])))


def _is_bound(tag: Tag, i: int) -> bool:
    """Whether the name at `i` is one that a loop or a `set` gives a value, or the keyword of an argument."""
    word = tag.at(0).text if tag.start == "{%" else ""
    end = next((n for n, t in enumerate(tag.tokens) if t.text == ("in" if word == "for" else "=")), 0)
    return (word in ("for", "set") and i < end) or (tag.at(i + 1).text == "=" and word != "set")


def _reads_methods(tag: Tag) -> bool:
    """Whether the tag may read a name from a dict or list that is a method in Python."""
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
