"""How many programs an optimizer will run, about: what a bar is drawn by."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

_AUTO: Final = {"light": (6, 100), "medium": (12, 300), "heavy": (18, 1000)}  # candidates, and rows that they are scored with
_MINIBATCH, _ALL_AT_ONCE, _EVERY = 35, 50, 5


def programs_of(optimizer: str, options: Mapping[str, Any], rows: int, predictors: int) -> int:
    """About: it depends on what models say."""
    if optimizer == "BootstrapFewShot":
        return rows * int(options.get("max_rounds", 1))
    candidates, most = _AUTO[options.get("auto", "light")]
    if "num_candidates" in options:
        candidates, most = int(options["num_candidates"]), rows
    scored = min(most, max(1, int(rows * 0.8)))
    trials = int(options.get("num_trials", max(4 * predictors * math.log2(max(candidates, 2)), 1.5 * candidates)))
    if "num_candidates" not in options and scored <= _ALL_AT_ONCE:
        scoring = scored * (trials + 1)
    else:
        scoring = int(options.get("minibatch_size", _MINIBATCH)) * trials + scored * (trials // _EVERY + 2)
    return scoring + candidates * int(options.get("max_bootstrapped_demos", 4))
