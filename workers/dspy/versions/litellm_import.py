"""LiteLLM, by which DSPy asks the models that it cannot ask by itself, and sends what it cannot send by itself: sound, files.

DSPy imports it at the first such request, on the loop, and that takes seconds: no other call of the process goes on, none can
be cancelled, and the parent takes the process for hung and kills it, so that the next one begins with the same. So it is
imported before: once for all processes where a profile of their pool needs it, else in a thread.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping
from contextlib import suppress
from importlib import import_module
from typing import Any, Final, cast

import dspy

from dspex.workers.config import PoolConfig, Profile
from dspex.workers.dspy.versions import installed

_IMPORTING: Final = threading.Lock()
_IMPORTED: Final = threading.Event()
_UNFIT: Final[tuple[type[BaseException], ...]] = (TypeError, ValueError, *installed.ERRORS)  # of parameters of a model
_OF_PROFILE: Final = "dspex_profile"
_OWN_PARTS: Final = ("text", "image_url")  # of messages, which DSPy sends by itself


def load() -> None:
    """Import it, unless it is. Where that fails, the call that needs it says why."""
    with _IMPORTING:  # DSPy's module of it is a lazy one, of which a second thread would see a part
        if not _IMPORTED.is_set():
            with suppress(ImportError, AttributeError, TypeError, ValueError, OSError, RuntimeError):
                if installed.MINOR < (3, 4):
                    import_module("litellm")
                else:
                    import_module("dspy.clients._litellm").get_litellm(feature="dspex")
            _IMPORTED.set()


def ahead(pool: PoolConfig) -> None:
    """Import it where a profile of the pool needs it."""
    if any(map(needed_by, pool.profiles.values())):
        load()


async def need(*, of: Profile | None = None, messages: object = (), by: object = None) -> None:
    """Have it imported where the model of a profile needs it, or one of these messages, or a program's own model `by`."""
    if _IMPORTED.is_set():
        return
    if needed_by(of) if of is not None else _is_special(messages) or _is_asked_by_it(by):
        await asyncio.to_thread(load)


def mark(lm: dspy.LM) -> dspy.LM:
    """A model of a profile, of which it is known already whether it needs it; its copies are marked, too."""
    vars(lm)[_OF_PROFILE] = True
    return lm


def _is_asked_by_it(lm: object) -> bool:
    """Whether a program's own model is asked by it; such a model has no profile."""
    if not isinstance(lm, dspy.LM) or _OF_PROFILE in vars(lm):
        return False
    try:
        return not import_module("dspy.clients.backend_selection").select_backend(lm).native
    except _UNFIT:  # the call says what is wrong with it
        return False


def needed_by(profile: Profile) -> bool:
    """Whether DSPy asks its model by LiteLLM, whatever it is asked."""
    if installed.MINOR < (3, 4):
        return True
    if profile.local:
        return False
    given: dict[str, Any] = {**profile.params, **({"api_base": profile.base_url} if profile.base_url else {})}
    try:
        given |= {"api_key": "none", "cache": False, "num_retries": 0}
        lm = dspy.LM(profile.model, **given)
        return not import_module("dspy.clients.backend_selection").select_backend(lm).native
    except _UNFIT:  # each call says what is wrong with it
        return False


def _is_special(messages: object) -> bool:
    """Whether there is a part in them that DSPy does not send by itself."""
    contents = (one.get("content") for one in _maps(messages))
    return any(part.get("type") not in _OWN_PARTS for parts in contents for part in _maps(parts))


def _maps(found: object) -> list[Mapping[str, object]]:
    listed = cast("list[object]", found) if isinstance(found, list) else []
    return [cast("Mapping[str, object]", one) for one in listed if isinstance(one, Mapping)]
