"""Streams: the fluent API. Each method adds a node to the topology and gives the stream that comes out of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Generic, Literal, TypeAlias, TypeVar, overload

from typing_extensions import TypeIs, Unpack

from dspex.engine.graph.graph import Build, Context, Sink
from dspex.operators.expressions.predicate import option
from dspex.operators.expressions.template import fields as template_fields
from dspex.operators.native.signature import Signature
from dspex.operators.options import Adapter, CallOptions, Codec, K_co, Name, OnError, T_co, V
from dspex.operators.options import Record as Record
from dspex.operators.plan import NodeDraft, Plan
from dspex.operators.recorded import spec as specs
from dspex.operators.recorded.spec import SignatureLike, Spec, type_option
from dspex.operators.stateless import branch, flat_map, merge, parse, render, score, sink, validate
from dspex.operators.stateless import filter as filter_
from dspex.operators.stateless import map as map_
from dspex.operators.stateless import set as set_
from dspex.operators.stateless.parse import ParseAs
from dspex.operators.typing import purity
from dspex.operators.typing import stream_checks as fits
from dspex.operators.typing.functions import automatic_name
from dspex.operators.typing.refs import ref_of
from dspex.operators.typing.shape import Shape, narrowed, returned, returned_items, shape_of

T = TypeVar("T")
U = TypeVar("U")
K = TypeVar("K")
R = TypeVar("R")
Test: TypeAlias = str | Callable[[T], bool]


class Stream(Generic[T_co, K_co]):
    """Data of type T on its way through a topology; with a key (a string) or, without one, K = None.

    Made by `Topology.source` and by the methods here, not by hand. A method that gets something wrong does not raise:
    `Topology.check` tells all problems at once.
    """

    __slots__ = ("_draft", "_outlet", "_plan", "_shape")

    def __init__(self, plan: Plan, draft: NodeDraft, outlet: int = 0, shape: Shape | None = None) -> None:
        self._plan, self._draft, self._outlet = plan, draft, outlet
        self._shape = draft.shape if shape is None else shape

    def _native(
        self,
        op: str,
        options: Mapping[str, Any],
        make: Callable[[], Build],
        *,
        name: Name,
        automatic: str | None = None,
        shape: Shape | None = None,
        inputs: Sequence[tuple[NodeDraft, int]] | None = None,
        outlets: int = 1,
    ) -> NodeDraft:
        """Add a native node. `make` compiles it; what it raises about the user's words is noted, not raised."""
        draft = NodeDraft(
            "native",
            op,
            automatic or op,
            name,
            inputs=list(inputs or [(self._draft, self._outlet)]),
            options={k: v for k, v in options.items() if v is not None},
            outlets=outlets,
            shape=shape or self._shape,
        )
        self._plan.add(draft)
        with self._plan.collecting(draft):
            draft.build = make()
        return draft

    def _next(self, draft: NodeDraft) -> Stream[Any, Any]:
        return Stream(self._plan, draft)

    def _function(self, op: str, fn: Any, make: Callable[[], Build], *, name: Name, shape: Shape) -> Stream[Any, Any]:
        """A node whose main argument is the user's function."""
        draft = self._native(op, {op: ref_of(fn)}, make, name=name, automatic=automatic_name(fn, op), shape=shape)
        purity.lint(self._plan, draft, fn)
        return self._next(draft)

    def _reads(self, draft: NodeDraft, texts: Iterable[Any]) -> None:
        """Note fields that expressions want and that this stream is known not to have."""
        for text in texts:
            if isinstance(text, str):
                with self._plan.collecting(draft):
                    fits.fields_exist(text, self._shape)

    # -- native, stateless
    @overload
    def map(self, fn: Callable[[T_co], U], *, name: Name = None) -> Stream[U, K_co]: ...
    @overload
    def map(self, fn: Callable[[T_co, Context], U], *, name: Name = None) -> Stream[U, K_co]: ...
    def map(self, fn: Callable[..., Any], *, name: Name = None) -> Stream[Any, Any]:
        """One datum in, one out. `fn` takes (data), or (data, ctx), and has no side effects: it may run again."""
        return self._function("map", fn, lambda: map_.build(fn), name=name, shape=returned(fn))

    @overload
    def flat_map(self, fn: Callable[[T_co], Iterable[U]], *, name: Name = None) -> Stream[U, K_co]: ...
    @overload
    def flat_map(self, fn: Callable[[T_co, Context], Iterable[U]], *, name: Name = None) -> Stream[U, K_co]: ...
    def flat_map(self, fn: Callable[..., Any], *, name: Name = None) -> Stream[Any, Any]:
        """One datum in, any number out. A text or a mapping as result is an error: it is one datum, not many."""
        return self._function("flat_map", fn, lambda: flat_map.build(fn), name=name, shape=returned_items(fn))

    @overload
    def filter(self, test: str, *, name: Name = None) -> Stream[T_co, K_co]: ...
    @overload
    def filter(self, test: Callable[[T_co], TypeIs[U]], *, name: Name = None) -> Stream[U, K_co]: ...
    @overload
    def filter(self, test: Callable[[T_co], bool], *, name: Name = None) -> Stream[T_co, K_co]: ...
    def filter(self, test: Any, *, name: Name = None) -> Stream[Any, Any]:
        """Keep the data for which the test is true: an expression, or a function of the data."""
        automatic = "filter" if isinstance(test, str) else automatic_name(test, "filter")
        shape = narrowed(test, self._shape)
        options = {"filter": option(test)}
        draft = self._native("filter", options, lambda: filter_.build(test), name=name, automatic=automatic, shape=shape)
        self._reads(draft, [test])
        purity.lint(self._plan, draft, test)
        return self._next(draft)

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
    def branch(self, *tests: Any, name: Name = None) -> Any:
        """One stream a test, and one more for the rest; the first test that is true takes the data."""
        options = {"branch": [option(t) for t in tests]}
        draft = self._native("branch", options, lambda: branch.build(tests), name=name, outlets=len(tests) + 1)
        self._reads(draft, tests)
        for test in tests:
            purity.lint(self._plan, draft, test)
        shapes = [narrowed(t, self._shape) for t in tests] + [self._shape]
        return tuple(Stream[Any, Any](self._plan, draft, i, shape) for i, shape in enumerate(shapes))

    def merge(self, *others: Stream[U, K], name: Name = None) -> Stream[T_co | U, K_co | K]:
        """This stream and the others as one. Order between them is the order in which the engine reads them."""
        streams: list[Stream[Any, Any]] = [self, *others]
        same = all(s._shape == self._shape for s in streams)
        draft = self._native(
            "merge",
            {"merge": {}},
            lambda: merge.build,
            name=name,
            inputs=[(s._draft, s._outlet) for s in streams if s._plan is self._plan],
            shape=self._shape if same else Shape(),
        )
        if any(s._plan is not self._plan for s in streams):
            other = next(s for s in streams if s._plan is not self._plan)
            self._plan.report(
                draft,
                "DX227",
                f"a stream of topology {other._plan.topology} cannot be merged into {self._plan.topology}",
                "publish it to a subject with .sink(), and read that with .source()",
            )
        return self._next(draft)

    def set(self, fields: Mapping[str, str], /, *, into: type[V] | None = None, name: Name = None) -> Stream[V, K_co]:
        """Add or replace fields: {field: expression over the data as it came in}."""
        options = {"set": dict(fields), "into": None if into is None else type_option(into)}
        shape = self._into(into, dict.fromkeys(fields, Any))
        draft = self._native("set", options, lambda: set_.build(fields, into), name=name, shape=shape)
        self._reads(draft, fields.values())
        return self._next(draft)

    def _into(self, into: Any, added: Mapping[str, Any]) -> Shape:
        return self._shape.plus(added) if into is None else shape_of(into)

    def validate(
        self, schema: type[V] | Mapping[str, Any], *, on_error: OnError = "dead_letter", name: Name = None
    ) -> Stream[V, K_co]:
        """Check the data against a type, which also types it, or against a JSON Schema (2020-12)."""
        options = {"validate": type_option(schema), "on_error": None if on_error == "dead_letter" else on_error}
        shape = self._shape if isinstance(schema, Mapping) else shape_of(schema)
        return self._next(self._native("validate", options, lambda: validate.build(schema, on_error), name=name, shape=shape))

    @overload
    def render(
        self,
        template: str,
        *,
        field: str,
        syntax: Literal["fields", "jinja"] = "fields",
        into: type[V] | None = None,
        name: Name = None,
    ) -> Stream[V, K_co]: ...
    @overload
    def render(
        self, template: Signature, *, field: str, adapter: Adapter = "chat", into: type[V] | None = None, name: Name = None
    ) -> Stream[V, K_co]: ...
    def render(
        self,
        template: str | Signature,
        *,
        field: str,
        syntax: Literal["fields", "jinja"] = "fields",
        adapter: Adapter = "chat",
        into: Any = None,
        name: Name = None,
    ) -> Stream[Any, Any]:
        """Fill in a template, and put the text in `field`; or put the messages there that DSPy makes of a signature.

        Args:
            template: `"Dear {customer.name}"`, where `{{` and `}}` are braces; or Jinja; or a Signature, whose inputs are
                fields of the data.
            syntax: "fields" or "jinja".
            adapter: of a signature: "chat", "json" or "xml".
        """
        options = {
            "render": render.option(template, adapter),
            "field": field,
            "syntax": None if syntax == "fields" else syntax,
            "into": None if into is None else type_option(into),
        }
        make = lambda: render.build(template, field, into, syntax=syntax, adapter=adapter)  # noqa: E731
        added = {field: list[dict[str, Any]] if isinstance(template, Signature) else str}
        draft = self._native("render", options, make, name=name, shape=self._into(into, added))
        self._reads(draft, render.fields(template, syntax))
        if isinstance(template, Signature):
            with self._plan.collecting(draft):
                fits.inputs_exist(template, self._shape)
        return self._next(draft)

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
        read = parse.readable(signature)
        options = {
            "parse": None if read is None else parse.signature_option(read),
            "field": field,
            "adapter": None if adapter == "chat" else adapter,
            "into": None if into is None else type_option(into),
        }
        shape = self._into(into, {} if read is None else read.annotations("outputs"))
        draft = self._native("parse", options, lambda: parse.build(signature, field, adapter, into), name=name, shape=shape)
        with self._plan.collecting(draft):
            fits.field_is(field, str, "parse", self._shape)
        with self._plan.collecting(draft):
            fits.outputs_fit(read, into, self._shape)
        return self._next(draft)

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
        options = {
            "score": metric if isinstance(metric, str) else ref_of(metric),
            "expected": expected,
            "actual": actual,
            "field": None if field == "score" else field,
            "into": None if into is None else type_option(into),
        }
        make = lambda: score.build(metric, expected=expected, actual=actual, field=field, into=into)  # noqa: E731
        draft = self._native("score", options, make, name=name, shape=self._into(into, {field: float}))
        self._reads(draft, [expected, actual])
        purity.lint(self._plan, draft, metric)
        return self._next(draft)

    # -- recorded
    def call(self, spec: Spec[U], *, name: str) -> Stream[U, K_co]:
        """Ask a worker, as the spec says. The outcome is recorded before anything uses it."""
        return self._call(spec.kind, lambda: spec, name)

    def _call(self, kind: str, make: Callable[[], Spec[Any]], name: str) -> Stream[Any, Any]:
        draft = self._plan.add(NodeDraft("call", kind, kind, name or "", inputs=[(self._draft, self._outlet)]))
        with self._plan.collecting(draft):
            spec = make()
            draft.options, draft.shape, draft.call = spec.plain(), spec.shape(self._shape), spec.to_call()
            fits.spec_fits(spec, self._shape)
            purity.lint(self._plan, draft, spec.options.get("fallback"))
        return self._next(draft)

    def predict(
        self, signature: SignatureLike, *, name: str, into: type[V] | None = None, **o: Unpack[CallOptions]
    ) -> Stream[V, K_co]:
        """One call of the model with the signature (`dspy.Predict`)."""
        return self._call("predict", lambda: specs.predict(signature, into=into, **o), name)

    def chain_of_thought(
        self, signature: SignatureLike, *, name: str, into: type[V] | None = None, **o: Unpack[CallOptions]
    ) -> Stream[V, K_co]:
        """The model reasons before it answers (`dspy.ChainOfThought`); adds the field `reasoning` too."""
        return self._call("chain_of_thought", lambda: specs.chain_of_thought(signature, into=into, **o), name)

    def react(
        self,
        signature: SignatureLike,
        *,
        tools: Sequence[str],
        max_iters: int = 10,
        name: str,
        into: type[V] | None = None,
        **o: Unpack[CallOptions],
    ) -> Stream[V, K_co]:
        """The model uses tools until it has the answer (`dspy.ReAct`). `tools`: refs, run in the worker."""
        make = lambda: specs.react(signature, tools=tools, max_iters=max_iters, into=into, **o)  # noqa: E731
        return self._call("react", make, name)

    def program(
        self,
        ref: str | type[Any],
        signature: SignatureLike,
        *,
        state: str | None = None,
        name: str,
        into: type[V] | None = None,
        **o: Unpack[CallOptions],
    ) -> Stream[V, K_co]:
        """A `dspy.Module` of yours, by ref. `state`: a stored compiled program, "draft@3"."""
        return self._call("program", lambda: specs.program(ref, signature, state=state, into=into, **o), name)

    # -- composition and ends
    def through(self, part: Callable[[Stream[T_co, K_co]], R], *, name: str) -> R:
        """Include a part of a topology, which is a function of a stream. Its nodes are called `name/node`."""
        outer, self._plan.prefix = self._plan.prefix, f"{self._plan.prefix}{name}/"
        try:
            return part(self)
        finally:
            self._plan.prefix = outer

    def sink(self, subject: str, *, stream: str | None = None, codec: Codec | None = None) -> None:
        """Publish what comes here, exactly once. `subject` may hold fields: "replies.{intent}".

        Args:
            subject: one sink a subject; merge streams first.
            stream: a public JetStream stream that keeps a copy.
            codec: how the data is encoded; default: the topology's.
        """
        options = {"stream": stream, "codec": codec}
        draft = NodeDraft(
            "sink",
            "sink",
            subject,
            subject,
            inputs=[(self._draft, self._outlet)],
            options={k: v for k, v in options.items() if v is not None},
            shape=self._shape,
        )
        self._plan.add(draft)
        draft.sink = Sink(subject, subject)
        with self._plan.collecting(draft):
            draft.sink = sink.make(subject, stream=stream, codec=codec or self._plan.codec, shape=self._shape)
        self._reads(draft, template_fields(subject))


KeyedStream: TypeAlias = Stream[T, str]
