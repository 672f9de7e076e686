"""Queries of Nexmark, the benchmark of an auction house: events of our own, the topologies, and how many results must come.

Of 50 events one is a new person, three are new auctions, and 46 are bids; there are 1,000 of them in a second of event time.
Sources, sinks and state are on JetStream, so a query costs what it costs when nothing may be lost.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import orjson

from dspex.operators.stream import AnyStream

SECONDS: Final = 10.0  # of a window, and of the gap of a session
LATER: Final = 10_000_000  # number of the event behind all others, which ends all windows
Event = dict[str, Any]


def event(i: int) -> bytes:
    """The event of a number. What looks random depends on the number alone."""
    return orjson.dumps(_event(i)).ljust(150)


def _event(i: int) -> Event:
    if i >= LATER:
        return {"id": i, "kind": "end"}
    block, place, chance = i // 50, i % 50, i * 2_654_435_761 % 4_294_967_296
    people, auctions = block + 1, 3 * block + 3
    if place == 0:
        return {"id": i, "kind": "person", "person": block, "name": f"person {block}", "city": "Zürich"}
    if place < 4:
        return {"id": i, "kind": "auction", "auction": 3 * block + place - 1, "seller": block - chance % min(people, 10)}
    # half of the bids are for an auction that is hot
    auction = auctions // 100 * 100 if chance % 2 else auctions - 1 - chance // 7 % min(auctions, 300)
    return {"id": i, "kind": "bid", "auction": auction, "bidder": chance // 11 % people, "price": 100 + chance // 13 % 9_900}


# -- the topologies ------------------------------------------------------------------------------------------------------
def _bids(stream: Any) -> Any:
    return stream.filter("kind == 'bid'", name="bids")


def q0(stream: Any, number: int) -> AnyStream:
    """Pass through."""
    return stream


def q1(stream: Any, number: int) -> AnyStream:
    """The price of each bid in another currency."""
    return _bids(stream).set({"price": "price * 0.908"}, name="euros")


def q2(stream: Any, number: int) -> AnyStream:
    """The bids for some auctions."""
    return _bids(stream).filter("auction % 123 == 0", name="chosen").set({"chosen": "auction"}, name="shown")


def q5(stream: Any, number: int) -> AnyStream:
    """The auction with the most bids of the last ten seconds, every two."""
    counts = _bids(stream).key_by("str(auction)", name="by_auction").window("10s", every="2s").count(name="counts")
    hottest = counts.map(_of_auction, name="of_auction").key_by(_all, name="together").window("2s")
    return hottest.reduce(max, name="hottest")


def q7(stream: Any, number: int) -> AnyStream:
    """The highest bid of each ten seconds."""
    bids = _bids(stream).map(_price, name="price").key_by(_all, name="together")
    return bids.window("10s").reduce(max, name="highest")


def q8(stream: Any, number: int) -> AnyStream:
    """People who came and opened an auction within ten seconds."""
    people = stream.filter("kind == 'person'", name="people").key_by("str(person)", name="by_person")
    auctions = stream.filter("kind == 'auction'", name="auctions").key_by("str(seller)", name="by_seller")
    return people.join(auctions, within="10s", name="new")


def q11(stream: Any, number: int) -> AnyStream:
    """How many bids a bidder made in a session."""
    return _bids(stream).key_by("str(bidder)", name="by_bidder").session_window("10s").count(name="sessions")


def q18(stream: Any, number: int) -> AnyStream:
    """The last bid of each bidder for each auction, with every bid anew."""
    return _bids(stream).key_by(_pair, name="by_pair").stateful(_last, init=dict, name="last", ttl="1h")


def _of_auction(window: Any) -> tuple[int, str]:
    return window.value, window.key


def _price(bid: Event) -> tuple[int, int]:
    return bid["price"], bid["id"]


def _all(data: object) -> str:
    return "all"


def _pair(bid: Event) -> str:
    return f"{bid['bidder']}/{bid['auction']}"


def _last(state: Event, bid: Event, ctx: object) -> tuple[Event, list[Event]]:
    return bid, [bid]


# -- how many results there are --------------------------------------------------------------------------------------------
def _windows(bids: Sequence[Event], every: float) -> int:
    last = bids[-1]["id"] / 1000 // every * every
    first = bids[0]["id"] / 1000 // every * every - (SECONDS - every)
    return round((last - first) / every) + 1


def _pairs(events: Sequence[Event]) -> int:
    came = {e["person"]: e["id"] for e in events if e["kind"] == "person"}
    opened = ((e["id"], came.get(e["seller"])) for e in events if e["kind"] == "auction")
    return sum(since is not None and abs(at - since) <= 1000 * SECONDS for at, since in opened)


def _sessions(bids: Sequence[Event]) -> int:
    last, found = dict[int, int](), Counter[int]()
    for bid in bids:
        found[bid["bidder"]] += bid["id"] - last.get(bid["bidder"], -LATER) >= 1000 * SECONDS
        last[bid["bidder"]] = bid["id"]
    return found.total()


class Query(NamedTuple):
    """`stages`: behind hops. `results`: (all events, the bids) → how many there are. `ends`: it waits for the last event."""

    make: Callable[[Any, int], AnyStream]
    stages: int
    results: Callable[[Sequence[Event], Sequence[Event]], int]
    ends: bool = False


QUERIES: Final = {
    "q0": Query(q0, 0, lambda events, bids: len(events)),
    "q1": Query(q1, 0, lambda events, bids: len(bids)),
    "q2": Query(q2, 0, lambda events, bids: sum(b["auction"] % 123 == 0 for b in bids)),
    "q5": Query(q5, 2, lambda events, bids: _windows(bids, 2.0), ends=True),
    "q7": Query(q7, 1, lambda events, bids: _windows(bids, SECONDS), ends=True),
    "q8": Query(q8, 1, lambda events, bids: _pairs(events)),
    "q11": Query(q11, 1, lambda events, bids: _sessions(bids), ends=True),
    "q18": Query(q18, 1, lambda events, bids: len(bids)),
}


def results(query: str, count: int) -> int:
    """How many results a query has of the first events."""
    events = [_event(i) for i in range(count)]
    return QUERIES[query].results(events, [e for e in events if e["kind"] == "bid"])
