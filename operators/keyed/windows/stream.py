"""The stream of a window, as people write it: it gives nothing before it is said what."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Generic, TypedDict, TypeVar, cast

from dspex.bus.settings.duration import Duration
from dspex.operators.keyed.windows.options import LIMIT
from dspex.operators.keyed.windows.windowed import Windowed
from dspex.operators.plan import Unfinished
from dspex.operators.registry import operators
from dspex.operators.typing.names import OnError

if TYPE_CHECKING:
    from dspex.operators.stream import AnyStream, Stream

T = TypeVar("T")
S = TypeVar("S")


class WindowOptions(TypedDict, total=False):
    """What every window takes. docs/operators.md lists it."""

    lateness: Duration
    late: OnError


class WindowedStream(Generic[T]):
    """Windows over the events of each key; one of its four methods says what they give.

    A window gives its result once, when nothing can come into it any more.
    """

    __slots__ = ("_begun", "_main", "_operator", "_options", "_stream")

    def __init__(
        self, stream: AnyStream, operator: str, main: object, options: Mapping[str, object], begun: Unfinished
    ) -> None:
        self._stream, self._operator, self._main, self._options, self._begun = stream, operator, main, options, begun

    def _gives(self, name: str, **options: object) -> Any:
        self._begun.done = True
        given = {**self._options, **options}
        operator = operators()[self._operator]
        return self._stream._apply(operator, self._main, name, given)  # pyright: ignore[reportPrivateUsage]

    def count(self, *, name: str) -> Stream[Windowed[int], str]:
        """How many events there were."""
        return cast("Stream[Windowed[int], str]", self._gives(name, count={}))

    def collect(self, *, name: str, limit: int = LIMIT) -> Stream[Windowed[list[T]], str]:
        """A list of the events, by their times. An event beyond the `limit` is a dead letter."""
        more = {} if limit == LIMIT else {"limit": limit}
        return cast("Stream[Windowed[list[T]], str]", self._gives(name, collect={}, **more))

    def reduce(self, fn: Callable[[T, T], T], *, name: str) -> Stream[Windowed[T], str]:
        """One datum made of all, two by two. `fn` must not depend on their order: parts of a window are joined by it."""
        return cast("Stream[Windowed[T], str]", self._gives(name, reduce=fn))

    def aggregate(self, init: Callable[[], S], fold: Callable[[S, T], S], *, name: str) -> Stream[Windowed[S], str]:
        """A state that begins as `init()`, and becomes `fold(state, data)` with each event, in the order in which they come.

        That of a session is made when it ends, in the order of their times: its events are kept until then.
        """
        return cast("Stream[Windowed[S], str]", self._gives(name, aggregate=init, fold=fold))
