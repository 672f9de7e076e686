"""Whoever may write records and read the work has all that a record needs, but for the key of the pool: on a real server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from cli_bench import CLASSIFY, TRIAGE, Project, stand_in
from structlog.testing import capture_logs
from waiting import until

from dspex.bus import subjects
from dspex.bus.errors import ConfigError
from dspex.bus.message import Message
from dspex.bus.nats import NatsBus
from dspex.bus.port import Delivery, NewMessage
from dspex.bus.records import CallRecord, CallRequest
from dspex.bus.serving import payloads
from dspex.bus.serving.keys.signatures import Keys, is_signed, keys_of, signed
from dspex.bus.serving.record_store import RecordStore
from dspex.bus.serving.work_loop import Job, WorkLoop
from dspex.bus.settings.model import Settings
from dspex.engine.client.client import Client
from dspex.engine.client.runs.outputs import read_event
from dspex.engine.hosting.host import Host
from dspex.operators.topology import Topology
from dspex.workers.config import child_environment, resolve

POOL = "lightweight"
KEY, OLD, OTHER = (name.encode() * 16 for name in ("key", "old", "other"))
FORGED = "records without a right signature are passed over; dspex status --json counts them"


class Asking:
    """An engine on the real server whose topology asks a pool; nobody answers until `answers` is entered."""

    def __init__(self, bus: NatsBus, app: str, host: Host) -> None:
        self.bus, self.app, self.host, self.client = bus, app, host, Client(bus=bus, app=app)

    async def requests(self, count: int) -> list[CallRequest]:
        """What waits for a worker, once there are so many."""

        async def found() -> list[Message]:
            stored = await self.stored(subjects.work_pattern(self.app, POOL))
            return stored if len(stored) == count else []

        await until(found)
        return [CallRequest.unpack(m.data) for m in await found()]

    async def outputs(self) -> list[Any]:
        return sorted(read_event(m).data["answer"] for m in await self.stored(f"{self.app}.out"))

    async def stored(self, pattern: str) -> list[Message]:
        """What lies in the application's stream now."""
        info = await self.bus.stream(name := subjects.stream(self.app))
        return await self.bus.scan(name, [pattern], start=1, stop=info.last) if info is not None else []

    @property
    def passed_over(self) -> int:
        return self.host.runners[0].counters["unsigned"]

    @asynccontextmanager
    async def answers(self, keys: Keys, above: int = payloads.ABOVE) -> AsyncIterator[WorkLoop]:
        """A worker of the pool with these keys."""
        failures: list[BaseException] = []

        async def answer(request: CallRequest) -> CallRecord:
            return record(request, "theirs" if not keys else "ours")

        def accept(request: CallRequest, delivery: Delivery) -> Job:
            return partial(answer, request)

        records = RecordStore(self.bus, self.app, POOL, above, keys)
        worker = WorkLoop(self.bus, self.app, POOL, accept, free=lambda: 9, failed=failures.append, records=records)
        worker.start()
        yield worker
        await worker.drain(10.0)
        assert failures == []


@asynccontextmanager
async def asking(bus: NatsBus, app: str, keys: Mapping[str, Keys]) -> AsyncIterator[Asking]:
    topology = Topology("asking")
    topology.source(f"{app}.in").predict("text -> answer", name="ask").sink(f"{app}.out")
    host = Host(bus, app, [topology.graph], engine="a", keys=keys)
    await host.start()
    try:
        yield Asking(bus, app, host)
    finally:
        await host.drain()


def record(request: CallRequest, answer: str) -> CallRecord:
    to = request.record
    assert to is not None
    return CallRecord(
        request.call,
        request.try_number,
        request.attempt,
        request.topology,
        request.node,
        to.number,
        to.event,
        {"answer": answer},
    )


def signature(message: NewMessage) -> str:
    return (message.headers or {})[subjects.SIGNATURE]


def under(message: NewMessage, signature: str) -> NewMessage:
    return message._replace(headers={**(message.headers or {}), subjects.SIGNATURE: signature})


@pytest.mark.asyncio
@pytest.mark.parametrize("above", [payloads.ABOVE, 10], ids=["in the message", "as a claim check"])
async def test_a_record_is_believed_only_with_the_key_of_its_pool(bus: NatsBus, unique: str, above: int) -> None:
    with capture_logs() as logs:
        async with asking(bus, unique, {POOL: (KEY,)}) as one:
            for text in ("a", "b"):
                await one.client.publish(f"{unique}.in", {"text": text})
            first, second = await one.requests(2)

            async def forged(suffix: str = "", request: CallRequest = first, answer: str = "forged") -> NewMessage:
                """What a stranger can make who reads the work. The server takes one more under an id with a suffix."""
                assert request.record is not None
                headers = {subjects.MESSAGE_ID: f"{request.record.id}{suffix}"}
                made = NewMessage(request.record.subject, record(request, answer).pack(), headers)
                return await payloads.checked_in(bus, unique, made, above)

            right, another = signature(signed(await forged(".1"), (KEY,))), signature(signed(await forged(), (OTHER,)))
            ours = signature(signed(await forged(request=second), (KEY,)))
            garbage = ["", "v1", "v1 ", "é" * 64, "v1 " + "0" * 64, right[:-1], f"{right}0", right.upper(), right[3:]]
            wrong = [
                under(await forged(), another),  # under the very id: the worker finds that taken
                await forged(".2"),
                under(await forged(".3"), right),
                under(await forged(".4"), ours),
                under(await forged(".1", answer="another"), right),
                *[under(await forged(f".garbage-{n}"), made) for n, made in enumerate(garbage)],
            ]
            for draft in wrong:
                await bus.publish(draft)
            await until(lambda: one.passed_over == len(wrong))
            assert await one.outputs() == []
            async with one.answers((KEY,), above) as worker:
                await until(lambda: worker.served == 2)
                assert worker.records.collisions == 1
                await until(partial(_is, one.outputs, ["ours", "ours"]))
            await until(partial(_counted, one.client, len(wrong)))
    assert [(e["log_level"], e["pool"]) for e in logs if e["event"] == FORGED] == [("error", POOL)]


async def _is(found: Callable[[], Any], wanted: object) -> bool:
    return bool(await found() == wanted)


async def _counted(client: Client, count: int) -> bool:
    """Whether `status` says so, which it does with the next heartbeat."""
    return [s["unsigned"] for s in (await client.status())["stages"]] == [count]


@pytest.mark.asyncio
async def test_while_keys_change_both_are_right(bus: NatsBus, unique: str) -> None:
    async with asking(bus, unique, {POOL: (KEY, OLD)}) as one:
        for number, keys in enumerate([(KEY,), (OLD, KEY)], 1):
            await one.client.publish(f"{unique}.in", {"text": "a"})
            async with one.answers(keys):
                await until(partial(_is, one.outputs, ["ours"] * number))
        assert one.passed_over == 0


@pytest.mark.asyncio
@pytest.mark.parametrize("keys", [{}, {"another": (KEY,)}], ids=["no key", "a key of another pool"])
async def test_a_pool_without_a_key_answers_as_ever(bus: NatsBus, unique: str, keys: Mapping[str, Keys]) -> None:
    async with asking(bus, unique, keys) as one:
        await one.client.publish(f"{unique}.in", {"text": "a"})
        async with one.answers(()):
            await until(partial(_is, one.outputs, ["theirs"]))


def test_a_signature_is_over_id_and_body_and_over_the_hash_of_what_lies_elsewhere() -> None:
    import hashlib
    import hmac

    for headers, body in (({}, b"body"), ({subjects.CLAIM_CHECK: "a" * 64}, b"a" * 64)):
        data = b"" if headers else body
        made = signed(NewMessage("s", data, {subjects.MESSAGE_ID: "id", **headers}), (KEY, OLD))
        assert signature(made) == "v1 " + hmac.new(KEY, b"id\n" + body, hashlib.sha256).hexdigest()
        stored = Message("s", data, made.headers or {})
        assert is_signed(stored, (OLD, KEY))
        assert not is_signed(stored, (OLD,))


# -- settings ---------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("environ", "why"),
    [({}, "NEW, named by hmac_key_env, is not set"), ({"NEW": "short"}, "has 5 characters"), ({"NEW": "k" * 64}, "OLD, named")],
    ids=["none", "a short one", "one of two"],
)
def test_a_key_that_is_missing_or_short_is_named_and_never_shown(environ: dict[str, str], why: str) -> None:
    with pytest.raises(ConfigError, match=why) as e:
        keys_of(POOL, "NEW,OLD", environ)
    assert (e.value.code, any(key in str(e.value) for key in environ.values())) == ("DX112", False)


def test_two_variables_are_two_keys_and_none_is_none() -> None:
    assert keys_of(POOL, "NEW,OLD", {"NEW": "n" * 32, "OLD": "o" * 32}) == (b"n" * 32, b"o" * 32)
    assert keys_of(POOL, None, {}) == ()


def settings(named: str = "POOL_KEY", **env: str) -> Settings:
    return Settings.model_validate({"app": "a", "pools": {POOL: {"hmac_key_env": named, "env": env}}})


def test_worker_processes_get_neither_the_key_nor_its_name() -> None:
    config = resolve(settings(), POOL)
    environ = {"POOL_KEY": KEY.decode(), "PATH": "/bin"}
    assert "POOL_KEY" not in child_environment(config, environ)
    told = repr(config.for_child(environ))
    assert ("POOL_KEY" in told, KEY.decode() in told) == (False, False)


@pytest.mark.parametrize("env", [{"MINE": "$POOL_KEY"}, {"POOL_KEY": "$ELSEWHERE"}, {"MINE": "$OLD"}])
def test_a_pool_that_would_give_the_key_to_its_programs_is_refused(env: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="gives the key that signs records to programs"):
        settings("POOL_KEY,OLD", **env)
    assert settings(MINE="POOL_KEY", EMPTY="", OTHER="$OTHER").pools[POOL].env["MINE"] == "POOL_KEY"


def test_a_variable_that_programs_have_anyway_is_refused_for_the_key() -> None:
    for named in ("PATH", "POOL_KEY,LC_KEY"):
        with pytest.raises(ConfigError, match="gives the key that signs records to programs"):
            settings(named)
    lm = {"main": {"model": "openai/x", "key_env": "OLD"}}
    pools = {POOL: {"hmac_key_env": "POOL_KEY,OLD"}}
    with pytest.raises(ConfigError, match="gives the key that signs the records"):
        resolve(Settings.model_validate({"app": "a", "lm": lm, "pools": pools}), POOL)


@pytest.mark.parametrize("named", ["", "A,", ",A", "A B", "A,B,", "1A"])
def test_what_names_no_variable_is_refused(named: str) -> None:
    with pytest.raises(ConfigError, match="hmac_key_env"):
        settings(named)


SETTINGS = """
topologies = ["triage.yaml"]
lm.main = {{ model = "openai/stand-in", base_url = "{url}" }}
pools.lightweight = {{ hmac_key_env = "POOL_KEY" }}
"""


@pytest.mark.long
@pytest.mark.no_cover
def test_an_engine_and_its_pool_sign_with_the_key_and_show_it_nowhere(nats_url: str, unique: str, tmp_path: Path) -> None:
    with stand_in() as url:
        project = Project(tmp_path, unique, SETTINGS.format(url=url), NATS_URL=nats_url)
        project.write("triage.yaml", TRIAGE.format(u=unique, signature=CLASSIFY))
        for verb in (["run"], ["run", "--pools", "none"], ["worker", POOL]):
            done = project.dspex("--json", *verb)
            assert (done.code, done.error()["code"], "POOL_KEY" in done.error()["message"]) == (2, "DX112", True)
        key = {"POOL_KEY": "5ec2e7" * 10}
        with project.start("--json", "run", **key) as run:
            run.until('"pool ready"')
            assert project.here("publish", project.input, "text=where is my card", "--wait").code == 0
            shown = project.here("config", "show", **key).out + project.here("--json", "config", "show", **key).out
            (said,) = project.here("--json", "status").objects()
            assert [s["unsigned"] for s in said["stages"]] == [0]
            assert run.end() == 0
            told = shown + run.errors() + "".join(run.lines)
    assert ("POOL_KEY" in shown, key["POOL_KEY"] in told) == (True, False)
