"""Mutations of valid inputs: of their bytes, of the values in them where they are MessagePack or JSON, and of their headers."""

from __future__ import annotations

import json
from collections.abc import Callable
from copy import deepcopy
from random import Random
from typing import Any, NamedTuple, TypeAlias

import msgpack

Plain: TypeAlias = Any
"""Decoded data, in which a map is `Pairs`, so that a key can be there twice."""


class Case(NamedTuple):
    """One input: the body of a message, a file or a text, and headers where it has some."""

    data: bytes
    headers: dict[str, str] = {}


class Pairs(list[tuple[Plain, Plain]]):
    """A map, as a list of keys and values."""


class Raw(NamedTuple):
    """What is written as it is: `[` n times, and the like."""

    msgpack: bytes
    json: str


def nested(depth: int) -> Raw:
    """A list in a list in a list."""
    return Raw(b"\x91" * depth + b"\xc0", "[" * depth + "0" + "]" * depth)


NAN, INFINITE = float("nan"), float("inf")
NUMBERS: list[Plain] = [
    *(0, -1, 1, 2, 127, 128, 255, 2**31, 2**32, 2**53, 2**62, 2**63 - 1, 2**63, 2**64 - 1, -(2**31), -(2**63), 2**44, 10**12),
    *(0.0, -0.0, 0.5, 1e-300, 1e11, 1e12, 1e30, 1e300, -1e300, NAN, INFINITE, -INFINITE),
]
TEXTS = [
    *(
        "",
        " ",
        "x",
        "x" * 300,
        "x" * 5000,
        "a.b",
        "a.*",
        ">",
        "$SYS.x",
        "_INBOX.x",
        ".",
        "..",
        "a..b",
        "-1",
        "0",
        "1e400",
        "nan",
    ),
    *("٣", "²", "9" * 18, "9" * 19, "9" * 5000, "\x00", "a\tb", "\x1b[2J", "\u202e", "\u200b", "é", "😀", "é" * 700, "None"),
    *("application/json", "application/msgpack", "application/vnd.apache.arrow.stream", "0" * 64, "DSPEX_fuzz:1", "fuzz:99999"),
    *(
        "0001-01-01T00:00:00Z",
        "9999-12-31T23:59:59-23:59",
        "2026-02-30",
        "1:2:3:4:5",
        "nats://[::1",
        "nats://u:p@h:99999",
        "://",
    ),
    *(
        "text -> label",
        "text: list[dict[str, int]] -> n: Literal['a']",
        "->",
        "a" * 70 + " -> b",
        "x: " + "list[" * 60,
        "{{a}}",
    ),
]
OTHERS: list[Plain] = [None, True, False, [], Pairs(), b"", b"\xff" * 40, b"\xc1", [0] * 50, Pairs([("", Pairs())])]
DEEP = [nested(30), nested(510), nested(1030), nested(5000)]
BYTES = [
    b"",
    b"\x00",
    b"\xff",
    b"\xc1",
    b"\xdd\xff\xff\xff\xff",
    b"\xdf\x7f\xff\xff\xff",
    b"\xc6\xff\xff\xff\xff",
    b"\xd6\xff1234",
]
BYTES += [
    b"null",
    b"NaN",
    b"1e999",
    b"-",
    b'"',
    b"\\ud800",
    b"{",
    b"[",
    b"[" * 600,
    b"]",
    b"\n",
    b"\r\n",
    b"#",
    b"'",
    b": ",
    b"&a *a",
]


# -- values ---------------------------------------------------------------------------------------------------------
def opened(value: Plain) -> Plain:
    """Decoded data with its maps as `Pairs`."""
    if isinstance(value, dict):
        return Pairs((key, opened(inner)) for key, inner in value.items())
    return [opened(inner) for inner in value] if isinstance(value, list) else value


def as_msgpack(value: Plain) -> bytes:
    """The data as MessagePack, repeated keys and all. Raises what msgpack raises for what it cannot hold."""
    packer = msgpack.Packer()
    if isinstance(value, Pairs):
        return packer.pack_map_header(len(value)) + b"".join(as_msgpack(k) + as_msgpack(v) for k, v in value)
    if isinstance(value, Raw):
        return value.msgpack
    if isinstance(value, list):
        return packer.pack_array_header(len(value)) + b"".join(map(as_msgpack, value))
    return bytes(packer.pack(value))


def as_json(value: Plain) -> str:
    """The data as JSON, with what JSON does not have: NaN, and a key twice."""
    if isinstance(value, Pairs):
        return "{" + ",".join(f"{json.dumps(str(k))}:{as_json(v)}" for k, v in value) + "}"
    if isinstance(value, Raw):
        return value.json
    if isinstance(value, list):
        return "[" + ",".join(map(as_json, value)) + "]"
    return json.dumps(value.hex() if isinstance(value, bytes) else value)


def places(value: Plain) -> list[tuple[Any, int]]:
    """Where values lie: lists and maps, with the index in them."""
    found, left = list[tuple[Any, int]](), [value]
    while left:
        at = left.pop()
        if isinstance(at, list):
            found += [(at, index) for index in range(len(at))]
            left += [inner[1] for inner in at] if isinstance(at, Pairs) else at
    return found


def strange(random: Random) -> Plain:
    """A value that seldom stands where it is put."""
    return deepcopy(random.choice(random.choice((NUMBERS, TEXTS, OTHERS, DEEP))))  # it may be changed once more


def other(random: Random, value: Plain) -> Plain:
    """A value in the place of another: often one that is like it."""
    choice = random.random()
    if isinstance(value, bytes) and choice < 0.5:
        return mutated_bytes(random, value, [value])
    if isinstance(value, (int, float)) and choice < 0.3:
        return random.choice((str(value), float(value), -value, value + 1, [value], 10 ** random.randrange(30) % 2**63))
    if isinstance(value, str) and choice < 0.3:
        return random.choice((value.encode(), [value], value[:-1], value + random.choice(TEXTS), value.upper()))
    return strange(random)


def change(random: Random, value: Plain) -> Plain:
    """The data with one change. `value` is its own, and is changed in place."""
    found = places(value)
    if not found:
        return strange(random)
    at, index = random.choice(found)
    what = random.randrange(8)
    if what == 0:
        del at[index]
    elif what == 1:
        at.insert(index, deepcopy(at[index]))
    elif what == 2:
        into, place = random.choice(found)
        if place < len(into) and isinstance(into, Pairs) == isinstance(at, Pairs):
            at[index], into[place] = deepcopy(into[place]), deepcopy(at[index])  # one may lie in the other
    elif isinstance(at, Pairs):
        key, inner = at[index]
        if what == 3:
            at[index] = (random.choice((*TEXTS, 1, None, "type", "v")), inner)
        elif what == 4:
            at.append((key, strange(random)))
        else:
            at[index] = (key, other(random, inner))
    else:
        at[index] = other(random, at[index])
    return value


# -- bytes ----------------------------------------------------------------------------------------------------------
def mutated_bytes(random: Random, data: bytes, seeds: list[bytes]) -> bytes:
    """The bytes with a few of them changed, added or gone; or two inputs joined."""
    found = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 4))):
        at = random.randrange(len(found) + 1)
        end = min(len(found), at + random.choice((1, 2, 4, 16, 64)))
        what = random.randrange(7)
        if what == 0 and at < len(found):
            found[at] ^= 1 << random.randrange(8)
        elif what == 1 and at < len(found):
            found[at] = random.randrange(256)
        elif what == 2:
            del found[at : random.choice((end, len(found)))]
        elif what == 3:
            found[at:at] = random.choice(BYTES)
        elif what == 4:
            found[at:at] = found[at:end] * random.choice((1, 2, 50))
        elif what == 5:
            other = random.choice(seeds)
            found[at:] = other[random.randrange(len(other) + 1) :]
        else:
            found[at:end] = random.randbytes(end - at)
    return bytes(found)


def mutated_text(random: Random, data: bytes, seeds: list[bytes]) -> bytes:
    """A text of lines with a word or a line changed, moved or gone."""
    lines = data.decode(errors="replace").split("\n")
    at = random.randrange(len(lines))
    what = random.randrange(5)
    if what == 0:
        lines.insert(random.randrange(len(lines)), lines[at])
    elif what == 1:
        del lines[at]
    elif what == 2:
        theirs = random.choice(seeds).decode(errors="replace").split("\n")
        lines.insert(at, random.choice(theirs))
    else:
        words = lines[at].split(" ")
        value = strange(random)
        word = value if isinstance(value, str) and what == 3 else as_json(value)
        words[random.randrange(len(words))] = word
        lines[at] = " ".join(words)
    return "\n".join(lines).encode()


# -- inputs ---------------------------------------------------------------------------------------------------------
def _changed(random: Random, value: Plain) -> Plain:
    value = opened(value)
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        value = change(random, value)
    return value


def _msgpack(random: Random, data: bytes, seeds: list[bytes]) -> bytes:
    return as_msgpack(_changed(random, msgpack.unpackb(data, strict_map_key=False)))


def _json(random: Random, data: bytes, seeds: list[bytes]) -> bytes:
    return as_json(_changed(random, json.loads(data))).encode()


FORMS: dict[str, Callable[[Random, bytes, list[bytes]], bytes]] = {
    "msgpack": _msgpack,
    "json": _json,
    "text": mutated_text,
    "bytes": mutated_bytes,
}


def mutated(random: Random, seeds: list[Case], form: str, headers: list[str]) -> Case:
    """An input made of a valid one. `headers`: names that mean something where it goes."""
    data, own = random.choice(seeds)
    bodies, found = [seed.data for seed in seeds], dict(own)
    if headers and random.random() < 0.4:
        for _ in range(random.choice((1, 1, 3))):
            name = random.choice(headers)
            if random.random() < 0.1:
                found.pop(name, None)
            else:
                value = random.choice((*TEXTS, *found.values()))
                found[name] = "".join(c for c in value if c not in "\r\n")
        if random.random() < 0.5:
            return Case(data, found)
    how = FORMS[form] if random.random() < 0.6 else mutated_bytes
    try:
        return Case(how(random, data, bodies), found)
    except (ValueError, OverflowError, TypeError):  # msgpack and json hold less than we ask for
        return Case(mutated_bytes(random, data, bodies), found)
