"""The three adapters by name: how a signature and its data become messages, and how a reply becomes fields.

Each is written after DSPy's adapter of the same name and gives the same bytes and the same values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from dspex.operators.native.suggestions import did_you_mean, problem

if TYPE_CHECKING:
    from dspex.operators.native.signature import Signature

Adapter: TypeAlias = Literal["chat", "json", "xml"]
ADAPTERS: tuple[Adapter, ...] = ("chat", "json", "xml")


def messages(
    signature: Signature,
    data: Mapping[str, Any],
    *,
    adapter: Adapter = "chat",
    demos: Sequence[Mapping[str, Any]] = (),
    version: str | None = None,
) -> list[dict[str, Any]]:
    """What DSPy would send: a system message, two for each demo, and the request.

    Args:
        data: inputs by name; one that is missing is left out, as are names that the signature does not have.
        demos: examples with inputs and outputs; one that lacks some is marked as incomplete, and comes first.
        version: of DSPy, "3.4"; None: the newest that is known.

    Raises TopologyError (DX205, DX210) for an unknown adapter or version, and for types that cannot be put into a prompt;
    InvalidInput for a value that cannot, or that holds DSPy's marker for content of other kinds.
    """
    return _module("prompts.", adapter).messages(signature, data, demos, version)  # type: ignore[no-any-return]


def parse(signature: Signature, text: str, *, adapter: Adapter = "chat") -> dict[str, Any]:
    """The outputs in a model's reply, see `Signature.parse`."""
    return signature.parsers[adapter](text)


class Parsers(dict[str, Callable[[str], dict[str, Any]]]):
    """The parsers of one signature by adapter, each made when it is first used: a reply pays a look-up and no more."""

    def __init__(self, signature: Signature) -> None:
        super().__init__()
        self._signature = signature

    def __missing__(self, adapter: str) -> Callable[[str], dict[str, Any]]:
        made: Callable[[str], dict[str, Any]] = _module("replies.parse_", adapter).parser(self._signature)
        return self.setdefault(adapter, made)


@lru_cache(maxsize=8)
def _module(where: str, adapter: str) -> Any:
    if adapter not in ADAPTERS:
        raise problem("DX205", f"there is no adapter {adapter!r}", did_you_mean(str(adapter), ADAPTERS))
    return import_module(f".{where}{adapter}", __package__)
