"""What the pools of an application have used of a limit, as all of them see it: one value in the bucket of limits for each.

A pool process takes a *share* of a window before its calls ask a model, and says later how much of it was used. Shares are
absolute numbers, written with compare and set, so that a write whose answer was lost can be written again. What a process took
and never gave back, because it was killed, counts as used until the window ends: nobody knows what its calls have cost.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple, TypeAlias

import orjson
from typing_extensions import TypedDict  # pydantic checks it, and takes no other one before Python 3.12

from dspex.bus.codecs.checking import checked
from dspex.bus.errors import DecodeError
from dspex.bus.port import Bus
from dspex.bus.subjects import limit_key, limits

Measure: TypeAlias = Literal["requests", "tokens", "cost", "concurrent"]
"""What is counted: requests to a model, its tokens in and out, USD, and calls at once."""
Amounts: TypeAlias = Mapping[Measure, float]

TENANT: Final = "tenant"
MOST_TENANTS: Final = 10_000  # with something used in their window that are remembered
MINUTE: Final = 60.0
DAY: Final = 86400.0
_MOST: Final = 1e18  # of anything
_LONGEST: Final = 1e9  # seconds of a window
GONE: Final = 15.0  # seconds after which a process that holds a share and says nothing is taken for dead


class Limit(NamedTuple):
    """`most`: None: it is only counted. `per`: seconds of a window, which begins at a multiple of that; 0: there is one."""

    most: float | None
    per: float


COUNTED: Final[Mapping[Measure, Limit]] = {
    "requests": Limit(None, MINUTE),
    "tokens": Limit(None, MINUTE),
    "cost": Limit(None, DAY),
}
"""What is counted of every profile, whether it has limits or not."""


@dataclass(frozen=True)
class Budget:
    """What calls may use together ([budgets.*] of the settings), of one profile, tenant or topology, or of all.

    Attributes:
        tenant: "*": each tenant has one of its own. profile, tenant, topology of None: those of all.
        requests, tokens, cost: the most; None: any. per: seconds of a window; 0: a run, each of which has one of its own.
    """

    name: str
    profile: str | None = None
    tenant: str | None = None
    topology: str | None = None
    requests: float | None = None
    tokens: float | None = None
    cost: float | None = None
    per: float = DAY

    @property
    def limits(self) -> Mapping[Measure, Limit]:
        found: dict[Measure, float | None] = {"requests": self.requests, "tokens": self.tokens, "cost": self.cost}
        return {measure: Limit(most, self.per) for measure, most in found.items() if most is not None}

    def covers(self, topology: str, tenant: str | None) -> bool:
        """Whether it is one of a call of this topology ("" for none) and tenant."""
        if self.topology is not None and self.topology != topology:
            return False
        return self.tenant is None or (tenant is not None if self.tenant == "*" else self.tenant == tenant)

    def about(self, tenant: str | None, run: str) -> dict[str, str]:
        """What the value of a call says that it is about."""
        found = {"budget": self.name}
        if self.tenant == "*" and tenant is not None:
            found["tenant"] = tenant
        return found if self.per else {**found, "run": run}


class Share(NamedTuple):
    """What a pool process may use, and has used so far."""

    granted: float
    used: float


@dataclass
class Metered:
    """One measure in one window. `window`: its number. `settled`: used by those that have no share any more."""

    window: int = 0
    settled: float = 0.0
    shares: dict[str, Share] = field(default_factory=dict[str, Share])

    @property
    def taken(self) -> float:
        """Used or reserved."""
        return self.settled + sum(share.granted for share in self.shares.values())

    @property
    def used(self) -> float:
        return self.settled + sum(share.used for share in self.shares.values())


@dataclass
class Ledger:
    """The value. `about`: what it is of: {"lm": …}, or {"budget": …} with "tenant" or "run". `seen`: who has a share, and when
    it wrote last, in seconds since the epoch on the server's clock. `at`: when somebody wrote last.
    """

    about: dict[str, str] = field(default_factory=dict[str, str])
    limits: dict[Measure, Limit] = field(default_factory=dict[Measure, Limit])
    tallies: dict[Measure, Metered] = field(default_factory=dict[Measure, Metered])
    seen: dict[str, float] = field(default_factory=dict[str, float])
    at: float = 0.0

    @property
    def key(self) -> str:
        return key_of(self.about)

    @property
    def part(self) -> float:
        """Of the limit that is used up most."""
        used = [(tally.taken, self.limits[m].most) for m, tally in self.tallies.items() if m in self.limits]
        return max((taken / most for taken, most in used if most), default=0.0)

    def over(self, now: float) -> bool:
        """Whether the windows of all that was counted have ended, so that nobody has to know of it: a moment ago at least."""
        ends = [(self.tally(measure, 0).window + 1) * limit.per for measure, limit in self.limits.items() if limit.per > 0]
        return len(ends) == len(self.limits) and all(end + GONE < now for end in ends)

    def tally(self, measure: Measure, window: int) -> Metered:
        """The measure in a window, or in a later one where somebody was there already: windows never go back."""
        found = self.tallies.get(measure)
        if found is None or found.window < window:
            found = self.tallies[measure] = Metered(window)
        return found

    def bury(self, now: float, but: str) -> None:
        """Take the shares from processes that are dead, `but` this one. What they might have used counts; their calls at once
        ended with them.
        """
        for id in [id for id, at in self.seen.items() if id != but and now - at > GONE]:
            del self.seen[id]
            for measure, tally in self.tallies.items():
                share = tally.shares.pop(id, None)
                if share is not None and measure != "concurrent":
                    tally.settled += share.granted

    def pack(self) -> bytes:
        """As `read` takes it; JSON, so that people can look at it."""
        tallies = {
            measure: {
                "window": tally.window,
                "settled": tally.settled,
                "shares": {id: [*share] for id, share in tally.shares.items()},
            }
            for measure, tally in self.tallies.items()
        }
        own = {measure: [*limit] for measure, limit in self.limits.items()}
        return orjson.dumps({"about": self.about, "limits": own, "tallies": tallies, "seen": self.seen, "at": self.at})

    @classmethod
    def read(cls, data: bytes) -> Ledger:
        """The value that `pack` wrote. Raises DecodeError."""
        try:
            found: _Stored = checked(_Stored, "the value of a limit", orjson.loads(data))
            return cls(
                found["about"],
                {measure: _limit(*raw) for measure, raw in found["limits"].items()},
                {measure: _tally(raw) for measure, raw in found["tallies"].items()},
                {id: _amount(at) for id, at in found["seen"].items()},
                _amount(found["at"]),
            )
        except (ValueError, TypeError) as e:  # no JSON, or a list of another length
            raise DecodeError(f"not the value of a limit: {e}") from None


class _Tallied(TypedDict):
    window: int
    settled: float
    shares: dict[str, list[float]]


class _Stored(TypedDict):
    about: dict[str, str]
    limits: dict[Measure, list[float | None]]
    tallies: dict[Measure, _Tallied]
    seen: dict[str, float]
    at: float


def _tally(raw: _Tallied) -> Metered:
    shares = {id: Share(*map(_amount, share)) for id, share in raw["shares"].items()}
    return Metered(raw["window"], _amount(raw["settled"]), shares)


def _limit(most: float | None, per: float | None) -> Limit:
    if per is None or not (per == 0 or 1 <= per <= _LONGEST):
        raise ValueError(f"{per} is no window")
    return Limit(None if most is None else _amount(most), per)


def _amount(value: float) -> float:
    if not 0 <= value < _MOST:  # NaN among them
        raise ValueError(f"{value} is no amount")
    return value


async def forget(bus: Bus, app: str, now: float, kept: float) -> None:
    """Remove what was used by runs of which nothing was heard for `kept` seconds, and by tenants in windows that have ended.

    There is one value of each. Whoever publishes or calls names tenants, as many as they like: of those that have used
    something in their window MOST_TENANTS are kept, the ones that have used most. Those of profiles and other budgets are few,
    and stay. Raises BusError.
    """
    if not await bus.has("bucket", name := limits(app)):
        return
    bucket, tenants = await bus.bucket(name), list[tuple[float, str, int]]()
    for key, (value, revision) in (await bucket.items("budget")).items():
        with suppress(DecodeError):
            ledger = Ledger.read(value)
            longest = max((limit.per for limit in ledger.limits.values()), default=0.0)
            unheard = len(ledger.about) > 1 and now - ledger.at > max(kept, 2 * longest)
            if unheard or (TENANT in ledger.about and ledger.over(now)):
                await bucket.delete(key, revision=revision)  # unless somebody has used it meanwhile
            elif TENANT in ledger.about:
                tenants.append((ledger.part, key, revision))
    for _, key, revision in sorted(tenants)[: max(0, len(tenants) - MOST_TENANTS)]:
        await bucket.delete(key, revision=revision)


def key_of(about: Mapping[str, str]) -> str:
    """The key of the value that is about this."""
    return limit_key(*(part for name, text in about.items() for part in (name, text)))
