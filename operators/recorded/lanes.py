"""What a call cannot have that is answered without DSPy, or through a provider's batch API: refused where it is built."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from dspex.bus.errors import TopologyError
from dspex.bus.serving.call_spec import live_within
from dspex.operators.native.problems import problem
from dspex.operators.recorded.options import DEFAULTS

if TYPE_CHECKING:
    from dspex.operators.recorded.spec import Spec

_LIVE = "leave it out: it is of calls that are asked live"
_SHORT = 'give the batch time: deadline="26h"; a provider may take a day for one'


def uncovered(spec: Spec[Any], what: str, fix: str) -> list[TopologyError]:
    """The error where native Predict cannot answer, as far as that is known without a model. `what`: asks for it."""
    from dspex.operators.native.lm.native_support import why_not_native_signature

    why = "DSPy loads saved states" if spec.state is not None else why_not_native_signature(spec.kind, spec.signature)
    return [problem("DX236", f"{what} cannot be: {why}", fix)] if why else []


def in_batches(spec: Spec[Any]) -> Iterator[TopologyError]:
    """Every way in which a spec contradicts its `lane="batch"`."""
    options = spec.options
    yield from uncovered(spec, 'lane="batch"', "leave it out: the call is then asked live")
    for name in ("hedge", "first_token_timeout", "choose"):
        if name in options:
            yield problem("DX205", f'{name}= has no meaning with lane="batch"', _LIVE)
    if options.get("affinity") == "require":
        yield problem(
            "DX205", 'affinity="require" has no meaning with lane="batch": no process keeps anything of a call', _LIVE
        )
    if options.get("route") == "worker":
        message = 'lane="batch" is a native call, and route="worker" lets DSPy answer'
        yield problem("DX205", message, "leave one of them out")
    if "deadline" not in options:
        yield problem("DX205", 'lane="batch" needs a deadline= of its own', _SHORT)
        return
    deadline, timeout = float(options["deadline"]), float(options.get("timeout", DEFAULTS["timeout"]))
    if (live := live_within(timeout, deadline)) >= deadline:
        said = f"{live:g} s before it the call is asked live, and it is {deadline:g} s"
        yield problem("DX205", f'deadline leaves lane="batch" no time: {said}', _SHORT)
