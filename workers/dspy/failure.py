"""What DSPy and a user's code raise → our tree. A DSPy error class that is not listed fails a test, not a user."""

from __future__ import annotations

import re
from collections.abc import Mapping

from dspy.primitives.code_interpreter import CodeExecutionError, CodeInterpreterError
from dspy.utils import exceptions as dspy_errors

from dspex.bus import errors
from dspex.bus.errors import DspexError, ProgramError
from dspex.operators.native.lm.provider_errors import NOT_NOW, asks_to_wait, wait
from dspex.workers.answerers.attempt import as_error, short

TABLE: Mapping[type[BaseException], type[DspexError]] = {
    dspy_errors.LMRateLimitError: errors.RateLimited,
    dspy_errors.LMTimeoutError: errors.CallTimeout,
    dspy_errors.LMTransportError: errors.LMUnavailable,
    dspy_errors.LMServerError: errors.LMUnavailable,
    dspy_errors.LMLockTimeoutError: errors.LMUnavailable,
    dspy_errors.LMStreamAssemblyError: errors.LMUnavailable,
    dspy_errors.LMUnexpectedError: errors.LMUnavailable,  # the server said something that is not an answer
    dspy_errors.LMCollectionLimitError: errors.InvalidOutput,  # the answer is larger than DSPy takes
    dspy_errors.AdapterParseError: errors.InvalidOutput,
    dspy_errors.LMAuthError: errors.LMRefused,
    dspy_errors.LMBillingError: errors.LMRefused,
    dspy_errors.LMInvalidRequestError: errors.LMRefused,
    dspy_errors.ContextWindowExceededError: errors.LMRefused,
    dspy_errors.LMUnsupportedModelError: errors.LMRefused,
    dspy_errors.LMUnsupportedFeatureError: errors.LMRefused,
    dspy_errors.LMConfigurationError: errors.LMRefused,
    dspy_errors.LMNotConfiguredError: errors.LMRefused,
    dspy_errors.LMProviderError: errors.LMRefused,  # a status that has no class of its own
    dspy_errors.LMError: errors.LMUnavailable,
    dspy_errors.DSPyError: ProgramError,
    CodeInterpreterError: ProgramError,
    CodeExecutionError: ProgramError,
}

# Begins what DSPy adds to what the server said: it names options that dspex has not, and retries that dspex makes itself.
_ADVICE = re.compile(r"\n\n  (?:To fix:|credential came from: )")


def to_error(error: BaseException, node: str, target: str) -> DspexError:
    """The error that the engine gets. Errors of dspex pass through: RetryLater and Reject are how a program asks."""
    if isinstance(error, DspexError):
        return error
    cls = next((TABLE[c] for c in type(error).__mro__ if c in TABLE), ProgramError)
    status = getattr(error, "status", None) or 0
    if type(error) is dspy_errors.LMProviderError and not 400 <= status < 500:
        cls = errors.LMUnavailable  # the response is not one of its API: a proxy's page, or a body that was cut off
    if type(error) in (dspy_errors.LMProviderError, dspy_errors.LMInvalidRequestError) and status in NOT_NOW:
        cls = errors.LMUnavailable
    retry_after = getattr(error, "retry_after", None)
    if cls is errors.InvalidOutput:
        return errors.InvalidOutput(_unparsed(error), node=node)
    if issubclass(cls, errors.CallError) and cls is not ProgramError:
        after = _seconds(retry_after)
        said = _ADVICE.split(str(error), maxsplit=1)[0]
        return cls(short(said) + asks_to_wait(after), node=node, retry_after=after)
    return as_error(error, node, target)


def _unparsed(error: BaseException) -> str:
    """What the model said instead of an answer, without the prompt-sized rest of DSPy's own message."""
    signature, said = getattr(error, "signature", None), getattr(error, "lm_response", None)
    if signature is None:
        return short(str(error))
    wanted = ", ".join(signature.output_fields)
    return f"the model's answer has not the fields {wanted} as the signature wants them: {short(said)!r}"


def _seconds(value: object) -> float | None:
    return wait(value) if isinstance(value, (int, float)) else None
