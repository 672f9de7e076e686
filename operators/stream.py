"""Streams: the fluent API. Each method adds a node to the topology and gives the stream that comes out of it.

A method of a native operator is its types and no more, and its body is never run: `declared` does what the operator's
declaration says.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import wraps
from typing import Any, Generic, Literal, Never, TypeAlias, TypeVar, cast, overload

from typing_extensions import TypeIs, Unpack

from dspex.bus.codecs.cloud_events import CloudEventMode
from dspex.bus.serving.programs.modules import ModuleArguments
from dspex.bus.settings.duration import Duration
from dspex.engine.graph.check import NAME
from dspex.engine.graph.context import Context, StateContext
from dspex.operators.keyed.windows.stream import WindowedStream, WindowOptions
from dspex.operators.native.problems import problem
from dspex.operators.native.signature import Signature
from dspex.operators.operator import Operator
from dspex.operators.parameters import NothingParameter
from dspex.operators.plan import NodeDraft, Plan
from dspex.operators.recorded import calls
from dspex.operators.recorded.enrich import enrich
from dspex.operators.recorded.options import CallOptions, EnrichOptions
from dspex.operators.recorded.spec import MAX_ITERS, SignatureLike, Spec
from dspex.operators.registry import AnyOperator, operators
from dspex.operators.stateless import sink
from dspex.operators.stateless.parse import ParseAs
from dspex.operators.stateless.render import Syntax
from dspex.operators.typing.names import Adapter, Codec, Extra, K_co, Name, OnError, T_co, V
from dspex.operators.typing.names import Record as Record
from dspex.operators.typing.shape import Shape

T = TypeVar("T")
U = TypeVar("U")
A = TypeVar("A")
B = TypeVar("B")
S = TypeVar("S")
K = TypeVar("K")
R = TypeVar("R")
Method = TypeVar("Method", bound=Callable[..., Any])
Test: TypeAlias = str | Callable[[T], bool]
AnyStream: TypeAlias = "Stream[Any, Any]"


def declared(method: Method) -> Method:
    """Make a method of the operator that has its name. Its signature is for people and type checkers.

    The arguments are checked by the declaration, so that a misspelt keyword is a problem that `check` lists with the others.
    """
    operator = operators()[method.__name__]
    main_name, *more = method.__code__.co_varnames[1 : method.__code__.co_argcount] or ("",)  # `map(fn=...)` is `map(...)`

    @wraps(method)
    def add(stream: AnyStream, *main: Any, name: Name = None, **options: object) -> AnyStream | tuple[AnyStream, ...]:
        if main_name in options and not main:
            main = (options.pop(main_name),)
        for option, value in zip(more, main[1:]):  # options that may be given by their places
            if option in options:
                raise TypeError(f"{operator.name}() got {option} twice")
            options[option] = value
        main = main[:1] + main[1 + len(more) :]
        alone = isinstance(operator.main, NothingParameter)
        if not (operator.many_inputs or operator.main.variadic) and len(main) != (0 if alone else 1):
            takes = "options by name" if alone else "one argument and options by name"
            raise TypeError(f"{operator.name}() takes {takes}, and got {len(main)} arguments")
        argument = {} if alone else list(main) if operator.main.variadic else main[0]
        others = main if operator.many_inputs else ()
        return stream._apply(operator, argument, name, options, others)  # pyright: ignore[reportPrivateUsage]

    return cast("Method", add)


class Stream(Generic[T_co, K_co]):
    """Data of type T on its way through a topology; with a key (a string) or, without one, K = None.

    Made by `Topology.source` and by the methods here, not by hand. A method that gets something wrong does not raise:
    `Topology.check` lists all problems at once.
    """

    __slots__ = ("_draft", "_outlet", "_plan", "_shape")

    def __init__(self, plan: Plan, draft: NodeDraft, outlet: int = 0, shape: Shape | None = None) -> None:
        self._plan, self._draft, self._outlet = plan, draft, outlet
        self._shape = draft.shape if shape is None else shape

    def _apply(
        self,
        operator: AnyOperator,
        main: object,
        name: Name,
        options: Mapping[str, object],
        others: Sequence[object] = (),
    ) -> AnyStream | tuple[AnyStream, ...]:
        """Put an operator on this stream, by its declaration: what the methods below do, and what YAML does.

        `others`: the other streams, for an operator that joins several.
        """
        if not isinstance(operator, Operator):
            return self._call(operator.name, lambda: operator.spec(main, **options), name or "")
        given = [s for s in others if isinstance(s, Stream)]
        for strange in (s for s in others if not isinstance(s, Stream)):
            message = f"{operator.name} takes streams, and one argument is of type {type(strange).__name__}"
            self._plan.report(self._draft, "DX205", message, "give it a Stream")
        streams = cast("list[AnyStream]", [self, *given])
        edges = [(s._draft, s._outlet) for s in streams if s._plan is self._plan]
        shape = operator.joined([s._shape for s in streams])
        draft, shapes = operator.add(self._plan, edges, shape, {**options, operator.name: main}, name)
        for other in streams:
            if other._plan is not self._plan:
                message = f"a stream of topology {other._plan.topology} cannot be merged into {self._plan.topology}"
                self._plan.report(draft, "DX227", message, "publish it to a subject with .sink(), and read that with .source()")
        found = tuple(Stream[Any, Any](self._plan, draft, i, shape) for i, shape in enumerate(shapes))
        return found if operator.main.variadic else found[0]

    @overload
    def map(self, fn: Callable[[T_co], U], *, name: Name = None) -> Stream[U, K_co]: ...
    @overload
    def map(self, fn: Callable[[T_co, Context], U], *, name: Name = None) -> Stream[U, K_co]: ...
    @declared
    def map(self, fn: Callable[..., Any], *, name: Name = None) -> AnyStream:
        """One datum in, one out. `fn` takes (data), or (data, ctx), and has no side effects: it may run again."""
        raise NotImplementedError

    @overload
    def flat_map(self, fn: Callable[[T_co], Iterable[U]], *, name: Name = None) -> Stream[U, K_co]: ...
    @overload
    def flat_map(self, fn: Callable[[T_co, Context], Iterable[U]], *, name: Name = None) -> Stream[U, K_co]: ...
    @declared
    def flat_map(self, fn: Callable[..., Any], *, name: Name = None) -> AnyStream:
        """One datum in, any number out. A text or a mapping as result is an error: it is one datum, not many."""
        raise NotImplementedError

    @overload
    def filter(self, test: str, *, name: Name = None) -> Stream[T_co, K_co]: ...
    @overload
    def filter(self, test: Callable[[T_co], TypeIs[U]], *, name: Name = None) -> Stream[U, K_co]: ...
    @overload
    def filter(self, test: Callable[[T_co], bool], *, name: Name = None) -> Stream[T_co, K_co]: ...
    @declared
    def filter(self, test: Test[Any], *, name: Name = None) -> AnyStream:
        """Keep the data for which the test is true: an expression, or a function of the data."""
        raise NotImplementedError

    @overload
    def branch(self, a: Test[T_co], /, *, name: Name = None) -> tuple[Stream[T_co, K_co], Stream[T_co, K_co]]: ...
    @overload
    def branch(
        self, a: Test[T_co], b: Test[T_co], /, *, name: Name = None
    ) -> tuple[Stream[T_co, K_co], Stream[T_co, K_co], Stream[T_co, K_co]]: ...
    @overload
    def branch(
        self, a: Test[T_co], b: Test[T_co], c: Test[T_co], /, *, name: Name = None
    ) -> tuple[Stream[T_co, K_co], Stream[T_co, K_co], Stream[T_co, K_co], Stream[T_co, K_co]]: ...
    @overload
    def branch(
        self, a: Test[T_co], b: Test[T_co], c: Test[T_co], d: Test[T_co], /, *, name: Name = None
    ) -> tuple[Stream[T_co, K_co], Stream[T_co, K_co], Stream[T_co, K_co], Stream[T_co, K_co], Stream[T_co, K_co]]: ...
    @overload
    def branch(
        self, a: Test[T_co], b: Test[T_co], c: Test[T_co], d: Test[T_co], e: Test[T_co], /, *, name: Name = None
    ) -> tuple[
        Stream[T_co, K_co],
        Stream[T_co, K_co],
        Stream[T_co, K_co],
        Stream[T_co, K_co],
        Stream[T_co, K_co],
        Stream[T_co, K_co],
    ]: ...
    @declared
    def branch(self, *tests: Test[Any], name: Name = None) -> tuple[AnyStream, ...]:
        """One stream a test, and one more for the rest; the first test that is true takes the data."""
        raise NotImplementedError

    @declared
    def merge(self, *others: Stream[U, K], name: Name = None) -> Stream[T_co | U, K_co | K]:
        """This stream and the others as one. Order between them is the order in which the engine reads them."""
        raise NotImplementedError

    @declared
    def set(self, fields: Mapping[str, str], /, *, into: type[V] | None = None, name: Name = None) -> Stream[V, K_co]:
        """Add or replace fields: {field: expression over the data as it came in}."""
        raise NotImplementedError

    @declared
    def validate(
        self,
        schema: type[V] | Mapping[str, Any],
        *,
        extra: Extra | None = None,
        on_error: OnError = "dead_letter",
        name: Name = None,
    ) -> Stream[V, K_co]:
        """Check the data against a type, which also types it, or against a JSON Schema (2020-12)."""
        raise NotImplementedError

    @overload
    def render(
        self, template: str, *, field: str, syntax: Syntax = "fields", into: type[V] | None = None, name: Name = None
    ) -> Stream[V, K_co]: ...
    @overload
    def render(
        self, template: Signature, *, field: str, adapter: Adapter = "chat", into: type[V] | None = None, name: Name = None
    ) -> Stream[V, K_co]: ...
    @declared
    def render(self, template: str | Signature, *, field: str, name: Name = None, **options: Any) -> AnyStream:
        """Fill in a template, and put the text in `field`; or put the messages there that DSPy makes of a signature.

        Args:
            template: `"Dear {customer.name}"`, where `{{` and `}}` are braces; or Jinja; or a Signature, whose inputs are
                fields of the data.
            field: the field that takes the text or the messages.
            options: `syntax` of a template, "fields" or "jinja"; `adapter` of a signature, "chat", "json" or "xml"; `into`.
        """
        raise NotImplementedError

    @declared
    def parse(
        self,
        signature: SignatureLike,
        *,
        field: str,
        adapter: ParseAs = "chat",
        into: type[V] | None = None,
        name: Name = None,
    ) -> Stream[V, K_co]:
        """Read the reply of a model, the text in `field`, and add the outputs of the signature.

        Args:
            signature: what is in the text; its inputs do not matter.
            adapter: how it is written: as DSPy's adapters ask for it ("chat", "json", "xml"), or "code", "pairs", "numbers"
                or "list": see docs/topologies.md.
        """
        raise NotImplementedError

    @declared
    def score(
        self,
        metric: str | Callable[[Any, Any], float],
        *,
        expected: str,
        actual: str,
        field: str = "score",
        into: type[V] | None = None,
        name: Name = None,
    ) -> Stream[V, K_co]:
        """Say in `field` how well `actual` answers, from 0 to 1.

        Args:
            metric: a name of `dspex.metrics`, or a function of (actual, expected) that gives a number.
            expected: expression for the reference, or a list of them. actual: expression for the answer.
        """
        raise NotImplementedError

    # -- keys
    @declared
    def stateful(
        self: Stream[A, str],
        fn: Callable[[S, A, StateContext], tuple[S | None, Iterable[U]]],
        *,
        init: Callable[[], S],
        name: str,
        on_wake: Callable[[S, StateContext], tuple[S | None, Iterable[U]]] | None = None,
        ttl: Duration | None = None,
    ) -> Stream[U, str]:
        """A function with a state for each key: (state, data, context) → the new state, None to forget the key, and outputs.

        `on_wake` is called when the time comes that `context.wake` asked for. `ttl`: forget a key after so much event time
        without an event.
        """
        raise NotImplementedError

    @overload
    def join(self: Stream[A, str], other: Stream[B, str], *, within: Duration, name: str) -> Stream[tuple[A, B], str]: ...
    @overload
    def join(
        self: Stream[A, str], other: Stream[B, str], *, within: Duration, name: str, how: Literal["inner"]
    ) -> Stream[tuple[A, B], str]: ...
    @overload
    def join(
        self: Stream[A, str], other: Stream[B, str], *, within: Duration, name: str, how: Literal["left"]
    ) -> Stream[tuple[A, B | None], str]: ...
    @declared
    def join(self, other: AnyStream, *, within: Duration, name: str, how: Literal["inner", "left"] = "inner") -> AnyStream:
        """Pairs of events of two streams with one key, whose event times are at most `within` apart: each pair once.

        Args:
            other: the second stream.
            within: how far apart they may be.
            how: "left": an event of this stream that found none goes on as `(data, None)` once none can follow.
        """
        raise NotImplementedError

    @declared
    def lookup(
        self: Stream[A, str], table: Stream[B, str], *, name: str, ttl: Duration | None = None
    ) -> Stream[tuple[A, B | None], str]:
        """Each event with the latest value of its key in another stream, `None` where there is none.

        What is stored of the table's source is read first, once. A value of `None` removes the key, and `ttl` does so after so
        much event time.
        """
        raise NotImplementedError

    @declared
    def gather(self, *others: Stream[Any, K_co], within: Duration, into: type[V] | None = None, name: str) -> Stream[V, K_co]:
        """The branches of one event as one datum, once all have come; `dspex.gather(a, b, …)` is the same.

        All streams must come from one, with no hop in between: their data is put together, `{**a, **b}`. An event of which a
        branch has not come `within` a time is a dead letter that names it.
        """
        raise NotImplementedError

    @declared
    def batch(self, size: int, *, within: Duration, name: str) -> Stream[list[T_co], K_co]:
        """Lists of `size` events, or of what has come within a time after the first: of each key, or of each partition."""
        raise NotImplementedError

    @declared
    def dedupe(self, key: str, *, within: Duration, name: str) -> Stream[T_co, K_co]:
        """Keep the first of events with the same business key. Of a keyed stream: within its key.

        `within`: how far apart in event time they may be. Repeats of one event id never get here.
        """
        raise NotImplementedError

    @declared
    def throttle(self, rate: str, *, burst: int = 1, name: str) -> Stream[T_co, K_co]:
        """Let events go on at a rate, "10/s", of each key, or of the whole stream. It delays, in order, and never drops."""
        raise NotImplementedError

    @declared
    def debounce(self: Stream[A, str], wait: Duration, *, name: str) -> Stream[A, str]:
        """Of a burst of events of a key only the last one goes on, once none has followed it for `wait`."""
        raise NotImplementedError

    @declared
    def cron(
        self,
        schedule: str,
        *,
        zone: str = "UTC",
        data: Mapping[str, Any] | None = None,
        missed: Literal["skip", "last", "all"] = "last",
        name: str,
    ) -> Stream[Record]:
        """Events at the times of a schedule, and one for each event of the source, right behind which it stands.

        `Topology.cron` is this behind a source of its own.
        """
        raise NotImplementedError

    @declared
    def approve(
        self,
        *,
        show: Sequence[str] | None = None,
        timeout: Duration | None = None,
        on_timeout: Literal["dead_letter", "pass", "drop"] = "dead_letter",
        name: str,
    ) -> Stream[T_co, K_co]:
        """Let an event wait until a person has decided about it: `dspex approvals`, `Client.decide`.

        Accepted, it goes on, with the fields that were edited; rejected, it is a dead letter with the note. It waits in the
        state of its partition, holds no slot, and no other event waits for it. `show`: the fields that people are shown.
        """
        raise NotImplementedError

    @declared
    def aggregate(
        self: Stream[A, str],
        init: Callable[[], S],
        fold: Callable[[S, A], S],
        *,
        name: str,
        ttl: Duration | None = None,
    ) -> Stream[S, str]:
        """A state for each key, which begins as `init()`: each event makes the next one, `fold(state, data)`, and lets it out.

        `ttl`: forget a key after so much event time without an event.
        """
        raise NotImplementedError

    @declared
    def reduce(self: Stream[A, str], fn: Callable[[A, A], A], *, name: str, ttl: Duration | None = None) -> Stream[A, str]:
        """One datum for each key: each event makes the next one, `fn(before, data)`, and lets it out. The first is itself.

        `ttl`: forget a key after so much event time without an event.
        """
        raise NotImplementedError

    def window(
        self: Stream[U, str], size: Duration, *, every: Duration | None = None, **o: Unpack[WindowOptions]
    ) -> WindowedStream[U]:
        """Windows of one length over the events of each key, by event time; overlapping ones where `every` is shorter.

        Say what they give: `.count()`, `.collect()`, `.reduce()` or `.aggregate()`.
        """
        return self._window("window", size, {**({} if every is None else {"every": every}), **o})

    def session_window(self: Stream[U, str], gap: Duration, **o: Unpack[WindowOptions]) -> WindowedStream[U]:
        """Windows that last as long as there is an event of the key within each `gap`, by event time.

        Say what they give: `.count()`, `.collect()`, `.reduce()` or `.aggregate()`.
        """
        return self._window("session_window", gap, o)

    def _window(self, operator: str, main: object, options: Mapping[str, object]) -> WindowedStream[Any]:
        fix = f'say what it gives: .{operator}(…).count(name="…"), or collect, reduce or aggregate'
        return WindowedStream(self, operator, main, options, self._plan.begin(f"a {operator} by itself gives nothing", fix))

    @overload
    def key_by(self, key: str, *, name: Name = None) -> Stream[T_co, str]: ...
    @overload
    def key_by(self, key: Callable[[T_co], str], *, name: str) -> Stream[T_co, str]: ...
    @declared
    def key_by(self, key: str | Callable[[Any], str], *, name: Name = None) -> AnyStream:
        """Give events a key, a text: those of one key go on one after another, in the order in which they come here."""
        raise NotImplementedError

    # -- recorded
    def call(self, spec: Spec[U], *, name: str) -> Stream[U, K_co]:
        """Ask a worker, as the spec says. The record of the call is stored before anything uses it."""
        return self._call(spec.kind, lambda: spec, name)

    def _call(self, kind: str, make: Callable[[], Spec[U]], name: str) -> Stream[U, K_co]:
        return Stream(self._plan, calls.add(self._plan, [(self._draft, self._outlet)], self._shape, kind, make, name))

    def predict(
        self,
        signature: SignatureLike,
        *,
        state: str | None = None,
        name: str,
        into: type[V] | None = None,
        **o: Unpack[CallOptions],
    ) -> Stream[V, K_co]:
        """One call of the model with the signature (`dspy.Predict`). `state`: a saved state, "classify@prod"."""
        return self._call("predict", lambda: calls.predict(signature, state=state, into=into, **o), name)

    def chain_of_thought(
        self,
        signature: SignatureLike,
        *,
        state: str | None = None,
        name: str,
        into: type[V] | None = None,
        **o: Unpack[CallOptions],
    ) -> Stream[V, K_co]:
        """The model reasons before it answers (`dspy.ChainOfThought`); adds the field `reasoning` too. `state`: see predict."""
        return self._call("chain_of_thought", lambda: calls.chain_of_thought(signature, state=state, into=into, **o), name)

    def react(
        self,
        signature: SignatureLike,
        *,
        tools: Sequence[str],
        max_iters: int = MAX_ITERS,
        state: str | None = None,
        name: str,
        into: type[V] | None = None,
        **o: Unpack[CallOptions],
    ) -> Stream[V, K_co]:
        """The model uses tools until it has the answer (`dspy.ReAct`). `tools`: refs; they run in the worker."""

        def made() -> Spec[V]:
            return calls.react(signature, tools=tools, max_iters=max_iters, state=state, into=into, **o)

        return self._call("react", made, name)

    def program(
        self,
        ref: str | type[Any],
        signature: SignatureLike,
        *,
        arguments: ModuleArguments | None = None,
        tools: Sequence[str] | None = None,
        state: str | None = None,
        name: str,
        into: type[V] | None = None,
        **o: Unpack[CallOptions],
    ) -> Stream[V, K_co]:
        """A `dspy.Module` of yours, by ref, or one of DSPy's own, `dspy:RLM`, with its `arguments` and `tools`. `state`: a
        saved state of it, "draft@3" or "draft@prod".
        """

        def made() -> Spec[V]:
            return calls.program(ref, signature, arguments=arguments, tools=tools, state=state, into=into, **o)

        return self._call("program", made, name)

    def enrich(
        self,
        fn: Callable[[T_co], Awaitable[Any]] | Callable[[T_co, str], Awaitable[Any]] | str,
        *,
        name: str,
        into: type[V] | None = None,
        effect: bool = False,
        reconcile: Callable[[T_co, str], Awaitable[Any | None]] | str | None = None,
        **o: Unpack[EnrichOptions],
    ) -> Stream[V, K_co]:
        """Add fields that an async function of yours finds: `async def fn(data)`, or its ref. It runs in a worker.

        `effect`: it changes something elsewhere, and is called with (data, idempotency key). `reconcile`: async, tells for the
        same arguments what was done by one whose worker died; None: nothing.
        """
        return self._call("enrich", lambda: enrich(fn, into=into, effect=effect, reconcile=reconcile, **o), name)

    # -- composition and ends
    def through(self, part: Callable[[Stream[T_co, K_co]], R], *, name: str) -> R:
        """Include a part of a topology, which is a function of a stream. Its nodes are called `name/node`."""
        if not isinstance(name, str) or not NAME.fullmatch(name):  # pyright: ignore[reportUnnecessaryIsInstance]
            fix = "a name is a-z, then a-z, 0-9, _ or -, at most 48 characters"
            self._plan.report(None, "DX202", f"{name!r} is not a name for a part", fix)
            name = "part"  # so that its nodes are not blamed for it as well
        outer, self._plan.prefix = self._plan.prefix, f"{self._plan.prefix}{name}/"
        try:
            return part(self)
        finally:
            self._plan.prefix = outer

    def sink(
        self,
        subject: str,
        *,
        codec: Codec | None = None,
        cloudevents: CloudEventMode | None = None,
        stream: str | None = None,
        **unknown: Never,
    ) -> None:
        """Publish what comes here, exactly once.

        Args:
            subject: may hold fields: "replies.{intent}". One sink a subject; merge streams first.
            codec: how the data is encoded; default: the topology's.
            cloudevents: write each event as a CloudEvent 1.0, "structured" or "binary"; default: as dspex's own.
            stream: a public stream of yours, which the server fills with a copy of every event.
            unknown: any other option is a problem that `check` lists.
        """
        options = {"codec": codec, "cloudevents": cloudevents, "stream": stream}
        given = unknown | {name: value for name, value in options.items() if value is not None}
        sink.add(self._plan, self._draft, self._outlet, self._shape, subject, given)


def gather(*parts: Stream[Any, K], name: str, within: Duration, into: type[V] | None = None) -> Stream[V, K]:
    """The branches of one event as one datum, once all have come: `{**a, **b}`.

    All streams must come from one, with no hop in between.

    Args:
        parts: the branches. Where two have a field of one name, that of the later one counts.
        within: how long they wait for each other. Then the event is a dead letter that names the branches that are missing.
        into: a type that validates and types the result.
    """
    if not parts:
        raise problem("DX204", "gather joins streams, and was given none", "gather(a, b, …)")
    first, *others = parts
    return first.gather(*others, name=name, within=within, into=into)


KeyedStream: TypeAlias = Stream[T, str]
