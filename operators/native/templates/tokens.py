"""The tokens of a template's tags. Where minijinja reads a template in another way, it refuses it, or we do."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from dspex.bus.errors import TopologyError
from dspex.operators.native.problems import problem

MAX_TOKENS = 500  # of one tag: minijinja reads `- - - - x` recursively, and 60,000 tokens of it end the process

_START = re.compile(r"(\{\{|\{%|\{#)[-+]?")
_RAW, _ENDRAW = (re.compile(r"\{%[-+]?\s*" + word + r"\s*[-+]?%\}") for word in ("raw", "endraw"))
_END = {"{{": re.compile(r"[-+]?\}\}"), "{%": re.compile(r"[-+]?%\}")}
_TOKEN = re.compile(
    r"""\s+ | (?P<name>[^\W\d]\w*) | (?P<number>\d+(?:\.\d+)?(?:[eE][-+]?\d+)?(?!\w))
    | (?P<string>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*') | (?P<op>//|\*\*|[=!<>]=|[-+*/%~|.,:()\[\]{}<>=])""",
    re.VERBOSE | re.DOTALL,
)
WORDS = frozenset(("and", "or", "not", "in", "is", "if", "else", "elif", "for", "set"))


class Token(NamedTuple):
    """`kind`: name, number, string or op."""

    kind: str
    text: str


_NONE = Token("", "")


class Tag(NamedTuple):
    """The tokens between `{{` and `}}`, or `{%` and `%}`."""

    start: str
    line: int
    tokens: list[Token]

    def at(self, i: int) -> Token:
        """The token at `i`; an empty token where there is none."""
        return self.tokens[i] if 0 <= i < len(self.tokens) else _NONE


def split(template: str) -> Iterator[str | Tag]:
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
            raise refused(line, f"{closing[0]!r} stands inside brackets", "put a space between the brackets: } }}")
        token = _TOKEN.match(template, at)
        if token is None:
            break
        if token.lastgroup:
            found.append(Token(token.lastgroup, token[0]))
            if len(found) > MAX_TOKENS:
                raise refused(
                    line, f"a tag has more than {MAX_TOKENS} words and signs", "split it; or compute it before: .map(fn)"
                )
            depth += (token[0] in "([{") - (token[0] in ")]}") if token.lastgroup == "op" else 0
        at = token.end()
    near = template[max(at - 20, 0) : at + 10]
    raise refused(line, f"a tag cannot be read, near {near!r}", f"close it: {'}}' if start == '{{' else '%}'}")


def refused(line: int, what: str, fix: str) -> TopologyError:
    """The error about a line of a template."""
    return problem("DX225", f"in line {line} of the template {what}", fix)


def call_arguments(tag: Tag, i: int) -> list[Token]:
    """The tokens between the parentheses after token `i`; none where there are no parentheses."""
    if tag.at(i + 1).text != "(":
        return []
    depth, found = 0, list[Token]()
    for token in tag.tokens[i + 1 :]:
        depth += (token.text in ("(", "[", "{")) - (token.text in (")", "]", "}"))
        if depth == 0:
            break
        found.append(token)
    return found[1:]


def is_value(token: Token) -> bool:
    """Whether a `[` after this token is a subscript."""
    return token.kind == "string" or token.text in (")", "]", "}") or (token.kind == "name" and token.text not in WORDS)
