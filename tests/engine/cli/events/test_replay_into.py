"""`dspex replay --to` and `--to-sinks`: what a replay gives goes to other subjects; into sinks only where they are named."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import nats
import pytest
from cli_bench import NATIVE, Project

from dspex.bus import subjects


async def _stored(project: Project, stream: str, subject: str) -> list[tuple[str, Any]]:
    """What a stream has on a subject: subject and data of each message."""
    connection = await nats.connect(project.env["NATS_URL"])
    found, js = list[tuple[str, Any]](), connection.jetstream()
    try:
        info = await js.stream_info(stream)
        for sequence in range(info.state.first_seq, info.state.last_seq + 1):
            message = await js.get_msg(stream, sequence)
            if subjects.matches(subject, message.subject or ""):
                found.append((message.subject or "", json.loads(message.data or b"null")))
    finally:
        await connection.close()
    return found


async def _other_stream(project: Project, name: str) -> str:
    connection = await nats.connect(project.env["NATS_URL"])
    await connection.jetstream().add_stream(name=name, subjects=[f"{name}.>"])
    await connection.close()
    return name


def stored(project: Project, stream: str, subject: str) -> list[tuple[str, Any]]:
    return asyncio.run(_stored(project, stream, subject))


def other_stream(project: Project, name: str) -> str:
    return asyncio.run(_other_stream(project, name))


@pytest.fixture
def published(native: Project) -> str:
    """A run."""
    run: str = native.publish("text=abcd").objects()[0]["run"]
    return run


def test_what_comes_is_published_elsewhere_once_and_sinks_are_left_alone(native: Project, published: str) -> None:
    name = other_stream(native, f"again{native.u}")
    sinks = stored(native, f"DSPEX_{native.u}", native.output)
    (said,) = native.here("--json", "replay", published, "--to", f"{name}.>").objects()
    assert said["published"] == {"to": f"{name}.>", "messages": 1, "there": 0}
    found = native.here("replay", published, "--to", f"{name}.>")
    assert f"published 1 to {name}.>, 1 of them there already" in found.out
    changed = NATIVE.format(u=native.u).replace('"len(text)"', '"min(len(text), 3)"')
    other = str(native.write("three.yaml", changed))
    assert native.here("replay", published, "--to", f"{name}.all", "--with", other).code == 6
    assert stored(native, name, ">") == [
        (f"{name}.{native.output}", {"text": "abcd", "size": 4}),
        (f"{name}.all", {"text": "abcd", "size": 3}),
    ]
    assert stored(native, f"DSPEX_{native.u}", native.output) == sinks
    (entry, *_) = [one for one in native.here("--json", "audit", "ls").objects() if one["what"].get("replayed") == published]
    assert (entry["verb"], entry["what"]["messages"]) == ("replay", 1)


def test_a_sink_is_written_only_where_it_is_named_and_that_is_confirmed(native: Project, published: str) -> None:
    sinks = stored(native, f"DSPEX_{native.u}", native.output)
    refused = native.here("--json", "replay", published, "--to-sinks", native.output)
    assert refused.error()["code"] == "DX136"
    assert stored(native, f"DSPEX_{native.u}", native.output) == sinks
    for there in (0, 1):
        (said,) = native.here("--json", "replay", published, "--to-sinks", native.output, "--yes").objects()
        assert said["published"] == {"to": native.output, "messages": 1, "there": there}
    assert len(stored(native, f"DSPEX_{native.u}", native.output)) == len(sinks) + 1


def test_a_whole_topology_is_published_only_in_its_time(native: Project, published: str) -> None:
    past = native.here("--json", "replay", "--topology", "native", "--since", "0s", "--to-sinks", native.output, "--yes")
    assert past.objects()[0]["published"]["messages"] == 0


def test_what_must_not_be_written_is_refused(native: Project, published: str) -> None:
    def error(*options: str) -> dict[str, Any]:
        return native.here("--json", "replay", published, *options).error()

    assert "takes in dspex.>" in error("--to", "dspex.x.>")["message"]
    assert native.output in error("--to", native.output)["message"]
    assert native.input in error("--to", native.input)["message"]
    assert "is no subject" in error("--to", "a.*.b")["message"]
    assert "do not go together" in error("--to", "a.b", "--to-sinks", "c")["message"]
    assert error("--yes")["code"] == "DX105"
    assert error("--to-sinks", "nothing", "--yes")["code"] == "DX235"
    assert native.here("--json", "replay", "--file", "x", "--to", "a.b").error()["code"] == "DX105"
    assert error("--to", "nobody.reads.this")["code"].startswith("DX4")
