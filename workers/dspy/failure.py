"""What DSPy and a user's code raise → our tree. A DSPy error class that is not listed fails a test, not a user."""

from __future__ import annotations

import re
from collections.abc import Mapping

from dspex.bus import errors
from dspex.bus.errors import DspexError, ProgramError
from dspex.operators.native.lm.provider_errors import NOT_NOW, asks_to_wait, class_of, retry_after_of, wait, word
from dspex.workers.answerers.attempt import as_error, short
from dspex.workers.dspy.versions import installed

_MEANING: Mapping[str, type[DspexError]] = {
    "LMRateLimitError": errors.RateLimited,
    "LMTimeoutError": errors.CallTimeout,
    "LMTransportError": errors.LMUnavailable,
    "LMServerError": errors.LMUnavailable,
    "LMLockTimeoutError": errors.LMUnavailable,
    "LMStreamAssemblyError": errors.LMUnavailable,
    "LMUnexpectedError": errors.LMUnavailable,  # the server said something that is not an answer
    "LMCollectionLimitError": errors.InvalidOutput,  # the answer is larger than DSPy takes
    "AdapterParseError": errors.InvalidOutput,
    "LMAuthError": errors.LMRefused,
    "LMBillingError": errors.LMRefused,
    "LMInvalidRequestError": errors.LMRefused,
    "ContextWindowExceededError": errors.LMRefused,
    "LMUnsupportedModelError": errors.LMRefused,
    "LMUnsupportedFeatureError": errors.LMRefused,
    "LMConfigurationError": errors.LMRefused,
    "LMNotConfiguredError": errors.LMRefused,
    "LMProviderError": errors.LMRefused,  # a status that has no class of its own
    "LMError": errors.LMUnavailable,
    "DSPyError": ProgramError,
    "CodeInterpreterError": ProgramError,
    "CodeExecutionError": ProgramError,
}
TABLE: Mapping[type[BaseException], type[DspexError]] = {
    known: _MEANING[name] for name in _MEANING if (known := installed.error(name)) is not None
}

# Begins what DSPy adds to what the server said: it names options that dspex has not, and retries that dspex makes itself.
_ADVICE = re.compile(r"\n\n  (?:To fix:|credential came from: )")
_LITELLM = re.compile(r"\A(\[\S+\] )?litellm\.\w+: (?:\w+: )?(?:\w+Exception - )?", re.ASCII)  # begins what LiteLLM makes of it


def to_error(error: BaseException, node: str, target: str) -> DspexError:
    """The error that the engine gets. Errors of dspex pass through: RetryLater and Reject are how a program asks."""
    if isinstance(error, DspexError):
        return error
    cls = next((TABLE[c] for c in type(error).__mro__ if c in TABLE), ProgramError)
    status, retry_after = getattr(error, "status", None) or 0, getattr(error, "retry_after", None)
    name = type(error).__name__
    if name == "LMProviderError" and not 400 <= status < 500:
        cls = errors.LMUnavailable  # the response is not one of its API: a proxy's page, or a body that was cut off
    if name in ("LMProviderError", "LMInvalidRequestError") and status in NOT_NOW:
        cls = errors.LMUnavailable
    if installed.by_litellm(error):
        cls, retry_after = _of_litellm(error)
    if cls is errors.InvalidOutput:
        return errors.InvalidOutput(_unparsed(error), node=node)
    if issubclass(cls, errors.CallError) and cls is not ProgramError:
        after = _seconds(retry_after)
        said = _LITELLM.sub(r"\1", _ADVICE.split(str(error), maxsplit=1)[0])
        return cls(short(said) + asks_to_wait(after), node=node, retry_after=after)
    return as_error(error, node, target)


def _unparsed(error: BaseException) -> str:
    """What the model said instead of an answer, without the prompt-sized rest of DSPy's own message."""
    signature, said = getattr(error, "signature", None), getattr(error, "lm_response", None)
    if signature is None:
        return short(str(error))
    wanted = ", ".join(signature.output_fields)
    return f"the model's answer has not the fields {wanted} as the signature wants them: {short(said)!r}"


def _of_litellm(error: BaseException) -> tuple[type[DspexError], float | None]:
    """What an error of LiteLLM's means, by its status and code, and how long the server asks to wait."""
    codes = {word(getattr(error, name, None)) for name in ("code", "type")}
    headers = getattr(getattr(error, "response", None), "headers", {})
    return class_of(getattr(error, "status_code", None) or 0, codes), retry_after_of(headers)


def _seconds(value: object) -> float | None:
    return wait(value) if isinstance(value, (int, float)) else None
