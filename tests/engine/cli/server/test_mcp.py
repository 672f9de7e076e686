"""`dspex mcp` as an MCP client sees it: a process that speaks over its pipes, beside a running application."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import psutil
import pytest
from cli_bench import NATIVE, Project, stand_in
from waiting import until

from dspex.bus.errors import ConfigError
from dspex.engine.cli.server.agents import tools
from dspex.engine.cli.server.agents.mcp import LONGEST_TEXT, MOST_SAID, answer

if TYPE_CHECKING:
    from mcp.client.client import Client

T = TypeVar("T")
Asked = tuple[str, dict[str, Any]]
PAYING = """
from pydantic import BaseModel, Field
from dspex import Topology

class Wish(BaseModel):
    text: str
    iban: str = Field(json_schema_extra={{"secret": True}})

class Reply(BaseModel):
    reply: str

from dspex import Signature
topology = Topology("paying")
topology.source("{u}.in").predict(Signature.of(Wish, Reply), name="ask").sink("{u}.out")
"""
SEALED = """
topologies = ["paying:topology"]
engine.encrypt_key_env = "SEAL"
lm.main = {{ model = "openai/x", base_url = "{url}" }}
"""
IBAN = "DE02120300000000202051"


def within(project: Project, asks: Callable[[Client], Coroutine[Any, Any, T]], *words: str) -> T:
    """What comes of a session with the server. `words`: more of its command line."""
    from mcp.client.client import Client  # here: it takes a second, and each process that runs tests reads this file
    from mcp.client.stdio import StdioServerParameters

    args = ["-m", "dspex", *(words or ["mcp"])]
    server = StdioServerParameters(command=sys.executable, args=args, env=project.env, cwd=project.folder)

    async def session() -> T:
        async with Client(server) as client:
            return await asks(client)

    return asyncio.run(session())


def ask(project: Project, *asked: Asked) -> list[Any]:
    """What a session answers, one after the other."""

    async def asks(client: Client) -> list[Any]:
        return [await client.call_tool(name, arguments) for name, arguments in asked]

    return within(project, asks)


def told(result: Any) -> list[dict[str, Any]]:
    assert not result.is_error, result.content[0].text
    assert json.loads(result.content[0].text) == result.structured_content
    assert result.structured_content["left_out"] == 0
    rows: list[dict[str, Any]] = result.structured_content["rows"]
    return rows


def refused(result: Any) -> dict[str, Any]:
    assert result.is_error
    error: dict[str, Any] = json.loads(result.content[0].text)
    return error


@pytest.mark.long
def test_an_agent_lists_shows_explains_replays_and_compares_runs(native: Project) -> None:
    first, second = (one["run"] for one in native.publish("-", stdin='{"text":"abc"}\n{"text":"abcd"}\n').objects())
    listed, shown, explained, replayed, whole, compared = ask(
        native,
        ("runs_ls", {"limit": 2}),
        ("runs_show", {"run": first}),
        ("runs_explain", {"run": first, "step": native.output}),
        ("replay", {"run": first}),
        ("replay", {"topology": "native"}),
        ("diff", {"a": first, "b": second, "fields": ["size"]}),
    )
    assert [row["id"] for row in told(listed)] == [second, first]
    assert [row.get("kind") for row in told(shown)] == [None, "source", "native", "native", "output"]
    assert [row["step"] for row in told(explained)] == [native.input, "check#0", "count#0", native.output]
    assert [(row["same"], row["live"], row["tokens"]) for row in told(replayed) + told(whole)] == [(True, 0, 0)] * 2
    (found,) = told(compared)
    assert (found["same"], found["first"]["field"], found["first"]["a"], found["first"]["b"]) == (False, "size", 3, 4)


@pytest.mark.long
def test_a_replay_by_an_agent_takes_the_code_as_it_is_when_it_asks(native: Project) -> None:
    (run,) = (one["run"] for one in native.publish("-", stdin='{"text":"abc"}\n').objects())
    file = native.folder / "native.yaml"
    before = file.read_text()
    changed = NATIVE.format(u=native.u).replace('"len(text)"', '"len(text) + 1"')

    async def asks(client: Client) -> list[Any]:
        same = await client.call_tool("replay", {"run": run})
        file.write_text(changed)
        return [*told(same), *told(await client.call_tool("replay", {"run": run}))]

    try:
        same, other = within(native, asks)
    finally:
        file.write_text(before)
    assert (same["same"], other["same"]) == (True, False)
    assert other["diverged"] == {"step": f"{native.output}#0", "field": "size", "a": 3, "b": 4}


def test_the_tools_say_that_they_only_read_and_take_nothing_that_names_code(native: Project) -> None:
    async def asks(client: Client) -> list[Any]:
        return [*(await client.list_tools()).tools]

    found = within(native, asks)
    assert {tool.name for tool in found} == {"runs_ls", "runs_show", "runs_explain", "replay", "diff"}
    assert all(tool.annotations is not None and tool.annotations.read_only_hint for tool in found)
    assert all(tool.input_schema["additionalProperties"] is False for tool in found)
    takes = {name for tool in found for name in tool.input_schema["properties"]}
    assert takes == {"topology", "failed", "since", "limit", "run", "requests", "step", "a", "b", "fields"}


WRONG: dict[str, tuple[str, Any]] = {
    "no tool": ("publish", {}),
    "an option as a run": ("runs_show", {"run": "--with=os:system"}),
    "a path as a run": ("runs_show", {"run": "../x"}),
    "too long a run": ("runs_show", {"run": "a" * 65}),
    "an argument that is none": ("replay", {"run": "@last", "mode": "live"}),
    "the code of somebody": ("replay", {"run": "@last", "target": "os:system"}),
    "too many runs": ("runs_ls", {"limit": 101}),
    "a number as a text": ("runs_ls", {"limit": "5"}),
    "no argument": ("diff", {"a": "@last"}),
    "an option as a topology": ("replay", {"topology": "--to=x"}),
    "an option as a span": ("runs_ls", {"since": "1h --failed"}),
    "an option as a field": ("diff", {"a": "@last", "b": "@last", "fields": ["x,--all"]}),
    "too many fields": ("diff", {"a": "@last", "b": "@last", "fields": ["x"] * 51}),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_a_tool_does_not_take_is_refused_before_anything_runs(what: str) -> None:
    name, arguments = WRONG[what]
    with pytest.raises(ConfigError) as error:
        tools.command(name, arguments)
    assert error.value.code == ("DX100" if what == "no tool" else "DX105")
    assert len(error.value.message) < 1000


def test_no_argument_of_a_tool_becomes_an_option_of_the_command_line() -> None:
    assert tools.command("runs_explain", {"run": "@last", "step": "--with=os:system"})[-3:] == [
        "--",
        "@last",
        "--with=os:system",
    ]
    assert tools.command("replay", {"run": "@last"}) == ["replay", "--mode=strict", "--", "@last"]


@pytest.mark.long
def test_an_agent_is_told_what_is_wrong_and_the_session_goes_on(native: Project) -> None:
    none, nothing, both, listed = ask(
        native,
        ("runs_show", {"run": "000000000"}),
        ("replay", {}),
        ("publish", {"subject": native.input}),
        ("runs_ls", {"limit": 1}),
    )
    assert refused(none)["code"] == "DX622"
    assert refused(nothing)["code"] == "DX105"
    assert (refused(both)["code"], "no tool 'publish'" in refused(both)["message"]) == ("DX100", True)
    assert len(told(listed)) <= 1


def test_an_answer_has_the_rows_that_fit_and_says_how_many_do_not() -> None:
    found = answer([{"text": "x" * LONGEST_TEXT}] * 1000)
    assert len(found["rows"]) + found["left_out"] == 1000
    assert MOST_SAID * 0.9 < len(json.dumps(found)) < MOST_SAID * 1.1


def replayed(project: Project, code: str, *options: str) -> dict[str, Any]:
    """The error of a replay of what that code makes; the command has ended with it, though the server goes on."""
    (project.folder / "odd.py").write_text(code)
    settings = project.folder / "odd.toml"
    settings.write_text(f'app = "{project.u}"\ntopologies = ["odd:topology"]\n')

    def commands() -> list[psutil.Process]:
        mine = psutil.process_iter(["cmdline"])
        return [one for one in mine if {f"--config={settings}", "replay"} <= {*(one.info["cmdline"] or ())}]

    async def asks(client: Client) -> Any:
        said = await client.call_tool("replay", {"topology": "native"})
        await until(lambda: not commands())
        return said

    return refused(within(project, asks, f"--config={settings}", "mcp", *options))


@pytest.mark.long
def test_a_command_that_takes_too_long_is_ended_with_its_process(native: Project) -> None:
    error = replayed(native, "import time\ntime.sleep(3600)\n", "--timeout", "2s")
    assert (error["code"], error["message"]) == ("DX105", "it took longer than 2s and was ended")


@pytest.mark.long
def test_a_command_that_prints_more_than_may_be_read_is_ended(native: Project) -> None:
    error = replayed(native, "while True:\n    print('x' * (1 << 20))\n")
    assert (error["code"], error["message"]) == ("DX105", "it is more than 32 MiB")


@pytest.mark.long
def test_fields_that_are_marked_secret_are_not_read_by_an_agent(tmp_path: Path, unique: str, nats_url: str) -> None:
    with stand_in() as url:
        project = Project(tmp_path, unique, SEALED.format(url=url), NATS_URL=nats_url, SEAL=os.urandom(32).hex())
        project.write("paying.py", PAYING.format(u=project.u))
        with project.start("run") as run:
            run.until("ready")
            said = project.publish("text=hello", f"iban={IBAN}").objects()
            asked: list[Asked] = [
                ("runs_show", {"run": said[0]["run"], "requests": True}),
                ("runs_explain", {"run": said[0]["run"], "step": project.output}),
                ("diff", {"a": said[0]["run"], "b": said[0]["run"]}),
                ("replay", {"run": said[0]["run"]}),
            ]
            results = ask(project, *asked)
            assert run.end() == 0, run.errors()
    texts = [result.content[0].text for result in results]
    assert [result.is_error for result in results] == [False] * 4, texts
    assert "(secret)" in texts[0]
    assert IBAN not in "".join(texts)
