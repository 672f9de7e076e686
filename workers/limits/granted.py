"""What an execution was granted of limits and budgets."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from dspex.bus.records import Usage
from dspex.bus.serving.limits import Amounts, Measure
from dspex.workers.config import Profile
from dspex.workers.limits.account import Account, Lease


class Granted(NamedTuple):
    """What an execution may use, of the profile that is asked. `settled`: what of it, and of those before, is counted already.
    `asking`: requests that it is making.
    """

    profile: Profile
    estimate: Amounts
    leases: Sequence[tuple[Account, Lease]]
    batch: bool = False
    settled: Usage | None = None
    asking: int = 0


def of_batch(account: Account, amounts: Amounts, profile: Profile | None = None) -> Amounts:
    """What counts of a call that waits for a batch: limits of requests and tokens are of those that are asked live.

    `profile`: where this is an estimate, at the price of live calls.
    """
    found: dict[Measure, float] = {
        measure: amount for measure, amount in amounts.items() if measure == "cost" or "lm" not in account.about
    }
    if profile is not None and "cost" in found:
        found["cost"] *= profile.price.get("batch", 1.0)
    return found


def give_back(leases: Iterable[tuple[Account, Lease]]) -> None:
    for account, lease in leases:
        account.settle(lease, {})
