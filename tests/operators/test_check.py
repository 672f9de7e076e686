"""Each wrong topology that the build refuses (API.md, 2.9): code, node, place, message, fix."""

from __future__ import annotations

import datetime
import inspect
from collections.abc import Callable
from enum import Enum
from typing import Any, Literal

import pytest
from pydantic import BaseModel

from dspex.bus.errors import Problem
from dspex.operators.native.signature import Signature
from dspex.operators.stream import Stream
from dspex.operators.topology import Topology


class Message(BaseModel):
    customer: str
    text: str


class Triaged(Message):
    intent: Literal["lost_card", "other"]
    urgency: int


class Wrong(Message):
    urgency: str


def only(build: Callable[[Topology, Stream[Any]], None], code: str, level: str = "error") -> Problem:
    """The one problem with this code of a topology whose source is typed; it stands in the line of `build`."""
    t = Topology("small")
    build(t, t.source("in", Message))
    (found,) = [p for p in t.check() if p.code == code]
    assert found.level == level
    assert found.topology == "small"
    if found.node is not None:
        _, first = inspect.getsourcelines(build)
        length = len(inspect.getsource(build).splitlines())
        assert found.file is not None
        assert found.file.endswith("test_check.py")
        assert found.line is not None
        assert first <= found.line < first + length
    return found


def test_a_right_topology_has_no_problems():
    t = Topology("small")
    t.source("in", Message).filter("len(text) > 1").predict("text -> answer", name="ask").sink("out")
    assert t.check() == []


def test_two_operators_with_one_name_are_refused():
    def build(t, s):
        s.filter("text", name="same").filter("text", name="same").sink("out")

    found = only(build, "DX201")
    assert "the name 'same' is taken by filter 'same' (" in found.message
    assert "name=" in found.fix


def test_names_that_would_share_a_subject_are_refused():
    def build(t, s):
        s.through(lambda x: x.filter("text", name="b"), name="a").filter("text", name="a-b").sink("out")

    assert "the name 'a-b' is taken by filter 'a/b'" in only(build, "DX201").message


@pytest.mark.parametrize("name", ["Classify", "9a", "a b", "a.b", "x" * 49, "é"])
def test_a_node_name_that_is_not_allowed_is_an_error(name):
    found = only(lambda t, s: s.filter("text", name=name).sink("out"), "DX202")
    assert found.node == name
    assert "a-z" in found.fix


def test_a_call_without_a_name_is_refused():
    with pytest.raises(TypeError, match="name"):
        Topology("t").source("in").predict("a -> b")  # type: ignore[call-arg]
    assert "predict needs a name" in only(lambda t, s: s.predict("text -> b", name="").sink("out"), "DX202").message


def test_a_signature_input_that_the_stream_does_not_have_is_refused():
    found = only(lambda t, s: s.predict("txt -> answer", name="classify").sink("out"), "DX207")
    assert found.node == "classify"
    assert found.message == "the signature wants input 'txt'; the stream has customer: str, text: str"
    assert found.fix == 'write "text -> …", or map it: inputs={"txt": "text"}'


def test_a_mapped_or_optional_input_need_not_be_a_field():
    t = Topology("small")
    s = t.source("in", Message)
    s.predict("txt, hint: str | None -> answer", name="a", inputs={"txt": "text"}).sink("out")
    assert t.check() == []


@pytest.mark.parametrize(
    "use",
    [
        lambda s: s.filter("txt > 1").sink("out"),
        lambda s: s.branch("txt > 1")[1].sink("out"),
        lambda s: s.set({"a": "txt"}).sink("out"),
        lambda s: s.render("{txt}", field="a").sink("out"),
        lambda s: s.predict("q -> a", name="p", inputs={"q": "txt"}).sink("out"),
        lambda s: s.sink("out.{txt}"),
    ],
)
def test_an_expression_field_that_the_stream_does_not_have_is_refused(use):
    t = Topology("small")
    use(t.source("in", Message))
    (found,) = [p for p in t.check() if p.level == "error"]
    assert found.code == "DX207"
    assert "wants field 'txt'; the stream has customer: str, text: str" in found.message
    assert found.fix == "did you mean text?"


def test_a_field_of_a_stream_of_unknown_type_is_checked_at_run_time():
    t = Topology("small")
    t.source("in").filter("anything > 1").predict("whatever -> b", name="p").sink("out")
    assert t.check() == []


def test_an_unknown_type_in_a_signature_is_refused():
    found = only(lambda t, s: s.predict("text -> intent: Intent", name="classify").sink("out"), "DX209")
    assert "unknown type 'Intent' in \"text -> intent: Intent\"" in found.message
    assert "builtins, typing, datetime and types= only" in found.message
    assert found.fix == 'Signature("text -> intent: Intent", types={"Intent": Intent}), or Literal[...] in place'


class Corner(Enum):
    LEFT = (0, 0)


def test_a_signature_with_a_type_that_cannot_travel_is_refused():
    signature = Signature("text -> m: Corner", types={"Corner": Corner})
    assert "Corner.LEFT is a tuple" in only(lambda t, s: s.predict(signature, name="p").sink("out"), "DX211").message


def test_an_into_type_that_contradicts_the_signature_is_refused():
    found = only(lambda t, s: s.predict("text -> urgency: int", name="p", into=Wrong).sink("out"), "DX212")
    assert found.message == "the signature gives urgency: int, and Wrong wants urgency: str"
    assert 'write "urgency: str" in the signature' in found.fix


def test_an_into_type_that_allows_extra_fields_is_checked_by_those_it_declares():
    class Open(Wrong, extra="allow"): ...

    found = only(lambda t, s: s.predict("text -> urgency: int", name="p", into=Open).sink("out"), "DX212")
    assert "Open wants urgency: str" in found.message


def test_an_untyped_output_is_text_and_takes_no_type_from_into():
    t = Topology("small")
    t.source("in", Message).predict("text -> intent, urgency", name="p", into=Triaged).sink("out")
    assert [p.message for p in t.check()] == [
        "the signature gives intent: str, and Triaged wants intent: Literal['lost_card', 'other']",
        "the signature gives urgency: str, and Triaged wants urgency: int",
    ]


def test_an_into_type_that_needs_a_misspelt_output_is_refused():
    signature = "text -> intent: Literal['other'], urgncy: int"
    found = only(lambda t, s: s.predict(signature, name="p", into=Triaged).sink("out"), "DX212")
    assert "Triaged needs urgency, which neither the stream nor the signature gives" in found.message
    assert "the signature gives urgncy: did you mean urgency?" in found.fix


@pytest.mark.parametrize(
    ("type_", "gives"),
    [(int, "int"), (float, "int"), (str, "Literal['a']"), (Literal["a", "b"], "Literal['a']"), (str | None, "str"),
     (list[str], "list[str]"), (datetime.date, "datetime.date"), (Any, "int"), (set[str], "list[str]")],
)  # fmt: skip
def test_an_into_type_may_be_wider_than_the_signature(type_, gives):
    model = type("Out", (BaseModel,), {"__annotations__": {"x": type_}})
    t = Topology("small")
    t.source("in", Message).predict(f"text -> x: {gives}", name="p", into=model).sink("out")
    assert t.check() == []


def test_an_unused_stream_and_an_unused_source_are_reported():
    assert "nothing uses what comes out of filter" in only(lambda t, s: s.filter("text"), "DX214").message
    t = Topology("small")
    t.source("in")
    assert [p.message for p in t.check()] == ["nothing uses what comes out of in"]


def test_an_unused_outlet_is_a_warning():
    found = only(lambda t, s: s.branch("text == 'a'", "text == 'b'")[1].sink("out"), "DX321", "warning")
    assert "nothing uses outlet 0, rest of branch" in found.message
    assert "filter()" in found.fix


def test_two_sinks_on_one_subject_are_reported():
    def build(t, s):
        s.sink("out")
        s.sink("out")

    found = only(build, "DX215")
    assert "two sinks on one subject; a subject has one sink" in found.message
    assert "a.merge(b).sink" in found.fix


def test_sinks_with_overlapping_subjects_are_reported():
    def build(t, s):
        s.sink("out.{customer}")
        s.sink("out.all")

    assert "the sinks out.{customer} and out.all overlap" in only(build, "DX215").message


@pytest.mark.parametrize("subject", ["in", "events.new", "{customer}"])
def test_a_sink_that_feeds_its_own_source_is_reported(subject):
    def build(t, s):
        t.source("events.>").merge(s).sink(subject)

    found = only(build, "DX216")
    assert "feeds the source" in found.message
    assert found.fix == "use another subject"


@pytest.mark.parametrize("subject", ["a b", "a..b", "$SYS.x", "a.>.b", ""])
def test_an_invalid_source_subject_is_refused(subject):
    def build(t, s):
        t.source(subject).merge(s).sink("out")

    assert "is not a subject that can be read" in only(build, "DX217").message


def test_an_invalid_or_reserved_sink_subject_is_refused():
    assert "published to" in only(lambda t, s: s.sink("out.*"), "DX217").message
    assert "keeps for itself" in only(lambda t, s: s.sink("dspex.app.work"), "DX217").message


def test_a_source_that_is_declared_twice_is_refused():
    found = only(lambda t, s: t.source("in").merge(s).sink("out"), "DX201")
    assert "the subject 'in' is taken by source 'in'" in found.message
    assert "use the stream twice" in found.fix


def test_a_topology_without_a_source_is_refused():
    (found,) = Topology("empty").check()
    assert (found.code, found.file is not None) == ("DX228", True)


def test_a_lambda_or_a_local_class_in_a_call_is_refused():
    class Draft: ...

    found = only(lambda t, s: s.program(Draft, "text -> reply", name="draft").sink("out"), "DX218")
    assert "a program runs in a worker, which cannot import <" in found.message
    assert "top level of a module" in found.fix
    tools: Any = [lambda q: q]
    assert "a tool" in only(lambda t, s: s.react("text -> r", tools=tools, name="r").sink("out"), "DX218").message


@pytest.mark.parametrize(
    ("options", "code", "message", "fix"),
    [
        ({"pol": "x"}, "DX204", "there is no option 'pol'", "did you mean pool?"),
        ({"affinity": "always"}, "DX205", "affinity cannot be 'always'", "require"),
        ({"timeout": "soon"}, "DX205", "timeout cannot be 'soon'", "10s"),
    ],
)
def test_a_misspelt_option_or_a_wrong_value_is_refused(options, code, message, fix):
    found = only(lambda t, s: s.predict("text -> a", name="p", **options).sink("out"), code)
    assert message in found.message
    assert fix in found.fix


def test_a_misspelt_option_of_a_source_is_refused():
    found = only(lambda t, s: t.source("b", partitons=3).merge(s).sink("out"), "DX204")
    assert "a source has no option 'partitons'" in found.message
    assert found.fix == "did you mean partitions?"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"partitions": 0}, "partitions cannot be 0"),
        ({"partitions": -5}, "partitions cannot be -5"),
        ({"partitions": 100_000_000}, "partitions cannot be 100000000"),
        ({"partitions": True}, "partitions cannot be True"),
        ({"on_gap": "wait"}, "on_gap cannot be 'wait'"),
        ({"start": "yesterday"}, "start cannot be 'yesterday'"),
        ({"stream": 5}, "stream cannot be 5"),
        ({"accept": []}, "accept cannot be []"),
        ({"accept": "application/json"}, "accept cannot be 'application/json'"),
        ({"accept": ["json"]}, "accept cannot be ['json']"),
    ],
)
def test_a_wrong_value_of_a_source_option_is_refused(options, message):
    found = only(lambda t, s: t.source("b", **options).merge(s).sink("out"), "DX205")
    assert message in found.message


def test_an_event_time_field_that_the_data_does_not_have_is_refused():
    def build(t, s):
        t.source("b", Message, time="at").merge(s).sink("out")

    assert "the expression \"at\" wants field 'at'" in only(build, "DX207").message


def test_annotations_for_the_type_checker_only_are_not_used():
    def shout(m: NotImported) -> NotImported:  # noqa: F821  # type: ignore[name-defined]
        return m

    t = Topology("small")
    t.source("in", Message).map(shout).filter("anything").sink("out")
    assert t.check() == []


def test_a_function_with_the_wrong_number_of_parameters_is_refused():
    def three(a, b, c):
        return a

    found = only(lambda t, s: s.map(three).sink("out"), "DX219")
    assert found.message == "map calls its function with (data) or (data, ctx), and three wants (a, b, c)"


def test_an_invalid_expression_and_an_invalid_template_are_refused():
    assert "did you mean lower?" in only(lambda t, s: s.filter("lowr(text) == 'a'").sink("out"), "DX208").fix
    assert "{text!r}" in only(lambda t, s: s.render("{text!r}", field="a").sink("out"), "DX225").message


def test_the_arrow_codec_for_a_plain_record_is_refused():
    found = only(lambda t, s: s.sink("out", codec="arrow"), "DX229")
    assert "arrow is for arrays and tables, and what comes to out are records" in found.message
    assert '"auto"' in found.fix


def test_all_problems_of_a_topology_are_reported_at_once_in_their_order():
    t = Topology("small")
    s = t.source("in", Message)
    s.filter("txt > 1").sink("a b")
    s.predict("txt -> x: Foo", name="Bad", pol="y").sink("out")  # type: ignore[call-arg]
    assert [p.code for p in t.check()] == ["DX207", "DX217", "DX202", "DX204", "DX209"]
    assert [p.level for p in t.check()] == ["error"] * 5


def test_an_automatic_name_that_may_change_is_a_warning():
    found = only(lambda t, s: s.filter("text").filter("customer").sink("out"), "DX320", "warning")
    assert found.node == "filter_2"
    assert "was made up" in found.message


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"drop": ["in"]}, "drop names 'in', which is still there"),
        ({"drop": [3]}, "drop cannot be [3]"),
        ({"renamed_from": {"gone": "old"}}, "renamed_from names 'gone', and there is no such node"),
        ({"renamed_from": {"in": 3}}, "renamed_from cannot be {'in': 3}"),
    ],
)
def test_what_a_topology_says_about_the_version_before_fits_its_nodes(options: Any, message: str) -> None:
    t = Topology("small", **options)
    t.source("in").sink("out")
    assert [(p.code, p.message) for p in t.check()] == [("DX205", message)]


@pytest.mark.parametrize(
    ("build", "code", "message"),
    [
        (lambda t, s: s.merge().sink("out"), "DX204", "merge joins streams, and was given no other"),
        (lambda t, s: t.source("b", stream="a b").merge(s).sink("out"), "DX205", "stream cannot be 'a b'"),
        (lambda t, s: s.sink(3), "DX205", "sink cannot be 3"),
        (lambda t, s: t.source(3).merge(s).sink("out"), "DX205", "source cannot be 3"),
    ],
)
def test_an_argument_that_cannot_mean_anything_is_a_problem(build: Any, code: str, message: str) -> None:
    t = Topology("small")
    build(t, t.source("in"))
    assert [(p.code, p.message) for p in t.check()] == [(code, message)]


def test_the_name_of_calls_that_are_of_no_topology_is_a_problem() -> None:
    t = Topology("adhoc")
    t.source("in").predict("question -> answer", name="predict").sink("out")
    assert [(p.code, p.fix) for p in t.check()] == [("DX202", "give it another name")]


def test_a_name_that_is_no_text_is_a_problem() -> None:
    t = Topology(3)  # type: ignore[arg-type]
    t.source("in").sink("out")
    assert [(p.code, p.message) for p in t.check()] == [("DX202", "3 is not a name for a topology")]
