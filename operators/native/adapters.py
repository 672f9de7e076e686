"""The three adapters by name: how a signature and its data become messages, and how a reply becomes fields.

Each does what DSPy's adapter of the same name does, with the same bytes and the same values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeAlias

from dspex.bus.records import ADAPTERS as ADAPTERS
from dspex.bus.records import Adapter as Adapter
from dspex.operators.native.problems import did_you_mean, problem

if TYPE_CHECKING:
    from dspex.operators.native.prompts.chat import ChatPrompt
    from dspex.operators.native.signature import Signature

ChatMessage: TypeAlias = dict[str, str]  # {"role": …, "content": …}
Parser: TypeAlias = Callable[[str], dict[str, Any]]  # the text of a reply → its outputs


def messages(
    signature: Signature,
    data: Mapping[str, object],
    *,
    adapter: Adapter = "chat",
    demos: Sequence[Mapping[str, object]] = (),
    version: str | None = None,
) -> list[ChatMessage]:
    """The messages that DSPy would send: a system message, two for each demo, and the request.

    Args:
        data: inputs by name. A missing input is left out of the prompt, and so are names that the signature does not have.
        demos: examples with inputs and outputs. Those that lack a field are marked as incomplete and come first.
        version: the version of DSPy, "3.4"; None: the newest known one.

    Raises TopologyError (DX205, DX210) for an unknown adapter or version, and for a type that a prompt cannot show;
    InvalidInput for a value that a prompt cannot show, or that has DSPy's marker for images and files in it.
    """
    prompt: ChatPrompt = _module("prompts.", adapter).PROMPT.of(signature, version)
    return prompt.messages(data, demos)


class Parsers(dict[str, Parser]):
    """The parsers of one signature by adapter, each made when it is first used, so that a reply costs one look-up."""

    def __init__(self, signature: Signature) -> None:
        super().__init__()
        self._signature = signature

    def __missing__(self, adapter: str) -> Parser:
        made: Parser = _module("replies.parse_", adapter).parser(self._signature)
        return self.setdefault(adapter, made)


@lru_cache(maxsize=8)
def _module(where: str, adapter: str) -> ModuleType:
    if adapter not in ADAPTERS:
        raise problem("DX205", f"there is no adapter {adapter!r}", did_you_mean(str(adapter), ADAPTERS))
    return import_module(f".{where}{adapter}", __package__)
