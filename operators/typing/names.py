"""The names of types that users write in their annotations."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

from typing_extensions import TypeVar

from dspex.bus.codecs import Codec as Codec
from dspex.operators.native.adapters import Adapter as Adapter

Record: TypeAlias = dict[str, Any]
"""Data without a declared type."""

T_co = TypeVar("T_co", covariant=True)
K_co = TypeVar("K_co", covariant=True, default=None)
V = TypeVar("V", default=Record)
"""What `into=` names; a Record where it is left out."""

Route: TypeAlias = Literal["auto", "worker", "native"]
OnError: TypeAlias = Literal["dead_letter", "skip"]
Order: TypeAlias = Literal["any", "key"]
Name: TypeAlias = str | None
