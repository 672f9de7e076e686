"""What a saved state of a DSPy program is: JSON, never a pickle, and of that only what describes prompts.

It has for each predictor its demonstrations, its instructions and what its fields are called. DSPy sets whatever else a state
has as attributes of the predictor: one of them is the address to which a model's key goes. So nothing else is let in, neither
where a state is put nor where it is loaded. The language model of a state is left out: profiles say which there is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Final, NamedTuple, NotRequired

import orjson
from typing_extensions import TypedDict

from dspex.bus.codecs.checking import checked
from dspex.bus.codecs.media import MARKER
from dspex.bus.errors import DecodeError, InvalidInput

MOST_STATE: Final = 16 << 20
"""Bytes of a state."""
ITSELF: Final = "self"
"""How DSPy names the predictor of a program that is one."""
_KEYS: Final = ("traces", "train", "demos", "signature", "lm", "fields")


class _SavedField(TypedDict):
    prefix: str
    description: str | None


class _SavedSignature(TypedDict):
    instructions: str
    fields: list[_SavedField]


class _SavedPredictor(TypedDict):
    demos: list[dict[str, Any]]
    signature: _SavedSignature
    fields: NotRequired[dict[str, Any]]


class ProgramState(NamedTuple):
    """The state of a program.

    Attributes:
        predictors: demos and signature of each predictor, by its name in the program.
        dspy_version: that it was saved under; "" where the state does not say.
        models: names of the predictors whose language model was left out.
    """

    predictors: Mapping[str, Mapping[str, Any]]
    dspy_version: str = ""
    models: tuple[str, ...] = ()

    @property
    def packed(self) -> bytes:
        """As it is stored; the same state gives the same bytes."""
        return orjson.dumps(self.predictors, option=orjson.OPT_SORT_KEYS)


def digest_of(packed: bytes) -> str:
    """The SHA-256 of a packed state, in hex digits."""
    return hashlib.sha256(packed).hexdigest()


def read(state: object) -> ProgramState:
    """What `dump_state()` gave, or what the file holds that `save("state.json")` wrote. Raises InvalidInput for what is no such
    state, and for what no program of dspex would load.
    """
    if not isinstance(state, Mapping):
        raise _refused(f"it is {type(state).__name__}, and a state is a mapping of predictors")
    named = {str(name): of for name, of in state.items() if name != "metadata"}
    if "signature" in named and "demos" in named:  # of a program that is a predictor itself
        named = {ITSELF: named}
    if not named:
        raise _refused("it has no predictor")
    models = tuple(name for name, of in named.items() if isinstance(of, Mapping) and of.get("lm"))
    found = ProgramState({name: _predictor(name, of) for name, of in named.items()}, _version(state), models)
    try:
        packed = found.packed
    except TypeError as e:
        raise _refused(f"it is no JSON: {e}") from e
    if MARKER.encode() in packed:
        raise _refused(f"a text in it holds DSPy's marker {MARKER}, which would become content of another kind")
    if len(packed) > MOST_STATE:
        raise _refused(f"it has {len(packed):,} bytes, of which {MOST_STATE:,} are allowed")
    return found


def unpack(packed: bytes) -> ProgramState:
    """The state that `ProgramState.packed` gave. Raises InvalidInput."""
    try:
        return read(orjson.loads(packed))
    except ValueError as e:
        raise _refused(f"it is no JSON: {e}") from None


def _predictor(name: str, state: object) -> dict[str, Any]:
    if not isinstance(state, Mapping) or "signature" not in state:
        raise _refused(f"{name} is no predictor: it has no signature")
    if unknown := sorted(set(map(str, state)) - set(_KEYS)):
        raise _refused(f"{name} has {unknown[0]!r}, and of a predictor only {', '.join(_KEYS)} are known")
    kept = {key: state[key] for key in ("demos", "signature", "fields") if key in state}
    try:
        return dict(checked(_SavedPredictor, f"the state of predictor {name}", kept))
    except DecodeError as e:
        raise _refused(e.message) from None


def _version(state: Mapping[str, Any]) -> str:
    try:
        return str(state["metadata"]["dependency_versions"]["dspy"])[:64]
    except (KeyError, TypeError):
        return ""


def _refused(why: str) -> InvalidInput:
    return InvalidInput(
        f"not a state that can be kept: {why}"[:2000],
        code="DX518",
        fix='save it as JSON, with DSPy: program.save("state.json"), or give what program.dump_state() returns',
    )
