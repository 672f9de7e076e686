"""A request of a model, while it is made: where it fails, the limits learn of it, as the journal does where it is answered."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from dspex.workers.journal.requests import OpenRequest, Requests


@contextmanager
def making(requests: Requests, turn: OpenRequest) -> Generator[None]:
    """While the model is asked, on the loop or in a thread of the program's."""
    try:
        yield
    except BaseException:
        if turn.kept and requests.journal is not None and requests.loop is not None:
            requests.loop.call_soon_threadsafe(requests.journal.failed)
        raise
