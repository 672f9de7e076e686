"""What goes wrong on a bus on purpose, as a seed decides."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from random import Random
from typing import Any, Self, cast

from dspex.bus.errors import ConfigError
from dspex.bus.settings.duration import Duration, seconds
from dspex.bus.settings.similar import did_you_mean


@dataclass(frozen=True, kw_only=True)
class Faults:
    """What goes wrong on purpose: rates from 0 to 1, of what the bus is asked to do, and the longest delay.

    Attributes:
        crash: the testing driver's engine dies before or after one of its operations, as by SIGKILL, and is started again. It
            does dozens of them a second: 0.01 is a lot.
        duplicate: work is delivered once more, though it may be settled: as if its ack were lost.
        freeze: the testing driver's engine stands still until another one has taken over, and then goes on.
        disconnect: a call raises Unreachable and does nothing.
        delay: every call, and every delivery to a reader, comes up to this much later.
        unsettled: a write raises Unsettled, and has landed, lands within `LATE` seconds, or never does.

    Raises ConfigError (DX105, DX102) for what is no rate and no duration.
    """

    crash: float = 0.0
    duplicate: float = 0.0
    freeze: float = 0.0
    disconnect: float = 0.0
    delay: Duration = 0.0
    unsettled: float = 0.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            number: object = value
            if name == "delay":
                object.__setattr__(self, name, seconds(value))
            elif not isinstance(number, int | float) or isinstance(number, bool) or not 0 <= number <= 1:
                raise ConfigError(f"Faults({name}={value!r}): it is a rate", code="DX105", fix="a number from 0 to 1: 0.01")

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Self:
        """Faults by their names. Raises ConfigError (DX105) for a name that is none."""
        known = [f.name for f in fields(cls)]
        for name in given:
            if name not in known:
                raise ConfigError(f"there is no fault {name!r}", code="DX105", fix=did_you_mean(name, known))
        return cls(**given)


class Luck:
    """Decides by the seed which fault happens when. Draws nothing for a fault that is off."""

    def __init__(self, seed: int, faults: Faults) -> None:
        self.random = Random(seed)
        self.faults = faults

    def hits(self, rate: float) -> bool:
        return rate > 0 and self.random.random() < rate

    def pause(self) -> float:
        """Seconds until the next thing arrives."""
        delay = cast("float", self.faults.delay)
        return self.random.uniform(0, delay) if delay else 0.0
