"""Hashes of records: one whose bytes are not those that were stored is told from one that says something else.

    header `Dspex-Hash`    the first 16 bytes of the SHA-256 of the body, as 32 hex digits

A body in the object store is named by its hash, and what is sealed opens only as it was sealed: they have no other. This finds
damage, and no forgery: see signatures.py for that.
Records of before there were hashes have none, and are taken as they are.
"""

from __future__ import annotations

from hashlib import sha256
from typing import Final

from dspex.bus import subjects
from dspex.bus.message import Message
from dspex.bus.port import NewMessage

HEX: Final = 32  # digits of a hash


def hashed(message: NewMessage) -> NewMessage:
    """A record as it is stored, with the hash of its body."""
    headers = message.headers or {}
    if subjects.CLAIM_CHECK in headers or subjects.SEALED in headers:
        return message
    return message._replace(headers={**headers, subjects.HASH: _hash(message.data)})


def is_damaged(message: Message) -> bool:
    """Whether a record, as it is stored, has not the body that its hash says. What else has one has it from strangers."""
    said = message.headers.get(subjects.HASH)
    return said is not None and subjects.is_record(message.subject) and said != _hash(message.data)


def _hash(data: bytes) -> str:
    return sha256(data).hexdigest()[:HEX]
