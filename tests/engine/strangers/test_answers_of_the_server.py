"""The server sends an answer wherever who asks says: in an account of its own a publisher reaches nothing with that."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from dspex.bus import subjects
from dspex.bus.local.server import LocalServer
from dspex.bus.message import Message
from dspex.bus.nats import NatsBus, connect
from dspex.bus.port import NewMessage, StreamConfig

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
    bucket = await engine.bucket(subjects.bucket(APP))
    said = await raw(url, *[f"PUB {SOURCE} {to} 2\r\n{{}}" for to in (log, f"$KV.{subjects.bucket(APP)}.manifest.triage.1")])
    assert not [word for word in said if word.startswith(b"-ERR")]
    mark = await engine.publish(NewMessage(log, b"the first message of the log"))
    info = await engine.stream(subjects.sources(APP))
    assert (info and info.last, mark.sequence, await bucket.items()) == (2, 1, {})


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
