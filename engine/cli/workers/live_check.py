"""`dspex check --live`: do the workers that run have what a topology calls: its pools, programs, functions and models?

A ref that can be imported here may be missing where a worker runs, and so may the key of a model: only a worker can tell.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Final, Literal

from dspex.bus.errors import DspexError, InvalidOutput, Problem
from dspex.bus.serving.call_spec import CallSpec
from dspex.engine.client.call import ask
from dspex.engine.client.resolve import Resolved
from dspex.engine.client.status import programs

if TYPE_CHECKING:
    from dspex.engine.client.client import Client
    from dspex.engine.client.status.programs import ProgramInfo
    from dspex.engine.graph.nodes import CallNode

WITHIN: Final = 60.0  # seconds for an answer: a local model may have to be started
AT_ONCE: Final = 4  # questions: the workers have other things to do
OTHER_DSPY: Final = "DX324"
_SAVE_AGAIN: Final = "save it again under the version that loads it: dspex programs put NAME FILE"
_SIGNATURE: Final = "question -> answer"
_QUESTION: Final = {"question": "Is this a question? Answer with one word."}


class LiveCheck:
    """What workers answer about the calls of topologies. Each question is asked once, however many nodes have it.

    Attributes:
        pools, models: what has answered.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._described: dict[tuple[str, bytes], ProgramInfo | DspexError] = {}
        self._answered: dict[tuple[str, str], DspexError | None] = {}
        self._room = asyncio.Semaphore(AT_ONCE)
        self.pools: set[str] = set()
        self.models: set[str] = set()

    async def problems(self, topology: str, calls: Sequence[CallNode]) -> Sequence[Problem]:
        """What the workers lack of a topology, in the order of its nodes."""
        specs = {(node.call.pool, node.call.spec.packed): node.call.spec for node in calls}
        await asyncio.gather(*(self._describe(asked, spec) for asked, spec in specs.items() if asked not in self._described))
        models = {(node.call.pool, lm) for node in calls for lm in self._models(node)}
        await asyncio.gather(*(self._ask(asked) for asked in sorted(models) if asked not in self._answered))
        return [problem for node in calls for problem in self._of_node(topology, node)]

    def _of_node(self, topology: str, node: CallNode) -> Iterator[Problem]:
        pool, said = node.call.pool, self._described[node.call.pool, node.call.spec.packed]
        if isinstance(said, DspexError):
            yield _problem(topology, node, said.code, "error", said.message, said.fix)
        elif said.warning:
            yield _problem(topology, node, OTHER_DSPY, "warning", said.warning, _SAVE_AGAIN)
        for lm in self._models(node):
            if (error := self._answered[pool, lm]) is not None:
                what = f"language model {lm!r}, asked by pool {pool}: {error.message}"
                yield _problem(topology, node, error.code, "error", what, error.fix)

    def _models(self, node: CallNode) -> Iterable[str]:
        """The profiles that a node may ask. A function without predictors may need none."""
        said = self._described[node.call.pool, node.call.spec.packed]
        if isinstance(said, DspexError):
            return ()
        return node.call.spec.lm or (said.lms if said.predictors else ())

    async def _describe(self, asked: tuple[str, bytes], spec: CallSpec) -> None:
        """Note what a worker says of what is called; the error where it does not have it, or where there is none."""
        try:
            async with self._room:
                what = Resolved[object](spec, asked[0])
                self._described[asked] = await programs.describe(self._client.bus, self._client.app, what, WITHIN)
            self.pools.add(asked[0])
        except DspexError as error:
            self._described[asked] = error

    async def _ask(self, asked: tuple[str, str]) -> None:
        """Note why a language model does not answer the workers of a pool; None where it does, whatever it says."""
        pool, lm = asked
        what = Resolved[object](CallSpec("predict", _SIGNATURE, _SIGNATURE, lm=(lm,)), pool)
        try:
            async with self._room:
                await ask(self._client.bus, self._client.app, what, dict(_QUESTION), timeout=WITHIN)
        except InvalidOutput:  # a small model need not be able to answer as it is told to
            pass
        except DspexError as error:
            self._answered[asked] = error
            return
        self._answered[asked] = None
        self.models.add(lm)


def _problem(topology: str, node: CallNode, code: str, level: Literal["error", "warning"], message: str, fix: str) -> Problem:
    file, line = node.place or (None, None)
    return Problem(code, level, topology, node.name, file, line, message, fix)
