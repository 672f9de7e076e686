"""What a program is made of, as plain data: predictors, signatures, demonstrations. Nothing is called."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import dspy

from dspex.operators.native.fields.types import type_text
from dspex.operators.native.prompts.values import to_jsonable


def described(program: Any) -> dict[str, object]:
    """The part of ProgramInfo that only DSPy knows. Of a model only its name is told: its other settings may hold a key."""
    module = program if isinstance(program, dspy.Module) else None
    named = module.named_parameters() if module is not None else []
    tools = getattr(program, "tools", None)
    return {
        "module": type(program).__name__ if module is not None else getattr(program, "__name__", type(program).__name__),
        "tools": sorted(map(str, tools)) if isinstance(tools, Mapping) else [],
        "predictors": [_predictor(name, found) for name, found in named if isinstance(found, dspy.Predict)],
    }


def _predictor(name: str, predictor: Any) -> dict[str, object]:
    signature = predictor.signature
    return {
        "name": name,
        "instructions": str(signature.instructions),
        "inputs": {field: _type(info) for field, info in signature.input_fields.items()},
        "outputs": {field: _type(info) for field, info in signature.output_fields.items()},
        "demos": [{str(field): _shown(value) for field, value in dict(demo).items()} for demo in predictor.demos],
        "lm": str(getattr(predictor.lm, "model", "") or "") if predictor.lm is not None else "",
    }


def _type(info: Any) -> str:
    return type_text(info.annotation)


def _shown(value: Any) -> object:
    """A value as a prompt shows it; one that has no such form by the name of its type."""
    try:
        return to_jsonable(value)
    except (TypeError, ValueError, RecursionError):
        return f"<{type(value).__name__}>"
