"""The tables of the settings below `engine`, `defaults`, `lm` and `pools`.

Only what has an effect is here; `bus/settings/not_built.py` names what the design has besides, and this version refuses.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, Self, TypeAlias

from pydantic import BeforeValidator, Field, model_validator

from dspex.bus.errors import ConfigError
from dspex.bus.records import DEFAULT_DEADLINE, MOST_FACTOR, Adapter, Affinity, OnError, Order, Route
from dspex.bus.serving.call_spec import Choice, Hedge
from dspex.bus.serving.payloads import ABOVE
from dspex.bus.settings import environment
from dspex.bus.settings.called.profiles import ModuleSettings
from dspex.bus.settings.duration import seconds
from dspex.bus.settings.values import (
    Amount,
    Environment,
    Money,
    NotEmpty,
    PoolName,
    PositiveSeconds,
    PositiveSize,
    ProgramPatterns,
    ScaleSettings,
    Seconds,
    SettingsTable,
    Size,
    Texts,
    Variables,
    custom_error,
    least,
    listed,
    most,
    without_effect,
)

_VISIBLE: Final = "CUDA_VISIBLE_DEVICES"
LEAST_MEMORY: Final = 32 << 20
MOST_HEARTBEAT: Final = 30.0  # seconds; more is not believed of an engine, since anybody may have written its heartbeat


_Device: TypeAlias = Annotated[int, Field(ge=0), most(255, "it is the number of a GPU of one machine, from 0")]


class CommitSettings(SettingsTable):
    """How much one commit may hold."""

    max_events: Annotated[int, Field(ge=1, le=1000)] = 1000


class EngineSettings(SettingsTable):
    """How engines run.

    Attributes:
        heartbeat: seconds between two signs of life, at most 30; an engine that is silent for five of them is replaced.
        stall_after: seconds without progress, although there is work, after which an engine says that it is stalled.
        align: seconds that a source may be ahead of another one of its topology in event time, before it waits.
        records: seconds that records of calls are kept. max_open_calls: of a partition; above it the source is not read on.
        max_bytes: of the application stream, reserved on the server when it is made; None: most of what is free, at
            most 16 GiB. The stream of sources gets a fifth of that besides, and that of answers a 30th.
        state_limit: bytes that the state of operators may have in one partition; an event that would add more is a dead letter.
        claim_check_above: bytes of a payload above which it is put into the object store, and its message names it.
        submit: whether calls can be submitted (`Client.submit`): a topology of dspex's own runs beside yours.
        encrypt_key_env: the variable with the key that seals keys of payloads: keys/keyring.py. "NEW,OLD": OLD opens too.
    """

    commit: CommitSettings = CommitSettings()
    heartbeat: Annotated[PositiveSeconds, Field(le=MOST_HEARTBEAT)] = 1.0
    stall_after: PositiveSeconds = 30.0
    align: PositiveSeconds = 3600.0
    records: PositiveSeconds = 30 * 86400.0
    max_open_calls: Annotated[int, Field(ge=1)] = 10000
    max_bytes: Annotated[PositiveSize, least(1 << 20, "one commit may be as large")] | None = None
    state_limit: PositiveSize = 256 << 20
    claim_check_above: PositiveSize = ABOVE
    submit: bool = False
    encrypt_key_env: Variables | None = None


class RetrySettings(SettingsTable):
    """As `dspex.Retry`."""

    attempts: Annotated[int, Field(ge=1)] = 4
    backoff: Seconds = 1.0
    factor: Annotated[float, Field(ge=1), most(MOST_FACTOR, "the second pause would be the longest")] = 2.0
    cap: Seconds = 60.0
    jitter: Annotated[float, Field(ge=0, le=1)] = 0.2

    @model_validator(mode="after")
    def _the_first_pause_is_not_over_the_last(self) -> Self:
        if self.backoff > self.cap:
            said = f"backoff, {self.backoff:g} s, is longer than cap, {self.cap:g} s, which no pause exceeds"
            raise custom_error(ConfigError(said, code="DX105", fix="lower backoff, or raise cap"))
        return self


class CallDefaults(SettingsTable):
    """Call options of every recorded operator that does not set them itself. None: not set here."""

    pool: PoolName | None = None
    lm: Annotated[Texts, Field(min_length=1)] | None = None
    config: ModuleSettings | None = None
    adapter: Adapter | None = None
    timeout: PositiveSeconds | None = None
    deadline: PositiveSeconds | None = None
    retry: RetrySettings | None = None
    on_error: OnError | None = None
    order: Order | None = None
    affinity: Affinity | None = None
    priority: Annotated[int | None, Field(ge=0, le=9)] = None
    cost: Annotated[int | None, Field(ge=1)] = None
    route: Route | None = None
    cache: PositiveSeconds | None = None
    hedge: Hedge | None = None
    choose: Choice | None = None
    first_token_timeout: PositiveSeconds | None = None

    @model_validator(mode="after")
    def _an_attempt_ends_before_the_deadline(self) -> Self:
        deadline = seconds(DEFAULT_DEADLINE) if self.deadline is None else self.deadline
        if self.timeout is not None and self.timeout > deadline:
            said = f"timeout, {self.timeout:g} s, is longer than deadline, {deadline:g} s, which ends all attempts"
            raise custom_error(ConfigError(said, code="DX105", fix="lower timeout, or raise deadline"))
        return self

    def options(self) -> dict[str, Any]:
        """Those that are set, by name, as plain data."""
        return self.model_dump(exclude_none=True)


class Defaults(SettingsTable):
    """What holds where nothing else is said."""

    call: CallDefaults = CallDefaults()


class BudgetSettings(SettingsTable):
    """What calls may use together: those of a profile, a tenant and a topology, where it names them. `per`: counted anew each
    minute or day (UTC), or for each run.

    tenant: "*": each tenant has one of its own.
    """

    profile: NotEmpty | None = None
    tenant: NotEmpty | None = None
    topology: NotEmpty | None = None
    requests: Amount | None = None
    tokens: Amount | None = None
    cost: Money | None = None
    per: Literal["minute", "day", "run"]

    @model_validator(mode="after")
    def _limits_something(self) -> Self:
        if self.requests is None and self.tokens is None and self.cost is None:
            said = "has neither requests nor tokens nor cost, so it would never be reached"
            fix = 'write requests = 1000, tokens = "200k", or cost = "5 USD"'
            raise custom_error(ConfigError(said, code="DX105", fix=fix))
        return self


class Recycle(SettingsTable):
    """A worker process is replaced after so many calls, or at this age in seconds."""

    calls: Annotated[int | None, Field(ge=1)] = None
    age: PositiveSeconds | None = None


class Restart(SettingsTable):
    """More than `max` restarts within `within` seconds: the pool is marked failed."""

    max: Annotated[int, Field(ge=0)] = 5
    within: PositiveSeconds = 60.0


class PoolSettings(SettingsTable):
    """A pool of workers: `size` processes with `slots` calls at once in each.

    Attributes:
        lm: the profile of calls that name none. cpu: cores that each process may use, with all that it starts.
        lms: the others that calls may name. Workers get the keys of these and of no others; without `lm` and `lms`, of all.
        env: variables of its processes. "$NAME": what NAME is where the pool starts. scale: `size` follows its backlog.
        hmac_key_env: the variable with the key that signs its records. "NEW,OLD": NEW signs, and OLD is right too.
        zygote: whether its processes are forked from one that has imported its programs. None: where it has no `gpus`.
        timeout: of a call of a topology that says nothing itself. keep_exchanges: bytes that a record has of what models said.
    """

    size: Annotated[int, Field(ge=0), most(1000, "each is a process; start some of them elsewhere: dspex worker")] = 1
    slots: Annotated[int, Field(ge=1), most(10_000, "a process of a pool is given no more calls at once")] = 4
    lm: str | None = None
    lms: Texts = ()
    memory: Annotated[PositiveSize, least(LEAST_MEMORY, "Python alone takes more")] | None = None
    threads: Annotated[int, Field(ge=1), most(1024, "no machine has so many cores")] = 1
    programs: ProgramPatterns = ()
    env: Environment = Field(default_factory=dict[str, str])
    recycle: Recycle = Recycle()
    restart: Restart = Restart()
    python: NotEmpty | None = None
    gpus: Annotated[int, Field(ge=0)] = 0
    hmac_key_env: Variables | None = None
    devices: Annotated[tuple[_Device, ...], BeforeValidator(listed)] = ()
    zygote: bool | None = None
    timeout: PositiveSeconds | None = None
    cpu: Annotated[float, Field(ge=0.01), most(1024, "no machine has so many cores")] | None = None
    scale: ScaleSettings | None = None
    keep_exchanges: Size = 64 << 10

    @model_validator(mode="after")
    def _no_program_gets_the_key_that_signs(self) -> Self:
        signing = self.hmac_key_env.split(",") if self.hmac_key_env else []
        given = [
            f"env.{name}" for name, value in self.env.items() if name in signing or value in [f"${name}" for name in signing]
        ]
        if by := given or list(environment.bare(dict.fromkeys(signing, ""))):
            said = f"{by[0]} gives the key that signs records to programs, which could sign what they like"
            fix = "leave it out of env" if given else "name another variable: every process gets this one"
            raise custom_error(ConfigError(said, code="DX105", fix=fix))
        return self

    @model_validator(mode="after")
    def _it_begins_with_no_more_than_it_may_have(self) -> Self:
        if self.scale is not None and self.size > self.scale.max:
            said = f"size, {self.size}, is more than scale.max, {self.scale.max}"
            raise custom_error(ConfigError(said, code="DX105", fix="lower size, or raise scale.max"))
        return self

    @model_validator(mode="after")
    def _gpus_are_of_devices(self) -> Self:
        if (needed := self.gpus * max(self.size, 1)) > len(self.devices):
            said = f"each process gets {self.gpus} GPUs of its own, which makes {needed}, and `devices` has {len(self.devices)}"
            raise custom_error(ConfigError(said, code="DX105", fix="list the devices, or lower size or gpus"))
        if len(set(self.devices)) < len(self.devices):
            raise custom_error(ConfigError("devices names one twice", code="DX105", fix="list each device once"))
        if self.devices and not self.gpus:
            raise without_effect("devices", "gpus, the number of them that each process gets, is 0")
        if self.gpus and _VISIBLE in self.env:
            raise without_effect(f"env.{_VISIBLE}", "each process has the devices that it leases")
        if self.gpus and self.zygote:
            raise without_effect("zygote", "the drivers of GPUs do not work in a process that was forked")
        return self
