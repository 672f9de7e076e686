"""What is handed on of a trace: a `traceparent`, and with it a `tracestate` that is one."""

from __future__ import annotations

import pytest

from dspex.bus import subjects
from dspex.bus.codecs import tracing

PARENT = "00-1af7651916cd43dd8448eb211c80319c-c7ad6b7169203331-01"


def handed_on(state: str | None, parent: str | None = PARENT) -> dict[str, str]:
    """The headers of what is published further on."""
    headers = dict[str, str]()
    if (said := tracing.joined(parent, state)) is not None:
        tracing.put(headers, said)
    return headers


@pytest.mark.parametrize(
    ("state", "kept"),
    [
        ("congo=t61rcWkgMzE,rojo=00f067aa0ba902b7", "congo=t61rcWkgMzE,rojo=00f067aa0ba902b7"),
        ("congo=a b , \t,rojo=!~ ", "congo=a b,rojo=!~"),
        ("fw529a3039@dt=FfffffffFfff-1", "fw529a3039@dt=FfffffffFfff-1"),
        ("0a=" + "x" * 256, "0a=" + "x" * 256),
        (",".join(f"a{n}=b" for n in range(32)), ",".join(f"a{n}=b" for n in range(32))),
    ],
)
def test_a_tracestate_goes_on_beside_its_traceparent(state: str, kept: str) -> None:
    assert handed_on(state) == {subjects.TRACEPARENT: PARENT, subjects.TRACESTATE: kept}
    said = tracing.joined(PARENT, state)
    of = tracing.trace_of(said, "run")
    assert (of.state, of[:3]) == (kept, tracing.trace_of(PARENT, "run")[:3])
    below = tracing.traceparent(of, 7)
    assert tracing.parted(below) == (PARENT.replace("c7ad6b7169203331", f"{7:016x}"), kept)


@pytest.mark.parametrize(
    "state",
    [
        "", " , ", "congo", "=a", "congo=", "Congo=a", "a=b=c", "a=b,a=c", "a=b\r\nX: y", "a=é", "a=" + "x" * 257,
        "a" * 257 + "=b", ",".join(f"a{n}=b" for n in range(33)), ",".join(f"a{n}={'x' * 100}" for n in range(5)),
    ],
)  # fmt: skip
def test_a_tracestate_that_is_none_or_too_long_is_dropped_and_the_trace_goes_on(state: str) -> None:
    assert handed_on(state) == {subjects.TRACEPARENT: PARENT}
    assert tracing.trace_of(f"{PARENT} {state}", "run").state == ""  # nor is it believed of whoever asks a worker


def test_a_tracestate_says_nothing_without_a_traceparent() -> None:
    assert handed_on("a=b", None) == {}
    assert handed_on("a=b", "00-x") == {subjects.TRACEPARENT: "00-x"}
    assert handed_on(None, f"{PARENT} a=b") == {}  # no header: it would be taken for both
