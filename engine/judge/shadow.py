"""A shadow: runs that end now are done again with a candidate, a sample of them, and compared. No engine waits for it."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator, Collection, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Final, NamedTuple

from dspex.bus import subjects
from dspex.bus.errors import BusError, ConfigError, DspexError, RunNotFound, TopologyError
from dspex.bus.message import id_time
from dspex.engine.again.code import builds_now
from dspex.engine.again.repeat import repeat
from dspex.engine.again.state import file_of
from dspex.engine.client.client import Client
from dspex.engine.client.following.follower import Follower
from dspex.engine.client.runs.diff import Diff, compare
from dspex.engine.client.runs.listing import latest
from dspex.engine.client.runs.then.builds import others
from dspex.engine.graph.graph import Graph
from dspex.engine.judge.evaluate import Bill

OVERLAP: Final = 5.0  # seconds of what was looked at that are looked at again: clocks of servers differ
MOST_WAITING: Final = 1000  # runs that have ended, and are not compared yet
_OTHER: Final = ("lm", "program")  # what a candidate may have another one of: what it answers counts
_TRIES: Final = 3
REST: Final = 9  # times as long as a look took until the next one: where runs take long, each look reads much


@dataclass(frozen=True)
class ShadowTerms:
    """What a shadow is to do.

    Attributes:
        share: of the runs, from 0 to 1; which ones, their ids say.
        fields: only these count; None: all. harmless: those that never do.
        budget: tokens after which it ends. at_once: runs that are done again together.
        every: seconds between two looks. patience: seconds after which a run that has not ended is left out.
    """

    share: float
    fields: Collection[str] | None = None
    harmless: Collection[str] = ()
    budget: int | None = None
    at_once: int = 1
    every: float = 1.0
    patience: float = 600.0


class Shadowed(NamedTuple):
    """One run of the sample. `diff`: what differs with the candidate; None: it was left out. `why`: then, why."""

    run: str
    diff: Diff | None
    why: str = ""
    called: int = 0
    tokens: int = 0
    cost: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """The `--json` object."""
        if self.diff is None:
            return {"kind": "skipped", "run": self.run, "why": self.why}
        said = self.diff.as_dict()
        found = {"same": self.diff.same, "first": said["first"], "steps": said["steps"]}
        return {"kind": "compared", "run": self.run, **found, "called": self.called, "tokens": self.tokens, "cost": self.cost}


@dataclass
class ShadowSoFar:
    """What a shadow has done.

    Attributes:
        seen: runs that began meanwhile. sampled: those it took. compared, differ: of these. skipped: why, and how often.
        waiting: those that it has taken, and has not compared yet.
        served, called, tokens, cost: calls that were read back and made, and what those have cost.
        stopped: why it ended by itself; "" where it did not. builds: what is another one than in the engines.
    """

    seen: int = 0
    sampled: int = 0
    compared: int = 0
    differ: int = 0
    waiting: int = 0
    served: int = 0
    called: int = 0
    tokens: int = 0
    cost: float = 0.0
    stopped: str = ""
    skipped: Counter[str] = field(default_factory=Counter[str])
    builds: dict[str, tuple[str, str]] = field(default_factory=dict[str, tuple[str, str]])

    def as_dict(self) -> dict[str, Any]:
        """The `--json` object."""
        return {"kind": "shadow", **vars(self), "skipped": dict(self.skipped)}


def in_sample(run: str, share: float) -> bool:
    """Whether a run is one of this share of all: the same ones in every process, and more of them with a larger share."""
    return int.from_bytes(blake2b(run.encode(), digest_size=8).digest()) < share * 2**64


class Shadow:
    """Follows the runs of a topology. `so_far` says what was done, whenever it is asked."""

    def __init__(self, client: Client, topology: str, graphs: Sequence[Graph], terms: ShadowTerms) -> None:
        self._client, self._topology, self._graphs, self._terms = client, topology, graphs, terms
        self.so_far = ShadowSoFar()
        self._bill = Bill(client, terms.budget)
        self._begin = self._since = 0.0
        self._known = dict[str, float]()  # runs that were seen, and when they began
        self._open = dict[str, float]()  # those of the sample that have not ended
        self._ended: deque[tuple[str, int]] = deque()  # those that have, and how often they were tried
        self.trouble = ""  # why it cannot look now; it goes on

    async def begin(self) -> None:
        """Runs that begin from now on are taken. Raises TopologyError (DX235) where the topology is not applied."""
        if self._topology not in (there := await self._client.manifests()):
            fix = f"there is: {', '.join(sorted(there)) or 'nothing'}"
            raise TopologyError(f"there is no topology {self._topology!r}", code="DX235", fix=fix)
        info = await self._client.bus.stream(subjects.stream(self._client.app))
        self._begin = self._since = info.now if info is not None else 0.0

    async def follow(self) -> AsyncIterator[Shadowed | None]:
        """Each run of the sample, once it is compared, or left out; None now and then. It ends where the budget is spent."""
        clock, due = asyncio.get_running_loop().time, 0.0
        while not self.so_far.stopped:
            if (began := clock()) >= due:
                try:
                    for one in await self._look():
                        yield one
                    self.trouble = ""
                except BusError as error:  # the connection comes back by itself
                    self.trouble = error.message
                due = clock() + max(self._terms.every, REST * (clock() - began))
                yield None
            some = [self._ended.popleft() for _ in range(min(self._terms.at_once, len(self._ended)))]
            for found in await asyncio.gather(*(self._compared(*one) for one in some)):
                yield found
            self._count()
            if not self._ended:
                await asyncio.sleep(max(0.0, due - clock()))

    def _count(self) -> None:
        now, bill = self.so_far, self._bill
        now.waiting = len(self._open) + len(self._ended)
        now.called, now.tokens, now.cost = bill.called, bill.tokens, bill.cost
        now.stopped = f"the budget of {bill.budget:,} tokens is spent" if bill.spent else ""

    async def _look(self) -> list[Shadowed]:
        """Take up the runs that began, and see which have ended; those that are left out."""
        client, terms = self._client, self._terms
        applied = await client.manifests()
        async for run in latest(client.bus, applied, self._topology, max(self._begin, self._since - OVERLAP)):
            if run not in self._known:
                began = id_time(run)
                self._known[run] = began.timestamp() if began is not None else self._since
                self.so_far.seen += 1
                if in_sample(run, terms.share):
                    self.so_far.sampled += 1
                    self._open[run] = self._known[run]
        self._since = max([self._since, *self._known.values()])
        self._known = {run: began for run, began in self._known.items() if began >= self._since - 2 * OVERLAP}
        if not self._open:
            return []
        follower = Follower(client.bus, client.app, applied, self._open)
        await follower.look()
        info = await client.bus.stream(subjects.stream(client.app))
        now, left = info.now if info is not None else 0.0, list[Shadowed]()
        for run, progress in follower.runs.items():
            if progress.done and len(self._ended) >= MOST_WAITING:
                left.append(self._skipped(run, "too many wait: more begin than are compared"))
            elif progress.done:
                self._ended.append((run, 0))
                del self._open[run]
            elif now - self._open[run] > terms.patience:
                left.append(self._skipped(run, f"it has not ended in {terms.patience:g} s"))
        return left

    def _skipped(self, run: str, why: str) -> Shadowed:
        self._open.pop(run, None)
        self.so_far.skipped[why] += 1
        return Shadowed(run, None, why)

    async def _compared(self, run: str, tried: int) -> Shadowed | None:
        """Do a run again, and compare; None where it is tried again later."""
        mine = self._bill.of_run()
        try:
            file = await file_of(self._client, self._client.run(run), self._graphs)
            again = await repeat(self._client, file, self._graphs, mode="hybrid", make=mine.make)
        except (BusError, RunNotFound) as error:
            if tried + 1 < _TRIES:
                self._ended.append((run, tried + 1))
                return None
            return self._skipped(run, error.message)
        except (ConfigError, TopologyError):
            raise
        except DspexError as error:
            return self._skipped(run, " ".join(error.message.split()))
        harmless = [*_OTHER, *self._terms.harmless]
        self.so_far.builds |= others(file.builds, builds_now(self._graphs))
        diff = compare(file.root, again.file.root, (file.info, again.file.info), self._terms.fields, harmless)
        now = self.so_far
        now.compared, now.differ, now.served = now.compared + 1, now.differ + (not diff.same), now.served + again.served
        return Shadowed(run, diff, "", **mine.paid)
