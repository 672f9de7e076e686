"""What opens sealed payloads: bodies and labels that anybody may have written, and keys that they may have added."""

from __future__ import annotations

from functools import cache

from engine_entries import APP, EVENTS, HEADERS, KEPT, NOW, SOURCE, Take, lab, made
from engine_lab import Lab
from fuzzing import Entry
from mutations import Case

from dspex.bus import codecs, subjects
from dspex.bus.message import Message
from dspex.bus.port import NewMessage
from dspex.bus.serving import payloads
from dspex.bus.serving.keys import keyring
from dspex.bus.serving.keys.ciphers import Wrapping
from dspex.bus.serving.keys.keyring import Keyring

SECRET = {"SEAL": "k" * 64}
ANN = Wrapping.of(SECRET["SEAL"].encode()).name_of("ann")


class Sealing:
    """A connection that seals, on a lab's bus."""

    def __init__(self) -> None:
        self.lab: Lab = lab(made())
        self.bus, self.run = self.lab.client.bus, self.lab.run
        self.run(self.bus.ensure_stream(keyring.stream(APP)))
        self.renew()

    def renew(self) -> None:
        """As a process that begins: it has no key at hand."""
        self.bus.sealing = Keyring(self.bus, APP, "SEAL", SECRET)

    def sealed(self, number: int, data: bytes) -> Case:
        draft = NewMessage(SOURCE, data, {subjects.SESSION: "ann"} if number else {})
        found = self.run(payloads.checked_in(self.bus, APP, draft))
        return Case(found.data, dict(found.headers or {}))

    def opened(self, case: Case) -> bytes | None:
        found = self.run(payloads.checked_out(self.bus, APP, Message(SOURCE, case.data, case.headers, 9, NOW)))
        return found.data if found is not None else None

    async def put(self, value: bytes) -> None:
        """Put what somebody added in place of the key of a session."""
        subject = subjects.key(APP, ANN)
        if (last := await self.bus.last(subjects.keys(APP), subject)) is not None:
            await self.bus.delete(subjects.keys(APP), last.sequence)
        await self.bus.publish(NewMessage(subject, value))


sealing = cache(Sealing)
KEPT.append(sealing)


def _sealed() -> list[Case]:
    return [sealing().sealed(number, codecs.json_bytes(data)) for number, data in enumerate([*EVENTS, {}])]


def _take_sealed() -> Take:
    return sealing().opened


def _keys() -> list[Case]:
    one = sealing()
    one.sealed(1, b"{}")
    key = one.run(one.bus.last(subjects.keys(APP), subjects.key(APP, ANN)))
    assert key is not None
    return [Case(key.data)]


def _take_key() -> Take:
    one = sealing()
    case = one.sealed(1, b"{}")

    def take(key: Case) -> object:
        one.run(one.put(key.data))
        one.renew()
        return one.opened(case)

    return take


ENTRIES = [
    Entry("sealed", _sealed, _take_sealed, "bytes", HEADERS, "source", slice=150),
    Entry("key", _keys, _take_key, "bytes", subject="key", slice=60),
]
