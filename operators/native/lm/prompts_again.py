"""What a model was asked: made again of what a call was asked, where its program has no part in that."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, cast

from dspex.bus.errors import DspexError
from dspex.bus.serving.call_spec import CallSpec
from dspex.operators.native.lm.native_support import REASONING
from dspex.operators.native.lm.predict import KINDS, ChainOfThought
from dspex.operators.native.signature import Signature


def prompt_again(spec: CallSpec, inputs: Mapping[str, Any]) -> list[Any] | None:
    """The messages that a model gets; None where its program makes them, or a saved state has a part in them."""
    if spec.kind not in KINDS or spec.state:
        return None
    try:
        signature = Signature.from_plain(json.loads(spec.signature_json))
        signature = signature.prepend(REASONING, "output") if spec.kind == ChainOfThought.kind else signature
        return [dict(one) for one in signature.messages(inputs, adapter=cast("Any", spec.adapter or "chat"))]
    except DspexError:
        return None
