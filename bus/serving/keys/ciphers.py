"""The ciphers of sealed payloads: what is made of a key from the environment, and of the key of a session."""

from __future__ import annotations

import hmac
import os
from collections.abc import Iterable
from functools import lru_cache
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

MOST_NAMES: Final = 10_000  # that are remembered
KEY: Final = 32  # bytes of a session's key
_NONCE: Final = 12


class SessionKey(NamedTuple):
    """The key of a session. `until`: when it is asked for again, on the monotonic clock."""

    cipher: AESGCM
    nonces: bytes
    until: float

    @staticmethod
    def of(key: bytes, until: float) -> SessionKey:
        return SessionKey(_aesgcm(key, b"seal"), _derived(key, b"nonce"), until)

    def sealed(self, data: bytes, label: bytes) -> bytes:
        nonce = hmac.digest(self.nonces, data, "sha256")[:_NONCE]
        return nonce + self.cipher.encrypt(nonce, data, label)

    def opened(self, data: bytes, label: bytes) -> bytes | None:
        """What was sealed; None for anything else."""
        return _decrypted(self.cipher, data, label)


class Wrapping(NamedTuple):
    """A key from the environment: it seals the keys of sessions, and names them."""

    cipher: AESGCM
    naming: bytes

    @staticmethod
    def of(secret: bytes) -> Wrapping:
        """Raises ImportError where the package `cryptography` is missing."""
        return Wrapping(_aesgcm(secret, b"wrap"), _derived(secret, b"name"))

    def name_of(self, session: str) -> str:
        """The name of the key of a session; "" for what belongs to none."""
        return _name(self.naming, session)

    def wrapped(self, key: bytes, label: bytes) -> bytes:
        nonce = os.urandom(_NONCE)
        return nonce + self.cipher.encrypt(nonce, key, label)


def unwrapped(wrappings: Iterable[Wrapping], data: bytes, label: bytes) -> bytes | None:
    """A session's key as one of them has sealed it; None for anything else."""
    found = (_decrypted(wrapping.cipher, data, label) for wrapping in wrappings)
    return next((key for key in found if key is not None and len(key) == KEY), None)


@lru_cache(MOST_NAMES)
def _name(naming: bytes, session: str) -> str:
    return hmac.digest(naming, session.encode(errors="surrogatepass"), "sha256").hex()[:32]


def _aesgcm(key: bytes, purpose: bytes) -> AESGCM:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    return AESGCM(_derived(key, purpose))


def _derived(key: bytes, purpose: bytes) -> bytes:
    """A key for one purpose alone (HMAC-SHA256 as a key derivation: the key is random, so it need not be extracted first)."""
    return hmac.digest(key, b"dspex " + purpose, "sha256")


def _decrypted(cipher: AESGCM, data: bytes, label: bytes) -> bytes | None:
    """What was encrypted, behind its nonce; None for anything else."""
    from cryptography.exceptions import InvalidTag

    try:
        return cipher.decrypt(data[:_NONCE], data[_NONCE:], label)
    except (InvalidTag, ValueError):  # ValueError: too short for a nonce
        return None
