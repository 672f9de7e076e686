"""What a call is told that finds no room: which limit or budget it is, and when it may come again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from dspex.bus.errors import BudgetExceeded, CallError, RateLimited
from dspex.bus.serving.limits import Measure
from dspex.workers.limits.planning import Full

_WORDS: Final[Mapping[Measure, str]] = {
    "requests": "requests",
    "tokens": "tokens",
    "cost": "USD",
    "concurrent": "calls at once",
}
_WINDOWS: Final[Mapping[float, str]] = {1.0: " a second", 60.0: " a minute", 3600.0: " an hour", 86400.0: " a day"}


def is_refusal(error: Mapping[str, object]) -> bool:
    """Whether an error of a record is one of these, and not what a provider has said."""
    return str(error.get("node", "")).startswith(("lm.", "budgets."))


def refusal(about: Mapping[str, str], full: Full) -> CallError:
    """The refusal. It names the limit."""
    most, what = full.limit.most or 0.0, _WORDS[full.measure]
    window = _WINDOWS.get(full.limit.per, f" in {full.limit.per:g} s") if full.limit.per else ""
    name = named(about)
    if "budget" in about and not full.limit.per:
        window = " a run"
    said = f"{name}: {_number(full.taken)} of {_number(most)} {what}{window} are used or reserved"
    if budget := about.get("budget"):
        error: CallError = BudgetExceeded(f"the budget {budget} is reached: {said}", node=name, retry_after=full.again)
        wait = "wait until it is counted anew, or " if full.limit.per else ""  # a run has its budget once
        if not full.spent:  # calls that run may use less than was reserved for them: nothing is known to be over yet
            error = RateLimited(f"calls that run may use up the budget {budget}: {said}", node=name, retry_after=full.again)
            wait = "wait for them, or "
        error.fix = f"{wait}raise budgets.{budget}"
        return error
    return RateLimited(
        f"the limit of a profile is reached: {said}",
        node=name,
        retry_after=full.again,
        fix=f"wait {full.again:,.0f} s, or raise {name}.limits.{full.measure}",
    )


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.4g}"


def named(about: Mapping[str, str]) -> str:
    """What an account is of, in words."""
    if "lm" in about:
        return f"lm.{about['lm']}"
    of = next((f" of {what} {about[what]}" for what in ("tenant", "run") if what in about), "")
    return f"budgets.{about['budget']}{of}"
