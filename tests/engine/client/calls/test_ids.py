"""An id says that what is sent twice is one. An empty one, of what was not set, would say so of nothing, or of everything."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from engine_lab import Lab

from dspex.bus.errors import ConfigError
from dspex.engine.client.client import Client

MakeLab = Callable[..., Lab]
ASKED = "text -> reply"


async def streamed(client: Client) -> None:
    async with client.session("s").stream(ASKED, {"text": "a"}, id="") as answer:
        await answer.result()


DOORS: dict[str, Callable[[Client], Awaitable[Any]]] = {
    "publish": lambda client: client.publish("in", {}, id=""),
    "submit": lambda client: client.submit(ASKED, {"text": "a"}, id=""),
    "submitted turn": lambda client: client.submit(ASKED, {"text": "a"}, id="", session="s"),
    "turn": lambda client: client.session("s").call(ASKED, {"text": "a"}, id=""),
    "streamed turn": lambda client: streamed(client),
}


@pytest.mark.parametrize("door", list(DOORS))
def test_an_empty_id_is_refused_wherever_an_id_is_taken(lab: MakeLab, door: str) -> None:
    one = lab()

    async def ask() -> None:
        await DOORS[door](one.client)

    with pytest.raises(ConfigError, match="the id is empty") as refused:
        one.run(ask())
    assert refused.value.code == "DX105"
