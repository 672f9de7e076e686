"""One attempt at a call, as every answerer sees it: the native one and DSPy. Nothing here imports dspy."""

from __future__ import annotations

import hashlib
import json
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import lru_cache

import structlog

from dspex.bus.codecs.checking import checked as typed
from dspex.bus.codecs.media import unmarked
from dspex.bus.codecs.plain import checked as plain_data
from dspex.bus.errors import DecodeError, DspexError, InvalidInput, InvalidOutput, ProgramError, TopologyError, WorkerLost
from dspex.bus.records import CallRequest, Outputs, Usage
from dspex.bus.serving.call_spec import CallSpec, ModuleConfig
from dspex.operators.native.prompts.values import to_jsonable
from dspex.operators.native.signature import Signature
from dspex.workers.answer import Answer, ErrorMap
from dspex.workers.answerers.context import CallContext, enter
from dspex.workers.config import Profile

KEPT = 256  # calls whose program is kept: a topology has fewer, and untrusted callers may ask for any number
_SHOWN = 600  # characters of a model's or provider's text in a message


@dataclass
class Attempt:
    """What is asked, and what is known so far of the answer.

    Attributes:
        work, spec: the call.
        local: where the local model's server is; None where there is none.
        lm: the profile that is tried; "" for none.
        route, dspy_version: of the answerer that is asked.
        program: see `Answer`.
        usage: what the attempt has cost so far; None while nothing is known.
        refusals: why the answerers that come before this one do not answer.
        started: seconds since the epoch.
    """

    work: CallRequest
    spec: CallSpec
    local: str | None
    lm: str = ""
    route: str = "worker"
    dspy_version: str = ""
    program: str = ""
    usage: Usage | None = None
    refusals: list[str] = field(default_factory=list[str])
    started: float = field(default_factory=time.time)

    def spend(self, used: Usage, profile: Profile | None) -> None:
        """Add tokens to what the attempt has cost, also those of an answer that is of no use."""
        if price := profile.price if profile else {}:
            plain, cached = price.get("input", 0.0), min(used.cached_tokens, used.input_tokens)
            cost = (used.input_tokens - cached) * plain + cached * price.get("cached", plain)
            used = replace(used, cost=(cost + used.output_tokens * price.get("output", 0.0)) / 1e6)
        self.usage = self.usage + used if self.usage else used

    def answer(self, outputs: Outputs | None = None, error: ErrorMap | None = None) -> Answer:
        """The end of the attempt, with all that is known of it."""
        return Answer(
            started=self.started,
            elapsed=time.time() - self.started,
            outputs=outputs,
            error=error,
            route=self.route,
            lm=self.lm,
            program=self.program,
            dspy_version=self.dspy_version,
            usage=self.usage,
        )


def spec_of(work: CallRequest) -> CallSpec:
    """The spec of a piece of work. Raises InvalidInput.

    Whoever may ask a worker can write anything here. Parameters that are not of `ModuleConfig` are refused: one of them is the
    address that a model's client sends its key to.
    """
    known = ModuleConfig.__annotations__
    try:
        spec = CallSpec.read(work.spec)
        typed(ModuleConfig, "the config of a call", {k: v for k, v in spec.config.items() if k in known})
    except DecodeError as error:
        raise InvalidInput(error.message, node=work.node) from None
    if unknown := sorted(spec.config.keys() - known.keys()):
        fix = f"a call may set {', '.join(known)}; the server and its key are those of the profile"
        raise InvalidInput(f"a call may not set config.{short(unknown[0])}", fix=fix, node=work.node)
    return spec


def signature_of(spec: CallSpec) -> str:
    """The signature as JSON, which `Signature.from_plain` reads: what compiled signatures are kept by."""
    plain: dict[str, object] = {
        "signature": spec.signature or spec.target,
        "instructions": spec.instructions,
        "fields": spec.fields,
    }
    if spec.types:
        plain["types"] = spec.types
    return json.dumps(plain, default=str)  # not sorted: a model sees the properties of a type in the order of the type


def checked(work: CallRequest, spec: CallSpec) -> CallRequest:
    """The work with inputs that fit its signature. Raises InvalidInput.

    Only an interactive call is checked, because anybody may make one. The engine has checked the inputs of a durable call.
    """
    if work.record is not None or not spec.asks_a_model:
        return work
    try:
        signature = _signature(signature_of(spec))
    except TopologyError:
        return work  # the answerer says what is wrong with it
    if spec.kind != "program":
        return replace(work, inputs=signature.sent_inputs(work.inputs))
    found = signature.check_inputs(work.inputs)
    return replace(work, inputs={n: _shown_input(n, v) for n, v in found.items() if v is not None or n in work.inputs})


@lru_cache(maxsize=256)
def _signature(plain: str) -> Signature:
    return Signature.from_plain(json.loads(plain))


def program_name(spec: CallSpec) -> str:
    """`predict#…`: the kind, and a digest of what the program is made from. The same for every answerer."""
    made_from = [spec.signature or spec.target, spec.instructions, spec.tools, spec.max_iters]
    text = json.dumps([*made_from, *(more for more in (spec.fields, spec.types) if more)], default=str)
    return f"{spec.kind}#{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def enter_context(attempt: Attempt, status: Callable[[str], None]) -> None:
    """Make this attempt what `dspex.workers.context()` gives a program."""
    work = attempt.work
    limit = attempt.started + work.timeout
    enter(
        CallContext(
            call=work.call,
            run=work.run,
            session=work.session,
            attempt=work.attempt,
            deadline=datetime.fromtimestamp(min(limit, attempt.started + work.left), tz=UTC),
            log=structlog.get_logger("program").bind(call=work.call, run=work.run, node=work.node, attempt=work.attempt),
            report=status,
        )
    )


def plain(name: str, value: object) -> object:
    """An output as plain data, as in an event: a time has a zone, a timedelta is seconds. Bytes become text.

    Raises InvalidOutput for what cannot be that: bytes that are no text, half a character, a longer integer, an Ellipsis.
    """
    if value is None or type(value) in (float, bool):
        return value
    try:
        return _texts(name, plain_data(value, binary=True, name=name))
    except InvalidInput as error:
        raise InvalidOutput(short(error.message), fix=error.fix) from error


def _texts(name: str, value: object) -> object:
    if isinstance(value, dict):
        return {key: _texts(f"{name}.{key}", item) for key, item in value.items()}
    if isinstance(value, list):
        return [_texts(f"{name}[{i}]", item) for i, item in enumerate(value)]
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError as error:
            raise InvalidOutput(f"{name} is bytes that are no text: {error.reason}") from None
    return value


def _shown_input(name: str, value: object) -> object:
    """An input as a prompt shows it."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    try:
        return to_jsonable(unmarked(value))
    except (ValueError, TypeError, RecursionError) as error:
        raise InvalidInput(f"{name} cannot be written as JSON: {short(str(error))}") from error


def as_error(error: BaseException, node: str, target: str) -> DspexError:
    """The error that the engine gets. Errors of dspex pass through: RetryLater and Reject are how a program asks."""
    if isinstance(error, DspexError) and hasattr(error, "message"):  # a subclass may not call our constructor
        return error
    if isinstance(error, MemoryError):  # a neighbour may have it all: the call is tried again, by itself
        return WorkerLost("its worker may not have more memory (pools.*.memory)", node=node)
    said = str(traceback.TracebackException(type(error), error, None))  # str(error) may raise, and this does not
    return ProgramError(f"{target} raised {type(error).__name__}: {short(said)}", node=node)


def short(text: object) -> str:
    """A text of a model or a program, cut to what a message needs."""
    text = str(text)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}… ({len(text)} characters)"
