"""Hashes of records: one whose bytes are not those that were stored is told from one that says something else.

    header `Dspex-Hash`    the first 16 bytes of the SHA-256 of the body as it is stored, as 32 hex digits;
                           where a claim check stands for the body, of the hash that it names

A body in the object store is named by its hash, and what is sealed opens as it was; but both may be another's. This finds
damage, and no forgery: see signatures.py for that.
Records of before there were hashes have none, and are taken as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from typing import Final

from dspex.bus import subjects
from dspex.bus.message import Message
from dspex.bus.port import NewMessage

HEX: Final = 32  # digits of a hash


def hashed(message: NewMessage) -> NewMessage:
    """A record as it is stored, with the hash of its body."""
    headers = message.headers or {}
    subject, data, _, expect, of = message  # not `_replace`, which takes as long as the hash
    return NewMessage(subject, data, {**headers, subjects.HASH: _hash(data, headers)}, expect, of)


def is_damaged(message: Message) -> bool:
    """Whether a record, as it is stored, has not the body that its hash says. What else has one has it from strangers."""
    said = message.headers.get(subjects.HASH)
    return said is not None and subjects.is_record(message.subject) and said != _hash(message.data, message.headers)


def opened_headers(message: Message) -> dict[str, str]:
    """The headers of a sealed message once it is opened: the hash of a record is that of the body as it was stored."""
    gone = (subjects.SEALED, subjects.HASH) if subjects.is_record(message.subject) else (subjects.SEALED,)
    return {name: value for name, value in message.headers.items() if name not in gone}


def _hash(data: bytes, headers: Mapping[str, str]) -> str:
    return sha256(headers.get(subjects.CLAIM_CHECK, "").encode() or data).hexdigest()[:HEX]
