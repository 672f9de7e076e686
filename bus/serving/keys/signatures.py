"""Signatures of records: who can store records and has not the key of their pool answers no call.

    header `Dspex-Signature`    v1, and HMAC-SHA256 over the id of the record, a line break and its body, as 64 hex digits;
                                where a claim check stands for the body, over the hash that it names

The id names one execution of one call, and a claim draws a part of it, so a signature is good for no other record.
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Final, TypeAlias

from dspex.bus import subjects
from dspex.bus.message import Message
from dspex.bus.port import NewMessage
from dspex.bus.serving.keys.secrets import secrets_of

Keys: TypeAlias = Sequence[bytes]
"""The keys of a pool: the first one signs, each of them is right. None: its records are not signed."""

_VERSION: Final = "v1 "


def keys_of(pool: str, named: str | None, environ: Mapping[str, str] = os.environ) -> tuple[bytes, ...]:
    """The keys in the variables that `pools.*.hmac_key_env` names. Raises ConfigError (DX112) if one is not set, or short."""
    return secrets_of(named, f"pools.{pool}", "hmac_key_env", environ)


def signed(message: NewMessage, keys: Keys) -> NewMessage:
    """A record as it is stored, with the signature of the first key."""
    headers = dict(message.headers or {})
    return message._replace(headers={**headers, subjects.SIGNATURE: _signature(keys[0], headers, message.data)})


def is_signed(message: Message, keys: Keys) -> bool:
    """Whether a record, as it is stored, has the signature of one of the keys."""
    found = message.headers.get(subjects.SIGNATURE, "").encode(errors="replace")  # anybody may have written it
    return any(hmac.compare_digest(found, _signature(key, message.headers, message.data).encode()) for key in keys)


def _signature(key: bytes, headers: Mapping[str, str], data: bytes) -> str:
    id, check = headers.get(subjects.MESSAGE_ID, ""), headers.get(subjects.CLAIM_CHECK)
    body = data if check is None else check.encode(errors="replace")
    return _VERSION + hmac.new(key, id.encode(errors="replace") + b"\n" + body, sha256).hexdigest()
