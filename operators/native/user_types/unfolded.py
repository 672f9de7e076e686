"""How large a JSON Schema grows where its references are written out, as prompts for XML and strict requests do.

Twenty types that each refer to the next one twice are a page of JSON and a million parts.
"""

from __future__ import annotations

from typing import Any, cast

from dspex.operators.native.fields.fields import JsonSchema
from dspex.operators.native.problems import problem

MAX_UNFOLDED = 20_000  # parts
_START = "#/$defs/"


def unfolded(schema: JsonSchema) -> int:
    """The parts of a JSON Schema with each reference written out, but none inside of itself. It stops above the limit."""
    definitions, count = schema.get("$defs", {}), 0
    waiting: list[tuple[Any, frozenset[str]]] = [({k: v for k, v in schema.items() if k != "$defs"}, frozenset())]
    while waiting and count <= MAX_UNFOLDED:
        part, seen = waiting.pop()
        count += 1
        if isinstance(part, list):
            waiting += [(p, seen) for p in part]
        elif isinstance(part, dict):
            name = str(cast("JsonSchema", part).get("$ref", "")).removeprefix(_START)
            waiting += [(p, seen) for p in cast("JsonSchema", part).values() if isinstance(p, (dict, list))]
            if name in definitions and name not in seen:
                waiting.append((definitions[name], seen | {name}))
    return count


def refuse_large(schema: JsonSchema, where: str) -> None:
    """Raise TopologyError (DX210) for a schema that grows too large when its references are written out."""
    if unfolded(schema) > MAX_UNFOLDED:
        message = (
            f"{where}: its type has more than {MAX_UNFOLDED:,} parts with each reference written out, as this adapter does"
        )
        raise problem("DX210", message, 'use adapter="chat", or a type that refers to fewer others')
