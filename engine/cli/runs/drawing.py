"""How what a run did is drawn for people: a tree, of which much of one kind is folded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from dspex.engine.cli.terminal.client import count, spent
from dspex.engine.cli.terminal.terminal import to_json

if TYPE_CHECKING:
    from dspex.engine.client.runs.tree import Happening

WIDE: Final = 160  # characters of data in a line
MANY: Final = 12  # things of one kind below one other, of which the first few are drawn
FIRST: Final = 5
_NONE: Final[Mapping[str, Sequence[str]]] = {}


def drawn(
    root: Happening, began: datetime, everything: bool = False, more: Mapping[str, Sequence[str]] = _NONE
) -> Iterator[str]:
    """The lines of a tree. `more`: lines by the ids of calls."""
    yield said(root, began)
    yield from _below(root, began, "", everything, more)


def _within(told: Happening) -> Counter[str]:
    """How many of each kind there are below it, and itself."""
    return Counter(one.kind for one in told)


def _more(folded: list[Happening]) -> str:
    """A line for what is folded, with how much of each kind that is."""
    inside = sum((_within(one) for one in folded), Counter[str]())
    words = {"call": "call", "hop": "event over hops", "output": "output", "native": "native value", "letter": "dead letter"}
    said = ", ".join(count(inside[kind], word) for kind, word in words.items() if inside[kind] and kind != folded[0].kind)
    return f"… {len(folded):,} more of {folded[0].node}{f' ({said})' if said else ''}: --all shows them"


def _below(told: Happening, began: datetime, indent: str, everything: bool, more: Mapping[str, Sequence[str]]) -> Iterator[str]:
    kinds = Counter((one.kind, one.node) for one in told.below)
    left: list[Happening | str] = []
    seen, failed = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
    folded: dict[tuple[str, str], list[Happening]] = {}
    for below in told.below:
        kind = (below.kind, below.node)
        seen[kind] += 1
        failed[kind] += (bad := _has_letter(below))
        if everything or kinds[kind] <= MANY or seen[kind] <= FIRST or (bad and failed[kind] <= MANY):
            left.append(below)
        else:
            folded.setdefault(kind, []).append(below)
    left += [_more(some) for some in folded.values()]
    for index, one in enumerate(left):
        last = index == len(left) - 1
        branch, inner = (indent + "└─ ", indent + "   ") if last else (indent + "├─ ", indent + "│  ")
        if isinstance(one, str):
            yield branch + one
            continue
        yield branch + said(one, began)
        while len(one.below) == 1 and one.kind == "native":  # a chain of operators goes down, and not to the right
            yield from (inner + "   " + line for line in _details(one))
            (one,) = one.below
            yield inner[:-3] + ("│  " if not last else "   ") + said(one, began)
        yield from (inner + ("│  " if one.below else "   ") + line for line in (*_details(one), *more.get(one.id, ())))
        yield from _below(one, began, inner, everything, more)


def said(told: Happening, began: datetime) -> str:
    after = f"+{max(0.0, (told.time - began).total_seconds()):.3f}s"
    if told.kind == "call":
        last = told.attempts[-1]
        how = _end_of(told)
        tries = f"{len(told.attempts)} attempts" if len(told.attempts) > 1 else ""
        who = " ".join(word for word in (last.route, last.lm) if word)
        took = f"{last.elapsed.total_seconds() * 1000:,.0f} ms" if last.ended else ""
        tokens = spent(None, last.usage) if last.usage.input_tokens + last.usage.output_tokens else ""
        return "  ".join(word for word in (after, told.label, how, tries, who, took, tokens) if word)
    if told.kind == "native":
        return _native(told)
    sign = {"source": "", "hop": "to ", "output": "→ ", "letter": "dead letter at "}[told.kind]
    return f"{after}  {sign}{told.label}  {short(told.data)}"


def _end_of(told: Happening) -> str:
    """How a call stands, where that is not as usual."""
    last = told.attempts[-1]
    if last.wrong:
        return f"its record is {last.wrong}"
    if not last.ended:
        return "" if isinstance(told.data, str) else "open"  # of what is forgotten it is not known
    failed = "waiting for another attempt" if told.waits else "failed"
    return failed if last.error is not None else ""


def _native(told: Happening) -> str:
    """A line of a native operator: what it gave."""
    what = ""
    if len(told.gives) == 1 and told.gives[0][1] != told.data:
        what = short(told.gives[0][1])
    elif len(told.gives) > 1:
        what = f"gives {len(told.gives):,}: {short(told.gives[0][1])}, …"
    return "  ".join(word for word in (f"~ {told.label}", told.note, what) if word)


def _has_letter(told: Happening) -> bool:
    return any(one.kind == "letter" for one in told)


def _details(told: Happening) -> Iterator[str]:
    if told.error is not None:
        kind = f"{told.error.get('type', '')}[{told.error.get('code', '')}]  " if told.kind == "letter" else ""
        yield f"{kind}{told.error.get('message', '')}"
    for step in told.attempts:
        if step.error is not None:
            yield f"attempt {step.attempt}: {step.error}"
    if told.kind == "call":
        yield f"in   {short(told.data)}"
        if told.attempts[-1].outputs is not None:
            yield f"out  {short(told.attempts[-1].outputs)}"


def short(data: Any) -> str:
    """Data in a part of a line."""
    text = repr(data) if isinstance(data, bytes) else to_json(data)
    return text if len(text) <= WIDE else f"{text[: WIDE - 1]}…"
