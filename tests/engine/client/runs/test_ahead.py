"""What a replay reads: of a whole log few large pieces, whatever each entry has taken; of some entries, what these took."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from engine_lab import Lab

from dspex.bus.message import Message
from dspex.bus.port import NewMessage
from dspex.engine.replay.ahead import Ahead, HowMany

MakeLab = Callable[..., Lab]
STREAM = "SOME"


@pytest.fixture
def one(lab: MakeLab) -> Lab:
    """A stream in which every third message is one of `a`."""
    from dspex.bus.port import StreamConfig

    made = lab()
    made.run(made.client.bus.ensure_stream(StreamConfig(STREAM, ["a", "b"])))
    made.run(made.client.bus.publish_all([NewMessage("b" if n % 3 else "a", b"%d" % n) for n in range(3000)]))
    return made


def read(one: Lab, pieces: Sequence[tuple[int, int]], reads: HowMany) -> tuple[list[list[int]], int]:
    """The sequences of what lies in each piece, and how often the bus was asked for messages."""
    bus, asked = one.client.bus, list[object]()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("scan", "page"):
            ask = getattr(bus, name)

            async def counted(*args: Any, ask: Any = ask, **options: Any) -> list[Message]:
                asked.append(options)
                found: list[Message] = await ask(*args, **options)
                return found

            patch.setattr(bus, name, counted)
        ahead = Ahead(bus, STREAM, ["a"], reads)
        found = [[m.sequence for m in one.run(ahead.between(*piece))] for piece in pieces]
    return found, len(asked)


def wanted(pieces: Sequence[tuple[int, int]]) -> list[list[int]]:
    return [[n + 1 for n in range(0, 3000, 3) if first <= n + 1 <= last] for first, last in pieces]


@pytest.mark.parametrize(("reads", "most"), [("all", 4), ("many", 9)])
def test_a_log_that_is_replayed_wholly_is_read_in_few_pieces(one: Lab, reads: HowMany, most: int) -> None:
    pieces = [(n, n + 8) for n in range(1, 2990, 9)]
    found, asked = read(one, pieces, reads)
    assert found == wanted(pieces)
    assert asked <= most


@pytest.mark.parametrize("reads", ["all", "many", "few"])
@pytest.mark.parametrize(
    "pieces",
    [
        [(1, 1), (2, 3), (4, 4)],
        [(1, 100), (50, 120), (120, 2999)],  # an event of which a part was taken is taken again
        [(2990, 3000), (1, 10), (2000, 2010)],
        [(5, 6), (7, 7), (3000, 3000), (3001, 4000)],
        [(1500, 1600), (2900, 2950)],
    ],
)
def test_each_entry_gets_what_it_has_taken_whatever_is_read_with_it(
    one: Lab, pieces: list[tuple[int, int]], reads: HowMany
) -> None:
    assert read(one, pieces, reads)[0] == wanted(pieces)
