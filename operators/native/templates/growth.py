"""An upper bound of the factor by which a template can make its data grow, computed from its tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

from dspex.operators.native.templates.tokens import WORDS, Tag, Token, call_arguments, is_value

LIST_FILTERS = (
    "batch", "dictsort", "groupby", "items", "list", "map", "reject", "rejectattr", "reverse", "select", "selectattr", "slice",
    "sort", "unique",
)  # fmt: skip
LONGER: Mapping[str, int] = {"e": 6, "escape": 6, "string": 6, "tojson": 6, "urlencode": 3}
_TIGHTER = frozenset(("*", "/", "//", "%", "**", ".", "|"))  # a number before `*` may belong to one of these
_POSTFIX = frozenset(("**", "|", ".", "[", "("))  # one of these may follow a number behind `*`


def multipliers(tag: Tag, i: int) -> list[int]:
    """The numbers that the `*` at `i` multiplies by; none where neither side is certain to be a number."""
    left, right = tag.at(i - 1), tag.at(i + 1)
    found = [left] if left.kind == "number" and tag.at(i - 2).text not in _TIGHTER else []
    found += [right] if right.kind == "number" and tag.at(i + 2).text not in _POSTFIX else []
    return [int(min(float(t.text), 1e12)) + 1 for t in found]


def growth_of(tags: Sequence[Tag]) -> int:
    """The factor by which a value can be larger than all the data that goes into the template.

    A value passes each place of a template at most once: a variable that a loop sets is gone in the next round. A tag may use
    what an earlier tag binds, so the factors of binding tags multiply; of the other tags the largest counts. A list that is
    written as text escapes the texts in it, with up to six characters for one, and a list of that text escapes them again.
    """
    weights = [(_weight(tag), tag.start == "{%" and tag.at(0).text in ("for", "set")) for tag in tags]
    return prod(w for w, binds in weights if binds) * max((w for w, binds in weights if not binds), default=1)


def _weight(tag: Tag) -> int:
    """The factor by which a value of this tag can be larger than the data that goes into the tag."""
    tokens = tag.tokens
    weight: int = (1 + sum(t.kind == "op" and t.text in ("~", "+", ",") for t in tokens)) * 6 ** min(_lists(tag), 99)
    for i, token in enumerate(tokens):
        if token.kind == "name" and tag.at(i - 1).text == "|":
            weight *= _filter_weight(token.text, call_arguments(tag, i))
        elif token == Token("op", "*"):
            weight *= min(multipliers(tag, i))
    return weight


def _filter_weight(name: str, arguments: Sequence[Token]) -> int:
    numbers = [int(min(float(t.text), 1e12)) for t in arguments if t.kind == "number"]
    texts = [max(len(t.text) - 2, 0) for t in arguments if t.kind == "string"]
    if name in ("indent", "slice", "batch"):
        return 1 + max(numbers, default=4)
    if name == "tojson":
        return 6 * (1 + sum(numbers))
    if name == "join":
        return 1 + (max(texts, default=0) + 1) // 2
    if name == "replace" and len(texts) > 1:
        return texts[1] + 1 if texts[0] == 0 else max(1, -(-texts[1] // texts[0]))
    return LONGER.get(name, 1)


def json_indent(tag: Tag) -> int:
    """The spaces per level that the tag gives to `tojson`; 0 for none."""
    names = [i for i, t in enumerate(tag.tokens) if t.text == "tojson" and tag.at(i - 1).text == "|"]
    return max((int(min(float(t.text), 1e12)) for i in names for t in call_arguments(tag, i) if t.kind == "number"), default=0)


def ranges(tag: Tag) -> int:
    """The largest number of items that the `range` calls of the tag can make."""
    calls = [
        call_arguments(tag, i) for i, t in enumerate(tag.tokens) if t == Token("name", "range") and tag.at(i - 1).text != "."
    ]
    known = [
        [float(t.text) for t in a if t.kind == "number"] if all(t.kind == "number" or t.text == "," for t in a) else [1e6]
        for a in calls
    ]
    return sum(int(min(max(numbers, default=0), 125_000)) for numbers in known)


def _lists(tag: Tag) -> int:
    """How often the tag makes a list that may have a text in it: written out, or by a filter after no other such one."""
    calls: list[bool] = []
    found, is_list = 0, False
    for i, token in enumerate(tag.tokens):
        before = tag.at(i - 1)
        if token.kind == "name" and before.text == "|":
            found += token.text in LIST_FILTERS and not is_list
            is_list = token.text in LIST_FILTERS
        elif token.kind == "op":
            written = token.text == "{" or (token.text == "[" and not is_value(before))
            found += written or (token.text == "," and not (calls and calls[-1]) and tag.at(0).text != "for")
            if token.text in "([{":  # whether it is a call or has been counted as a list: commas in it make no tuple
                calls.append(token.text != "(" or (before.kind == "name" and before.text not in WORDS))
            elif token.text in ")]}":
                call = calls.pop() if calls else False
                is_list = is_list and call and token.text == ")"
            elif token.text not in (",", "|", "."):
                is_list = False
    return found
