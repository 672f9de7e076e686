"""What an MCP client may ask: which tools there are, what each takes, and which command line that is.

A tool is a verb of the command line with --json, and takes no more than is written here: nothing that names code, writes a
file, makes a call of a model or publishes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Final, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dspex.bus.errors import ConfigError

RunName = Annotated[
    str, Field(pattern=r"^[@A-Za-z0-9-]{1,64}$", description="A run: its id, the last 6 digits of it, or @last.")
]
TopologyName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,47}$", description="The name of a topology.")]
SinceSpan = Annotated[str, Field(pattern=r"^[0-9a-z.]{1,16}$", description="Only of the last 30m, 1h, 7d, …")]
_FIRST = 3  # mistakes in arguments that are named


class _Arguments(BaseModel):
    """What a tool takes: nothing else, and no value is made another type."""

    model_config = ConfigDict(extra="forbid", strict=True)


class ListArguments(_Arguments):
    topology: TopologyName | None = None
    failed: bool = Field(False, description="Only those with dead letters.")
    since: SinceSpan | None = None
    limit: int = Field(20, ge=1, le=100, description="So many at most.")

    def words(self) -> list[str]:
        """The command line."""
        return ["runs", "ls", f"--limit={self.limit}", *_narrowed(self), *(["--failed"] if self.failed else [])]


class ShowArguments(_Arguments):
    run: RunName
    requests: bool = Field(False, description="Of calls, what models were asked, and what they answered.")

    def words(self) -> list[str]:
        """The command line."""
        return ["runs", "show", *(["--requests"] if self.requests else []), "--", self.run]


class ExplainArguments(_Arguments):
    run: RunName
    step: str = Field(max_length=200, description="As runs_show labels it: classify#0, or the subject of a sink.")

    def words(self) -> list[str]:
        """The command line."""
        return ["runs", "explain", "--", self.run, self.step]


class ReplayArguments(_Arguments):
    run: RunName | None = None
    topology: TopologyName | None = None
    since: SinceSpan | None = None

    def words(self) -> list[str]:
        """The command line."""
        given = ["--", self.run] if self.run is not None else []
        return ["replay", "--mode=strict", *_narrowed(self), *given]


class DiffArguments(_Arguments):
    a: RunName
    b: RunName
    fields: list[Annotated[str, Field(pattern=r"^[\w.]{1,100}$")]] | None = Field(
        None, max_length=50, description="Only these fields count."
    )

    def words(self) -> list[str]:
        """The command line."""
        return ["diff", *([f"--fields={','.join(self.fields)}"] if self.fields else []), "--", self.a, self.b]


def _narrowed(given: ListArguments | ReplayArguments) -> list[str]:
    names = {"--topology": given.topology, "--since": given.since}
    return [f"{name}={value}" for name, value in names.items() if value is not None]


class AgentTool(NamedTuple):
    """A tool: what it is for, what it takes, and which exit codes are an answer: runs that differ are one."""

    about: str
    takes: type[_Arguments]
    words: Callable[[Any], list[str]]
    answers: frozenset[int] = frozenset({0})


TOOLS: Final[Mapping[str, AgentTool]] = {
    "runs_ls": AgentTool("List runs, the latest first: what source events caused.", ListArguments, ListArguments.words),
    "runs_show": AgentTool(
        "What one run did: its event, what operators gave, calls with inputs and outputs, sinks, dead letters with tracebacks.",
        ShowArguments,
        ShowArguments.words,
    ),
    "runs_explain": AgentTool("The causes of one step, back to the source event.", ExplainArguments, ExplainArguments.words),
    "replay": AgentTool(
        "Do a run, or all that a topology did, again with the code that is here now, and say whether the same comes of it. "
        "Calls of models are answered from the recording: no tokens are spent, and nothing is published. Give run or topology.",
        ReplayArguments,
        ReplayArguments.words,
        frozenset({0, 6}),
    ),
    "diff": AgentTool(
        "What run b did otherwise than run a, by step and field.", DiffArguments, DiffArguments.words, frozenset({0, 1})
    ),
}


def command(name: str, arguments: Mapping[str, Any]) -> list[str]:
    """The command line that a tool is. Raises ConfigError: DX100 for no such tool, DX105 for what it does not take."""
    tool = TOOLS.get(name)
    if tool is None:
        raise ConfigError(f"there is no tool {name[:50]!r}", code="DX100", fix=f"there are {', '.join(TOOLS)}")
    try:
        given = tool.takes.model_validate(arguments)
    except ValidationError as error:
        found = [f"{'.'.join(map(str, one['loc'])) or 'arguments'}: {one['msg'].lower()}" for one in error.errors()]
        raise ConfigError(f"{name}: {'; '.join(found[:_FIRST])}", code="DX105", fix="see the tool's schema") from None
    return tool.words(given)
