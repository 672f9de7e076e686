"""The options of a simulation as the command takes them: so a report can end with the command that does the same again."""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from typing import Any

from dspex.bus.memory.server import Faults

COUNTED = ("seed", "model_calls", "done", "failures")


def said(simulation: Any) -> str:
    """What is not as by default."""
    found: dict[str, Any] = {}
    for f in fields(simulation):
        value = getattr(simulation, f.name)
        if f.name not in COUNTED and value != f.default:
            found[f.name] = asdict(value) if isinstance(value, Faults) else value
    return " --with" + "".join(f" '{name}={json.dumps(value)}'" for name, value in found.items()) if found else ""


def read(text: str) -> tuple[str, Any]:
    """One NAME=VALUE."""
    name, _, value = text.partition("=")
    found = json.loads(value)
    return name, Faults(**found) if name == "faults" else found
