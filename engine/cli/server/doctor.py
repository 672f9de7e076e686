"""`dspex doctor`: is everything there that the settings count on? Each check says what it saw; a fault says what to do."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from dspex.bus import subjects
from dspex.bus.errors import BusError, ConfigError, DspexError, NotAllowed
from dspex.bus.local import probe
from dspex.bus.local.launch import find_binary
from dspex.bus.local.open import Found, connect, server_of
from dspex.bus.port import OLDEST_SERVER, Bus
from dspex.bus.serving.keys.clear_text import need_none
from dspex.bus.settings.imports import lean_nats
from dspex.bus.settings.model import Settings
from dspex.engine.cli.server.diagnosis import Diagnosis, fault
from dspex.engine.cli.server.interpreters import installed_for
from dspex.engine.cli.server.models import models
from dspex.engine.cli.server.named import missing_here, no_topology
from dspex.engine.cli.topology.targets import search
from dspex.engine.client.status.health import faults
from dspex.engine.client.status.limits import limit_rows
from dspex.engine.client.status.status import status
from dspex.engine.graph import manifest
from dspex.engine.graph.manifest import Manifest
from dspex.operators.native.prompts.versions import usable_dspy

if TYPE_CHECKING:
    from dspex.bus.local.rights import Rights

LEAST_PAYLOAD = 256 * 1024  # what an event may hold inline
MOST_SKEW = 3.0  # seconds


async def checks(
    settings: Settings, enough: Rights | None = None, role: str | None = None, *, ask: bool = True
) -> list[Diagnosis]:
    """All checks, in the order in which they are printed. None of them starts a server or writes a file.

    `enough`: the rights that the connection needs at most. `role`: whose they are, where somebody said so.
    `ask`: send each language model one small call.
    """
    found: list[Diagnosis] = []
    try:
        async with server_of(settings) as server:
            found += await _server(settings, server, enough, role)
    except (BusError, ConfigError) as e:
        found.append(fault("server", e))
        if not settings.server.url:
            found += _server_to_start(settings)
    found += await models(settings, ask=ask)
    found += await _pools(settings)
    search(settings)
    found += [Diagnosis(str(p.node), False, p.message, p.fix) for p in missing_here(settings)]
    return found


# -- server --------------------------------------------------------------------------------------------------------
async def _server(settings: Settings, server: Found, enough: Rights | None, role: str | None) -> list[Diagnosis]:
    found = [await _version(server), _sync(settings, server.local)]
    lean_nats()
    bus = await connect(settings, server, name="dspex doctor")
    try:
        found.append(_payload(bus))
        found += await _visible("jetstream", role, _account(bus))
        found += [await _permissions(bus, server, enough, role)] if enough else []
        found += await _visible("clock", role, _clock(settings, bus, server))
        found += await _visible("payloads", role, _sealed(settings, bus)) if role != "caller" else []  # which needs no key
        found += await _visible("application", role, _application(settings, bus))
        found += await _visible("limits", role, _limits(settings, bus))
    finally:
        await bus.close()
    return found


async def _visible(name: str, role: str | None, check: Awaitable[Diagnosis | list[Diagnosis]]) -> list[Diagnosis]:
    """What a check says; where a role has no right to look, that. Raises NotAllowed for a role that has it."""
    try:
        found = await check
    except NotAllowed:
        if role in (None, "engine", "operator"):
            raise
        found = Diagnosis(name, True, f"not visible with the rights of a {role}")
    return found if isinstance(found, list) else [found]


def _server_to_start(settings: Settings) -> list[Diagnosis]:
    """What can be said about the server of our own that `dspex run` would start."""
    try:
        binary = Diagnosis("nats-server", True, f"dspex run starts {find_binary()}")
    except ConfigError as e:
        binary = fault("nats-server", e)
    return [binary, _sync(settings, True)]


async def _version(server: Found) -> Diagnosis:
    url = server.url.split(",")[0]
    parts = urlsplit(url if "://" in url else f"nats://{url}")
    try:
        info = await probe.hello(parts.hostname or "127.0.0.1", parts.port or 4222, timeout=5.0)
    except (OSError, TimeoutError, EOFError, ValueError) as e:
        return Diagnosis("server", False, f"{url} does not answer: {e}", "start it: dspex server start; or correct server.url")
    version = str(info.get("version", "?"))
    where = "of dspex" if server.local else "of yours"
    good = tuple(int(n) for n in version.split("-")[0].split(".")[:2] if n.isdigit()) >= OLDEST_SERVER
    fix = "upgrade it to 2.12 or newer, or leave out --server and dspex starts its own"
    return Diagnosis("server", good, f"{url} is a server {where}, nats-server {version}", None if good else fix)


def _sync(settings: Settings, local: bool) -> Diagnosis:
    if not local:
        return Diagnosis("sync_interval", True, "set on the server and not visible from here; its default is 2 minutes")
    interval = settings.server.local.sync_interval
    if isinstance(interval, str):
        return Diagnosis("sync_interval", True, "every write is synced to disk")
    lost = f"a crash of the operating system can lose the last {interval:g} s; a crash of the server loses nothing"
    return Diagnosis("sync_interval", True, f'{interval:g} s: {lost} (server.local.sync_interval = "always" loses nothing)')


def _payload(bus: Bus) -> Diagnosis:
    good = bus.max_payload >= LEAST_PAYLOAD
    fix = None if good else f"raise max_payload of the server to {LEAST_PAYLOAD} or more"
    return Diagnosis("max_payload", good, f"{bus.max_payload} bytes", fix)


async def _account(bus: Bus) -> list[Diagnosis]:
    answer = await _ask(bus, subjects.ACCOUNT_INFO)
    if "error" in answer:
        why = str(answer["error"].get("description", answer["error"]))
        return [Diagnosis("jetstream", False, why, "turn JetStream on for this account")]
    limits = answer.get("limits", {})
    used, most = answer.get("storage", 0), limits.get("max_storage", -1)
    room = "no limit" if most < 0 else f"{most} bytes"
    message = f"on; {answer.get('streams', 0)} streams, {used} bytes of {room}"
    full = 0 <= most * 0.9 <= used
    found = [
        Diagnosis("jetstream", not full, message, "raise the storage limit, or delete what is not needed" if full else None)
    ]
    consumers, have = limits.get("max_consumers", -1), answer.get("consumers", 0)
    allowed = "the server's default, 1000 a stream" if consumers < 0 else str(consumers)
    good = consumers < 0 or have < consumers * 0.9
    fix = None if good else "raise the account's max_consumers"
    return [*found, Diagnosis("consumers", good, f"{have}; allowed: {allowed}", fix)]


async def _permissions(bus: Bus, server: Found, enough: Rights, role: str | None) -> Diagnosis:
    """Whether the connection may do more than it needs."""
    from dspex.bus.local.rights import Have

    if server.local:
        return Diagnosis("permissions", True, "the server of this folder: who can read its password may do anything")
    have = Have.read(await _ask(bus, subjects.USER_INFO))
    if have is None:
        return Diagnosis("permissions", True, "the server does not say what this connection may do")
    more = enough.beyond(have)
    if not more:
        return Diagnosis("permissions", True, f"no more than {role or 'an operator'} needs")
    shown = ", ".join(more[:3]) + (f" and {len(more) - 3} more" if len(more) > 3 else "")
    message = f"this connection may do more than {role or 'an operator'} needs: {shown}"
    fix = f"give the user what dspex server permissions --role {role or 'operator'} prints"
    return Diagnosis("permissions", role is None, message, fix if role else None)


async def _clock(settings: Settings, bus: Bus, server: Found) -> Diagnosis:
    if server.local:
        return Diagnosis("clock", True, "the server runs on this machine")
    before = time.time()
    info = await bus.stream(subjects.stream(settings.app))
    after = time.time()
    if info is None:
        return Diagnosis("clock", True, "not visible before the first topology is applied")
    skew = info.now - (before + after) / 2
    good = abs(skew) <= MOST_SKEW + (after - before)
    fix = None if good else "synchronise the clocks (NTP): logs and ids of this machine have its own time"
    return Diagnosis("clock", good, f"the server's clock is {skew:+.2f} s from ours", fix)


async def _sealed(settings: Settings, bus: Bus) -> Diagnosis:
    """Whether this process can read and write the payloads of the application."""
    try:
        if bus.sealing is not None:
            await bus.sealing.verify()
            if await bus.has("stream", name := subjects.keys(settings.app)):
                return Diagnosis("payloads", True, f"sealed, with the key in {settings.engine.encrypt_key_env}")
            before = not await manifest.of_application(bus, settings.app)
            fix = None if before else "apply again: dspex apply; what was sealed with keys that are gone, nobody can read"
            return Diagnosis("payloads", before, f"the stream {name} is not there, and is made when a topology is applied", fix)
        await need_none(bus, settings.app)
        return Diagnosis("payloads", True, "in clear text (engine.encrypt_key_env seals them)")
    except NotAllowed:
        raise
    except DspexError as e:
        return fault("payloads", e)


async def _application(settings: Settings, bus: Bus) -> list[Diagnosis]:
    """Whether what was applied is still there. That nothing runs is no fault: doctor is asked before a start, too."""
    applied = await manifest.of_application(bus, settings.app)
    found = faults(await status(bus, settings.app, applied))
    wrong = [Diagnosis(f.check, False, f.message, f.fix) for f in found if f.check in ("stream", "stage", "clock")]
    wrong += [d for m in applied.values() for d in await _copies(bus, settings.app, m)]
    if applied:  # before a start nobody knows what there will be
        unknown = no_topology(settings, {name: list(m.calls) for name, m in applied.items()})
        wrong += [Diagnosis(str(p.node), False, p.message, p.fix) for p in unknown]
    count = len(applied)
    good = f"{count} {'topology is' if count == 1 else 'topologies are'} applied" if count else "nothing is applied yet"
    return wrong or [Diagnosis("application", True, good)]


async def _limits(settings: Settings, bus: Bus) -> list[Diagnosis]:
    """Which limits and budgets are reached. That is no fault: they are there for it."""
    info = await bus.stream(subjects.stream(settings.app))
    rows = await limit_rows(bus, settings.app, info.now if info else time.time())
    limited = [row for row in rows if row["most"] is not None]
    reached = [
        f"{'lm.' if row['lm'] else 'budgets.'}{row['lm'] or row['budget']} ({row['what']})"
        for row in limited
        if not row["left"]
    ]
    said = f"{len(limited)} are counted; reached: {', '.join(reached) or 'none'}"
    return [Diagnosis("limits", True, said)] if limited else []


async def _copies(bus: Bus, app: str, applied: Manifest) -> list[Diagnosis]:
    """What is wrong with the public copies of a topology's sinks."""
    found: list[Diagnosis] = []
    for sink, name in applied.copies.items():
        info = await bus.stream(name)
        patterns = info.copies.get(subjects.stream(app), ()) if info is not None else ()
        if not any(subjects.includes(pattern, sink) for pattern in patterns):
            why = f"{name}, the copy of sink {sink}, is gone" if info is None else f"{name} has no copy of sink {sink} any more"
            found.append(Diagnosis("copy", False, f"stream {why}", "apply again: dspex apply"))
    return found


async def _ask(bus: Bus, subject: str) -> Mapping[str, Any]:
    answer: dict[str, Any] = json.loads((await bus.request(subject, b"")).data)
    return answer


# -- pools ----------------------------------------------------------------------------------------------
async def _pools(settings: Settings) -> list[Diagnosis]:
    pythons = {pool.python or sys.executable for pool in settings.pools.values()}
    answers = dict(zip(pythons, await asyncio.gather(*map(installed_for, pythons)), strict=True))
    return [_pool(settings, name, answers[pool.python or sys.executable]) for name, pool in settings.pools.items()]


def _pool(settings: Settings, name: str, answer: Mapping[str, Any] | str) -> Diagnosis:
    key = f"pools.{name}"
    if isinstance(answer, str):
        return Diagnosis(key, False, answer, f"correct {key}.python")
    try:
        lm = settings.lm_of(name)
    except ConfigError as e:
        return fault(key, e)
    versions = ", ".join(f"{package} {version or 'missing'}" for package, version in answer.items())
    needed = ("dspex", "dspy") if settings.pools[name].programs else ("dspex",)  # native calls need no DSPy
    missing = [package for package in needed if not answer[package]]
    fix = f"install it for that interpreter: pip install 'dspex[dspy]' ({', '.join(missing)} missing)" if missing else None
    usable, remark = usable_dspy(answer["dspy"]) if answer["dspy"] else (True, "")
    if not usable:
        fix = f"upgrade it: pip install -U 'dspex[dspy]', or name another interpreter in {key}.python"
    return Diagnosis(key, not missing and usable, "; ".join(filter(None, (versions, remark, f"language model {lm}"))), fix)
