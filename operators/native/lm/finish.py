"""Why a model stopped: whether its reply is whole, was cut, was refused, or broke off.

A reply that was cut looks like any other: its last text is shorter, and a field that is missing may be None. So only what the
server says of its end tells it from an answer, and it is asked before the reply is read.
"""

from __future__ import annotations

import re

from dspex.bus.errors import CallError, InvalidOutput, LMRefused, LMUnavailable
from dspex.operators.native.lm.provider_errors import short

_HALF = re.compile("[\ud800-\udfff]")
# In lower case, of OpenAI, Anthropic, Gemini, Mistral, Azure, Zhipu, OpenRouter and vLLM.
_CUT = frozenset({"length", "max_tokens", "max_output_tokens", "model_length", "model_context_window_exceeded"})
_REFUSED = frozenset(
    {"content_filter", "refusal", "safety", "recitation", "blocklist", "prohibited_content", "spii", "sensitive"}
)
_BROKEN = frozenset({"error", "abort", "network_error", "cancelled", "malformed_function_call"})


def incomplete(finish: str, text: str, refusal: str = "", tokens: int = 0) -> CallError | None:
    """The error for a reply that is not a whole answer; None for one that is.

    Args:
        finish: the server's word for why the model stopped; "" where it has none.
        text: what the model said. refusal: what it said in place of an answer.
        tokens: how many it wrote; 0 where that is not known.
    """
    reason, word = finish.lower(), f"finish_reason {short(finish)!r}" if finish else "no finish_reason"
    if refusal or reason in _REFUSED:
        said = refusal or text
        what = f"{word}: {short(said)!r}" if said else f"{word}, without a text"
        return LMRefused(f"the model refused to answer ({what})", fix="ask otherwise, or name another model: lm=")
    if reason in _CUT:
        after = f" after {tokens:,} tokens" if tokens else ""
        return InvalidOutput(
            f"the reply of the model was cut{after} ({word}). It begins: {_beginning(text)!r}",
            fix="let it write more (max_tokens in params of the profile, or in config= of the call), or ask for less",
        )
    if not text.isascii() and _HALF.search(text):
        return InvalidOutput("the reply of the model holds half of a surrogate pair, which is no Unicode character")
    if reason in _BROKEN:
        return LMUnavailable(f"the server of the model broke off ({word})")
    if not text:
        return InvalidOutput(f"the model's reply is empty ({word})")
    return None


def _beginning(text: str) -> str:
    return text if len(text) <= 200 else f"{text[:200]}…"
