"""Two runs side by side: what the second one did otherwise.

They are aligned by step id, and steps of one name by what they are, so another order, or one more in front, is no difference of
the others. A call is compared by what went in, who answered, and what came out; an output by its data; a dead letter by its
error.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from dspex.bus.errors import ConfigError, DspexError, RecordingIncomplete
from dspex.bus.records import Usage
from dspex.bus.serving.keys.secret_fields import SECRET, Secrets
from dspex.bus.settings.similar import did_you_mean
from dspex.engine.client.following.progress import RunInfo
from dspex.engine.client.runs.judged.aligned import aligned
from dspex.engine.client.runs.judged.aligned import by_step as by_step
from dspex.engine.client.runs.judged.beside import NOTHING as NOTHING
from dspex.engine.client.runs.judged.beside import StepDiff as StepDiff
from dspex.engine.client.runs.judged.beside import cells, change, cut, same, text
from dspex.engine.client.runs.then.later import Later
from dspex.engine.client.runs.then.masking import secrets_of
from dspex.engine.client.runs.then.recorded import undone
from dspex.engine.client.runs.tree import Happening, changed


class NamedRun(Protocol):
    """A run, as a client holds it."""

    @property
    def id(self) -> str: ...


@dataclass(frozen=True)
class Diff:
    """What came of comparing two runs.

    Attributes:
        same: nothing differs. first: the first difference, in the order in which the first run did things. steps: all of them.
        tokens, cost: of both.
        equal: ids of the steps that are the same. runs: what is known of both.
        later: where the second one is a fork of the first one, what it has led to in other runs.
    """

    same: bool
    first: StepDiff | None
    steps: list[StepDiff]
    tokens: tuple[int, int]
    cost: tuple[float, float]
    equal: list[str] = field(default_factory=list)
    runs: tuple[RunInfo, RunInfo] | None = None
    later: Later | None = None

    def with_later(self, later: Later) -> Diff:
        """The same, with what a fork has led to in other runs."""
        return replace(self, same=self.same and not later.diffs, later=later)

    def as_dict(self) -> dict[str, Any]:
        """As the CLI prints it."""
        steps = [vars(step) for step in self.steps]
        return {
            "same": self.same,
            "first": steps[0] if steps else None,
            "steps": steps,
            "tokens": list(self.tokens),
            "cost": list(self.cost),
            **({"later": self.later.as_dict()} if self.later is not None else {}),
        }

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def lines(self, *, every: bool = False) -> Iterator[str]:
        """As people read it. `every`: with the steps that are the same, one by one."""
        alike = len({info.id[-8:] for info in self.runs or ()}) == 1  # of two streams, or of two applications
        for name, info in zip("ab", self.runs or ()):
            what = info.kept if info.parent is not None and info.kept else f"{info.topology} {info.digest[:8]}"
            yield f"{name}  {info.id if alike else f'…{info.id[-8:]}'}  {what}  {info.status:<8} {_spent(info)}"
        if self.equal:
            yield from (f"=  {step}" for step in self.equal) if every else [f"=  {_list(self.equal)}"]
        before = ""
        for one in self.steps:
            mark = "    ← first difference" if one is self.first else ""
            if one.field is None:
                sign, data = ("+", one.b) if one.a is NOTHING else ("-", one.a)
                yield f"{sign}  {one.step:<18} {cut(text(data))}{mark}"
                continue
            if one.step != before:
                yield f"!  {one.step}"
            before = one.step
            yield f"     {one.field:<16} {change(one.a, one.b)}{mark}"
        yield from self.later.lines() if self.later is not None else ()

    def markdown(self) -> str:
        """As a table, for a review."""
        later = self.later.diffs if self.later is not None else ()
        rows = [f"| `{s.step}` | {s.field or ''} | {cells(s.a, s.b)} |" for s in self.steps]
        rows += [f"| …{s.run[-8:]} `{s.step}` | {s.field or ''} | {cells(s.a, s.b)} |" for s in later]
        tokens, cost = f"{self.tokens[0]:,} → {self.tokens[1]:,} tokens", f"${self.cost[0]:.4f} → ${self.cost[1]:.4f}"
        head = f"**{'same' if self.same else f'{len(rows)} differences'}**, {tokens}, {cost}"
        return "\n".join([head, "", "| step | field | a | b |", "|---|---|---|---|", *rows]) + "\n"


def compare(
    a: Happening,
    b: Happening,
    infos: tuple[RunInfo, RunInfo],
    fields: Collection[str] | None = None,
    harmless: Collection[str] = (),
) -> Diff:
    """What the second of two runs did otherwise. `fields`: only these count; None: all. `harmless`: those that never do."""
    found, equal = list[StepDiff](), list[str]()
    for step, _, _, differ in _beside(a, b, fields, harmless):
        found += differ
        equal += [] if differ else [step]
    if secrets := secrets_of(a, b):
        found = [_without(secrets, one) for one in found if not _unknown(secrets, one)]
    used = [info.usage for info in infos]
    tokens, cost = [u.input_tokens + u.output_tokens for u in used], [u.cost or 0.0 for u in used]
    first = found[0] if found else None
    return Diff(not found, first, found, (tokens[0], tokens[1]), (cost[0], cost[1]), equal, infos)


def _beside(
    a: Happening, b: Happening, fields: Collection[str] | None = None, harmless: Collection[str] = ()
) -> Iterator[tuple[str, Happening | None, Happening | None, list[StepDiff]]]:
    """The steps of two runs, each with what differs."""
    for step, x, y in aligned(a, b):
        if x is None or y is None:
            then, now = (NOTHING if one is None else _main(one) for one in (x, y))
            yield step, x, y, [StepDiff(step, None, then, now)]
            continue
        differ = _fields(step, x, y)
        yield step, x, y, [d for d in differ if (d.field in fields if fields is not None else d.field not in harmless)]


def other_than(a: Happening, b: Happening) -> list[Happening]:
    """What the second of two runs did, and the first one did not, or otherwise; as far as nothing secret hides that."""
    secrets = secrets_of(a, b)
    return [y for _, _, y, all in _beside(a, b) if y is not None and any(not secrets or not _unknown(secrets, d) for d in all)]


def _unknown(secrets: Secrets, one: StepDiff) -> bool:
    """Whether nobody can tell if there is a difference: a marker stands for the value in the file of one of the runs."""
    known = (one.field or "").removeprefix("in.") not in secrets.names
    return SECRET in f"{one.a}{one.b}" and (not known or same(secrets.masked(one.a), secrets.masked(one.b)))


def _without(secrets: Secrets, one: StepDiff) -> StepDiff:
    """A difference without what is secret: that there is one is told."""
    if (one.field or "").removeprefix("in.") in secrets.names:
        a, b = (NOTHING if value is NOTHING else SECRET for value in (one.a, one.b))
        return replace(one, a=a, b=b)
    return replace(one, a=secrets.masked(one.a), b=secrets.masked(one.b))


def between(step: str, a: Any, b: Any, secrets: Secrets) -> list[StepDiff]:
    """What differs in the data of a step, without what is secret."""
    return [_without(secrets, one) for one in _values(step, "", a, b) if not _unknown(secrets, one)]


def need_records(root: Happening) -> None:
    """Raise RecordingIncomplete where a record of a run is damaged or missing: what its call was answered is not known."""
    if root.changed:
        raise changed(root)
    for step in (step for told in root for step in told.attempts if step.wrong):
        raise RecordingIncomplete(f"the record of {step.id} of run {step.run} is {step.wrong}", run=step.run, node=step.node)


def need_fields(fields: Collection[str], *roots: Happening) -> None:
    """Raise ConfigError where no step of these runs has a field: nothing would differ in it, whatever the runs did."""
    known = {name for root in roots for one in root for name in _names(one)}
    for name in fields:
        if name not in known:
            fix = did_you_mean(name, sorted(known), "what goes into a call is in.NAME")
            raise ConfigError(f"no step of these runs has a field {name!r}", code="DX105", fix=fix)


def _names(one: Happening) -> Iterator[str]:
    """The fields by which a step is compared."""
    for step in one.attempts:
        yield from (
            "lm",
            "program",
            "error",
            "in",
            "data",
            *(f"in.{name}" for name in step.inputs or ()),
            *(step.outputs or ()),
        )
    yield from ("data", *(one.data if isinstance(one.data, Mapping) and not one.attempts else ()))
    yield from ("error.type", "error.message") if one.error is not None else ()


def _main(one: Happening) -> Any:
    """What a step is about, where the other run has not got it."""
    if one.kind == "call":
        return one.attempts[-1].outputs if one.attempts[-1].outputs is not None else one.data
    return one.error if one.error is not None else one.data


def _fields(step: str, a: Happening, b: Happening) -> Iterator[StepDiff]:
    if a.kind == "call" and b.kind == "call":
        x, y = a.attempts[-1], b.attempts[-1]
        asked = [list(_values(step, "in.", i.inputs, j.inputs)) for i, j in zip(a.attempts, b.attempts)]
        yield from next(
            filter(None, asked), []
        )  # of the first attempt that was asked something else: all are mostly asked the same
        for name in ("lm", "program", "error"):
            if getattr(x, name) != getattr(y, name):
                yield StepDiff(step, name, getattr(x, name), getattr(y, name))
        yield from _values(step, "", x.outputs, y.outputs)
        return
    yield from _values(step, "", a.data, b.data)
    if a.error is not None or b.error is not None:
        yield from _values(step, "error.", _error(a), _error(b))


def _error(one: Happening) -> Mapping[str, Any]:
    return {name: (one.error or {}).get(name) for name in ("type", "message")}


def _values(step: str, before: str, a: Any, b: Any) -> Iterator[StepDiff]:
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        for name in dict.fromkeys((*a, *b)):
            x, y = a.get(name, NOTHING), b.get(name, NOTHING)
            if not same(x, y):
                yield StepDiff(step, f"{before}{name}", x, y)
    elif not same(a, b):
        yield StepDiff(step, before.rstrip(".") or "data", a, b)


@dataclass(frozen=True)
class Replay:
    """What came of doing a run again.

    Attributes:
        same: nothing differs. runs: how many were replayed. served: calls that were answered from what was recorded.
        live, tokens: calls that were made, and what they have cost: none.
        diverged: the first difference. diff: all of them, with the tokens and the cost of all runs, then and now.
        cost: of the calls that were made, in USD, as far as prices are known.
        without: why it began without the state of then; "" where it had that, or no operator keeps anything.
        builds: what is another one than then: name → (then, now). secrets: fields whose values the file has not got.
        running: runs that are not over, and were left out. incomplete: of several, the files or runs that cannot be done
            again, since what was recorded is damaged or missing, with why. Nobody knows what differs there: it is not `same`.
    """

    same: bool
    runs: int
    served: int
    live: int
    tokens: int
    diverged: StepDiff | None
    diff: Diff
    without: str = ""
    cost: float = 0.0
    builds: Mapping[str, tuple[str, str]] = field(default_factory=dict[str, tuple[str, str]])
    secrets: frozenset[str] = frozenset()
    running: tuple[str, ...] = ()
    incomplete: Mapping[str, DspexError] = field(default_factory=dict[str, DspexError])

    def __str__(self) -> str:
        return "\n".join([*self.undone(), *self.diff.lines()])

    def undone(self) -> Iterator[str]:
        """What cannot be done again, and why, for people."""
        yield from undone(self.incomplete)


# -- for people ------------------------------------------------------------------------------------------------------------
def _spent(info: RunInfo) -> str:
    used: Usage = info.usage
    price = "" if used.cost is None else f"  ${used.cost:.4f}"
    return f"{info.calls:,} call{'' if info.calls == 1 else 's'}  {used.input_tokens + used.output_tokens:,} tokens{price}"


def _list(steps: Sequence[str]) -> str:
    return ", ".join(steps) if len(steps) <= 6 else f"{', '.join(steps[:5])}, and {len(steps) - 5} more"
