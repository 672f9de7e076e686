"""The limits of profiles and the budgets, asked before each call that may ask a model, and told what it has used afterwards.

A limit that is reached refuses with RateLimited, which is tried again when its window ends; a budget that is used up with
BudgetExceeded, which is not. Nothing waits here. Of several profiles (`lm=[a, b]`) those are left out that have no room.

Before the next one is asked, its part is reserved, and what the one before was asked for is settled.

What an execution used is settled once, in the process that ran it, from what its own child said. Records that are delivered or
read again settle nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import structlog

from dspex.bus import subjects
from dspex.bus.errors import CallError, DspexError, LMUnavailable
from dspex.bus.port import Bucket, Bus
from dspex.bus.records import CallRecord, CallRequest, Tried, Usage
from dspex.bus.serving.limits import COUNTED, Amounts, Limit, Measure, key_of
from dspex.bus.serving.server_clock import ServerClock
from dspex.bus.tasks import Tasks
from dspex.workers.answer import Answer
from dspex.workers.config import PoolConfig, Profile
from dspex.workers.limits.account import Account, Lease
from dspex.workers.limits.cooling import Cooling
from dspex.workers.limits.estimates import Estimates, used_by
from dspex.workers.limits.granted import Granted, give_back, of_batch
from dspex.workers.limits.planning import Full
from dspex.workers.limits.refusals import refusal

if TYPE_CHECKING:
    from dspex.workers.pool.execution import Execution

log = structlog.get_logger("dspex.workers")

MOST_ACCOUNTS: Final = 1000  # of runs and tenants; those that are idle are forgotten
NOTHING: Final[Amounts] = {}
UNASKED: Final = ("NoBatchAnswer", "WorkerLost", "Cancelled")  # ends of a call that has left its batch: no request was answered


class Limits:
    """The limits and budgets of one pool process. It is a step of its calls.

    Args:
        id: of the process.
        clock: the server's time, where it is known.
    """

    def __init__(self, bus: Bus, config: PoolConfig, id: str, clock: ServerClock) -> None:
        self._bus, self._config, self._id, self._clock = bus, config, id, clock
        default = config.default_profile()
        self._default = (default.name,) if default else ()
        self._accounts: dict[str, Account] = {}
        self._of_profile: dict[str, Account] = {}
        self._granted: dict[Execution, Granted] = {}
        self._unlimited: dict[str, Granted] = {}  # of profiles that are only counted, where there are no budgets
        self._opened: Bucket | None = None
        self._estimates = Estimates()
        self._tasks = Tasks("limits", lambda name, error: log.error("limits: a bug of dspex", exc_info=error))
        self.cooling = Cooling(bus, config)

    async def start(self) -> None:
        """Hear what other pools say of providers. Raises BusError."""
        await self.cooling.start()

    async def stop(self) -> None:
        """Give back what is not used."""
        await self.cooling.stop()
        await asyncio.gather(*(account.close() for account in list(self._accounts.values())))
        await self._tasks.stop()

    # -- a step of calls
    def before(self, execution: Execution) -> Answer | Coroutine[Any, Any, Answer | None] | None:
        """See CallStep."""
        work, names = execution.work, self._profiles(execution)
        if not names:
            return None
        if (unlimited := self._unlimited.get(names[0])) is not None and not self.cooling.pauses_any and not execution.batch:
            self._granted[execution] = unlimited
            return None
        refused: CallError | None = None
        for name in names:
            found = self._take_now(work, self._config.profile(name), batch=execution.batch)
            if found is None:
                return self._take(execution, names)
            if isinstance(found, Granted):
                self._grant(execution, found, names)
                return None
            refused = refused or found
        assert refused is not None
        raise refused

    def after(self, execution: Execution, record: CallRecord) -> None:
        """See CallStep."""
        granted = self._granted.pop(execution, None)
        if granted is None:
            return
        work, usage = execution.work, Usage.read(record.usage) if record.usage else None
        if usage is None:
            used = granted.estimate if execution.ran else {}  # a child that died has said nothing
        else:
            asked = not granted.batch or (record.error or {}).get("type") not in UNASKED
            used = used_by(usage, granted.estimate, execution.inherited, granted.settled, least=float(asked))
        if usage is not None and record.error is None and any(account.limited for account, _ in granted.leases):
            self._estimates.measured(work, granted.profile, usage)
        self._settle(granted, used)
        if not granted.batch:
            self.cooling.hear(record, of_users=work.spec.journaled)

    async def further(self, execution: Execution, lm: str, used: Usage | None) -> None:
        """See CallLimits. What was used of the profile before is settled, and what will be of this one is reserved."""
        work, granted = execution.work, self._granted.get(execution)
        if granted is None or execution.over:
            return
        if lm not in self._profiles(execution):
            raise LMUnavailable(f"the pool has no lm.{lm} for this call", node=work.node)
        before, profile = granted.settled, self._config.profile(lm)
        asked = used is not None and used.requests > (before.requests if before else 0)  # else its model has answered nothing
        self._settle(granted, used_by(used, granted.estimate, before) if used is not None and asked else {})
        settled = used or before
        self._granted[execution] = Granted(profile, {}, (), settled=settled)
        found = await self._asked(work, profile, batch=False)
        if not isinstance(found, Granted):
            raise found
        if execution.over:
            give_back(found.leases)
            return
        self._granted[execution] = found._replace(settled=settled)

    async def again(self, execution: Execution, lm: str) -> None:
        """See CallLimits."""
        found = await self._asked(execution.work, self._config.profile(lm), batch=False)
        if not isinstance(found, Granted):
            raise found
        for account, lease in found.leases:
            self._add(execution, account, lease)

    def spent(self, execution: Execution, used: Usage) -> None:
        """See CallLimits."""
        if (granted := self._granted.get(execution)) is None or granted.batch:
            return
        amounts = used_by(used, NOTHING, Usage())
        leases = [(account, account.spend(lease, amounts)) for account, lease in granted.leases]
        settled, asking = granted.settled + used if granted.settled else used, max(0, granted.asking - used.requests)
        self._granted[execution] = granted._replace(leases=leases, settled=settled, asking=asking)

    async def room(self, execution: Execution) -> None:
        """See CallLimits. A request is taken to be as large as those before."""
        if (granted := self._granted.get(execution)) is None or granted.batch:
            return
        self._granted[execution] = granted = granted._replace(asking=granted.asking + 1)
        try:
            await self._reserve(execution, granted)
        except (DspexError, asyncio.CancelledError):  # it asks for the same again, or for nothing more
            self.failed(execution)
            raise

    def failed(self, execution: Execution) -> None:
        """See CallLimits."""
        if (granted := self._granted.get(execution)) is not None:
            self._granted[execution] = granted._replace(asking=max(0, granted.asking - 1))

    async def _reserve(self, execution: Execution, granted: Granted) -> None:
        """Reserve what all requests need that it is making. Raises the refusal."""
        if granted.settled is None or not granted.settled.requests:
            return
        used, requests = used_by(granted.settled, NOTHING, Usage()), granted.settled.requests / granted.asking
        for account, lease in granted.leases:
            missing: Amounts = {m: max(0.0, used.get(m, 0.0) / requests - amount) for m, amount in lease.amounts.items()}
            if any(missing.values()):
                more = await account.take(missing)
                if isinstance(more, Full):
                    raise refusal(account.about, more)
                self._add(execution, account, more)

    def _add(self, execution: Execution, account: Account, more: Lease) -> None:
        """Let it use more, unless it is over, or asks another profile meanwhile."""
        granted = self._granted.get(execution)
        if granted is None or account not in [one for one, _ in granted.leases]:
            account.settle(more, {})
            return
        leases = [(one, lease.and_more(more) if one is account else lease) for one, lease in granted.leases]
        self._granted[execution] = granted._replace(leases=leases)

    def _settle(self, granted: Granted, used: Amounts) -> None:
        for account, lease in granted.leases:
            if granted.batch:  # its window may have ended long ago: it counts when it is answered
                account.settle(lease, {})
                account.settle(None, of_batch(account, used))
            else:
                account.settle(lease, used)

    # -- taking
    def _profiles(self, execution: Execution) -> Sequence[str]:
        """The profiles that a call may ask, in order; those that the pool does not have are refused by others."""
        spec = execution.work.spec
        if not spec.asks_a_model:
            return ()
        names = execution.lms or spec.lm or self._default
        return [name for name in names if name in self._config.profiles]

    def _take_now(self, work: CallRequest, profile: Profile, *, batch: bool) -> Granted | CallError | None:
        """What is known without a question to the bus; None where there has to be one."""
        if not batch and (refused := self.cooling.refuses(profile.name)) is not None:
            return refused
        accounts = self._accounts_of(work, profile)
        amounts = self._estimates.of(work, profile) if any(account.limited for account in accounts) else NOTHING
        leases: list[tuple[Account, Lease]] = []
        for account in accounts:
            said = account.try_take(of_batch(account, amounts, profile) if batch else amounts)
            if not isinstance(said, Lease):
                give_back(leases)
                return said if said is None else refusal(account.about, said)
            leases.append((account, said))
        return Granted(profile, amounts, leases, batch)

    async def _take(self, execution: Execution, names: Sequence[str]) -> None:
        """The same with questions. Raises the refusal of the first profile where none has room."""
        refused: CallError | None = None
        for name in names:
            found = await self._asked(execution.work, self._config.profile(name), batch=execution.batch)
            if isinstance(found, Granted):
                self._grant(execution, found, names)
                return
            refused = refused or found
        assert refused is not None
        raise refused

    async def _asked(self, work: CallRequest, profile: Profile, *, batch: bool) -> Granted | CallError:
        if not batch and (refused := self.cooling.refuses(profile.name)) is not None:
            return refused
        await self._know_the_time()
        amounts = self._estimates.of(work, profile)
        leases: list[tuple[Account, Lease]] = []
        try:
            for account in self._accounts_of(work, profile):
                said = await account.take(of_batch(account, amounts, profile) if batch else amounts)
                if isinstance(said, Full):
                    give_back(leases)
                    return refusal(account.about, said)
                leases.append((account, said))
        except (DspexError, asyncio.CancelledError):
            give_back(leases)
            raise
        return Granted(profile, amounts, leases, batch)

    def _grant(self, execution: Execution, granted: Granted, names: Sequence[str]) -> None:
        """Let it begin, without the profiles of its list that had no room. What comes behind is asked for when it is needed."""
        self._granted[execution] = granted
        at = list(names).index(granted.profile.name)
        if at:
            execution.routing += [Tried(name, "limited") for name in names[:at]]
            execution.lms = list(names[at:])

    # -- accounts
    def _accounts_of(self, work: CallRequest, profile: Profile) -> list[Account]:
        found = [self._of_profile.get(profile.name) or self._account_of(profile)]
        for budget in self._config.budgets:
            if not budget.per and work.record is None:
                continue  # an interactive call is a run of its own: there would be a value for each
            if budget.profile in (None, profile.name) and budget.covers(work.topology, work.tenant):
                found.append(self._account(budget.about(work.tenant, work.run), budget.limits))
        return found

    def _account_of(self, profile: Profile) -> Account:
        limits: dict[Measure, Limit] = {**COUNTED, **{measure: Limit(*limit) for measure, limit in profile.limits.items()}}
        account = self._of_profile[profile.name] = self._account({"lm": profile.name}, limits)
        if not (account.limited or self._config.budgets):
            self._unlimited[profile.name] = Granted(profile, NOTHING, [(account, Lease(NOTHING, {}))])
        return account

    def _account(self, about: Mapping[str, str], limits: Mapping[Measure, Limit]) -> Account:
        key = key_of(about)
        account = self._accounts.get(key)
        if account is None:
            if len(self._accounts) >= MOST_ACCOUNTS:
                self._accounts = {key: one for key, one in self._accounts.items() if "lm" in one.about or not one.idle}
            account = self._accounts[key] = Account(about, limits, self._id, self._bucket, self._now, self._tasks)
        return account

    async def _bucket(self, limited: bool) -> Bucket | None:
        """The bucket; None where nothing was applied yet, and so nobody looks at what is only counted."""
        if self._opened is None and (limited or await self._bus.has("bucket", subjects.limits(self._config.app))):
            self._opened = await self._bus.bucket(subjects.limits(self._config.app))
        return self._opened

    def _now(self) -> float:
        return self._clock() if self._clock.known else time.time()

    async def _know_the_time(self) -> None:
        """Ask for it, unless it is known or nobody knows: nothing was applied yet."""
        if not self._clock.known:
            await self._clock.ask()
