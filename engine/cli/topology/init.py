"""`dspex init`: a first project that runs as it is."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated

import typer

from dspex.bus.errors import ConfigError
from dspex.bus.local.whole_file import write
from dspex.engine.cli.terminal.terminal import Terminal, terminal

_IGNORED = ".gitignore"
_SIGNATURE = "text -> intent: Literal['card_arrival', 'lost_card', 'exchange_rate', 'other']"

_PYTHON = f'''\
"""Customer messages in, each with its intent, to the subject of those who answer it."""

from pydantic import BaseModel, Field

from dspex import Record, Topology


class Message(BaseModel):
    customer: str
    text: str = Field(min_length=1, max_length=4000)


def clean(message: Record) -> Record:
    return {{**message, "text": " ".join(message["text"].split())}}


topology = Topology("support-triage")
triaged = (
    topology.source("support.messages")
    .map(clean)
    .validate(Message)
    .predict("{_SIGNATURE}", name="classify")
)
lost, routine = triaged.branch("intent == 'lost_card'")
lost.sink("support.urgent")
routine.sink("support.queue")
'''

_YAML = f'''\
# Customer messages in, each with its intent, to the subject of those who answer it.
# dspex show --schema > topology.schema.json gives editors the keys.
dspex: 1
topology: support-triage
sources:
  support.messages: {{}}
nodes:
  clean: {{ from: support.messages, set: {{ text: "strip(text)" }} }}
  validate:
    from: clean
    validate:
      type: object
      required: [customer, text]
      properties:
        customer: {{ type: string }}
        text: {{ type: string, minLength: 1, maxLength: 4000 }}
  classify: {{ from: validate, predict: "{_SIGNATURE}" }}
  branch: {{ from: classify, branch: ["intent == 'lost_card'"] }}
sinks:
  support.urgent: {{ from: branch.0 }}
  support.queue: {{ from: branch.rest }}
'''

_SETTINGS = """\
topologies = ["{target}"]

{lm}
[pools.lightweight]     # the processes that run DSPy programs
size = 2
"""

_KEY = """\
[lm.main]               # any model that DSPy knows; the key is read from the environment
model = "openai/gpt-4.1-mini"
key_env = "OPENAI_API_KEY"
"""

_NO_KEY = """\
[lm.main]               # runs on this machine: no key, no network; small, and often wrong
model = "local/smollm2-135m"
"""


def init(
    context: typer.Context,
    folder: Annotated[Path, typer.Argument(metavar="[DIR]", help="Made where it is missing.")] = Path(),
    yaml: Annotated[bool, typer.Option("--yaml", help="The topology in YAML instead of Python.")] = False,
    no_key: Annotated[bool, typer.Option("--no-key", help="With a model that runs on this machine.")] = False,
) -> None:
    """Write a first project: a topology, its settings, and what to type next."""
    t = terminal(context)
    files = _files(yaml, no_key)
    if (folder / _IGNORED).exists():
        del files[_IGNORED]  # a repository that is already there has its own
    there = [name for name in files if (folder / name).exists()]
    if there:
        fix = "name another folder: dspex init my-project"
        raise ConfigError(f"{', '.join(there)} in {folder.resolve()} would be overwritten", code="DX137", fix=fix)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            write(folder / name, content.encode())
    except OSError as e:
        raise ConfigError(f"cannot write to {folder}: {e.strerror}", code="DX137", fix="name another folder") from e
    _print(t, folder, list(files), no_key)


def _files(yaml: bool, no_key: bool) -> dict[str, str]:
    topology, target = ("triage.yaml", "triage.yaml") if yaml else ("triage.py", "triage:topology")
    return {
        topology: _YAML if yaml else _PYTHON,
        "dspex.toml": _SETTINGS.format(target=target, lm=_NO_KEY if no_key else _KEY),
        _IGNORED: ".dspex/\n__pycache__/\n",
    }


def _print(t: Terminal, folder: Path, files: list[str], no_key: bool) -> None:
    first = "dspex model install smollm2" if no_key else "export OPENAI_API_KEY=…"
    commands = [
        first if folder == Path() else f"cd {_quoted(folder)} && {first}",
        "dspex run",
        'dspex publish support.messages customer=c1 text="My card was stolen!" --wait      # in another terminal',
    ]
    paths = [os.path.normpath(folder / name) for name in files]
    t.emit({"files": paths, "next": commands}, f"wrote {', '.join(paths)}", "next:", *(f"  {c}" for c in commands))


def _quoted(folder: Path) -> str:
    return str(folder) if re.fullmatch(r"[\w./~-]+", str(folder)) else f"'{folder}'"
