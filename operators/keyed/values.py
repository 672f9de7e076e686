"""What the state of operators is as bytes: Python values as they were, not as JSON would have them.

A value that would come back as something else (a tuple as a list, a set as a list, a subclass as its base) is either kept as
what it is, or refused by name. Equal values have equal bytes in every process, because replay compares them.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections import Counter, deque
from collections.abc import Callable
from decimal import Decimal
from enum import Enum
from functools import partial
from typing import Any, Final, cast, get_origin
from uuid import UUID

import msgpack

from dspex.bus.errors import DataError, InvalidInput
from dspex.operators.native.fields.types import is_model
from dspex.operators.native.problems import problem
from dspex.operators.typing.functions import function_name

_PACKED: Final[dict[type, tuple[int, Callable[[Any], object], Callable[[Any], Any]]]] = {
    tuple: (1, list, tuple),
    set: (2, lambda value: sorted(value, key=_bytes), set),
    frozenset: (3, lambda value: sorted(value, key=_bytes), frozenset),
    int: (4, str, int),  # of more than 64 bits
    dt.datetime: (
        5,
        lambda value: [value.isoformat(), value.fold],
        lambda raw: dt.datetime.fromisoformat(raw[0]).replace(fold=raw[1]),
    ),
    dt.date: (6, dt.date.isoformat, dt.date.fromisoformat),
    dt.time: (7, dt.time.isoformat, dt.time.fromisoformat),
    dt.timedelta: (8, lambda value: [value.days, value.seconds, value.microseconds], lambda raw: dt.timedelta(*raw)),
    Decimal: (9, str, Decimal),
    UUID: (10, str, UUID),
    Counter: (11, lambda value: list(value.items()), lambda raw: Counter(dict(map(tuple, raw)))),
    deque: (12, lambda value: [list(value), value.maxlen], lambda raw: deque(raw[0], raw[1])),
    complex: (13, lambda value: [value.real, value.imag], lambda raw: complex(*raw)),
}
_READ: Final = {code: read for code, _, read in _PACKED.values()}


class StateValues:
    """The values of one operator's state.

    `sample`: one of them, which has the type where that is a model or a dataclass; or `of`: the type itself, that of events,
    which a hop has made of plain data already.
    """

    def __init__(self, sample: object = None, *, of: object = None) -> None:
        known = get_origin(of) or of
        kind = known if isinstance(known, type) else type(sample)
        self._type, self._checks = kind if _is_typed(kind) else None, of is None
        self._adapter: Any = None
        if self._type is not None:
            from pydantic import TypeAdapter  # only who has such state waits for it

            self._adapter = TypeAdapter[Any](self._type)

    def pack(self, value: object) -> bytes:
        """The value as bytes. Raises InvalidInput for what it cannot keep."""
        if self._type is None or type(value) is not self._type:
            return _bytes(value)
        packed = _bytes({"": _plain(value)}, _field)
        if self._checks:
            self._check(value, packed)
        return packed

    def _check(self, value: object, packed: bytes) -> None:
        """Raise InvalidInput where a value would come back as another one, because its type does not write or read all of it:
        private attributes, fields with `exclude=True` or `init=False`, a subclass in the place of its base.
        """
        fix = "keep it in plain fields of the type, which are written and read; or keep a dict"
        try:
            again = self.unpack(packed)
        except DataError as e:
            raise InvalidInput(f"state cannot be kept: what is written of it cannot be read ({e.__cause__})", fix=fix) from e
        if again != value and _all_of(again) != _all_of(value):  # NaN is not equal to itself
            raise InvalidInput(f"state cannot be kept: {value!r} would come back as {again!r}"[:1000], fix=fix)

    def unpack(self, data: bytes) -> Any:
        """The value that `pack` wrote, new each time. Raises DataError where the type has changed since."""
        found = _value(data)
        if self._adapter is None or not isinstance(found, dict) or found.keys() != {""}:
            return found
        try:
            return self._adapter.validate_python(found[""], by_alias=False, by_name=True)
        except ValueError as e:  # pydantic's
            raise DataError(
                f"state that was kept is no {getattr(self._type, '__name__', self._type)} any more: {e}",
                code="DX513",
                fix="give the new fields defaults, or the operator another name= (it begins empty)",
            ) from e


def begun(init: Callable[[], Any]) -> Any:
    """What a state begins with. It is called while the topology is built, so that what is wrong is found before any event.

    Raises TopologyError (DX205) for whatever `init` raises.
    """
    try:
        return init()
    except Exception as e:  # the user's function, which may raise anything
        why = f"{function_name(init)}, which makes the state of a new key, raised {type(e).__name__}: {e}"
        raise problem("DX205", why, "correct it: it is called for each new key, and once when the topology is built") from e


def values_of(init: Callable[[], Any]) -> StateValues:
    """The values of a state that begins as `init()`. Raises TopologyError (DX205) where that fails, or cannot be kept."""
    values = StateValues(sample := begun(init))
    try:
        values.pack(sample)
    except InvalidInput as e:
        why = f"{function_name(init)} makes the state of a new key, and {e.message}"
        raise problem("DX205", why, f"{e.fix}; or begin with None") from e
    return values


def plain_value(data: bytes) -> Any:
    """What `pack` wrote, where the type of it is not here: of a model or a dataclass its fields."""
    found = _value(data)
    return found[""] if isinstance(found, dict) and found.keys() == {""} else found


def _is_typed(kind: type) -> bool:
    return is_model(kind) or dataclasses.is_dataclass(kind)


def _plain(value: Any) -> object:
    if is_model(type(value)):
        return value.model_dump(mode="python", round_trip=True, by_alias=False)
    return {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}


def _all_of(value: object) -> object:
    return repr(value), getattr(value, "__pydantic_private__", None)


def _field(value: Any) -> object:
    """A value within one whose type makes it again of plain data."""
    if isinstance(value, Enum):
        return value.value
    return _plain(value) if _is_typed(type(value)) else _packed(value)


def _bytes(value: object, default: Callable[[Any], object] | None = None) -> bytes:
    try:
        return cast("bytes", msgpack.packb(value, default=default or _packed, strict_types=True))
    except (TypeError, ValueError, OverflowError, RecursionError) as e:
        raise InvalidInput(
            f"state cannot be kept: {e}", fix="keep numbers, texts, lists, dicts, sets, times; or a model"
        ) from e


def _packed(value: object) -> msgpack.ExtType:
    kind = _PACKED.get(type(value))
    if kind is None:
        if _is_typed(type(value)):
            raise TypeError(f"a {type(value).__name__} within other values; make it the state itself, or keep its fields")
        raise TypeError(f"it holds a {type(value).__name__}")
    code, write, _ = kind
    return msgpack.ExtType(code, _bytes(write(value)))


def _read(code: int, data: bytes) -> Any:
    return _READ[code](_value(data))


_value: Callable[[bytes], Any] = partial(msgpack.unpackb, strict_map_key=False, ext_hook=_read)
