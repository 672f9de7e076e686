"""Loading a saved state into a program."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import dspy
import structlog

from dspex.bus.errors import ProgramError
from dspex.bus.serving.programs import form
from dspex.operators.native.problems import listed
from dspex.workers.answerers.attempt import LoadedState

MISFIT = "DX612"
"""The code of a state that is not one of the program."""


def with_state(program: Any, state: LoadedState, node: str) -> Any:
    """A copy of the program with the state in it. Raises ProgramError (DX612), naming the predictor that does not fit."""
    if not isinstance(program, dspy.Module):
        raise _misfit(state, node, f"{node} is no dspy.Module, and has no state")
    made: Any = program.deepcopy()
    saved = form.unpack(state.body).predictors
    own = {name: p for name, p in made.named_parameters() if isinstance(p, dspy.Predict)}
    if missing := [name for name in own if name not in saved]:
        raise _misfit(state, node, f"it has nothing for the predictor {missing[0]} (it has: {listed(saved)})")
    if unknown := [name for name in saved if name not in own]:
        raise _misfit(state, node, f"the program has no predictor {unknown[0]} (it has: {listed(own) or 'none'})")
    for name, predictor in own.items():
        _load(predictor, saved[name], state, f"{node}: predictor {name}")
    if warning := version_warning(state):
        structlog.get_logger("dspex.workers").warning("a state of another DSPy", program=node, state=state.name, why=warning)
    return made


def version_warning(state: LoadedState) -> str:
    """What to say of a state that was saved under another version of DSPy than this one; "" for nothing."""
    if state.dspy_version in ("", dspy.__version__):
        return ""
    return f"{state.name} was saved under DSPy {state.dspy_version}, and was loaded by {dspy.__version__}"


def _load(predictor: Any, saved: Mapping[str, Any], state: LoadedState, where: str) -> None:
    fields, has = saved["signature"]["fields"], len(predictor.signature.fields)
    if len(fields) != has:
        shown = listed([str(field["prefix"]) for field in fields])
        raise _misfit(state, where, f"it has {len(fields)} fields ({shown}), and the signature {has}")
    for demo in saved["demos"]:
        if not demo.keys() & predictor.signature.fields.keys():
            raise _misfit(state, where, f"a demonstration of it has the fields {listed(demo)}, and none of the signature's")
    whole = {"traces": [], "train": [], "lm": None, **copy.deepcopy(dict(saved))}
    try:
        predictor.load_state(whole)
    except (ValueError, TypeError, KeyError, NotImplementedError) as error:
        raise _misfit(state, where, f"DSPy {dspy.__version__} does not take it: {error!r}"[:600]) from error


def _misfit(state: LoadedState, where: str, why: str) -> ProgramError:
    return ProgramError(
        f"{where}: the state {state.name} does not fit: {why}",
        code=MISFIT,
        fix="save the state of this program anew, or name a version that was saved of it: dspex programs ls",
        node=where,
    )
