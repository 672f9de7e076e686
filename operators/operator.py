"""An operator, declared once. YAML, the schema, the checks and the reference page are derived from the declaration.

    score = Operator("score", main=MetricParameter(), options={"field": FieldNameParameter("score")}, build=build)

Every file of `operators/stateless` holds one, beside the function that builds its step; `registry` finds them there. A base
class with a method for each purpose would do as well, but then each operator would write these methods itself, and differently.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from typing import Any, TypeAlias

from dspex.bus.errors import TopologyError
from dspex.bus.settings.not_built import OPTIONS
from dspex.engine.graph.check import NAME
from dspex.engine.graph.context import Build
from dspex.engine.graph.nodes import Hop, State
from dspex.operators.native.fields.fields import JsonSchema
from dspex.operators.native.problems import problem
from dspex.operators.parameters.parameter import REQUIRED, Arguments, NotGiven, Parameter, Types, checked
from dspex.operators.plan import HOP, NodeDraft, Plan
from dspex.operators.typing import code, purity
from dspex.operators.typing.shape import UNKNOWN, Shape, shape_of

Edges: TypeAlias = Sequence[tuple[NodeDraft, int]]
FROM: JsonSchema = {
    "type": ["string", "array"],
    "items": {"type": "string"},
    "description": "a source, a node, or an outlet: branch.0, branch.rest",
}


@dataclass(frozen=True)
class Declaration:
    """What every operator says of itself.

    Attributes:
        name: of the method of `Stream`, and of the key in YAML.
        main: its main argument.
        options: its other arguments by name, in the order of the reference page and of YAML.
        many_inputs: whether it joins several streams. Its method takes the other streams in place of the main argument.
        one_of: options of which exactly one is given. YAML shows by it what the operator is for.
    """

    name: str
    _: KW_ONLY
    main: Parameter
    options: Mapping[str, Parameter] = field(default_factory=dict[str, Parameter])
    many_inputs: bool = False
    one_of: tuple[str, ...] = ()

    @property
    def parameters(self) -> Mapping[str, Parameter]:
        """All arguments by name, the main one first, under the operator's name."""
        return {self.name: self.main, **self.options}

    @property
    def not_built(self) -> tuple[str, ...]:
        """Options of the design that are not built, and refused."""
        return OPTIONS.get(self.name, ())

    @property
    def keys(self) -> Mapping[str, Parameter]:
        """The options that YAML writes as keys."""
        return {name: p for name, p in self.options.items() if p.key}

    @property
    def required(self) -> list[str]:
        """The keys that a node must have."""
        return [name for name, p in self.keys.items() if p.default is REQUIRED]

    def load(self, main: object, options: MutableMapping[str, object], types: Types) -> object:
        """The main argument as Python code gives it, from what YAML says; the options likewise, in their place."""
        value = self.main.load(self.name, main, types, options)
        for name, parameter in self.options.items():
            if name in options:
                options[name] = parameter.load(name, options[name], types, options)
        return value

    def schema(self) -> JsonSchema:
        """The JSON Schema of its nodes in YAML."""
        properties = {"from": FROM, self.name: self.main.schema(), **{n: p.schema() for n, p in self.keys.items()}}
        required = ["from", self.name, *self.required]
        schema = {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
        return schema | ({"oneOf": [{"required": [name]} for name in self.one_of]} if self.one_of else {})

    def checked(self, given: Mapping[str, object]) -> tuple[Arguments, list[TopologyError]]:
        """The arguments in the form that `build` takes, with the defaults of those not given; and what is wrong."""
        arguments, errors = checked(self.parameters, given, options=(*self.options, "name"), not_built=self.not_built)
        for name, parameter in self.parameters.items():
            if name not in given:
                if parameter.default is REQUIRED:
                    errors.append(problem("DX204", f"{self.name} needs the option {name!r}", f"add {name}=..."))
                else:
                    arguments[name] = parameter.default
        chosen = [name for name in self.one_of if given.get(name) is not None]
        if self.one_of and len(chosen) != 1:
            what = f"has {', '.join(chosen)}" if chosen else "says nothing about what it gives"
            errors.append(problem("DX204", f"{self.name} {what}", f"one of: {', '.join(self.one_of)}"))
        return arguments, errors


def same(shape: Shape, arguments: Arguments) -> Shape:
    """The shape of an operator that does not change its data."""
    return shape


def alike(shapes: Sequence[Shape]) -> Shape:
    """The shape that all have."""
    return shapes[0] if all(shape == shapes[0] for shape in shapes) else UNKNOWN


def one(main: object) -> int:
    """The outlets of most operators."""
    return 1


@dataclass(frozen=True)
class Operator(Declaration):
    """A native operator.

    Attributes:
        build: (main argument, **options) → the node's Build, Hop or State. It is called with checked arguments, and
            raises TopologyError for what only it can find out.
        shape: (shape of the data that comes in, arguments) → the shape of what comes out; of each outlet, where there are
            several. Where `into` is given, that is the shape.
        joined: (shapes of all streams that it joins) → the shape of the data that comes in; by default the one that all have.
        outlets: main argument → the number of streams that come out.
        keyed: whether it keeps something for each key: then its stream needs a key, and it a name, by which its state is known.
        state: likewise, but it takes a stream without a key, too: `build` is told which it is (`keyed=`).
        typed: whether `build` takes the type of the data that comes in, as `typed`; of each stream, where it joins several.
        hop: (main argument, options) → the hop that a stream without a key takes to it, so that what belongs together meets.
        shown: (rows of a key by their sub-keys, their form) → what people are shown of them, without code of the user's.
    """

    _: KW_ONLY
    build: Callable[..., Build | Hop | State]
    shape: Callable[[Shape, Arguments], Shape | list[Shape]] = same
    joined: Callable[[Sequence[Shape]], Shape] = alike
    outlets: Callable[[Any], int] = one
    keyed: bool = False
    typed: bool = False
    state: bool = False
    hop: Callable[..., Hop] | None = None
    shown: Callable[[Mapping[str, bytes], str], Any] | None = None

    def add(
        self, plan: Plan, inputs: Edges, shape: Shape, given: Mapping[str, object], name: str | None
    ) -> tuple[NodeDraft, list[Shape]]:
        """Add a node to a plan, and note what is wrong with it. The node, and the shapes of its outlets."""
        arguments, errors = self.checked(given)
        main = arguments.get(self.name)
        outlets = self.outlets(given.get(self.name))
        shapes = self._shapes(shape, arguments, outlets)
        has_key = bool(inputs) and all(before.keyed for before, _ in inputs)
        if self.hop is not None and not has_key and not errors:
            inputs = self._meeting(plan, inputs, shape, arguments, name)
        draft = NodeDraft(
            self.name,
            "" if self.keyed or self.state else self.name if main is None else self.main.automatic_name(main, self.name),
            name,
            inputs=list(inputs),
            options=self.plain(arguments),
            outlets=outlets,
            shape=shapes[0] if outlets == 1 else shape,
            code=code.digest_of(arguments.values()),
            uses=list(arguments.values()),
        )
        plan.add(draft)
        if self.keyed and not draft.keyed:
            errors.append(_without_key(self.name, inputs, shape))
        for e in errors:
            plan.refuse(draft, e)
        if not errors:
            with plan.collecting(draft):
                types = [before.shape.type for before, _ in inputs] if self.many_inputs else shape.type
                typed = {"typed": types} if self.typed else {}
                keyed = {"keyed": has_key} if self.state else {}
                made = self.build(main, **{n: arguments[n] for n in self.options}, **typed, **keyed)
                draft.payload = self._shown(made) if isinstance(made, State) else made
        self._fits(plan, draft, shape, arguments)
        return draft, shapes

    def _shown(self, state: State) -> State:
        """The state, with what people are shown of it."""
        shown = self.shown
        if state.shown is not None or shown is None:
            return state
        return replace(state, shown=lambda rows: shown(rows, state.form))

    def _meeting(self, plan: Plan, inputs: Edges, shape: Shape, arguments: Arguments, name: str | None) -> Edges:
        """The hop before it, by which events meet that have no key."""
        assert self.hop is not None
        made = NodeDraft(HOP, HOP, f"{name}/{HOP}" if name and NAME.fullmatch(name) else None, inputs=list(inputs), shape=shape)
        if self.main.reads(arguments[self.name], arguments):  # where events lie depends on it
            made.options = {"key": arguments[self.name]}
        made.payload = self.hop(arguments[self.name], **{n: arguments[n] for n in self.options})
        return [(plan.add(made), 0)]

    def _shapes(self, shape: Shape, arguments: Arguments, outlets: int) -> list[Shape]:
        if arguments.get("into") is not None:
            return [shape_of(arguments["into"])]
        try:
            found = self.shape(shape, arguments)
        except NotGiven:  # the output of a wrong argument is unknown, so no further problem is reported
            return [UNKNOWN] * outlets
        return [found] * outlets if isinstance(found, Shape) else found

    def _fits(self, plan: Plan, draft: NodeDraft, shape: Shape, arguments: Arguments) -> None:
        for name, parameter in self.parameters.items():
            value = arguments.get(name)
            if value is not None:
                for e in parameter.misfits(self.name, value, shape, arguments):
                    plan.refuse(draft, e)
                purity.lint(plan, draft, value)

    def plain(self, arguments: Arguments) -> dict[str, object]:
        """The arguments as a node's options: the operator's key with its main argument, then what is not a default."""
        keys = {self.name: self.main, **self.keys}
        return {n: p.plain(arguments[n], arguments) for n, p in keys.items() if n in arguments and arguments[n] != p.default}


def _without_key(operator: str, inputs: Edges, shape: Shape) -> TopologyError:
    before = ", ".join(d.name or d.automatic for d, _ in inputs if not d.keyed)
    here = f"; fields here: {', '.join(shape.texts)}" if shape.texts else ""
    fix = f'add .key_by("…") before .{operator}(…){here}'
    return problem("DX203", f"{operator} needs a keyed stream, and {before} has no key", fix)
