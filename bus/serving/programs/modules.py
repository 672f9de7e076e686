"""DSPy's own modules as programs: `dspy:MultiChainComparison`. Which there are, what they are built with, what they may do.

A module that only asks models needs no permission, as `predict` needs none. One that runs code which a model wrote (in DSPy's
sandbox, unless `interpreter_factory` names another) runs only where the pool's allow-list names it. The table is DSPy 3.4's;
what an older one lacks, a worker refuses by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from typing_extensions import TypedDict

from dspex.bus.settings.similar import did_you_mean

HOME: Final = "dspy:"
"""How the refs of DSPy's own modules begin."""
WRAPPED: Final = ("Predict", "ChainOfThought")
"""What a module that repeats another one may repeat: the names that its argument `module` takes."""
_NUMBER: Final = "a number"
_COUNT: Final = "a number of 1 or more"
_REF: Final = 'a ref, "pkg.module:name"'
_MODULE: Final = " or ".join(f'"{name}"' for name in WRAPPED)


class ModuleArguments(TypedDict, total=False):
    """What DSPy's own modules are built with, besides the signature and tools. Each takes some of them."""

    max_iters: int
    max_llm_calls: int
    max_output_chars: int
    max_predictor_calls: int
    interpreter_factory: str
    M: int
    temperature: float
    N: int
    threshold: float
    fail_count: int
    reward_fn: str
    module: str


class DspyModule(NamedTuple):
    """A module of DSPy's that takes a signature.

    Attributes:
        arguments: that it takes, with what each is. needs: those that it cannot do without.
        tools: it takes tools.
        runs_code: it runs what a model wrote.
        apart: inputs that it is called with, and that are not of the signature that it is built with.
    """

    arguments: Mapping[str, str] = {}
    needs: Sequence[str] = ()
    tools: bool = False
    runs_code: bool = False
    apart: Sequence[str] = ()


_STEPS: Final = {"max_iters": _COUNT}
_SANDBOX: Final = {"interpreter_factory": _REF}
_REPEATS: Final = DspyModule(
    {"module": _MODULE, "N": _COUNT, "reward_fn": _REF, "threshold": _NUMBER, "fail_count": _COUNT},
    needs=("module", "N", "reward_fn", "threshold"),
)
MODULES: Final[Mapping[str, DspyModule]] = {
    "Predict": DspyModule(),
    "ChainOfThought": DspyModule(),
    "ReAct": DspyModule(_STEPS, tools=True),
    "ReActV2": DspyModule(_STEPS, tools=True),
    "MultiChainComparison": DspyModule({"M": _COUNT, "temperature": _NUMBER}, apart=("completions",)),
    "BestOfN": _REPEATS,
    "Refine": _REPEATS,
    "ProgramOfThought": DspyModule({**_STEPS, **_SANDBOX}, runs_code=True),
    "CodeAct": DspyModule({**_STEPS, **_SANDBOX}, tools=True, runs_code=True),
    "RLM": DspyModule({**_STEPS, **_SANDBOX, "max_llm_calls": _COUNT, "max_output_chars": _COUNT}, tools=True, runs_code=True),
    "Flex": DspyModule({**_SANDBOX, "max_predictor_calls": _COUNT}, tools=True, runs_code=True),
}


def is_own(ref: str) -> bool:
    """Whether a ref names something of DSPy itself."""
    return ref.startswith(HOME)


def needs_permission(ref: str) -> bool:
    """Whether a pool's allow-list has to name it."""
    return not is_own(ref) or (found := MODULES.get(ref.removeprefix(HOME))) is None or found.runs_code


def refs_in(ref: str, arguments: Mapping[str, object]) -> list[str]:
    """The refs to a user's code among the arguments."""
    takes = MODULES[name].arguments if is_own(ref) and (name := ref.removeprefix(HOME)) in MODULES else {}
    return [str(value) for name, value in arguments.items() if takes.get(name) == _REF]


def refusal(ref: str, arguments: Mapping[str, object], tools: Sequence[str], inputs: Sequence[str]) -> tuple[str, str] | None:
    """Why a program cannot be built so, and what to do; None where it can. `inputs`: of its signature."""
    if not is_own(ref):
        what = "arguments" if arguments else "tools" if tools else ""
        fix = "build it as you want it in a class or a function of yours, and name that"
        return (f"{what}= is for DSPy's own modules, and {ref} is a program of yours", fix) if what else None
    name = ref.removeprefix(HOME)
    if (module := MODULES.get(name)) is None:
        return f"DSPy has no module {name!r} that takes a signature", did_you_mean(name, MODULES)
    takes = ", ".join(module.arguments) or "none"
    for given, value in arguments.items():
        if (kind := module.arguments.get(given)) is None:
            return f"{ref} takes no argument {given!r}", f"it takes: {takes}"
        if not _fits(kind, value):
            return f"{given} of {ref} is {value!r}"[:300], f"give {kind}"
    if missing := [one for one in module.needs if one not in arguments]:
        return f"{ref} needs {', '.join(missing)}", f"arguments={{{missing[0]!r}: …}}: {module.arguments[missing[0]]}"
    if tools and not module.tools:
        return f"{ref} takes no tools", "leave them out, or use dspy:ReAct"
    if lacking := [one for one in module.apart if one not in inputs]:
        return f"{ref} is called with {lacking[0]}, which its signature does not have", f"add {lacking[0]} to the inputs"
    return None


def _fits(kind: str, value: Any) -> bool:
    if kind in (_COUNT, _NUMBER):
        number = isinstance(value, int) or (kind == _NUMBER and isinstance(value, float))
        return number and not isinstance(value, bool) and (kind == _NUMBER or value >= 1)
    if not isinstance(value, str):
        return False
    return value in WRAPPED if kind == _MODULE else ":" in value
