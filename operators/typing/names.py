"""The names of types that users write in their annotations."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

from typing_extensions import TypeVar

from dspex.bus.codecs import Codec as Codec
from dspex.bus.records import Adapter as Adapter
from dspex.bus.records import Affinity as Affinity
from dspex.bus.records import OnError as OnError
from dspex.bus.records import Order as Order
from dspex.bus.records import Route as Route
from dspex.bus.serving.call_spec import CallLane as CallLane
from dspex.bus.serving.call_spec import Choice as Choice
from dspex.bus.serving.call_spec import Hedge as Hedge

Record: TypeAlias = dict[str, Any]
"""Data without a declared type."""

T_co = TypeVar("T_co", covariant=True)
K_co = TypeVar("K_co", covariant=True, default=None)
V = TypeVar("V", default=Record)
"""What `into=` names; a Record where it is left out."""

Extra: TypeAlias = Literal["drop", "keep", "refuse"]
"""What becomes of fields that a type does not name."""

Name: TypeAlias = str | None
