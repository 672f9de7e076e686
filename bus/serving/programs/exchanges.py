"""What the models and tools of a call were asked and said, as its record keeps it. Only who looks at a run reads it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, Literal, NamedTuple

from typing_extensions import TypedDict  # pydantic checks it, and takes no other one before Python 3.12

from dspex.bus import codecs
from dspex.bus.codecs.checking import checked
from dspex.bus.errors import DecodeError, InvalidInput


class Exchange(NamedTuple):
    """A request of a call, and its answer.

    Attributes:
        name: the profile that was asked, or the tool.
        asked: messages and named parameters of a model's request, the arguments of a tool; None where the inputs of the call
            tell it, or where it was too much to be kept.
        said: the reply of a model, unchanged: its text, where that is all it is; what a tool gave.
        usage: what it cost, by the names of Usage, without what is nothing. seconds: that it took.
        journaled: an earlier attempt has made it.
    """

    kind: Literal["model", "tool"]
    name: str
    asked: Any = None
    said: Any = None
    usage: Mapping[str, Any] = {}
    seconds: float = 0.0
    journaled: bool = False


_NOTHING: Final[tuple[Any, ...]] = (None, {}, 0.0)  # is not stored


class Exchanges:
    """Those of one attempt, in the order in which they ended. `most`: bytes of them; of others it is counted how many.

    `hide`: takes out what is not to be kept; None: nothing.
    """

    def __init__(self, most: int, hide: Callable[[Any], Any] | None = None) -> None:
        self._most, self._left, self._left_out, self._hide = most, most, 0, hide
        self._kept: list[bytes] = []

    def anew(self) -> Exchanges:
        """As it was at first."""
        return Exchanges(self._most, self._hide)

    def add(self, one: Exchange) -> None:
        """Keep one; without what was asked where there is no room for that."""
        if not self._most:
            return
        if self._hide is not None:
            one = one._replace(asked=self._hide(one.asked), said=self._hide(one.said))
        for form in (one, one._replace(asked=None)):
            try:
                packed = codecs.msgpack_bytes({name: value for name, value in form._asdict().items() if value not in _NOTHING})
            except InvalidInput:  # what a tool gave is no plain data
                break
            if len(packed) <= self._left:
                self._kept.append(packed)
                self._left -= len(packed)
                return
        self._left_out += 1

    def packed(self) -> bytes:
        """As `read_exchanges` takes it; b"" for none."""
        return codecs.msgpack_bytes({"left_out": self._left_out, "kept": self._kept}) if self._kept or self._left_out else b""


class _Packed(TypedDict):
    left_out: int
    kept: list[bytes]


class KeptExchanges(NamedTuple):
    """What a record has of them. `left_out`: how many more there were."""

    left_out: int = 0
    exchanges: tuple[Exchange, ...] = ()


def read_exchanges(packed: bytes) -> KeptExchanges:
    """What `packed` gave. Raises DecodeError."""
    if not packed:
        return KeptExchanges()
    found: _Packed = checked(_Packed, "the exchanges of a call", codecs.decode(packed, codecs.MSGPACK))
    if found["left_out"] < 0:
        raise DecodeError("the exchanges of a call cannot be fewer than none")
    return KeptExchanges(found["left_out"], tuple(map(_read, found["kept"])))


def _read(packed: bytes) -> Exchange:
    found: Exchange = checked(Exchange, "an exchange of a call", codecs.decode(packed, codecs.MSGPACK))
    return found
