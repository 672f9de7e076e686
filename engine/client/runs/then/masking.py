"""What a run did without the values of its secret fields."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from dspex.bus import codecs
from dspex.bus.codecs.arrow import is_columnar
from dspex.bus.errors import DataError
from dspex.bus.serving.keys.secret_fields import SECRET, Secrets
from dspex.engine.client.runs.tree import Happening


def secrets_of(*roots: Happening) -> Secrets:
    """What is secret of runs, with all values of it that are there."""
    found = Secrets(frozenset[str]().union(*(root.secrets for root in roots)))
    for told in (told for root in roots if found for told in root):
        for data in (told.data, *(data for _, data in told.gives)):
            found.learn(_as_json(data))
        for step in told.attempts:
            found.learn(step.inputs)
            found.learn(step.outputs)
    return found


def masked(told: Happening, secrets: Secrets) -> Happening:
    """What a run did without what is secret, as it is shown and exported; itself where nothing is."""
    if not secrets:
        return told
    names = ("inputs", "outputs", "error", "exchanges")
    steps = [replace(step, **{name: secrets.masked(getattr(step, name)) for name in names}) for step in told.attempts]
    return replace(
        told,
        data=secrets.hide(_as_json(told.data)),
        attempts=steps,
        error=secrets.masked(told.error),
        failures=[secrets.masked(one) for one in told.failures],
        gives=[(outlet, secrets.hide(_as_json(data))) for outlet, data in told.gives],
        note=secrets.text(told.note),
        below=[masked(one, secrets) for one in told.below],
    )


def lost(root: Happening, secrets: Secrets) -> list[str]:
    """The names of what is secret, and no text: without it the run cannot be done again."""
    found = secrets.lost(_as_json(root.data))
    for step in (step for told in root for step in told.attempts):
        found |= secrets.lost(step.inputs) | secrets.lost(step.outputs)
    return sorted(found)


def _as_json(data: Any) -> Any:
    """Data as an event has it: an operator may give an object of a class of the user's."""
    if data is None or isinstance(data, (str, bytes, int, float)) or is_columnar(data):
        return data
    try:
        return codecs.decode(codecs.msgpack_bytes(data), codecs.MSGPACK)
    except DataError:
        return SECRET
