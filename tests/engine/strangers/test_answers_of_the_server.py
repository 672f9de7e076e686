"""The server sends an answer wherever who asks says: in an account of its own a publisher reaches nothing with that."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path

import nats
import pytest
import pytest_asyncio
from waiting import until

from dspex.bus import subjects
from dspex.bus.local.server import LocalServer
from dspex.bus.message import Message
from dspex.bus.nats import NatsBus, connect
from dspex.bus.port import NewMessage, StreamConfig
from dspex.engine.graph import manifest, pauses
from dspex.engine.hosting.host import Host
from dspex.operators.topology import Topology

PAGE = Path(__file__).parents[3] / "docs" / "security.md"
APP, SOURCE = "shop", "shop.messages"


def accounts_of_the_page() -> str:
    """The example of docs/security.md, with passwords."""
    (found,) = re.findall(r"```text\n(accounts .*?)```", PAGE.read_text(), re.DOTALL)
    return re.sub(r"\$[A-Z_]+_PASSWORD", "p", found) + "no_auth_user: engine\n"  # as who the test looks whether it is up


@pytest_asyncio.fixture
async def url(tmp_path: Path) -> AsyncIterator[str]:
    async with LocalServer(tmp_path / "js", port=None, extra_config=accounts_of_the_page()) as server:
        yield server.url


@pytest_asyncio.fixture
async def engine(url: str) -> AsyncIterator[NatsBus]:
    opened = await connect(url, user="engine", password="p")
    await opened.ensure_stream(StreamConfig(subjects.sources(APP), [SOURCE]))
    await opened.ensure_stream(StreamConfig(subjects.stream(APP), subjects.own_subjects(APP)))
    yield opened
    await opened.close()


async def raw(url: str, *lines: str) -> list[bytes]:
    """What the server says to a publisher that speaks the bare protocol."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
    login = '{"user":"publisher","pass":"p","verbose":false,"pedantic":false,"lang":"x","version":"0"}'
    writer.write("".join(f"{line}\r\n" for line in (f"CONNECT {login}", *lines, "PING")).encode())
    said: list[bytes] = []
    async with asyncio.timeout(30):
        while not said or said[-1] != b"PONG\r\n":
            said.append(await reader.readline())
            assert said[-1], said
    writer.close()
    return said


@pytest.mark.asyncio
async def test_an_acknowledgement_does_not_leave_the_account_of_a_publisher(url: str, engine: NatsBus) -> None:
    log = subjects.log(APP, "triage", "s1", 0)
    bucket = await engine.bucket(subjects.applied(APP))
    said = await raw(url, *[f"PUB {SOURCE} {to} 2\r\n{{}}" for to in (log, f"$KV.{subjects.applied(APP)}.manifest.triage.1")])
    assert not [word for word in said if word.startswith(b"-ERR")]
    mark = await engine.publish(NewMessage(log, b"the first message of the log"))
    info = await engine.stream(subjects.sources(APP))
    assert (info and info.last, mark.sequence, await bucket.items()) == (2, 1, {})


@pytest.mark.asyncio
async def test_an_acknowledgement_replaces_no_manifest_and_no_pause_and_keeps_no_engine_from_starting(
    nats_url: str, unique: str
) -> None:
    def topology(*fields: str) -> Topology:
        made = Topology("triage")
        made.source(f"{unique}.in").set(dict.fromkeys(fields, "1")).sink(f"{unique}.out")
        return made

    async def starts(topology: Topology) -> int:
        host = Host(bus, unique, [topology.graph], engine="engine")
        await host.start()
        await host.drain()
        return (await manifest.of_application(bus, unique))["triage"].version

    bus = await connect(nats_url)
    client = await nats.connect(nats_url)
    assert await starts(topology("a")) == 1
    paused = await pauses.pause(await bus.bucket(subjects.applied(unique)), "triage", pauses.WHOLE, 0.0)
    keys = [*(subjects.manifest_key("triage", n) for n in (1, 2)), *(subjects.pause_key("triage", n) for n in (1, 2, 3))]
    for key in keys:
        await client.publish(f"{unique}.in", b"{}", reply=f"$KV.{subjects.applied(unique)}.{key}")
    await client.flush()

    async def arrived() -> bool:
        items = await (await bus.bucket(subjects.applied(unique))).items()
        return all(b'"seq"' in items.get(key, (b"", 0))[0] for key in (keys[1], *keys[-2:]))

    await until(arrived)
    bucket = await bus.bucket(subjects.applied(unique))
    assert (await pauses.read(bucket))["triage"] == paused  # nor does it end a pause
    assert (await pauses.resume(bucket, "triage", pauses.WHOLE)).number == 4
    assert (await pauses.read(bucket))["triage"].names == {}
    assert [await starts(topology("a")), await starts(topology("a", "b")), await starts(topology("a", "b"))] == [1, 3, 3]
    await client.close()
    await bus.close()


@pytest.mark.asyncio
async def test_what_the_server_is_told_to_send_under_a_key_is_no_manifest(nats_url: str, unique: str) -> None:
    """A caller may read manifests, and a worker stores payloads with the headers that it likes: each can have one sent."""

    def topology(timeout: str) -> Topology:
        made = Topology("triage")
        made.source(f"{unique}.in").predict("text -> answer", name="ask", timeout=timeout).sink(f"{unique}.out")
        return made

    async def starts(topology: Topology) -> dict[str, int]:
        host = Host(bus, unique, [topology.graph], engine="engine")
        await host.start()
        await host.drain()
        return {name: made.version for name, made in (await manifest.of_application(bus, unique)).items()}

    bus = await connect(nats_url)
    client = await nats.connect(nats_url)
    assert await starts(topology("1s")) == {"triage": 1}
    applied, objects = subjects.applied(unique), subjects.objects(unique)
    first = f"$KV.{applied}.{subjects.manifest_key('triage', 1)}"
    bucket = await bus.bucket(applied)
    value, revision = (await bucket.items())["manifest.triage.1"]
    await bus.objects(objects)
    forged = value.replace(b'"timeout":1.0', b'"timeout":9.0')
    assert forged != value
    lies = {"Nats-Subject": first, "Nats-Sequence": "1", "Nats-Time-Stamp": "2020-01-01T00:00:00Z"}
    payloads: dict[str, tuple[bytes, dict[str, str]]] = {  # by the key that it is sent to
        "manifest.a.1": (forged, lies),  # in place of one that is there
        "manifest.b.1": (forged, {"Nats-Sequence": "none"}),
        "manifest.triage.2": (b"", {"KV-Operation": "DEL"}),  # as if the version to come had been deleted
    }
    for number, (key, (data, headers)) in enumerate(payloads.items()):
        chunk = f"$O.{objects}.C.{number}"
        await client.publish(chunk, data, headers=headers)
        await client.publish(f"$JS.API.DIRECT.GET.OBJ_{objects}.{chunk}", reply=f"$KV.{applied}.{key}")
    for key in ("manifest.another.1", "manifest.triage.3"):  # copies
        await client.publish(f"$JS.API.DIRECT.GET.KV_{applied}.{first}", reply=f"$KV.{applied}.{key}")
    await client.flush()

    async def arrived() -> bool:
        info = await bus.stream(f"KV_{applied}")
        return info is not None and info.messages == 6

    await until(arrived)
    assert (await bucket.items())["manifest.triage.1"] == (value, revision)
    assert [await starts(topology("1s")), await starts(topology("2s"))] == [{"triage": 1}, {"triage": 4}]
    await client.close()
    await bus.close()


@pytest.mark.asyncio
async def test_a_caller_of_another_account_is_answered(url: str, engine: NatsBus) -> None:
    asked = asyncio.Queue[Message]()
    await engine.subscribe(subjects.call_pattern(APP, "lightweight"), asked.put)
    await raw(url, f"PUB {subjects.ad_hoc_call(APP, 'lightweight', 'predict')} dspex.shop.log.triage.s1.0 0\r\n")
    async with asyncio.timeout(30):
        assert subjects.is_inbox((await asked.get()).reply)


def test_an_answer_goes_to_an_inbox_and_nowhere_else() -> None:
    assert all(map(subjects.is_inbox, ("_INBOX.a.b", "_INBOX_caller.a", "_R_.a.b")))
    others = ("", "_INBOX.*", "_INBOX.>", "_INBOX. a", "_INBOX..a", "a._INBOX.b", "$JS.API.INFO", "dspex.shop.log.a.b.0", "_R_")
    assert not any(map(subjects.is_inbox, others))
