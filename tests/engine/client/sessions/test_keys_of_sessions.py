"""The keys of sessions: what everybody has to do with the same one, who may not, and that a person is forgotten by one verb.

On a real server, as in test_sealed.py.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from functools import partial
from types import SimpleNamespace

import pytest
import pytest_asyncio
from engine_lab import APP, Lab
from sealed_app import CARD, KEYS, POOL, Sealed, count, everything, letters, name_of, of
from waiting import until

from dspex.bus import codecs, nats, subjects
from dspex.bus.errors import ConfigError, NotAllowed
from dspex.bus.memory.connection import MemoryBus
from dspex.bus.memory.store import MemoryStream
from dspex.bus.message import Message
from dspex.bus.nats import NatsBus
from dspex.bus.port import Kept, NewMessage
from dspex.bus.serving import payloads
from dspex.bus.serving.keys import clear_text, keyring
from dspex.bus.serving.keys.keyring import Keyring
from dspex.engine.client.client import Client
from dspex.engine.hosting.apply import apply
from dspex.engine.hosting.host import Host
from dspex.operators.topology import Topology


@pytest_asyncio.fixture
async def app(nats_url: str, unique: str) -> AsyncIterator[Sealed]:
    async with AsyncExitStack() as stack:
        yield Sealed(nats_url, unique, stack)


async def applied(app: Sealed, named: str) -> Client:
    """A client with these keys, after the topology was applied with them."""
    client = await app.client(named)
    await apply(client.bus, app.app, [app.topology().graph])
    return client


async def texts(client: Client) -> list[str]:
    """The texts of the letters that can be read."""
    found = [d.event.data for d in await letters(client) if d.code != "DX511"]
    return sorted(data["text"] for data in found)


@pytest.mark.asyncio
async def test_who_has_no_key_stores_nothing_in_clear_text_where_others_seal(app: Sealed) -> None:
    engine, worker, plain = await app.engine(None), await app.worker(None), await app.client(None)
    await plain.publish(f"{app.app}.in", {"text": "fail before"})
    await until(partial(count, partial(letters, plain), 1))
    await engine.drain()
    await worker.drain(1.0)
    await applied(app, "KEY")
    before = len(await everything(plain.bus, app.app))
    plain = await app.client(None)
    with pytest.raises(ConfigError, match="no key is named here") as e:
        await plain.publish(f"{app.app}.in", {"text": CARD})
    assert e.value.code == "DX124"
    with pytest.raises(ConfigError, match="no key is named here"):
        await plain.redrive(await letters(plain))
    with pytest.raises(ConfigError, match="no key is named here"):
        await plain.call("text -> answer", {"text": CARD * 100_000}, timeout=2)
    stored = await everything(plain.bus, app.app)
    assert not any(CARD.encode() in m.data for m in stored)
    assert {m.subject.split(".")[2] for m in stored[before:] if m.subject.startswith("dspex.")} <= {"audit", "key"}


@pytest.mark.asyncio
async def test_who_has_another_key_publishes_nothing_and_spoils_no_session(app: Sealed) -> None:
    await app.engine()
    await app.worker()
    other = await app.client("OLD")
    for _ in range(2):
        with pytest.raises(NotAllowed, match="sealed with another key than the one in OLD"):
            await other.publish(f"{app.app}.in", {"text": CARD}, session="ann")
    client = await app.client()
    await client.publish(f"{app.app}.in", {"text": "fail"}, session="ann")
    await until(partial(count, partial(letters, client), 1))
    with pytest.raises(NotAllowed, match="sealed with another key"):
        await letters(await app.client("OLD"))
    assert await client.forget(session="ann") == 1
    assert await texts(await app.client()) == []


@pytest.mark.asyncio
async def test_the_old_key_is_done_with_once_an_engine_has_started_with_the_new_one(app: Sealed) -> None:
    for named in ("OLD", "KEY,OLD", "KEY", "THIRD,KEY", "THIRD"):
        await applied(app, named)
    for named in ("FOURTH", "OLD", "KEY", "FOURTH,KEY"):
        with pytest.raises(ConfigError, match="sealed with another key"):
            await applied(app, named)


@pytest.mark.asyncio
async def test_while_the_key_changes_nothing_is_lost_by_who_has_only_one(app: Sealed, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the order in which processes get the new key: they seal with the one that engines have, or are refused."""
    await applied(app, "OLD")
    old, early, late = [await app.client(named) for named in ("OLD", "KEY,OLD", "OLD,KEY")]
    for client in (old, early, late):
        await client.publish(f"{app.app}.in", {"text": "fail"})  # all with the old one
    engine = await app.engine("OLD")
    await app.worker("OLD,KEY")
    await until(partial(count, partial(letters, old), 3))
    await applied(app, "KEY,OLD")
    monkeypatch.setattr(keyring, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + keyring.LIFE))  # a minute later
    for client in (early, late):
        await client.publish(f"{app.app}.in", {"text": "fail"})  # with the new one: the engine of before has it not
    with pytest.raises(NotAllowed, match="sealed with another key than the one in OLD"):
        await old.publish(f"{app.app}.in", {"text": "fail"})
    await engine.kill()
    await app.engine("KEY,OLD")
    await until(partial(count, partial(letters, early), 5))
    assert await texts(early) == ["fail"] * 5


@pytest.mark.asyncio
async def test_a_session_that_goes_on_while_the_key_changes_is_forgotten_whole(app: Sealed) -> None:
    old = await applied(app, "OLD")
    await old.publish(f"{app.app}.in", {"text": "old"}, session="ann")
    both = await applied(app, "KEY,OLD")
    await both.publish(f"{app.app}.in", {"text": "new"}, session="ann")
    assert len(await of(both, f"{app.app}.in", subjects.sources(app.app))) == 2
    assert await both.forget(session="ann") == 2
    for named in ("KEY,OLD", "KEY"):
        assert await of(await app.client(named), f"{app.app}.in", subjects.sources(app.app)) == []


@pytest.mark.asyncio
async def test_only_a_session_that_is_named_is_forgotten(app: Sealed) -> None:
    """`--session "$ID"` with an unset variable: what belongs to no session would all be lost."""
    await app.engine()
    await app.worker()
    client = await app.client()
    await client.publish(f"{app.app}.in", {"text": "fail"})
    await until(partial(count, partial(letters, client), 1))
    with pytest.raises(ConfigError, match="not said which session") as e:
        await client.forget(session="")
    assert e.value.code == "DX105"
    assert await texts(await app.client()) == ["fail"]


@pytest.mark.asyncio
async def test_who_may_add_keys_cannot_keep_a_session_from_being_forgotten(app: Sealed) -> None:
    """Who knows a session's id does not know where its key will lie; and forgetting takes away what lies there instead."""
    client, plain = await app.client(), await app.bus(None)
    await app.engine()
    await app.worker()
    assert len({name_of("77"), name_of("77", "OLD"), name_of("78")}) == 3
    await client.publish(f"{app.app}.in", {"text": "fail first"}, session="77")
    await until(partial(count, partial(letters, client), 1))
    assert await client.forget(session="77") == 1
    await plain.publish(NewMessage(subjects.key(app.app, name_of("77")), b"x" * 60))  # seen in the headers of what it sealed
    later = await app.client()
    assert await later.forget(session="77") == 0
    await later.publish(f"{app.app}.in", {"text": "fail again"}, session="77")
    await until(partial(count, partial(texts, later), 1))
    assert await later.forget(session="77") == 1
    assert await texts(await app.client()) == []


@pytest.mark.asyncio
async def test_nothing_of_one_session_can_be_put_into_another(app: Sealed) -> None:
    """What follows from it would be sealed with the key of the other one, and stay when its own is forgotten."""
    await app.engine()
    await app.worker()
    client, plain = await app.client(), await app.bus(None)
    await client.publish(f"{app.app}.in", {"text": "fail of ann"}, session="ann")
    await client.publish(f"{app.app}.in", {"text": "fail of bob"}, session="bob")
    sent = await plain.scan(subjects.sources(app.app), [f"{app.app}.in"], start=1, stop=9)
    (of_ann,) = [m for m in sent if m.headers[subjects.SESSION] == "ann"]
    sealed = {subjects.SEALED: of_ann.headers[subjects.SEALED]}
    for session in ({subjects.SESSION: "bob"}, {}):
        await plain.publish(NewMessage(f"{app.app}.in", of_ann.data, {**sealed, **session}))
    await until(partial(count, partial(letters, client), 4))
    assert await texts(client) == ["fail of ann", "fail of bob"]


@pytest.mark.asyncio
async def test_a_connection_that_seals_for_one_application_serves_no_other(app: Sealed) -> None:
    with pytest.raises(ConfigError, match="seals for application") as e:
        Client(bus=await app.bus(), app="other")
    assert e.value.code == "DX124"


@pytest.mark.asyncio
async def test_a_key_may_be_any_bytes(app: Sealed) -> None:
    bus = await app.bus(None)
    bus.sealing = Keyring(bus, app.app, "RAW", {"RAW": "\udcff" * 32})  # as Python reads what is no UTF-8
    await apply(bus, app.app, [app.topology().graph])
    message = await payloads.checked_in(bus, app.app, NewMessage("a", b"body"))
    assert message.data != b"body"


@pytest.mark.asyncio
async def test_what_a_client_may_store_in_clear_text_is_asked_once_a_minute(
    app: Sealed, monkeypatch: pytest.MonkeyPatch
) -> None:
    bus = await app.bus(None)
    await apply(bus, app.app, [app.topology().graph])
    asked = list[str]()
    has = bus.has

    async def counted(kind: Kept, name: str) -> bool:
        asked.append(name)
        return await has(kind, name)

    bus.has = counted  # type: ignore[method-assign]
    for _ in range(3):
        await Client(bus=bus, app=app.app).publish(f"{app.app}.in", {"text": "a"})
    assert asked == [subjects.keys(app.app)]
    await applied(app, "KEY")
    monkeypatch.setattr(
        clear_text, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + clear_text.AGAIN)
    )  # a minute later
    with pytest.raises(ConfigError, match="no key is named here"):
        await Client(bus=bus, app=app.app).publish(f"{app.app}.in", {"text": "a"})


@pytest.mark.asyncio
async def test_the_keys_of_many_sessions_are_asked_for_together(app: Sealed) -> None:
    """When an engine reads records of calls that have taken long, and when letters are listed."""
    engine, client = await app.engine(), await app.client()
    for number in range(40):
        await client.publish(f"{app.app}.in", {"text": "fail" if number % 2 else "a"}, session=f"s{number}")
    await until(partial(count, partial(of, client, subjects.work_pattern(app.app, POOL)), 40))
    await engine.drain()
    await app.worker()
    records = partial(of, await app.client(), subjects.record(app.app, POOL, "*", "*", "*"))
    await until(partial(count, records, 40))
    asked, bus, later = list[str](), await app.bus(), await app.client()
    count_asked(bus, asked)
    count_asked(later.bus, asked)
    host = Host(bus, app.app, [app.topology().graph], engine="b", claim_check_above=400)
    await host.start()
    await until(partial(count, partial(letters, client), 20))
    await letters(later)
    assert asked.count(subjects.keys(app.app)) < 10
    await host.drain()


def count_asked(bus: NatsBus, asked: list[str]) -> None:
    """Note the stream of each message that the leader is asked for."""
    last = bus.last

    async def counted(stream: str, subject: str) -> Message | None:
        asked.append(stream)
        return await last(stream, subject)

    bus.last = counted  # type: ignore[method-assign]


def test_a_key_that_a_new_leader_does_not_show_yet_is_waited_for(lab: Callable[..., Lab]) -> None:
    topology = Topology("echo")
    topology.source("in").map(lambda d: d, name="same").sink("out")
    one = lab(topology)
    name, client = subjects.keys(APP), one.client

    def sealing() -> MemoryBus:
        bus = one.server.connect()
        bus.sealing = Keyring(bus, APP, "KEY", KEYS)
        return bus

    one.start(bus=sealing())
    one.kill()
    client.bus.sealing = sealing().sealing
    for session in ("ann", "bob"):
        one.publish("in", {"text": session}, session=session)
    shown = one.server.streams[name]
    one.server.streams[name] = MemoryStream(shown.config, shown.created)
    one.server.led_since = one.run(now(one))
    one.start(bus=sealing())
    one.advance(2)
    one.server.streams[name] = shown
    one.advance(12)
    assert [o["text"] for o in one.outputs("out")] == ["ann", "bob"]
    assert one.letters() == []


async def now(one: Lab) -> float:
    return one.server.now


@pytest.mark.asyncio
async def test_events_that_are_published_at_once_are_stored_in_that_order(nats_url: str, unique: str) -> None:
    """The first ones ask whether payloads are sealed, and the next ones wait for their turn."""
    for _ in range(5):
        bus = await nats.connect(nats_url)
        client, before = Client(bus=bus, app=unique), 0
        topology = Topology("asking")
        topology.source(f"{unique}.in").sink(f"{unique}.out")
        await apply(bus, unique, [topology.graph])
        if (info := await bus.stream(subjects.sources(unique))) is not None:
            before = info.last
        await asyncio.gather(*(client.publish(f"{unique}.in", {"n": n}) for n in range(200)))
        stored = await bus.scan(subjects.sources(unique), [f"{unique}.in"], start=before + 1, stop=before + 200)
        assert [m.data for m in stored] == [codecs.json_bytes({"n": n}) for n in range(200)]
        await bus.close()
