"""Settings that do not go together: names of what is not there, and values that contradict each other."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from itertools import combinations
from typing import TYPE_CHECKING, Final

from dspex.bus.errors import Problem
from dspex.bus.serving.call_spec import without_price
from dspex.bus.settings import layers
from dspex.bus.settings.layers import SettingPath
from dspex.bus.settings.values import host_port

if TYPE_CHECKING:
    from dspex.bus.settings.model import Settings

_EVERYWHERE: Final = ("0.0.0.0", "::")


def problems(settings: Settings, origins: Mapping[SettingPath, str]) -> Iterator[Problem]:
    """Every pair of settings of which one makes the other one wrong. `origins`: where each was written."""
    yield from _unknown_names(settings, origins)
    yield from _without_prices(settings, origins)
    yield from _contradictions(settings, origins)
    yield from _shared(settings, origins)


def at_once(one: str, other: str) -> bool:
    """Whether two addresses to listen on, as `host_port` reads them, cannot both be had."""
    (host, port), (other_host, other_port) = host_port(one), host_port(other)
    return port == other_port and (host == other_host or host in _EVERYWHERE or other_host in _EVERYWHERE)


def _unknown_names(settings: Settings, origins: Mapping[SettingPath, str]) -> Iterator[Problem]:
    """Language models and pools that are named and not there."""
    default = settings.defaults.call.pool
    if default is not None and default not in settings.pools:
        fix = f"add it to dspex.toml: pools.{default} = {{}}"
        place = layers.origin_of(("defaults", "call", "pool"), origins)
        yield problem_at("DX133", "defaults.call.pool", place, f"there is no pool {default!r}", fix)
    named = [(("pools", name, "lm"), pool.lm) for name, pool in settings.pools.items() if pool.lm]
    named += [(("pools", name, "lms"), lm) for name, pool in settings.pools.items() for lm in pool.lms]
    named += [(("defaults", "call", "lm"), lm) for lm in settings.defaults.call.lm or ()]
    named += [(("budgets", name, "profile"), budget.profile) for name, budget in settings.budgets.items() if budget.profile]
    for key, lm in named:
        if lm not in settings.lm:
            close = difflib.get_close_matches(lm, settings.lm, n=1)
            fix = f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(settings.lm)}"
            origin = layers.origin_of(key, origins)
            yield problem_at("DX111", ".".join(key), origin, f"there is no language model {lm!r}", fix)


def _without_prices(settings: Settings, origins: Mapping[SettingPath, str]) -> Iterator[Problem]:
    """Budgets of money for profiles of which nobody knows what they cost, and a choice by that."""
    for name, budget in settings.budgets.items():
        profiles = [budget.profile] if budget.profile in settings.lm else [lm for lm in settings.lm if budget.profile is None]
        priceless = settings.priceless(profiles)
        if budget.cost is not None and priceless:
            key = ("budgets", name, "cost")
            said = f"counts no call of lm.{priceless[0]}, which has no price"
            fix = f"say what its tokens cost: lm.{priceless[0]}.price = {{ input = …, output = … }}"
            yield problem_at("DX105", ".".join(key), layers.origin_of(key, origins), said, fix)
    call = settings.defaults.call
    for lm in settings.priceless(call.lm or ()) if call.choose == "cheapest" else ():
        place = layers.origin_of(("defaults", "call", "choose"), origins)
        yield problem_at("DX105", "defaults.call.choose", place, *without_price(lm))


def _contradictions(settings: Settings, origins: Mapping[SettingPath, str]) -> Iterator[Problem]:
    """Between two values."""
    call, engine = settings.defaults.call, settings.engine
    if engine.stall_after < engine.heartbeat:
        place = layers.origin_of(("engine", "stall_after"), origins)
        said = f"{engine.stall_after:g} s is shorter than engine.heartbeat, {engine.heartbeat:g} s, which tells of it"
        yield problem_at("DX105", "engine.stall_after", place, said, "raise it, or lower engine.heartbeat")
    if call.timeout is not None and call.first_token_timeout is not None and call.first_token_timeout > call.timeout:
        place = layers.origin_of(("defaults", "call", "first_token_timeout"), origins)
        said = f"{call.first_token_timeout:g} s is longer than defaults.call.timeout, {call.timeout:g} s, which ends it before"
        yield problem_at("DX105", "defaults.call.first_token_timeout", place, said, "lower it, or leave it out")
    most = max(pool.slots for pool in settings.pools.values())
    if call.cost is not None and call.cost > most:
        place = layers.origin_of(("defaults", "call", "cost"), origins)
        said = f"a call would take {call.cost} slots, and no worker has more than {most}"
        yield problem_at("DX105", "defaults.call.cost", place, said, "lower it, or raise pools.*.slots")
    for name, pool in settings.pools.items():
        if pool.timeout is not None and call.deadline is not None and pool.timeout > call.deadline:
            place = layers.origin_of(("pools", name, "timeout"), origins)
            said = f"{pool.timeout:g} s is longer than defaults.call.deadline, {call.deadline:g} s, which ends all attempts"
            yield problem_at("DX105", f"pools.{name}.timeout", place, said, "lower it, or raise defaults.call.deadline")


def _shared(settings: Settings, origins: Mapping[SettingPath, str]) -> Iterator[Problem]:
    """What only one can have: an address to listen on, a token."""
    local, metrics = settings.server.local.port, settings.telemetry.metrics
    listens: dict[SettingPath, str] = {("http", "bind"): settings.http.bind}
    if metrics is not None:
        listens["telemetry", "metrics"] = metrics
    if local > 0:
        listens["server", "local", "port"] = f"127.0.0.1:{local}"
    written = {key: at for key, at in listens.items() if layers.origin_of(key, origins) != "default"}
    for (one, at), (other, other_at) in combinations(written.items(), 2):
        if at_once(at, other_at):
            said = f"{other_at} is the address of {'.'.join(one)}, too, and only one can listen there"
            yield problem_at("DX105", ".".join(other), layers.origin_of(other, origins), said, "name another port")
    tokens: dict[str, str] = {}
    for name, token in settings.calls.items():
        for variable in token.token_env.split(","):
            if (first := tokens.setdefault(variable, name)) != name:
                key = ("calls", name, "token_env")
                said = f"the token in {variable} is that of calls.{first}, too: whose it is could not be told"
                yield problem_at("DX105", ".".join(key), layers.origin_of(key, origins), said, "name another variable")


def problem_at(code: str, key: str, origin: str, message: str, fix: str) -> Problem:
    """A problem of a setting. `origin`: where it was written."""
    at_line = re.fullmatch(r"(.+):(\d+)", origin)
    file, line = (at_line[1], int(at_line[2])) if at_line else (origin, None)
    return Problem(code, "error", "", key, file, line, message, fix)
