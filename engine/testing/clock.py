"""The clock of a testing driver beside that of the machine, which a real server goes by."""

from __future__ import annotations

import time
from bisect import bisect_right
from typing import Any

from dspex.bus.message import Message
from dspex.engine.testing.places import START


class Clock:
    """The time of the driver, now and at any time of the machine. See `START`."""

    def __init__(self) -> None:
        self.now = START
        self._machine, self._driver = [0.0], [START]  # when the clock was set, and to what

    def tick(self, seconds: float) -> None:
        """It is so many seconds since `START`."""
        if (now := START + seconds) != self.now:
            self.now = now
            self._machine.append(time.time())
            self._driver.append(now)

    def at(self, machine: float) -> float:
        """What it showed at a time of the machine."""
        return self._driver[bisect_right(self._machine, machine) - 1]

    def read(self, found: Any) -> Any:
        """What an operation gave, with the times of the driver: a message, several, or something else."""
        if isinstance(found, Message):
            return found._replace(time=self.at(found.time))
        if isinstance(found, list):
            return [self.read(one) for one in found]
        return {key: self.read(one) for key, one in found.items()} if isinstance(found, dict) else found
