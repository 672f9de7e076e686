"""Sealed payloads: who reads the server reads none of them, and a session whose key is deleted is forgotten.

On a real server. Each part has a connection of its own, with the key or without.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing
from functools import partial
from pathlib import Path

import pytest
import pytest_asyncio
from sealed_app import CARD, KEYS, LARGE, POOL, Sealed, count, everything, is_now, letters, name_of, of
from structlog.testing import capture_logs
from waiting import until

from dspex.bus import subjects
from dspex.bus.errors import BusError, ConfigError, DataError, NotAllowed, StreamFull
from dspex.bus.local.server import LocalServer
from dspex.bus.port import NewMessage
from dspex.bus.serving import payloads
from dspex.engine.client.client import Client
from dspex.engine.hosting.apply import apply
from dspex.engine.hosting.host import Host
from dspex.engine.replay.partition import PartitionReplay
from dspex.engine.runtime.walk.compile import compile_stage


@pytest_asyncio.fixture
async def app(nats_url: str, unique: str) -> AsyncIterator[Sealed]:
    async with AsyncExitStack() as stack:
        yield Sealed(nats_url, unique, stack)


@pytest.mark.asyncio
async def test_nothing_that_is_stored_tells_what_was_said(app: Sealed) -> None:
    await app.engine()
    client = await app.client()
    texts = [CARD, f"{CARD} {LARGE}", f"{CARD} fail", f"{CARD} fail {LARGE}", f"{CARD} {LARGE}{LARGE}"]
    for number, text in enumerate(texts):
        await client.publish(f"{app.app}.in", {"text": text}, session=f"s{number}" if number % 2 else None)
    plain = await app.bus(None)
    work = partial(of, client, subjects.work_pattern(app.app, POOL))
    await until(partial(count, work, 4))  # still there: the request holds the event twice
    await app.worker()
    await until(partial(count, partial(letters, client), 2))
    await until(partial(count, partial(of, client, f"{app.app}.out"), 2))
    stored = await everything(plain, app.app)
    subjects_seen = {m.subject.split(".")[2] for m in stored if m.subject.startswith("dspex.")}
    assert {"record", "dead", "log", "key"} <= subjects_seen
    assert any(m.subject.startswith("$O.") for m in stored)
    for session in ("s1", "s3"):  # each kind of message with the key of its session
        mine = [m for m in stored if m.headers.get(subjects.SESSION) == session]
        assert {m.headers.get(subjects.SEALED) for m in mine} == {f"v1 {name_of(session)}"}
        assert sum(".record." in m.subject for m in mine) == 1
    for message in stored:
        assert CARD.encode() not in message.data, message.subject
        assert not any(CARD in value for value in message.headers.values())
    assert sorted((d.event.data["text"], d.message) for d in await letters(client)) == sorted(
        (text, f"cannot: {text}") for text in texts if "fail" in text
    )
    assert all(CARD.encode() in data for data in await of(client, f"{app.app}.out"))


@pytest.mark.asyncio
async def test_what_an_engine_logs_of_sealed_events_quotes_none(app: Sealed) -> None:
    with capture_logs() as logged:
        await app.engine()
        await app.worker()
        client = await app.client()
        await client.publish(f"{app.app}.in", {"text": f"{CARD} fail"})
        await until(partial(count, partial(letters, client), 1))
    assert [(line["node"], line["why"]) for line in logged if line["event"] == "dead letter"] == [("ask", "DX608")]
    assert CARD not in str(logged)


@pytest.mark.asyncio
async def test_a_session_whose_key_is_deleted_is_forgotten_and_no_other(app: Sealed) -> None:
    await app.engine()
    await app.worker()
    client = await app.client()
    for text, session in (("fail ann", "ann"), ("fail bob", "bob"), ("fail nobody", None), (f"fail {LARGE}", "ann")):
        await client.publish(f"{app.app}.in", {"text": text}, session=session)
    await until(partial(count, partial(letters, client), 4))
    sealing = (await app.client()).bus.sealing
    assert sealing is not None
    assert await sealing.forget("ann") == 1  # the key alone: as what a process adds in the minute after it was forgotten
    assert await sealing.forget("ann") == 0
    later = await app.client()
    found = await letters(later)
    assert sorted(d.event.data["text"] for d in found if not d.unreadable) == ["fail bob", "fail nobody"]
    assert [(d.code, d.node) for d in found if d.unreadable] == [("DX511", "ask")] * 2
    async with aclosing(later.watch(f"{app.app}.in", start="all")) as events:
        seen = [(await anext(events)).data for _ in range(4)]
    assert seen == [b"", {"text": "fail bob"}, {"text": "fail nobody"}, b""]
    with pytest.raises(DataError, match="its session was forgotten"):
        await later.redrive([d for d in found if d.unreadable])
    assert await later.redrive([d for d in found if not d.unreadable]) == 2
    # The session may come again, and has another key.
    await later.publish(f"{app.app}.in", {"text": "fail again"}, session="ann")

    async def said() -> list[str]:
        return sorted(d.event.data["text"] for d in await letters(later) if not d.unreadable)

    await until(partial(is_now, said, ["fail again", "fail bob", "fail nobody"]))


@pytest.mark.asyncio
async def test_an_open_call_of_a_forgotten_session_ends_and_its_neighbours_go_on(app: Sealed) -> None:
    engine, client = await app.engine(), await app.client()
    for session in ("ann", "bob"):
        await client.publish(f"{app.app}.in", {"text": f"of {session}"}, session=session)
    await until(partial(count, partial(of, client, subjects.work_pattern(app.app, POOL)), 2))
    await client.forget(session="ann")
    await engine.drain()
    await app.engine()
    await app.worker()  # has never seen the key
    later = await app.client()
    out = f"{app.app}.out"
    await until(partial(count, partial(of, later, out), 1))
    await until(partial(count, partial(letters, later), 1))
    assert b"of bob" in (await of(later, out))[0]
    assert [(d.code, d.node) for d in await letters(later)] == [("DX509", "ask")]


@pytest.mark.asyncio
async def test_a_replay_gives_what_was_sealed(app: Sealed) -> None:
    engine = await app.engine()
    await app.worker()
    client = await app.client()
    for text in ("a", "fail", LARGE):
        await client.publish(f"{app.app}.in", {"text": text}, session=text[:1])
    garbage = NewMessage(f"{app.app}.in", b"no JSON", {subjects.SESSION: "a", "own": "header"})
    await client.bus.publish(await payloads.checked_in(client.bus, app.app, garbage))
    await until(partial(count, partial(letters, client), 2))
    await until(partial(count, partial(of, client, f"{app.app}.out"), 2))
    await engine.drain()
    graph = app.topology().graph
    stage = compile_stage(graph, graph.sources[0], "s1")
    replay = PartitionReplay(client.bus, app.app, stage, subjects.sources(app.app), 0, 1, payloads.most(client.bus))
    assert [difference async for difference in replay.differences()] == []


@pytest.mark.asyncio
@pytest.mark.parametrize("sealed", [True, False], ids=["sealed", "in clear text"])
async def test_what_only_looks_sealed_stops_nobody(app: Sealed, sealed: bool) -> None:
    client = await app.client("KEY" if sealed else None)
    host = Host(client.bus, app.app, [app.topology().graph], engine="a")
    await host.start()
    await client.publish(f"{app.app}.in", {"text": "fail first"}, session="ann")
    plain, name = await app.bus(None), name_of("ann")
    made = [
        f"v1 {name}",
        f"v1 {name_of('nobody')}",
        f"v2 {name}",
        "",
        "v1 ",
        f"v1 {name}.>",
        "é" * 40,
        "v1 *",
        "v1 " + "f" * 9,
    ]
    for label in made:
        for body in (b"", b"short", b"x" * 100):
            await plain.publish(NewMessage(f"{app.app}.in", body, {subjects.SEALED: label}))
    await plain.publish(NewMessage(f"{app.app}.in", b'{"text": "in clear text"}'))
    await until(partial(count, partial(letters, client), 3 * len(made)))
    assert {d.code for d in await letters(client)} == {"DX511"}
    await until(partial(count, partial(of, client, subjects.work_pattern(app.app, POOL)), 2))
    await host.drain()


@pytest.mark.asyncio
async def test_a_key_that_somebody_else_put_there_stops_nobody(app: Sealed) -> None:
    """Who may add keys and has none of ours: the payloads of that session are sealed with the application's own key."""
    client, plain = await app.client(), await app.bus(None)
    await app.engine()
    await app.worker()
    await plain.publish(NewMessage(subjects.key(app.app, name_of("ann")), b"x" * 60))
    await client.publish(f"{app.app}.in", {"text": CARD}, session="ann")
    await until(partial(count, partial(of, client, f"{app.app}.out"), 1))
    assert not any(CARD.encode() in m.data for m in await everything(plain, app.app))


@pytest.mark.asyncio
async def test_nobody_can_replace_a_key(app: Sealed) -> None:
    client = await app.client()
    await app.engine()
    await client.publish(f"{app.app}.in", {"text": "a"}, session="ann")
    plain, subject = await app.bus(None), subjects.key(app.app, name_of("ann"))
    before = await plain.last(subjects.keys(app.app), subject)
    with pytest.raises(StreamFull):
        await plain.publish(NewMessage(subject, b"mine"))
    with pytest.raises(BusError, match="message size exceeds maximum allowed"):
        await plain.publish(NewMessage(subjects.key(app.app, "f" * 32), b"x" * 2000))
    assert await plain.last(subjects.keys(app.app), subject) == before


@pytest.mark.asyncio
async def test_who_has_another_key_or_none_is_refused_before_anything_is_stored(app: Sealed) -> None:
    await app.engine()
    await until(partial(count, partial(everything, await app.bus(), app.app), 1))  # its claim
    before = 1
    graphs = [app.topology().graph]
    for named, why in (
        ("OLD", "sealed with another key"),
        (None, "no key is named"),
        ("NONE", "NONE, named by encrypt_key_env"),
    ):
        with pytest.raises(ConfigError, match=why) as e:
            await apply(await app.bus(named), app.app, graphs)
        assert e.value.code == ("DX112" if named == "NONE" else "DX124")
        assert KEYS["KEY"] not in str(e.value)
    assert len(await everything(await app.bus(), app.app)) == before
    client = await app.client()
    await client.publish(f"{app.app}.in", {"text": "fail"}, session="ann")
    await app.worker()
    await until(partial(count, partial(letters, client), 1))
    with pytest.raises(NotAllowed, match="this process has no key"):
        await letters(await app.client(None))


@pytest.mark.asyncio
async def test_while_the_key_changes_both_open(app: Sealed) -> None:
    old = await app.client("OLD")
    await apply(old.bus, app.app, [app.topology().graph])
    await old.publish(f"{app.app}.in", {"text": "old"}, session="ann")
    new = await app.client("KEY,OLD")
    await apply(new.bus, app.app, [app.topology().graph])
    await new.publish(f"{app.app}.in", {"text": "new"}, session="bob")
    await new.publish(f"{app.app}.in", {"text": "newer"}, session="ann")

    async def read(client: Client) -> list[bytes]:
        found = await client.bus.scan(subjects.sources(app.app), [f"{app.app}.in"], start=1, stop=9)
        whole = [await payloads.checked_out(client.bus, app.app, m) for m in found]
        return [m.data for m in whole if m is not None]

    assert [b"new" in data or b"old" in data for data in await read(await app.client("KEY,OLD"))] == [True] * 3
    assert len(await read(await app.client("KEY"))) == 2  # what the new key alone opens
    with pytest.raises(NotAllowed, match="sealed with another key than the one in OLD"):
        await read(await app.client("OLD"))


@pytest.mark.asyncio
async def test_the_same_message_is_sealed_alike_by_everybody_and_another_one_is_not(app: Sealed) -> None:
    one, two = await app.client(), await app.client()
    await apply(one.bus, app.app, [app.topology().graph])
    draft = NewMessage("a", b"body", {subjects.SESSION: "ann"})
    assert one.bus.sealing is not None
    assert two.bus.sealing is not None
    made = [await sealing.sealed(draft) for sealing in (one.bus.sealing, two.bus.sealing)]
    assert made[0] == made[1]
    others = [draft._replace(data=b"bodz"), draft._replace(data=b""), draft._replace(headers={subjects.SESSION: "bob"})]
    bodies = {made[0].data[:12], *[(await one.bus.sealing.sealed(other)).data[:12] for other in others]}
    assert len(bodies) == 4


@pytest.mark.asyncio
async def test_a_deleted_key_is_not_on_the_disk_any_more(tmp_path: Path, unique: str) -> None:
    async with LocalServer(tmp_path / "js", port=None) as server, AsyncExitStack() as stack:
        app = Sealed(server.url, unique, stack)
        client = await app.client()
        await apply(client.bus, unique, [app.topology().graph])
        await client.publish(f"{unique}.in", {"text": CARD}, session="ann")
        key = await client.bus.last(subjects.keys(unique), subjects.key(unique, name_of("ann")))
        assert key is not None

        def on_the_disk(text: bytes) -> bool:
            return any(text in file.read_bytes() for file in (tmp_path / "js").rglob("*") if file.is_file())

        await until(lambda: on_the_disk(key.data))
        assert not on_the_disk(CARD.encode())
        await client.forget(session="ann")
        await until(lambda: not on_the_disk(key.data))
