"""What a model was asked: made again of what a call was asked, where its program has no part in that."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dspex.bus.errors import DspexError
from dspex.bus.records import CallRequest
from dspex.operators.native.lm.native_support import REASONING
from dspex.operators.native.lm.predict import KINDS, ChainOfThought
from dspex.operators.native.signature import Signature

if TYPE_CHECKING:
    from dspex.engine.client.runs.tree import Happening


def prompt_of(asked: CallRequest) -> list[Any] | None:
    """The messages that a model gets, made again; None where its program makes them, or a saved state has a part in them."""
    spec = asked.spec
    if spec.kind not in KINDS or spec.state:
        return None
    try:
        signature = Signature.from_plain(json.loads(spec.signature_json))
        signature = signature.prepend(REASONING, "output") if spec.kind == ChainOfThought.kind else signature
        return [dict(one) for one in signature.messages(asked.inputs, adapter=_adapter(spec.adapter))]
    except DspexError:
        return None


def _adapter(name: str | None) -> Any:
    return name or "chat"


def prompts_of(root: Happening) -> Mapping[tuple[str, int], list[Any]]:
    """The prompts of a run, by step and attempt. None of a run with secret fields: a text may say them in any way."""
    if root.secrets:
        return {}
    asked = {(told.label, one.try_number): prompt_of(one) for told in root for _, one, _ in told.executions}
    return {at: prompt for at, prompt in asked.items() if prompt is not None}
