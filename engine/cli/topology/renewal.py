"""`dspex test --update`: what a test file expects is written anew, and the rest of it stays as it is, comments too."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import yaml

from dspex.engine.cli.topology.playing import Renewal

_BEHIND = re.compile(r"(\s*(#[^\n]*)?\n?)*\Z")  # of a block: the blank lines and comments before what comes next


def rewritten(text: str, renewals: Sequence[Renewal]) -> str:
    """The text of a test file with other expectations. Values that no YAML file of ours can hold are left as they are."""
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    found: list[tuple[int, int, str]] = []
    for renewal in renewals:
        node: Any = root
        keys: tuple[str | int, ...] = ("cases", renewal.case, renewal.number, "expect", *renewal.path)
        for key in keys:
            node = _below(node, key)
        value = _flow(renewal.value)
        if value is not None:
            found.append((*_span(text, node), value))
    for start, end, value in sorted(found, reverse=True):
        text = text[:start] + value + text[end:]
    return text


def _below(node: Any, key: str | int) -> Any:
    if isinstance(key, int):
        return node.value[key]
    return next(value for name, value in node.value if name.value == key)


def _span(text: str, node: Any) -> tuple[int, int]:
    """Where a value begins and ends. The end of a block is where the next thing begins."""
    start, end = node.start_mark.index, node.end_mark.index
    if start == end:  # nothing stands behind the colon
        return start, end
    return start, start + len(_BEHIND.sub("", text[start:end]))


def _flow(value: object) -> str | None:
    """The value in one line."""
    try:
        text = yaml.safe_dump([value], default_flow_style=True, width=10**9, allow_unicode=True, sort_keys=False)
    except yaml.YAMLError:
        return None
    return None if "!!" in text else text.strip()[1:-1]
