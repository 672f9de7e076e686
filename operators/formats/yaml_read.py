"""YAML text as plain data that remembers its lines.

Aliases are refused: a few lines of them can stand for a billion nodes, and a topology has no use for them. So are tags,
duplicate keys (in YAML the last one silently wins), nesting deeper than any topology, and numbers that no topology needs.
YAML reads 1:2:3 as a number to base 60, which takes quadratic time and is meant by nobody: here it is text.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any, cast

import yaml

from dspex.bus.errors import Problem, TopologyError

VERSION = 1  # of the format: `dspex: 1`
MAX_BYTES = 1 << 20
MAX_DEPTH = 20
MAX_EVENTS = 50_000  # values, and begins and ends of maps and lists
MAX_DIGITS = 40
_BITS = 64
_SHOWN = 20  # problems of one file
# libyaml's, which PyYAML's packages have: what is nested deep takes PyYAML's own a time that grows with its square.
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class Mapped(dict[str, Any]):
    """A mapping with the line of each of its keys."""

    def __init__(self, line: int) -> None:
        super().__init__()
        self.line = line
        self.lines: dict[str, int] = {}

    def at(self, key: str) -> int:
        """The line of a key; of the mapping where it has none."""
        return self.lines.get(key, self.line)


def read(text: str, file: str, what: str = "a topology", begin: str = "dspex: 1") -> Mapped:
    """The document. Raises one TopologyError (DX222) with every problem. `what` it is, and how such a file begins."""
    if len(text) > MAX_BYTES:
        raise _error(file, [(1, f"{len(text)} characters are more than {what} may have ({MAX_BYTES})", "split it up")])
    try:
        found = list(islice(_refused(text, what), _SHOWN))
        if found:
            raise _error(file, found)
        node = yaml.compose(text, Loader=_LOADER)
    except UnicodeEncodeError as e:
        line = text.count("\n", 0, e.start) + 1
        message = f"half of a surrogate pair ({text[e.start]!a}), which is no Unicode character"
        raise _error(file, [(line, message, "remove it")]) from e
    except yaml.MarkedYAMLError as e:
        mark = e.problem_mark or e.context_mark
        found = [(mark.line + 1 if mark else 1, f"this is not YAML: {e.problem or e.context}", "correct the syntax")]
        raise _error(file, found) from e
    except yaml.YAMLError as e:
        raise _error(file, [(1, f"this is not YAML: {e}", "correct the syntax")]) from e
    reader = _YamlReader()
    data = reader.value(node) if node is not None else None
    if not isinstance(data, Mapped):
        reader.problems.append((1, f"{what} is a mapping", f"begin with:  {begin}"))
    if reader.problems:
        raise _error(file, reader.problems)
    return cast("Mapped", data)


LineProblem = tuple[int, str, str]


def _error(file: str, found: list[LineProblem]) -> TopologyError:
    problems = [Problem("DX222", "error", file, None, file, line, message, fix) for line, message, fix in found]
    text = "; ".join(f"{file}:{p.line}: {p.message}" for p in problems)
    return TopologyError(text, code="DX222", fix=problems[0].fix, problems=problems)


def _refused(text: str, what: str) -> Iterator[LineProblem]:
    """What is refused, from the stream of events: before anything is built that could be large."""
    depth = 0
    for count, event in enumerate(yaml.parse(text, Loader=_LOADER)):
        line = event.start_mark.line + 1 if event.start_mark else 1
        if count > MAX_EVENTS:
            yield line, f"this has more values than {what} may have ({MAX_EVENTS:,})", "split it up"
            return
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            yield line, "anchors and aliases (& and *) are not allowed", "write it out"
        if str(getattr(event, "tag", None) or "").startswith("tag:yaml.org,2002:python") or _custom_tag(event):
            yield line, "tags (!) are not allowed", "write plain values"
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            yield line, f"this is nested deeper than {MAX_DEPTH}", "flatten it"
            return


def _custom_tag(event: Any) -> bool:
    tag = getattr(event, "tag", None)
    return bool(tag) and not isinstance(event, yaml.DocumentStartEvent) and tag != "!"


class _YamlReader:
    """Builds values from YAML nodes, and notes duplicate keys and keys that are not text."""

    def __init__(self) -> None:
        self.problems: list[LineProblem] = []
        self.scalars = yaml.constructor.SafeConstructor()

    def value(self, node: yaml.Node) -> Any:
        if isinstance(node, yaml.MappingNode):
            return self.mapping(node)
        if isinstance(node, yaml.SequenceNode):
            return [self.value(n) for n in node.value]
        return self.scalar(node)

    def mapping(self, node: yaml.MappingNode) -> Mapped:
        found = Mapped(node.start_mark.line + 1)
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            key = self.scalar(key_node) if isinstance(key_node, yaml.ScalarNode) else None
            if not isinstance(key, str):
                self.problems.append((line, f"the key {key!r} is not text", "write it in quotes"))
            elif key in found:
                self.problems.append((line, f"the key {key!r} is here twice (first in line {found.at(key)})", "remove one"))
            else:
                found[key] = self.value(value_node)
                found.lines[key] = line
        return found

    def scalar(self, node: yaml.Node) -> Any:
        number = node.tag.endswith((":int", ":float"))
        if number and ":" in node.value:
            return node.value
        try:
            if number and len(node.value) > MAX_DIGITS:
                raise ValueError(f"a number has at most {MAX_DIGITS} digits")
            value = self.scalars.construct_object(node)
            if isinstance(value, int) and value.bit_length() >= _BITS:
                raise ValueError(f"an integer has at most {_BITS} bits")
            return value
        except (yaml.YAMLError, ValueError, OverflowError) as e:
            shown = f"{node.value[:60]!r} cannot be read: {e}"
            self.problems.append((node.start_mark.line + 1, shown, "write it in quotes"))
            return None
