"""Which refs to a user's code (`pkg.module:Name`) the allow-list of a pool takes."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase


def allows(patterns: Sequence[str], ref: str) -> bool:
    """Whether one of the patterns takes the ref, token by token: `pkg.*:*` takes no `pkg.sub.module:name`."""
    return any(_takes(pattern, ref) for pattern in patterns)


def _takes(pattern: str, ref: str) -> bool:
    want, have = (text.replace(":", ".:.").split(".") for text in (pattern, ref))
    return pattern.count(":") == 1 and len(want) == len(have) and all(map(fnmatchcase, have, want))


def not_allowed(pool: str, patterns: Sequence[str], ref: str) -> tuple[str, str]:
    """What to say of a ref that the pool does not take, and what to do."""
    module = ref.partition(":")[0] or "module"
    listed = ", ".join(patterns) or "empty"
    own = ref if module == "dspy" else f"{module}:*"  # of DSPy's, others would run what a model wrote
    wanted = ", ".join(f'"{pattern}"' for pattern in (*patterns, own))
    return f"{ref} is not in the allow-list of pool {pool} ({listed})", f"allow it: pools.{pool}.programs = [{wanted}]"
