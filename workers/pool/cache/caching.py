"""The step that gives an equal call the answer of an earlier one: from memory, else from the application's bucket.

Equal are calls of one program in one version, with the same inputs, profiles, adapter and parameters, for the same tenant. Only
that: two questions that look alike can mean the opposite, whatever measure says how alike they are.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from functools import lru_cache
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from dspex.bus import codecs
from dspex.bus.records import CallRecord, CallRequest, Usage
from dspex.bus.serving.call_spec import CallSpec
from dspex.workers.answer import Answer
from dspex.workers.config import PoolConfig
from dspex.workers.pool.cache.kept import CachedAnswer, KeptAnswers
from dspex.workers.pool.cache.shared import SharedAnswers

if TYPE_CHECKING:
    from dspex.workers.pool.execution import Execution

BY_SPEC: Final = frozenset({"predict", "chain_of_thought"})  # kinds whose version the spec tells: no code of users is in them
VERSIONS: Final = 256  # of programs, that are remembered
LOST: Final = ("Cancelled", "WorkerLost")  # ends of a call that say nothing of what it asks
_SIZE: Final = 16  # bytes of a digest


class _Leader(NamedTuple):
    """A call that equal ones wait for. `answer`: what they get; None: they are made, each by itself; "lost": one of them is
    made, and the others wait for that.
    """

    execution: Execution
    answer: asyncio.Future[CachedAnswer | Literal["lost"] | None]


class Caching:
    """The cache of one process of a pool.

    Args:
        version: of DSPy, whose prompts are followed. generation: which imports all children have; None while they differ.
        sealed: payloads are, so that what belongs to a session can be forgotten: its answers are given to nobody else then, and
            are kept in the bucket alone, where they are sealed.

    Attributes:
        hits, misses: of calls that may be answered from it.
    """

    def __init__(
        self,
        config: PoolConfig,
        shared: SharedAnswers,
        version: Callable[[], str],
        generation: Callable[[], int | None],
        *,
        sealed: bool,
    ) -> None:
        self._config, self._shared, self._version, self._sealed = config, shared, version, sealed
        self._generation = generation
        self._loop = asyncio.get_running_loop()
        self.kept = KeptAnswers()
        self.hits = self.misses = 0
        self._versions: dict[bytes, tuple[int, str]] = {}  # by spec: the program as the last record named it, and when that was
        self._asking: dict[Execution, bytes] = {}  # calls that are being made, with what is equal but for the version
        self._leaders: dict[bytes, _Leader] = {}  # of these, those that others wait for
        self._profiles = lru_cache(256)(self._digest_of_profiles)

    # -- before
    def before(self, execution: Execution) -> Answer | Coroutine[Any, Any, Answer | None] | None:
        """The answer where it is in memory. Else the bucket is asked, or the call waits for an equal one that is being made."""
        work = execution.work
        if not work.spec.cache or work.spec.route == "worker" or work.spec.effect or work.describe or work.kept:
            return None
        equal = self._equal(execution)
        key = self._key(work.spec, equal)
        if key is not None and self._session(work) is None:
            found = self.kept.get(key, self._loop.time() - work.spec.cache)
            if found is not None:
                return self._answer(found)
        self._asking[execution] = equal
        if execution.batch:  # a call of a batch takes a day, and no equal one waits so long for it
            return self._look(execution, equal, key)
        if (leader := self._leaders.get(equal)) is not None:
            return self._follow(execution, equal, leader)
        self._lead(execution, equal)
        return self._look(execution, equal, key)

    async def _look(self, execution: Execution, equal: bytes, key: bytes | None) -> Answer | None:
        """The answer in the bucket, if it is there."""
        work, found = execution.work, None
        try:
            if key is None or work.spec.secrets:
                return None
            if (shared := await self._shared.get(key, work.spec.cache, self._session(work))) is not None:
                found = shared[0]._replace(at=self._loop.time() - shared[1])
                if self._session(work) is None:
                    self.kept.put(key, found)
                return self._answer(found)
            return None
        finally:
            if found is not None:
                self._tell(execution, found)

    def _lead(self, execution: Execution, equal: bytes) -> None:
        self._leaders[equal] = _Leader(execution, self._loop.create_future())

    async def _follow(self, execution: Execution, equal: bytes, leader: _Leader) -> Answer | None:
        """The answer that an equal call gets. Where that gets none, this one is made: what ended that one need not end this."""
        while True:
            await asyncio.wait([leader.answer], timeout=max(0.0, execution.until - self._loop.time()))
            found = leader.answer.result() if leader.answer.done() else None
            if found is None:
                return None
            if found != "lost":
                self._asking.pop(execution, None)
                return self._answer(found)
            if (following := self._leaders.get(equal)) is None:
                self._lead(execution, equal)
                return None
            leader = following

    def _answer(self, found: CachedAnswer) -> Answer:
        self.hits += 1
        return Answer(
            time.time(),
            outputs=found.outputs,
            route="cache",
            lm=found.lm,
            program=found.program,
            dspy_version=found.dspy_version,
            usage=_NOTHING,
            cached_from=found.call,
            warning=found.warning,
        )

    # -- after
    def after(self, execution: Execution, record: CallRecord) -> None:
        """Keep an answer that is right, and give it to those who wait for it. An error is never kept."""
        equal = self._asking.get(execution)
        if equal is None:
            return
        self.misses += 1
        work, found = execution.work, None
        if record.error is None and record.outputs is not None and record.cached_from == "":
            self._learn(work.spec, record)
            size = len(codecs.msgpack_bytes(record.outputs))
            now = self._loop.time()
            found = CachedAnswer(
                record.outputs, record.lm, record.program, record.dspy_version, record.call, now, size, record.warning
            )
            key = _digest(equal, work.spec.program if work.spec.kind in BY_SPEC else record.program)
            if self._session(work) is None:  # else it would outlive its session here, when that is forgotten
                self.kept.put(key, found)
            if not work.spec.secrets:  # its key is made of the inputs, and would confirm a guess
                self._shared.put(key, work.spec.cache, self._session(work), found)
        self._tell(execution, "lost" if (record.error or {}).get("type") in LOST else found)

    def _tell(self, execution: Execution, found: CachedAnswer | Literal["lost"] | None) -> None:
        """The end of an execution that others may wait for."""
        equal = self._asking.pop(execution)
        if (leader := self._leaders.get(equal)) is not None and leader.execution is execution:
            del self._leaders[equal]
            leader.answer.set_result(found)

    def figures(self) -> dict[str, int]:
        """What `status` shows."""
        return {"answers": len(self.kept), "bytes": self.kept.bytes, "hits": self.hits, "misses": self.misses}

    async def drain(self, seconds: float) -> None:
        """Have shared what is on its way, within so many seconds."""
        await self._shared.drain(seconds)

    # -- what is equal
    def _learn(self, spec: CallSpec, record: CallRecord) -> None:
        """The version of a program is known when it has run here: it has the digest of its code. While some children have older
        code than others, it is not.
        """
        if spec.kind not in BY_SPEC and (generation := self._generation()) is not None:
            if spec.identity not in self._versions and len(self._versions) >= VERSIONS:
                del self._versions[next(iter(self._versions))]
            self._versions[spec.identity] = generation, record.program

    def _key(self, spec: CallSpec, equal: bytes) -> bytes | None:
        """What an answer is kept by; None where the version of the program is not known: a restart may have brought another."""
        if spec.kind in BY_SPEC:
            return _digest(equal, spec.program)
        generation, version = self._versions.get(spec.identity, (None, ""))
        return None if generation is None or generation != self._generation() else _digest(equal, version)

    def _equal(self, execution: Execution) -> bytes:
        work, state = execution.work, execution.state.tag.digest if execution.state is not None else ""
        spec = work.spec
        inputs = codecs.msgpack_bytes(dict(sorted(work.inputs.items())))
        whose = repr((work.tenant, self._session(work), self._version(), state)).encode()
        return blake2b(spec.identity + self._profiles(spec.lm) + whose + inputs, digest_size=_SIZE).digest()

    def _session(self, work: CallRequest) -> str | None:
        return work.session if self._sealed else None

    def _digest_of_profiles(self, lms: tuple[str, ...]) -> bytes:
        """Of what the profiles are, so that another model behind the same name answers for itself."""
        default = self._config.default_profile()
        names = lms or ((default.name,) if default else ())
        known = [p for name in names if (p := self._config.profiles.get(name)) is not None]
        found = [[p.name, p.model, p.base_url, p.adapter, dict(p.params)] for p in known]
        return blake2b(codecs.msgpack_bytes(found), digest_size=_SIZE).digest()


def _digest(equal: bytes, version: str) -> bytes:
    return blake2b(equal + version.encode(), digest_size=_SIZE).digest()


_NOTHING = Usage(cost=0.0)
