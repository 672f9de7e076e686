"""What a model was asked: made again of what a call was asked, where its program has no part in that."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dspex.bus.records import CallRequest
from dspex.operators.native.lm.prompts_again import prompt_again

if TYPE_CHECKING:
    from dspex.engine.client.runs.tree import Happening


def prompt_of(asked: CallRequest) -> list[Any] | None:
    """The messages that a model gets, made again; None where its program makes them, or a saved state has a part in them."""
    return prompt_again(asked.spec, asked.inputs)


def prompts_of(root: Happening) -> Mapping[tuple[str, int], list[Any]]:
    """The prompts of a run, by step and attempt. None of a run with secret fields: a text may say them in any way."""
    if root.secrets:
        return {}
    asked = {(told.label, one.try_number): prompt_of(one) for told in root for _, one, _ in told.executions}
    return {at: prompt for at, prompt in asked.items() if prompt is not None}
