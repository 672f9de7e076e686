"""One attempt at a call, as every answerer sees it: the native one and DSPy. Nothing here imports dspy."""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Awaitable, Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import InitVar, dataclass, field, replace
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

from dspex.bus.codecs.checking import made
from dspex.bus.codecs.media import unmarked
from dspex.bus.codecs.plain import checked as plain_data
from dspex.bus.errors import DspexError, InvalidInput, InvalidOutput, ProgramError, TopologyError, WorkerLost, is_seconds
from dspex.bus.records import ANSWERED, SILENT, CallRequest, Outputs, Tried, Usage
from dspex.bus.serving.call_spec import CallSpec, ModuleConfig
from dspex.bus.serving.programs.optimizers import OPTIMIZE
from dspex.operators.native.lm.completion import Completion
from dspex.operators.native.prompts.values import to_jsonable
from dspex.operators.native.signature import Signature
from dspex.workers.answer import Answer, ErrorMap
from dspex.workers.answerers.context import CallContext, enter
from dspex.workers.answerers.kept import SessionData
from dspex.workers.config import Profile
from dspex.workers.journal.replies import exchange
from dspex.workers.journal.requests import Requests
from dspex.workers.journal.within import Journaling

KEPT = 256  # calls whose program is kept: a topology has fewer, and untrusted callers may ask for any number
Key = TypeVar("Key")
Made = TypeVar("Made")
_SHOWN = 600  # characters of a model's or provider's text in a message


AskFurther = Callable[[str, Usage | None, bool], Awaitable[None]]
"""Asked before the next profile of a list is: told its name, and what was used so far. Raises CallError where it may not be."""


class LoadedState(NamedTuple):
    """A saved state as a child has it: its name (`draft@4`), its digest, the DSPy that it was saved under, and it, packed."""

    name: str
    digest: str
    dspy_version: str
    body: bytes


@dataclass
class Attempt:
    """What is asked, and what is known so far of the answer.

    Attributes:
        work: the call.
        local: where the local model's server is; None where there is none.
        lm: the profile that is tried; "" for none.
        route, dspy_version: of the answerer that is asked.
        program: see `Answer`.
        usage: what the attempt has cost so far; None while nothing is known.
        refusals: why the answerers that come before this one do not answer.
        started: seconds since the epoch.
        routing: what became of the profiles of a list.
        chunk: told, on the loop, what the model writes: (field, text); None where nobody wants to know.
        silent: the profile that is tried did not begin to answer in time.
        streamed: something was told: the same is not asked for again, because it would be told twice.
        state: the saved state of its program; None for none.
        warning: see `Answer`.
        journal: of the call; None for one that has none. requests: those of models and tools, which are asked by it.
        kept: what its session keeps; None where it is no turn.
        hedge: see CallFrame. further: see `refused`.
        batch: it waits for the answer of a batch, which has a price of its own.
        over: whether it was cancelled for good: asked where it is cancelled.
    """

    work: CallRequest
    local: str | None
    lm: str = ""
    route: str = "worker"
    dspy_version: str = ""
    program: str = ""
    usage: Usage | None = None
    refusals: list[str] = field(default_factory=list[str])
    started: float = field(default_factory=time.time)
    routing: list[Tried] = field(default_factory=list[Tried])
    chunk: Callable[[str, str], None] | None = None
    streamed: bool = False
    state: LoadedState | None = None
    warning: str = ""
    hedge: Mapping[str, float] = field(default_factory=dict[str, float])
    further: AskFurther | None = None
    silent: bool = False
    journal: InitVar[Journaling | None] = None
    requests: Requests = field(init=False)
    kept: SessionData | None = field(init=False)
    batch: bool = False
    over: Callable[[], bool] = lambda: False

    def __post_init__(self, journal: Journaling | None) -> None:
        self.requests = Requests(self.work.call, journal)
        kept, session = self.work.kept, self.work.session
        self.kept = None if kept is None or session is None else SessionData(session, kept.data)

    def heard(self, answer: Completion, profile: Profile, since: float) -> None:
        """A model has answered what it was asked at `since`, by the monotonic clock; the inputs of the call tell what."""
        used = self.spend(replace(answer.usage, requests=1), profile)
        said = answer.text or answer.refusal
        self.requests.exchanges.add(exchange("model", self.lm, None, said, used, time.monotonic() - since))

    @contextmanager
    def trying(self, lm: str) -> Generator[None]:
        """Note what becomes of a profile."""
        began, why, wait = time.perf_counter(), ANSWERED, 0.0
        self.silent = False
        try:
            yield
        except BaseException as error:
            why = SILENT if self.silent else type(error).__name__
            wait = float(asked) if is_seconds(asked := getattr(error, "retry_after", None)) else 0.0
            raise
        finally:
            self.routing.append(Tried(lm, why, round((time.perf_counter() - began) * 1000, 3), wait))

    async def refused(self, lm: str) -> DspexError | None:
        """Why the limits do not let the next profile of a list be asked; None where they do: its part is reserved."""
        try:
            if self.further is not None:
                await self.further(lm, self.usage, False)
        except DspexError as error:
            self.routing.append(Tried(lm, "limited"))
            return error
        return None

    @property
    def spec(self) -> CallSpec:
        return self.work.spec

    def write(self, name: str, text: str) -> None:
        """Tell what the model has written of an output. Called on the loop, where `chunk` is there."""
        if self.chunk is not None and text:
            self.streamed = True
            self.chunk(name, sendable(text))

    def spend(self, used: Usage, profile: Profile | None) -> Usage:
        """Add tokens to what the attempt has cost, also those of an answer that is of no use; with what they cost."""
        used = self.priced(used, profile)
        if self.batch and used.cost is not None and profile is not None:
            used = replace(used, cost=used.cost * profile.price.get("batch", 1.0))
        self.usage = self.usage + used if self.usage else used
        return used

    @staticmethod
    def priced(used: Usage, profile: Profile | None) -> Usage:
        """Tokens with what they cost, where the profile names its price."""
        if profile is None or not profile.price:
            return used
        cached = min(used.cached_tokens, used.input_tokens)
        return replace(used, cost=profile.cost_of(used.input_tokens, used.output_tokens, cached))

    def answer(self, outputs: Outputs | None = None, error: ErrorMap | None = None) -> Answer:
        """The end of the attempt, with all that is known of it."""
        said: dict[str, Any] = {
            "started": self.started,
            "elapsed": max(0.0, time.time() - self.started),  # the clock may be set back meanwhile
            "outputs": outputs,
            "error": error,
            "route": self.route,
            "lm": self.lm,
            "program": self.program,
            "dspy_version": self.dspy_version,
            "usage": self.usage,
            "routing": self.routing,
            "warning": self.warning,
            "requests": self.requests.counts(outputs is not None),
            "exchanges": self.requests.exchanges.packed(),
            "saved": None if self.kept is None or outputs is None else self.kept.saved,
        }
        return made(Answer, said)


def checked(work: CallRequest) -> CallRequest:
    """The work with inputs that fit its signature. Raises InvalidInput, also for a config that no call may have.

    Only the inputs of an interactive call are looked at, because anybody may make one. The engine has checked those of a
    durable call.
    """
    spec = work.spec
    if (why := spec.refused_config) is not None:
        known = ", ".join(ModuleConfig.__annotations__)
        raise InvalidInput(
            short(why), fix=f"a call may set {known}; the server and its key are those of the profile", node=work.node
        )
    if work.record is not None or not spec.asks_a_model or spec.kind == OPTIMIZE:  # a job looks at its rows itself
        return work
    try:
        signature = _signature(spec.signature_json)
    except TopologyError:
        return work  # the answerer says what is wrong with it
    if spec.kind != "program":
        return work.with_inputs(signature.sent_inputs(work.inputs))
    found = signature.check_inputs(work.inputs)
    return work.with_inputs({n: _shown_input(n, v) for n, v in found.items() if v is not None or n in work.inputs})


@lru_cache(maxsize=256)
def _signature(plain: str) -> Signature:
    return Signature.from_plain(json.loads(plain))


def kept(cache: dict[Key, Made], key: Key, make: Callable[[], Made]) -> Made:
    """What `make` made for the key; kept while it is among the last that were asked for."""
    cache[key] = found = cache.pop(key) if key in cache else make()
    if len(cache) > KEPT:
        del cache[next(iter(cache))]
    return found


def enter_context(attempt: Attempt, status: Callable[[str], None]) -> None:
    """Make this attempt what `dspex.workers.context()` gives a program."""
    work = attempt.work
    said: dict[str, Any] = {
        "call": work.call,
        "run": work.run,
        "session": work.session,
        "attempt": work.attempt,
        "until": attempt.started + min(work.timeout, work.left),
        "node": work.node,
        "report": status,
        "opened": work.opened or attempt.started,
        "requests": attempt.requests,
        "kept": attempt.kept,
        "work": work,
    }
    enter(made(CallContext, said))


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


def sendable(text: str) -> str:
    """A text that every process can read: half of a character, which no encoding has, becomes a question mark."""
    return text if text.isascii() else text.encode(errors="replace").decode()


def short(text: object) -> str:
    """A text of a model or a program, cut to what a message needs."""
    text = str(text)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}… ({len(text)} characters)"
