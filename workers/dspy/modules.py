"""DSPy's own modules, built by name: `dspy:MultiChainComparison`."""

from __future__ import annotations

from typing import Any

import dspy

from dspex.bus.errors import ProgramError
from dspex.bus.serving.call_spec import CallSpec
from dspex.bus.serving.programs import modules
from dspex.bus.settings.called.refs import allows, not_allowed
from dspex.workers.answerers.refs import Refs

_REFS = ("interpreter_factory", "reward_fn")
_COUNTS_FAILURES = tuple(found for name in ("BestOfN", "Refine") if (found := getattr(dspy, name, None)) is not None)


def build(spec: CallSpec, signature: type[dspy.Signature], refs: Refs) -> Any:
    """The module. Raises ProgramError: there is none of this name here, or the pool does not allow it."""
    ref, arguments = spec.target, dict(spec.arguments)
    name = ref.removeprefix(modules.HOME)
    if modules.needs_permission(ref) and not allows(refs.allow, ref):
        said, fix = not_allowed(refs.pool, refs.allow, ref)
        raise ProgramError(f"{said}; it runs code that a model writes", fix=fix, node=ref)
    made = getattr(dspy, name, None)
    if made is None:
        raise ProgramError(f"DSPy {dspy.__version__} has no {name}", fix="upgrade DSPy in that pool's environment", node=ref)
    takes = modules.MODULES[name]
    for apart in takes.apart:
        signature = signature.delete(apart)
    given: dict[str, Any] = {n: refs.load(str(v)) if n in _REFS else v for n, v in arguments.items()}
    if takes.tools:
        given["tools"] = [refs.load(tool) for tool in spec.tools]
    if "module" in given:
        given["module"] = getattr(dspy, given["module"])(signature)
    else:
        given["signature"] = signature
    try:
        return made(**given)
    except (ValueError, TypeError) as error:
        why = f"{ref} cannot be built: {error}"[:600]
        raise ProgramError(why, fix="correct its signature or arguments", node=ref) from error


def check(spec: CallSpec, signature: type[dspy.Signature]) -> None:
    """Raise ProgramError for a program that cannot be built as the spec says: whoever may ask can write anything there."""
    if (why := modules.refusal(spec.target, spec.arguments, spec.tools, list(signature.input_fields))) is not None:
        raise ProgramError(why[0], fix=why[1], node=spec.target)


def counts_failures(program: object) -> bool:
    """Whether a program counts the failures of all its calls together: those that run at the same time would end each other."""
    return isinstance(program, dspy.Module) and any(True for _ in program.named_sub_modules(_COUNTS_FAILURES))


def is_asynchronous(program: dspy.Module) -> bool:
    """Whether its asynchronous path is its own: a class that has `forward` alone, below one with both, would be passed over."""
    for kind in type(program).__mro__:
        if "aforward" in vars(kind):
            return True
        if "forward" in vars(kind):
            return False
    return False
