"""What is looked at without the values of secret fields, whatever names those have by now."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from dspex.bus import subjects
from dspex.bus.errors import RunNotFound
from dspex.bus.message import id_time
from dspex.bus.serving.keys.secret_fields import SECRET, Secrets, in_clear
from dspex.bus.subjects import SUBMITTED
from dspex.engine.client.following.many import histories
from dspex.engine.client.run import FULL_ID
from dspex.engine.client.runs.then import masking
from dspex.engine.client.runs.tree import Tree
from dspex.engine.graph.manifest import read
from dspex.engine.graph.submitted import NODE, secrets_in

if TYPE_CHECKING:
    from dspex.bus.message import Event
    from dspex.bus.port import Bucket
    from dspex.bus.serving.programs.form import ProgramState
    from dspex.engine.client.client import Client
    from dspex.engine.client.letters import DeadLetter
    from dspex.engine.client.runs.steps import Step
    from dspex.engine.client.status.approvals import Approval
    from dspex.engine.client.status.programs import PredictorInfo
    from dspex.engine.client.status.sessions import Turn
    from dspex.engine.client.status.state import KeyState
    from dspex.engine.graph.manifest import Manifest

_TOGETHER: Final = 100  # letters whose runs are read in one pass
_KEPT: Final = 100  # runs of which it is remembered what they have that is secret
_WITHOUT_DATA: Final = ("cron", "dedupe")  # operators that keep times, and nothing of what events have
WINDOWS: Final = ("window", "session_window")


async def secrets_of(c: Client) -> Secrets:
    """What is secret in the topologies of an application. Nothing for who has no key: it is stored nowhere in clear text."""
    return Secrets(()) if in_clear(c.bus) else _marked(await c.manifests())


async def marked_in(c: Client) -> Secrets:
    """The same, also for who has no key: of what dspex has not stored, and may have been written by people."""
    return _marked(await c.manifests())


def _marked(applied: Mapping[str, Manifest]) -> Secrets:
    return Secrets(frozenset[str]().union(*(one.secrets for one in applied.values())))


async def in_run(c: Client, secrets: Secrets, run: str) -> Secrets:
    """The same, with what a run has that is secret: what comes of it may quote that. `run`: its full id."""
    return (await _in_run(c, secrets, run))[0]


async def _in_run(c: Client, secrets: Secrets, run: str) -> tuple[Secrets, bool]:
    """The same; and whether nothing comes to it any more."""
    if not _is_id(run):
        return secrets, True
    try:
        if (file := await c.run(run).kept()) is not None:
            return secrets | masking.secrets_of(file.root), True
        past, applied = await c.run(run).history()
    except RunNotFound:  # nothing reads what was published, or it is told no more
        return secrets, False
    return secrets | masking.secrets_of(Tree(past, applied).root), past.done


def _is_id(run: str) -> bool:
    """Whether a run may be there that has this id: whoever publishes may name what they like."""
    return len(run) >= FULL_ID and run.isprintable() and id_time(run) is not None


class HiddenEvents:
    """Shows events, and what operators keep of them. The history of a run is read only where a topology with secret fields may
    have had a hand in the event, or reads what comes of it, and only once where nothing comes to it any more.

    `bucket`: of what is applied, where that is looked at anew for each event: a topology may come that marks more.
    """

    def __init__(self, c: Client, applied: Mapping[str, Manifest], bucket: Bucket | None = None, revision: int = 0) -> None:
        self._client, self._bucket, self._revision = c, bucket, revision
        self._know(applied)

    def _know(self, applied: Mapping[str, Manifest]) -> None:
        self._applied = applied
        self.secrets = Secrets(()) if in_clear(self._client.bus) else _marked(applied)
        self._ways, self._runs = dict[str, bool](), dict[str, Secrets]()

    @classmethod
    async def of(cls, c: Client) -> HiddenEvents:
        """Those of an application. Raises NotAllowed where it may not be read what is applied."""
        if in_clear(c.bus) or not await c.bus.has("bucket", subjects.applied(c.app)):
            return cls(c, await c.manifests())
        bucket = await c.bus.bucket(subjects.applied(c.app))
        revision = await bucket.revision()  # asked first: what is applied meanwhile is read again
        return cls(c, await read(bucket), bucket, revision)

    async def _look(self) -> None:
        """Read what is applied now, where that has changed."""
        if self._bucket is not None and (revision := await self._bucket.revision()) != self._revision:
            self._know(await read(self._bucket))
            self._revision = revision

    async def shown(self, one: Event[Any]) -> Event[Any]:
        """An event as it is shown."""
        await self._look()
        quotes = one.subject == f"{SUBMITTED}/{NODE}" or (bool(self.secrets) and self._may_quote(one.subject))
        return replace(one, data=value(await self._of(one.run) if quotes else self.secrets, one.data))

    def state(self, one: KeyState) -> KeyState:
        """What an operator keeps, as it is shown: no row says which runs it comes from, so all of it may quote a secret."""
        if not self.keeps_secret(one.topology, one.node):
            return one._replace(value=value(self.secrets, one.value))
        if self._op(one.topology, one.node) in WINDOWS:
            return one._replace(value=[{**window, "value": SECRET} for window in one.value])
        return one._replace(value=SECRET)

    def keeps_secret(self, topology: str, node: str) -> bool:
        """Whether what an operator keeps may quote a secret under another name."""
        if not self.secrets or self._op(topology, node) in _WITHOUT_DATA:
            return False
        counts = topology in self._applied and self._applied[topology].states.get(node, "").endswith(" count")
        return not counts and self._may_quote(f"{topology}/{node}")

    def _op(self, topology: str, node: str) -> Any:
        """The word of an operator; None where it was deleted a moment ago."""
        return self._applied[topology].nodes.get(node, {}).get("op") if topology in self._applied else None

    async def _of(self, run: str) -> Secrets:
        """What is secret of a run."""
        if (known := self._runs.get(run)) is None:
            known, over = await _in_run(self._client, self.secrets, run)
            if over:
                self._runs[run] = known
            if len(self._runs) > _KEPT:
                del self._runs[next(iter(self._runs))]
        return known

    def _may_quote(self, subject: str) -> bool:
        """Whether what is stored there may quote a secret that is not in it. `subject`: of an event, or topology/node."""
        if (known := self._ways.get(subject)) is None:
            topology, _, node = subject.partition("/")
            by = [topology] if node else [n for n, one in self._applied.items() if _any(one.sinks, [subject])]
            by += [] if node else [n for n, one in self._applied.items() if _any(one.subjects, [subject])]
            known = self._any_secret(by) if by else True  # who wrote it is not known: a letter, a record
            self._ways[subject] = known
        return known

    def _any_secret(self, topologies: Sequence[str]) -> bool:
        """Whether one of these topologies has secret fields, or one that their events may come from, or that reads these, or
        what comes of them, however far.
        """
        left, seen = list(topologies), set[str]()
        while left:
            name = left.pop()
            one = self._applied.get(name)
            if one is None or one.secrets:
                return True
            seen.add(name)
            left += [n for n, other in self._applied.items() if n not in seen and _meet(one, other)]
        return False


def _meet(one: Manifest, other: Manifest) -> bool:
    """Whether events may go from one topology to the other, or to both."""
    return _any(other.subjects, [*one.subjects, *one.sinks]) or _any(other.sinks, one.subjects)


def _any(patterns: Sequence[str], others: Sequence[str]) -> bool:
    """Whether something may be stored under one of each."""
    return any(subjects.overlap(a, b) for a in patterns for b in others)


def step(secrets: Secrets, one: Step) -> Step:
    """An attempt at a call, as it is shown."""
    names = ("inputs", "outputs", "error", "exchanges")
    known = learned(secrets, *(getattr(one, name) for name in names))
    return replace(one, **{name: known.masked(getattr(one, name)) for name in names})


def letter(secrets: Secrets, d: DeadLetter) -> DeadLetter:
    """A dead letter as it is shown."""
    known = learned(secrets, d.event.data)
    event = replace(d.event, data=known.hide(d.event.data))
    text = known.text
    return replace(d, event=event, message=text(d.message), fix=text(d.fix), traceback=text(d.traceback))


async def each_whole(c: Client, secrets: Secrets, letters: AsyncIterable[DeadLetter]) -> AsyncGenerator[DeadLetter]:
    """Letters as they are listed; the runs of some are read together. See `whole_letters`."""
    some: list[DeadLetter] = []
    async for one in letters:
        some.append(one)
        if len(some) == _TOGETHER:
            for shown in await whole_letters(c, secrets, some):
                yield shown
            some = []
    for shown in await whole_letters(c, secrets, some):
        yield shown


async def whole_letters(c: Client, secrets: Secrets, some: Sequence[DeadLetter]) -> list[DeadLetter]:
    """Letters as they are shown: an error may quote what its event has not got."""
    runs = {one.run for one in some if (secrets or one.topology == SUBMITTED) and _is_id(one.run)}
    applied = await c.manifests() if runs else {}
    past = await histories(c.bus, c.app, applied, sorted(runs), gone=True)
    known = {run: secrets | masking.secrets_of(Tree(one, applied).root) for run, one in past.items()}
    return [letter(known.get(one.run, secrets), one) for one in some]


def approval(secrets: Secrets, one: Approval) -> Approval:
    """What waits for a decision, as it is shown."""
    known = learned(secrets, one.event.data, one.shown)
    return replace(one, event=replace(one.event, data=known.hide(one.event.data)), shown=known.hide(one.shown))


def session(secrets: Secrets, data: dict[str, Any], turns: list[Turn]) -> tuple[dict[str, Any], list[Turn]]:
    """What was saved in a session, and its turns, as they are shown."""
    known = learned(secrets | Secrets(frozenset[str]().union(*(one.secrets for one in turns))), data)
    for one in turns:
        known = learned(known, one.inputs, one.outputs)
    told = [replace(one, inputs=known.masked(one.inputs), outputs=known.masked(one.outputs)) for one in turns]
    return known.masked(data), told


def predictor(secrets: Secrets, one: PredictorInfo) -> PredictorInfo:
    """A predictor as it is shown: its demonstrations may be what somebody was asked."""
    known = learned(secrets, one.demos)
    return replace(one, demos=known.masked(list(one.demos)), instructions=known.text(one.instructions))


def saved(secrets: Secrets, state: ProgramState) -> ProgramState:
    """The same of a saved state."""
    known, shown = learned(secrets, state.predictors), dict[str, Mapping[str, Any]]()
    for name, of in state.predictors.items():
        signature = {**of["signature"], "instructions": known.text(of["signature"]["instructions"])}
        shown[name] = {**of, "demos": known.masked(of["demos"]), "signature": signature}
    return state._replace(predictors=shown)


def value(secrets: Secrets, data: Any) -> Any:
    """Any data as it is shown."""
    return learned(secrets, data).hide(data)


def learned(secrets: Secrets, *data: Any) -> Secrets:
    """What is secret, with the values that some data have, and with the fields of a call that is submitted by them."""
    found = secrets | Secrets(frozenset[str]().union(*map(secrets_in, data)))
    for one in data:
        found.learn(one)
    return found
