"""A stand-in model that learns: it answers rightly where its prompt shows it examples, and else does not know better."""

from __future__ import annotations

import re
from typing import Any

import standin

from dspex.bus.serving.call_spec import CallSpec
from dspex.operators.recorded.optimize import Optimization, optimize

INTENTS = ("card", "loan", "rate")
TEXT = "text -> intent: Literal['card', 'loan', 'rate', 'other']"
SPEC = CallSpec("predict", TEXT, TEXT)
_TEXT = re.compile(r"\[\[ ## text ## \]\]\n(card|loan|rate) (\w+)")


class Learner(standin.StandIn):
    """Of "card 7" the intent is `card`."""

    async def _complete(self, request: dict[str, Any]) -> standin.Response | None:
        messages = request["messages"]
        if found := _TEXT.match(standin.text_of(messages[-1]["content"])):
            known = found[1] if len(messages) > 2 else "other"
            self.replies[f"{found[1]} {found[2]}"] = f"[[ ## intent ## ]]\n{known}\n\n[[ ## completed ## ]]"
        return await super()._complete(request)


def rows(count: int, of: str = "row") -> list[dict[str, Any]]:
    """Rows that it can be measured with."""
    return [{"text": f"{INTENTS[n % 3]} {of}{n}", "intent": INTENTS[n % 3]} for n in range(count)]


def job(**options: Any) -> Optimization:
    """A job that teaches it."""
    return optimize(options.pop("program", SPEC), **{"metric": "exact_match", "threads": 2, **options})  # type: ignore[typeddict-item]
