"""What a system that is measured needs to know. It is in a variable, which the processes that it starts inherit."""

from __future__ import annotations

import json
import os
from typing import NamedTuple, Self

VARIABLE = "BENCH_CALLS"


class Where(NamedTuple):
    """The servers, and how large the worker is.

    Attributes:
        nats, redis: their addresses; "" for one that is not needed. keeps: whether Redis keeps what it holds.
        server: the process whose CPU counts as the server's.
        processes: that run calls, of one worker. slots: calls at once in each, where a system has such a number.
        program: of programs.py, for dspex. crowd: calls that wait in another pool of dspex, and have all of its slots.
    """

    nats: str = ""
    redis: str = ""
    keeps: bool = False
    server: int = 0
    processes: int = 1
    slots: int = 64
    program: str = "nothing"
    crowd: int = 0

    def variables(self) -> dict[str, str]:
        """For the environment of a process."""
        return {**os.environ, VARIABLE: json.dumps(self._asdict())}

    @classmethod
    def here(cls) -> Self:
        """What this process was given."""
        return cls(**json.loads(os.environ[VARIABLE]))
