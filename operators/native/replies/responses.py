"""Finds fenced code, `key: value` lines, numbers and lists in the free text of a model, in linear time."""

from __future__ import annotations

import re

_FENCE = re.compile(r"^[ \t]*+(?P<fence>`{3,}+|~{3,}+)[ \t]*+(?P<language>[^\s`]*+)[^\n`]*+$", re.MULTILINE)
_PAIR = re.compile(
    r"""^[ \t]*+(?:(?:[-*•+]|[0-9]{1,9}[.)])[ \t]++)?+   # a bullet or a number
        (?P<bold>\*\*|__|`)?+
        (?P<key>[^\W_](?:[^:=*`\n]{0,78}[^\s:=*`])?)
        (?(bold)(?:[:=][ \t]*+(?P=bold)|(?P=bold)[ \t]*+[:=])|[ \t]*+[:=])
        (?!//|=)[ \t]*+(?P<value>[^\n]*+)$""",
    re.MULTILINE | re.VERBOSE,
)
_NUMBER = re.compile(
    r"""(?<![\w.,:/])(?<!\w[-−])(?P<sign>(?:(?<![\w-])[-+−])?+)(?P<whole>[0-9]{1,3}(?:,[0-9]{3})++(?![0-9])|[0-9]++)
        (?P<fraction>\.[0-9]++)?+(?P<exponent>[eE][-+]?+[0-9]{1,4}+)?+(?P<percent>[ \u00a0]?%)?+(?![\w])""",
    re.VERBOSE,
)
_ITEM = re.compile(
    r"^(?P<indent>[ \t]*+)(?:[-*•+–]|[0-9]{1,9}[.)]|[A-Za-z][.)]|\([0-9A-Za-z]{1,3}\))[ \t]++(?P<item>\S[^\n]*+)$"
)
_MOST_DIGITS = 400


def code_blocks(text: str) -> list[tuple[str, str]]:
    """The fenced blocks of a Markdown text: (language, code). A fence that is not closed ends with the text.

    >>> code_blocks("Run it:\\n```python\\nprint(1)\\n```\\n")
    [('python', 'print(1)')]
    """
    found: list[tuple[str, str]] = []
    opened: re.Match[str] | None = None
    for fence in _FENCE.finditer(text):
        if opened is None:
            opened = fence
        elif _closes(fence, opened):
            found.append((opened["language"], text[opened.end() + 1 : max(opened.end() + 1, fence.start() - 1)]))
            opened = None
    if opened is not None:
        found.append((opened["language"], text[opened.end() + 1 :]))
    return found


def _closes(fence: re.Match[str], opened: re.Match[str]) -> bool:
    mark = opened["fence"]
    return fence["fence"].startswith(mark) and fence.group().strip() == fence["fence"]


def key_values(text: str) -> dict[str, str]:
    """The lines `key: value` and `key = value`, with or without bullets, numbers and **bold** keys. The first of a key counts.

    A key begins with a letter or a digit, has up to 80 characters and none of `:=*` and the backtick. Other lines are left out.

    >>> key_values("- **Topic**: billing\\n- urgency = 3\\nThank you!")
    {'Topic': 'billing', 'urgency': '3'}
    """
    found: dict[str, str] = {}
    for line in text.splitlines():
        if pair := _PAIR.match(line):
            found.setdefault(pair["key"], pair["value"].strip())
    return found


def numbers(text: str) -> list[int | float]:
    """The numbers of a text in order: `1,234.5`, `-3`, `1e-3`, and `12%` as 0.12.

    A comma between groups of three digits is a thousands separator, a point begins the fraction. Whole numbers are int.
    Digits in words (`B2B`, `GPT-4`), dates, times, ranges (`3-4`), versions, and numbers of over 400 digits are left out.

    >>> numbers("Up 12% to 1,234.50 in 3 days")
    [0.12, 1234.5, 3]
    """
    return [_number(m) for m in _NUMBER.finditer(text) if len(m["whole"]) <= _MOST_DIGITS and not _goes_on(text, m.end())]


def _goes_on(text: str, end: int) -> bool:
    """Whether the number continues as a version, a date, a range or an amount in another notation."""
    return text[end : end + 1] in (".", ",", "-", ":", "/") and text[end + 1 : end + 2].isdigit()


def _number(m: re.Match[str]) -> int | float:
    whole = m["whole"].replace(",", "")
    sign = "-" if m["sign"] in ("-", "−") else ""
    if m["percent"]:
        return float(f"{sign}{whole}{m['fraction'] or ''}{m['exponent'] or ''}") / 100
    if m["fraction"] or m["exponent"]:
        return float(f"{sign}{whole}{m['fraction'] or ''}{m['exponent'] or ''}")
    return int(sign + whole)


def items(text: str) -> list[str]:
    """The items of the bulleted and numbered lists in a text. Lines that are indented below an item belong to it.

    >>> items("Steps:\\n1. Mix\\n2. Bake\\n   for an hour\\n\\nEnjoy!")
    ['Mix', 'Bake for an hour']
    """
    found: list[list[str]] = []
    open_item = False
    for line in text.splitlines():
        if item := _ITEM.match(line):
            found.append([item["item"].rstrip()])
            open_item = True
        elif open_item and line[:1] in (" ", "\t") and line.strip():
            found[-1].append(line.strip())
        elif line.strip():
            open_item = False
    return [" ".join(parts) for parts in found]
