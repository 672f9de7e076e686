"""What `dspex doctor` says of one thing that it looked at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dspex.bus.errors import DspexError


@dataclass(frozen=True)
class Diagnosis:
    """One thing that was looked at."""

    name: str
    ok: bool
    message: str
    fix: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """The `--json` object."""
        return {"check": self.name, "ok": self.ok, "message": self.message, "fix": self.fix}


def fault(name: str, error: DspexError) -> Diagnosis:
    """What is wrong, as an error says it."""
    return Diagnosis(name, False, error.message, error.fix)
