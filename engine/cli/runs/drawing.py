"""How what a run did is drawn for people: a tree, of which much of one kind is folded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from math import inf
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from dspex.engine.cli.terminal.client import count, spent
from dspex.engine.cli.terminal.terminal import to_json

if TYPE_CHECKING:
    from dspex.engine.client.runs.tree import Happening

WIDE: Final = 160  # characters of data in a line
SCREENS: Final = 120  # lines that are drawn at most, as far as folding helps


class Fold(NamedTuple):
    """Of more than `many` things of one kind below one other the first few are drawn. `brief`: not what calls had and gave."""

    many: float
    first: int
    brief: bool = False


_ALL: Final = Fold(inf, 0)
_FOLDS: Final = (Fold(12, 5), Fold(4, 3), Fold(3, 2), Fold(2, 1), Fold(2, 1, brief=True))  # many things have many below each
_NONE: Final[Mapping[str, Sequence[str]]] = {}


def drawn(
    root: Happening,
    began: datetime,
    everything: bool = False,
    more: Mapping[str, Sequence[str]] = _NONE,
    width: int | None = None,
) -> list[str]:
    """The lines of a tree, of which more is folded the larger it is. `more`: lines by the ids of calls. `width`: of a terminal;
    None: lines are as long as they are.
    """
    lines = list[str]()
    for fold in (_ALL,) if everything else _FOLDS:
        lines = [*_Drawing(began, fold, more, width).lines(root)]
        lines += ["what went into calls and came out: --all shows it"] if fold.brief else []
        if len(lines) <= SCREENS:
            break
    return lines


class _Drawing:
    """Draws a tree. See `drawn`."""

    def __init__(self, began: datetime, fold: Fold, more: Mapping[str, Sequence[str]], width: int | None) -> None:
        self._began, self._fold, self._more, self._width = began, fold, more, width

    def lines(self, root: Happening) -> Iterator[str]:
        yield self._fits(said(root, self._began))
        yield from self._below(root, "")

    def _fits(self, line: str) -> str:
        return line if self._width is None or len(line) <= self._width else f"{line[: self._width - 1]}…"

    def _details(self, told: Happening, indent: str) -> Iterator[str]:
        """The lines that say more of one thing."""
        yield from (self._fits(indent + line) for line in _details(told, brief=self._fold.brief))
        yield from (indent + line for line in self._more.get(told.id, ()))

    def _below(self, told: Happening, indent: str) -> Iterator[str]:
        left = self._chosen(told)
        for index, one in enumerate(left):
            last = index == len(left) - 1
            branch, inner = (indent + "└─ ", indent + "   ") if last else (indent + "├─ ", indent + "│  ")
            if isinstance(one, str):
                yield branch + one
                continue
            yield self._fits(branch + said(one, self._began))
            while len(one.below) == 1:  # a chain goes down, and not to the right
                yield from self._details(one, inner + "   ")
                (one,) = one.below
                yield self._fits(inner + said(one, self._began))
            yield from self._details(one, inner + ("│  " if one.below else "   "))
            yield from self._below(one, inner)

    def _chosen(self, told: Happening) -> list[Happening | str]:
        """What is drawn of what is below something, and a line for each kind of what is folded."""
        kinds, fold = Counter((one.kind, one.node) for one in told.below), self._fold
        left: list[Happening | str] = []
        seen, failed = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
        folded: dict[tuple[str, str], list[Happening]] = {}
        for below in told.below:
            kind = (below.kind, below.node)
            seen[kind] += 1
            failed[kind] += (bad := _has_letter(below))
            if kinds[kind] <= fold.many or seen[kind] <= fold.first or (bad and failed[kind] <= fold.many):
                left.append(below)
            else:
                folded.setdefault(kind, []).append(below)
        return [*left, *(_more(some) for some in folded.values())]


def _within(told: Happening) -> Counter[str]:
    """How many of each kind there are below it, and itself."""
    return Counter(one.kind for one in told)


def _more(folded: list[Happening]) -> str:
    """A line for what is folded, with how much of each kind that is."""
    inside = sum((_within(one) for one in folded), Counter[str]())
    inside[folded[0].kind] -= len(folded)
    words = {"call": "call", "hop": "hop", "output": "output", "native": "native value", "letter": "dead letter"}
    if folded[0].kind == "native":
        del words["native"]  # each goes through several operators
    said = ", ".join(count(inside[kind], word) for kind, word in words.items() if inside[kind])
    return f"… {len(folded):,} more of {folded[0].node}{f' ({said})' if said else ''}: --all shows them"


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


def _details(told: Happening, *, brief: bool) -> Iterator[str]:
    if told.error is not None:
        kind = f"{told.error.get('type', '')}[{told.error.get('code', '')}]  " if told.kind == "letter" else ""
        yield f"{kind}{told.error.get('message', '')}"
    for step in told.attempts:
        if step.error is not None:
            yield f"attempt {step.attempt}: {step.error}"
    if told.kind == "call" and not brief:
        yield f"in   {short(told.data)}"
        if told.attempts[-1].outputs is not None:
            yield f"out  {short(told.attempts[-1].outputs)}"


def short(data: Any) -> str:
    """Data in a part of a line."""
    text = repr(data) if isinstance(data, bytes) else to_json(data)
    return text if len(text) <= WIDE else f"{text[: WIDE - 1]}…"
