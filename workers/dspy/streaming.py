"""What the models of a DSPy program write, while they write it: DSPy hands the pieces on, and dspex splits them into fields.

DSPy's own listeners (`dspy.streamify`) are not used: an answer of nine tool calls stops their event loop for ever, two calls of
one program get each other's pieces, and copies of a predictor stream nothing. The splitter is the one of native calls.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterable, Mapping
from typing import Any, Final

import dspy
from dspy.utils.callback import BaseCallback

from dspex.operators.native.adapters import Adapter
from dspex.operators.native.replies.streaming import FieldText, Splitter
from dspex.workers.answerers.attempt import Attempt
from dspex.workers.answerers.context import context
from dspex.workers.dspy.threads import streams

_ADAPTERS: Final[Mapping[str, Adapter]] = {"ChatAdapter": "chat", "JSONAdapter": "json", "XMLAdapter": "xml"}
_DEEP: Final = 8  # frames between DSPy's question and the method that asks it
_Reply = tuple[object, int, object]  # who reads it, for which predictor, and the server's id of it, if it has one


class Writing:
    """Tells of the outputs `names` of one call, whichever predictor of its program writes them.

    The pieces of an output are those of one reply, the first that has it: a program may ask for it again, and what it makes of
    the replies is its own. It is what DSPy calls a stream, and the listener of it too.
    """

    def __init__(self, attempt: Attempt, names: Iterable[str]) -> None:
        self._attempt = attempt
        self._left = set(names)  # those that no reply has begun
        self._replies: dict[_Reply, _Splitting] = {}
        self.predict = self  # DSPy compares it with each predictor that is about to ask: see __eq__

    def settings(self) -> dict[str, Any]:
        """For `dspy.context`."""
        return {
            "send_stream": self,
            "stream_listeners": [self],
            "callbacks": [*(dspy.settings.get("callbacks") or ()), _Tools()],
        }

    def __eq__(self, predictor: object) -> bool:
        """Whether the pieces of its next reply are wanted, and can be had where it runs: in a coroutine, or in a thread whose
        models are asked on the loop. Anywhere else DSPy would fail, as where synchronous code keeps the loop busy.
        """
        signature = getattr(predictor, "signature", None)
        fields = getattr(signature, "output_fields", {})
        wanted = type(dspy.settings.adapter).__name__ in _ADAPTERS and not self._left.isdisjoint(fields)
        return wanted and (_in_coroutine() or streams(getattr(predictor, "lm", None) or dspy.settings.lm))

    __hash__ = object.__hash__

    async def send(self, chunk: Any) -> None:
        """A piece of a reply. DSPy calls it on the loop, in the context of who asks."""
        predictor, choice = dspy.settings.caller_predict, _first(chunk)
        if predictor is None or choice is None:
            return
        reply = (asyncio.current_task(), id(predictor), getattr(chunk, "id", None))
        if reply not in self._replies:
            names = self._left.intersection(predictor.signature.output_fields)
            self._replies[reply] = _Splitting(names, _ADAPTERS.get(type(dspy.settings.adapter).__name__, "chat"))
        splitting = self._replies[reply]
        text = getattr(getattr(choice, "delta", None), "content", None)
        if isinstance(text, str):
            self._tell(splitting, splitting.splitter.feed(text))
        if getattr(choice, "finish_reason", None):
            self._tell(splitting, splitting.splitter.finish())
            del self._replies[reply]

    def _tell(self, splitting: _Splitting, pieces: Iterable[FieldText]) -> None:
        for name, text in pieces:
            if name in self._left:
                self._left.discard(name)
                splitting.its.add(name)
            if name in splitting.its:
                self._attempt.write(name, text)


class _Splitting:
    """A reply that is being read. `its`: the outputs whose pieces are this reply's."""

    def __init__(self, names: Iterable[str], adapter: Adapter) -> None:
        self.splitter = Splitter(names, adapter)
        self.its: set[str] = set()


class _Tools(BaseCallback):  # type: ignore[misc]  # DSPy has no types
    """Says which tool an agent calls."""

    def on_tool_start(self, call_id: str, instance: Any, inputs: Mapping[str, Any]) -> None:
        if instance.name != "finish":  # the agent's own, which calls nothing
            context().status(f"calling {instance.name}")


def _first(chunk: Any) -> Any:
    choices = getattr(chunk, "choices", None)
    return choices[0] if isinstance(choices, list) and choices else None


def _in_coroutine() -> bool:
    """Whether a predictor asks from its `aforward`."""
    frame = inspect.currentframe()
    for _ in range(_DEEP):
        if frame is None or frame.f_code.co_name == "forward":
            return False
        if frame.f_code.co_name == "aforward":
            return True
        frame = frame.f_back
    return False
