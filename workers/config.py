"""What a pool needs of the settings, resolved once: profiles with defaults, sizes in bytes and seconds, the environment.

The child gets its part in its first frame, with the keys of the profiles that its pool may use. They are in no environment:
programs can read that of other processes.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dspex.bus.errors import ConfigError
from dspex.bus.serving.limits import DAY, MINUTE, Budget, Measure
from dspex.bus.serving.payloads import ABOVE
from dspex.bus.settings import duration, environment
from dspex.operators.native.adapters import ADAPTERS, Adapter
from dspex.workers.pool.children.sizing import ScaleBounds

if TYPE_CHECKING:  # a child process gets what was resolved: it need not know what settings are
    from dspex.bus.settings.called.profiles import LMProfile
    from dspex.bus.settings.model import Settings
    from dspex.bus.settings.tables import BudgetSettings

LOCAL = "local/"  # prefix of models that run on this machine
LOCAL_DEFAULTS: Mapping[str, Any] = {"temperature": 0.0, "max_tokens": 256}  # a small model may never stop by itself
OVER = 1.2  # times its `memory`: a process that has so much is ended at once
SPARE = 1.0  # seconds that HTTP may take over the attempt's timeout: the parent's limit comes first

_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


@dataclass(frozen=True)
class Profile:
    """A language model by name ([lm.*] of the settings).

    `price`: USD per million tokens, by "input", "output" and "cached"; "batch": see LMPrice.

    `breaker`: the fields of a BreakerRule that are not as it has them.
    `batch`: the fields of BatchSettings that are not as it has them.
    `limits`: by what is counted, the most and the seconds of a window; see bus/serving/limits.py.
    """

    name: str
    model: str
    key_env: str | None = None
    base_url: str | None = None
    adapter: str | None = None
    params: Mapping[str, Any] = field(default_factory=dict)
    price: Mapping[str, float] = field(default_factory=dict)
    breaker: Mapping[str, Any] = field(default_factory=dict)
    limits: Mapping[Measure, Sequence[float]] = field(default_factory=dict)
    batch: Mapping[str, float] = field(default_factory=dict)

    @property
    def local(self) -> bool:
        """Whether its weights run in a model server of ours."""
        return self.model.startswith(LOCAL)

    @property
    def priced(self) -> bool:
        """Whether it is known what its tokens cost: those of a local model cost nothing."""
        return bool(self.price) or self.local

    def cost_of(self, read: float, written: float, cached: float = 0.0) -> float:
        """USD of so many tokens. `cached`: those of `read` that the provider had in its cache."""
        plain = self.price.get("input", 0.0)
        cost = (read - cached) * plain + cached * self.price.get("cached", plain)
        return (cost + written * self.price.get("output", 0.0)) / 1e6


@dataclass(frozen=True)
class PoolConfig:
    """One pool. `memory` in bytes (None: no limit); `recycle_age`, `restart_within` in seconds; `lm`: default profile.

    `profiles`: those that its calls may use. `keys`: of those, by the variable that has them; in a child only.
    `budgets`: all of them. `keep_exchanges`, `redact`: see the settings. `scale`: how its backlog sizes it; None: not at all.
    `claim_check_above`: bytes of a record that is not stored in its message. `hmac_key_env`: see PoolSettings; a child never
    hears of it. `cpu`: cores of each process. `zygote`: see `forks`; None: where it has no GPUs, which do not work in a fork.
    """

    app: str
    name: str
    size: int = 1
    slots: int = 16
    lm: str | None = None
    profiles: Mapping[str, Profile] = field(default_factory=dict)
    programs: tuple[str, ...] = ()
    path: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    memory: int | None = None
    threads: int = 1
    recycle_calls: int | None = None
    recycle_age: float | None = None
    restart_max: int = 5
    restart_within: float = 60.0
    python: str | None = None
    gpus: int = 0
    devices: tuple[int, ...] = ()
    claim_check_above: int = ABOVE
    hmac_key_env: str | None = None
    keys: Mapping[str, str] = field(default_factory=dict[str, str], repr=False)
    budgets: tuple[Budget, ...] = ()
    zygote: bool | None = None
    cpu: float | None = None
    scale: ScaleBounds | None = None
    keep_exchanges: int = 0
    redact: tuple[str, ...] = ()

    @property
    def forks(self) -> bool:
        """Whether its children are forked from a process that has imported its programs."""
        return not self.gpus if self.zygote is None else self.zygote

    def for_child(self, environ: Mapping[str, str] = os.environ) -> PoolConfig:
        """What a child needs to know; the rest is the parent's. `environ`: of the parent, which has the keys."""
        has = {**environ, **own_variables(self, environ)}
        return PoolConfig(
            self.app,
            self.name,
            slots=self.slots,
            lm=self.lm,
            profiles=self.profiles,
            programs=self.programs,
            path=self.path,
            keep_exchanges=self.keep_exchanges,
            redact=self.redact,
            memory=None if self.gpus else self.memory,  # a GPU's driver may map as much as the device has: it is watched
            keys={p.key_env: has[p.key_env] for p in self.profiles.values() if p.key_env and p.key_env in has},
        )

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> PoolConfig:
        """The configuration whose fields, as plain data, are `plain`."""
        read: dict[str, Any] = {name: tuple(plain[name]) for name in ("programs", "path", "devices", "budgets", "redact")}
        read["profiles"] = {name: Profile(**profile) for name, profile in plain["profiles"].items()}
        return cls(**{**plain, **read})

    def profile(self, name: str) -> Profile:
        """The profile called `name`. Raises ConfigError (DX113)."""
        if name not in self.profiles:
            known = ", ".join(sorted(self.profiles)) or "none"
            raise ConfigError(
                f"pool {self.name} may use no profile lm.{name} (there are: {known})",
                code="DX113",
                fix=f'let it use the profile: pools.{self.name}.lms = ["{name}"]; dspex config show shows which there are',
                node=f"lm.{name}",
            )
        return self.profiles[name]

    def default_profile(self) -> Profile | None:
        """The profile of calls that name none: the pool's `lm`, else `main`, else the only one there is."""
        if self.lm:
            return self.profile(self.lm)
        if "main" in self.profiles:
            return self.profiles["main"]
        return next(iter(self.profiles.values())) if len(self.profiles) == 1 else None


def resolve(settings: Settings, pool: str, *, size: int | None = None, slots: int | None = None) -> PoolConfig:
    """What the settings say about `pool`; `size` and `slots` from the command line win. Raises ConfigError (DX105, DX133)."""
    if pool not in settings.pools:
        raise ConfigError(
            f"there is no pool {pool} (there are: {', '.join(sorted(settings.pools))})",
            code="DX133",
            fix=f"add it to dspex.toml: pools.{pool} = {{}}",
            node=pool,
        )
    p = settings.pool(pool, size=size, slots=slots)
    profiles = {name: _profile(name, settings.lm[name]) for name in settings.lms_of(pool)}
    _check_own_keys(settings, pool, profiles.values())
    return PoolConfig(
        app=settings.app,
        name=pool,
        size=p.size,
        slots=p.slots,
        lm=p.lm,
        profiles=profiles,
        programs=p.programs,
        path=tuple(settings.search_path),
        env=p.env,
        memory=p.memory,
        threads=p.threads,
        recycle_calls=p.recycle.calls,
        recycle_age=p.recycle.age,
        restart_max=p.restart.max,
        restart_within=p.restart.within,
        python=p.python,
        gpus=p.gpus,
        devices=p.devices,
        claim_check_above=settings.engine.claim_check_above,
        hmac_key_env=p.hmac_key_env,
        budgets=tuple(_budget(name, budget) for name, budget in settings.budgets.items()),
        zygote=p.zygote,
        cpu=p.cpu,
        keep_exchanges=p.keep_exchanges,
        redact=settings.telemetry.redact,
        scale=ScaleBounds(p.scale.min, p.scale.max, p.scale.cooldown) if p.scale is not None else None,
    )


def _check_own_keys(settings: Settings, pool: str, profiles: Iterable[Profile]) -> None:
    """Raise ConfigError (DX105) where programs of the pool would get a key that is dspex's own."""
    p = settings.pools[pool]
    signing, sealing = (named.split(",") if named else [] for named in (p.hmac_key_env, settings.engine.encrypt_key_env))
    given = {f"lm.{profile.name}.key_env": profile.key_env for profile in profiles}
    given |= {f"pools.{pool}.env.{name}": name if name in sealing else value.removeprefix("$") for name, value in p.env.items()}
    for where, variable in given.items():
        if variable in (*signing, *sealing):
            what = f"signs the records of pool {pool}" if variable in signing else "seals what is stored"
            raise ConfigError(
                f"{where} gives the key that {what} to programs",
                code="DX105",
                fix="give each key a variable of its own",
                node=pool,
            )


def _profile(name: str, lm: LMProfile) -> Profile:
    price = {name: usd for name, usd in (lm.price.model_dump() if lm.price else {}).items() if usd is not None}
    given = lm.limits
    rates: dict[Measure, str | None] = {"requests": given.requests, "tokens": given.tokens, "cost": given.cost}
    limits: dict[Measure, Sequence[float]] = {
        measure: duration.rate(text, money=measure == "cost") for measure, text in rates.items() if text is not None
    }
    limits |= {"concurrent": (float(given.concurrent), 0.0)} if given.concurrent is not None else {}
    rules = lm.breaker.model_dump(), limits, lm.batch.model_dump()
    return Profile(name, lm.model, lm.key_env, lm.base_url, lm.adapter, lm.params, price, *rules)


def _budget(name: str, given: BudgetSettings) -> Budget:
    per = {"minute": MINUTE, "day": DAY, "run": 0.0}[given.per]
    return Budget(name, given.profile, given.tenant, given.topology, given.requests, given.tokens, given.cost, per)


def missing_key(profile: Profile, pool: str) -> ConfigError:
    """The error for a key that is named and not set."""
    return ConfigError(
        f"lm.{profile.name}: the variable {profile.key_env}, named by key_env, is not set in pool {pool}'s environment",
        code="DX112",
        fix=f'export {profile.key_env}, or use the model that needs no key: lm.{profile.name}.model = "local/smollm2-135m"',
        node=f"lm.{profile.name}",
    )


def key_of(profile: Profile, pool: PoolConfig) -> str | None:
    """The profile's key, in a child; None where it names none. Raises ConfigError (DX112) for one that is named and not set."""
    key = pool.keys.get(profile.key_env) if profile.key_env else None
    if profile.key_env and not key:
        raise missing_key(profile, pool.name)
    return key


def need_local(profile: Profile, url: str | None) -> str:
    """Where the profile's model server listens. Raises ConfigError where it does not run."""
    if url is None:
        raise ConfigError(f"lm.{profile.name}: its model server does not run", fix="dspex model ls", node=profile.name)
    return url


def adapter_of(profile: Profile | None, wanted: str | None) -> Adapter:
    """The adapter of a call: its own, else the profile's, else chat; always json for a local model. Raises ConfigError (DX116).

    A local model follows a format only while its decoding is held to a schema, which the JSON adapter asks for.
    """
    kind = "json" if profile and profile.local else wanted or (profile and profile.adapter) or "chat"
    if kind not in ADAPTERS:
        raise ConfigError(f"there is no adapter {kind!r}", code="DX116", fix="use chat, json or xml")
    return kind


def check_keys(config: PoolConfig, environ: Mapping[str, str] = os.environ) -> None:
    """Raise ConfigError (DX112) if the default profile of the pool, or one of its variables, names what its children would not
    have.
    """
    profile, has = config.default_profile(), {**environ, **own_variables(config, environ)}
    if profile and profile.key_env and not has.get(profile.key_env):
        raise missing_key(profile, config.name)


def own_variables(config: PoolConfig, environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The variables that `pools.*.env` names; "$NAME" is what NAME is in `environ`. Raises ConfigError (DX112) if it is not."""
    if missing := [v for v in config.env.values() if v.startswith("$") and v[1:] not in environ]:
        said = f"pools.{config.name}.env: the variable {missing[0][1:]} is not set where the pool is started"
        raise ConfigError(said, code="DX112", fix=f"export {missing[0][1:]}", node=f"pools.{config.name}")
    return {name: environ[value[1:]] if value.startswith("$") else value for name, value in config.env.items()}


def child_environment(config: PoolConfig, environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The variables of the pool's processes: a base set, and its own. No key is among them, and nothing else leaks in."""
    env = {**environment.bare(environ), **dict.fromkeys(_THREADS, str(config.threads))}
    # DSPy would fetch a price list from the network at the first call, and keep a disk cache in the home folder.
    env["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
    env["DSPY_CACHEDIR"] = os.path.join(env.get("TMPDIR", "/tmp"), f"dspex-{config.app}-dspy")
    env["PYTHONUNBUFFERED"] = "1"
    return {**env, **own_variables(config, environ)}
