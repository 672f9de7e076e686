"""What files, variables and flags say: topologies in YAML, settings, and the URLs in them."""

from __future__ import annotations

import atexit
import os
import tempfile
from contextlib import ExitStack
from pathlib import Path

from engine_entries import Take
from fuzzing import Entry
from mutations import Case

from dspex.bus.settings.model import Settings
from dspex.engine.cli.events.rows import EventOptions, RowSource
from dspex.engine.cli.events.tables.table import HowToRead
from dspex.operators.formats import yaml_dump, yaml_load
from dspex.operators.topology import Topology

ROOT = Path(__file__).parent.parent.parent
CORPUS = ROOT / "tests/engine/cli/publishing/corpus"
TOPOLOGY = """\
dspex: 1
topology: fuzz
retention: 7d
sources: { in: { partitions: 4, start: all } }
nodes:
  check: { from: in, validate: { type: object, required: [text], properties: { text: { type: string, minLength: 3 } } } }
  count: { from: check, set: { size: "len(text)" } }
  label: { from: count, predict: "text -> label: Literal['a', 'b']", retry: { attempts: 3, backoff: 2s }, timeout: 30s }
  which: { from: label, branch: ["size >= 4", "label == 'a'"] }
  few: { from: which.0, filter: "size < 100" }
sinks: { out: { from: few }, "rest.{label}": { from: which.rest } }
"""
SETTINGS = """\
app = "bank-support"
topologies = ["triage:topology", "billing.yaml"]
[server]
url = "nats://n1:4222,n2:4222"
replicas = 3
local = { port = 4222, store = ".dspex/jetstream", sync_interval = "2m" }
[engine]
commit = { max_events = 500 }
heartbeat = "5s"
[defaults.call]
timeout = "60s"
retry = { attempts = 4, backoff = "1s" }
[lm.main]
model = "openai/gpt-4.1-mini"
key_env = "OPENAI_API_KEY"
params = { temperature = 0.0, max_tokens = 800 }
[pools.lightweight]
size = 4
memory = "512MiB"
programs = [
  "programs:*",
  "others:*",
]
env = { TOKENIZERS_PARALLELISM = "false" }
recycle = { calls = 10000, age = "6h" }
"""
VARIABLES = """\
NATS_URL=nats://user:password@host:4222
DSPEX_APP=fuzz
DSPEX_SERVER__REPLICAS=3
DSPEX_POOLS__GPU__SIZE=4
DSPEX_POOLS__GPU__ENV={"A": "b", "C": "d"}
DSPEX_LM__MAIN={"model": "openai/x", "params": {"temperature": 0.5}}
DSPEX_ENGINE__HEARTBEAT=1s
DSPEX_TELEMETRY__LOG=info,dspex.engine=debug
"""
ROWS = [
    b'text,n\n"say ""hi"", twice",1\n6\'2",2\n',
    b"name;price\r\ntea;1,50\r\n",
    b'\xef\xbb\xbf{"a": [1, null], "b": "c:d"}\n\n{"a": 18446744073709551615}\n',
    "n\ttext\n1\tGrüße\n".encode("utf-16"),
    "n,text\n1,déjà vu\n".encode("latin-1"),
]
COLUMNS = [
    CORPUS / name for name in ("columns/plain.parquet", "columns/nested.parquet", "arrow/file.arrow", "arrow/stream.arrow")
]
URLS = [b"nats://host:4222", b"nats://u:p@a:4222,tls://b", b"nats://[::1]:4222", b"token@host", b"host"]


_folders = ExitStack()
atexit.register(_folders.close)


def _folder() -> Path:
    return Path(_folders.enter_context(tempfile.TemporaryDirectory(prefix="dspex-fuzz-")))


def _topologies() -> list[Case]:
    ready = [path.read_bytes() for path in sorted((ROOT / "topologies").glob("*.yaml"))]
    return [Case(TOPOLOGY.encode()), *map(Case, ready)]


def _take_topology() -> Take:
    file = _folder() / "fuzz.yaml"

    def take(case: Case) -> object:
        file.write_bytes(case.data)
        topology: Topology = yaml_load.load(str(file))
        problems = topology.check()
        if not any(problem.level == "error" for problem in problems):
            return yaml_dump.dump(topology.graph)
        return [str(problem) for problem in problems]

    return take


def _take_settings(name: str, prefix: str = "") -> Take:
    file = _folder() / name

    def take(case: Case) -> object:
        file.write_bytes(prefix.encode() + case.data)
        found = Settings.load(file)
        Settings.from_json(found.to_json())
        return found.values(), found.origins()

    return take


def _take_variables() -> Take:
    folder = _folder()

    def take(case: Case) -> object:
        lines = [line.partition("=") for line in case.data.decode(errors="replace").split("\n")]
        names = ("DSPEX_", "NATS_")
        given = {name: value for name, _, value in lines if name.startswith(names) and "\x00" not in name + value}
        before = {name: value for name, value in os.environ.items() if name.startswith(names)}
        try:
            os.environ.update(given)
            found = Settings.load(folder)
            found.server.login()
            return found.values()
        finally:
            for name in given:
                os.environ.pop(name)
            os.environ.update(before)

    return take


def _take_url() -> Take:
    folder = _folder()

    def take(case: Case) -> object:
        text = case.data.decode(errors="replace")
        lm = {"main": {"model": "openai/x", "base_url": text}}
        return Settings.load(folder, server__url=text).values(), Settings.load(folder, lm=lm).values()

    return take


def _take_rows() -> Take:
    """Rows of a file whose format its content tells."""
    file = _folder() / "rows"
    source = RowSource((), str(file), HowToRead(), EventOptions("orders.new"))

    def take(case: Case) -> object:
        file.write_bytes(case.data)
        with ExitStack() as stack:
            table = source.opened(stack)
            return [str(one) for one in source.ready(table.rows(), table.digest)]

    return take


ENTRIES = [
    Entry("topology", _topologies, _take_topology, "text", slice=15),
    Entry("settings", lambda: [Case(SETTINGS.encode())], lambda: _take_settings("dspex.toml"), "text", slice=50),
    Entry("project", lambda: [Case(b"[tool.dspex]\napp = 'x'\n")], lambda: _take_settings("pyproject.toml"), "text", slice=70),
    Entry("variables", lambda: [Case(VARIABLES.encode())], _take_variables, "text", slice=70),
    Entry(
        "file of rows",
        lambda: [Case(data) for data in (*ROWS, *(file.read_bytes() for file in COLUMNS))],
        _take_rows,
        "bytes",
        slice=50,
    ),
    Entry("url", lambda: [*map(Case, URLS)], _take_url, "bytes", slice=100, refused=("", "ConfigError")),
]
