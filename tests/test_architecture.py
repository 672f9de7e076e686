"""Rules about the code itself that no other tool checks: budgets, and who may do what where."""

from __future__ import annotations

import ast
import re
import subprocess
import tomllib
from collections.abc import Callable, Collection, Iterable, Iterator
from functools import cache
from pathlib import Path

import pytest

pytestmark = pytest.mark.no_cover  # it runs none of our code, and reads all of it
ROOT = Path(__file__).parents[1]
ROOMS = ("bus", "engine", "operators", "workers", "topologies")
FILES = [*(f for room in ROOMS for f in sorted((ROOT / room).rglob("*.py"))), ROOT / "__init__.py", ROOT / "__main__.py"]
NAMES = [f.relative_to(ROOT).as_posix() for f in FILES]

MOST_LINES = 300
MOST_TEST_LINES = 400
MOST_FUNCTION_LINES = 45

# Every exception stands here with its reason.
LONG_FILES = {
    "operators/stream.py": "the catalogue of public methods: types and a docstring each, which type checkers want in one class",
    "engine/client/client.py": "the catalogue of the client's methods: a docstring each, which users want in one class",
    "engine/client/sync_client.py": "the same, generated",
    "bus/records.py": "what engines and workers say to each other, with what each field means: one place",
    "bus/errors.py": "one tree of errors, one place; a class is four lines of text",
    "bus/subjects.py": "the one place that knows subjects, streams, buckets and headers",
    "bus/port.py": "the one place that says what a bus promises; half of it elsewhere would be overlooked",
}
LONG_FUNCTIONS: dict[str, str] = {}
CATCHES_ALL = {
    "engine/runtime/process.py": "runs the user's functions, which may raise anything; failure.py decides what becomes of it",
    "engine/runtime/failure.py": "asks an exception of the user's what it is, which may raise anything",
    "bus/serving/keys/redaction.py": "calls a function of the user's that hides texts: where it fails nothing is shown",
    "bus/telemetry.py": "calls listeners, which are somebody else's code and must not stop what they watch",
    "operators/keyed/values.py": "tries the init() of the user's at build, which may raise anything: a problem like any other",
    "workers/answerers/refs.py": "imports the user's program, which may raise anything",
    "workers/answerers/router.py": "runs the user's program, which may raise anything",
    "workers/optimize/scoring.py": "runs the user's metric, whose errors an optimizer would take for bad answers",
    "engine/judge/metric.py": "runs the user's metric, which may raise anything",
    "engine/cli/topology/targets.py": "imports the user's topology, which may raise anything",
    "engine/cli/app.py": "the last stop before the user",
}
WRITES_TO_STDOUT = {
    "engine/cli/terminal/terminal.py": "the terminal",
    "engine/cli/app.py": "help, where no verb is given",
    "__main__.py": "--version before anything is imported",
    "workers/bench/server.py": "a process whose parent reads one line",
    "workers/models/server.py": "a process whose parent reads one line",
}
LEAVES_A_BODY_OUT = {"operators/stream.py": "`declared` runs what the declaration says in place of the body"}
STARTS_TASKS = {
    "bus/tasks.py": "the owner of tasks",
    "bus/memory/virtual.py": "the event loop itself, which runs one coroutine to its end",
    "engine/testing/wired.py": "likewise",
    "engine/cli/events/sending.py": "a task group of one block: one row that cannot be sent stops the others",
}
WRITES_FILES = {
    "bus/local/whole_file.py": "the one place that writes files whole",
    "bus/local/login.py": "a new password, which is linked to its name: who comes second takes that of the first",
    "engine/cli/events/dlq.py": "a file for an editor, in a folder that goes with it",
    "workers/models/weights.py": "weights, which get their name when their hash is right",
    "workers/processes/cgroups.py": "files of the kernel",
}
SAME_NAME = {
    "Client": "dspex.Client and dspex.sync.Client: the same client, for code without an event loop",
    "Run": "dspex.Run and dspex.sync.Run, likewise",
    "Answer": "what a caller reads, also without an event loop, and what it comes from: one attempt's answer in a worker",
    "Session": "dspex.Session and dspex.sync.Session, likewise",
}
ROOM_OF_LIBRARY: dict[str, str | tuple[str, ...]] = {
    "nats": "bus/nats/",
    "dspy": (
        "workers/dspy/",
        "workers/optimize/",
        "topologies/support_program.py",
    ),  # a program, as a user's: it runs in workers
    "litellm": "workers/dspy/",
    "torch": "workers/dspy/",
    "xllamacpp": "workers/models/",
}


@cache
def tree(name: str) -> ast.Module:
    return ast.parse((ROOT / name).read_text())


@cache
def nodes(name: str) -> list[ast.AST]:
    """Everything that the file's text says."""
    return list(ast.walk(tree(name)))


def functions(name: str) -> dict[str, int]:
    """Lines of each function's body. Long parameter lists and their types are not what makes a function long."""
    found = (n for n in nodes(name) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))
    return {f"{name}:{f.name}": (f.end_lineno or 0) - f.body[0].lineno + 1 for f in found}


def imported(name: str) -> set[str]:
    """Top-level packages that the file imports, anywhere in it."""
    found: set[str] = set()
    for node in nodes(name):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
    return found


def found_in_files(faults: Callable[[str], Iterable[object]], allowed: Collection[str] = ()) -> dict[str, list[object]]:
    """What `faults` says of each file, without the files of which it says nothing and those that are allowed it."""
    return {name: found for name in NAMES if name not in allowed and (found := list(faults(name)))}


MOST_ENTRIES = 15


def test_no_folder_has_more_than_fifteen_entries() -> None:
    """The root is exempt: packaging and tools want their files there."""
    command = ["git", "ls-files", "-co", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    entries: dict[str, set[str]] = {}
    for name in listed.stdout.splitlines():
        parts = name.split("/")
        if (ROOT / name).exists():
            for depth in range(1, len(parts)):
                entries.setdefault("/".join(parts[:depth]), set()).add(parts[depth])
    assert {folder: len(found) for folder, found in entries.items() if len(found) > MOST_ENTRIES} == {}


def test_a_file_can_be_read_at_a_sitting() -> None:
    lines = {name: len((ROOT / name).read_text().splitlines()) for name in NAMES}
    tests = {str(f): len(f.read_text().splitlines()) for f in (ROOT / "tests").rglob("*.py")}
    assert {name for name, n in lines.items() if n > MOST_LINES} <= set(LONG_FILES)
    assert {name for name, n in tests.items() if n > MOST_TEST_LINES} == set()


def test_a_function_fits_a_screen() -> None:
    lines = {place: n for name in NAMES for place, n in functions(name).items()}
    assert {place for place, n in lines.items() if n > MOST_FUNCTION_LINES} == set(LONG_FUNCTIONS)


def test_only_the_named_places_catch_everything() -> None:
    """Cleaning up and raising again is not catching."""

    def wide(name: str) -> Iterator[int]:
        for node in nodes(name):
            if isinstance(node, ast.ExceptHandler):
                text = ast.unparse(node.type) if node.type else "Exception"
                again = isinstance(node.body[-1], ast.Raise) and node.body[-1].exc is None
                if re.search(r"\b(Base)?Exception\b", text) and not again:
                    yield node.lineno

    assert found_in_files(wide, CATCHES_ALL) == {}


def test_only_the_named_places_leave_a_body_out() -> None:
    """A method that a subclass must write is abstract, so that type checkers find a class without it."""

    def left_out(name: str) -> Iterator[int]:
        return (
            node.lineno for node in nodes(name) if isinstance(node, ast.Raise) and "NotImplementedError" in ast.unparse(node)
        )

    assert found_in_files(left_out, LEAVES_A_BODY_OUT) == {}


def test_only_the_named_places_start_tasks_by_hand() -> None:
    """A task that nobody owns may vanish, fail in silence or outlive what it works for: see bus/tasks.py."""

    def started(name: str) -> Iterator[int]:
        for node in nodes(name):
            if isinstance(node, ast.Attribute) and node.attr in ("create_task", "ensure_future"):
                yield node.lineno

    assert found_in_files(started, STARTS_TASKS) == {}
    assert [name for name in STARTS_TASKS if not list(started(name))] == []


def test_only_the_terminal_writes_to_the_terminal() -> None:
    def prints(name: str) -> Iterator[int]:
        for node in nodes(name):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("print", "sys.stdout.write", "sys.stderr.write"):
                yield node.lineno

    assert found_in_files(prints, WRITES_TO_STDOUT) == {}


def test_only_the_named_places_write_files() -> None:
    """Who is killed in the middle of writing leaves half a file: see bus/local/whole_file.py."""

    def writes(name: str) -> Iterator[int]:
        for node in nodes(name):
            if isinstance(node, ast.Call):
                said = {str(a.value) for a in (*node.args, *(k.value for k in node.keywords)) if isinstance(a, ast.Constant)}
                opens = ast.unparse(node.func).rpartition(".")[2] == "open" and any(re.fullmatch("[wx]b?[+]?", s) for s in said)
                if opens or ast.unparse(node.func).endswith((".write_text", ".write_bytes")):
                    yield node.lineno

    assert found_in_files(writes, WRITES_FILES) == {}
    assert [name for name in WRITES_FILES if not list(writes(name))] == []


def test_every_room_is_whole_under_a_contract_of_directions() -> None:
    """Inside the rooms the contracts of pyproject.toml are exhaustive; this holds for a new room."""
    packages = {f.parent.name for f in ROOT.glob("*/__init__.py")}
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    assert packages == set(ROOMS)
    assert {f"dspex.{room}" for room in ROOMS} <= {m for c in contracts for m in c.get("source_modules", ())}


def test_a_foreign_library_is_imported_in_its_room_only() -> None:
    def strangers(name: str) -> Iterator[str]:
        return (lib for lib, room in ROOM_OF_LIBRARY.items() if lib in imported(name) and not name.startswith(room))

    assert found_in_files(strangers) == {}


def types_defined(name: str) -> Iterator[str]:
    """Public classes and type aliases of a module. CamelCase tells an alias from a constant."""
    for node in tree(name).body:
        if isinstance(node, ast.ClassDef):
            found = [node.name]
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found = [t.id for t in targets if isinstance(t, ast.Name)]
        else:
            found = []
        yield from (n for n in found if re.match(r"[A-Z]\w*[a-z]", n) and not n.endswith("_co"))


def test_a_type_has_a_name_of_its_own_in_the_whole_project() -> None:
    """Two types of one name are mixed up in talk, and need aliases where both are imported. Topologies are users' code."""
    homes: dict[str, set[str]] = {}
    for name in NAMES:
        if not name.startswith("topologies/"):
            for found in types_defined(name):
                homes.setdefault(found, set()).add(name)
    assert {found: files for found, files in homes.items() if len(files) > 1 and found not in SAME_NAME} == {}
    assert [found for found in SAME_NAME if len(homes.get(found, ())) < 2] == []


def test_subjects_and_streams_are_formed_in_one_file() -> None:
    def formed(name: str) -> Iterator[int]:
        labels = {  # of tasks and connections
            id(k.value) for k in nodes(name) if isinstance(k, ast.keyword) and k.arg == "name"
        }
        for node in nodes(name):
            if isinstance(node, ast.JoinedStr) and id(node) not in labels:
                first = node.values[0]
                if isinstance(first, ast.Constant) and re.match(r"DSPEX_|dspex\.", str(first.value)):
                    yield node.lineno

    assert found_in_files(formed, ["bus/subjects.py"]) == {}


def test_headers_and_the_servers_own_subjects_are_named_in_one_file() -> None:
    """bus/nats may name those of the server's protocol, which it alone speaks, and so may the table of permissions on them;
    they name none of ours.
    """

    def named(name: str) -> Iterator[int]:
        docs = {id(n.value) for n in nodes(name) if isinstance(n, ast.Expr)}  # docstrings
        server = name.startswith("bus/nats/") or name == "bus/local/rights.py"
        pattern = r"Dspex-" if server else r"Dspex-|Nats-|\$(JS|KV|SYS)\b"
        for node in nodes(name):
            if isinstance(node, ast.Constant) and id(node) not in docs:
                text = node.value.decode(errors="replace") if isinstance(node.value, bytes) else node.value
                if isinstance(text, str) and re.search(pattern, text):
                    yield node.lineno

    assert found_in_files(named, ["bus/subjects.py"]) == {}


def test_no_type_error_is_ignored_without_saying_which() -> None:
    def bare(name: str) -> Iterator[int]:
        lines = enumerate((ROOT / name).read_text().splitlines(), 1)
        return (number for number, line in lines if re.search(r"# type: ignore(?!\[)", line))

    assert found_in_files(bare) == {}


def test_no_script_sets_a_variable_that_dspex_would_take_for_a_setting() -> None:
    """DSPEX_NAME is the setting `name`, and every process that a script starts would refuse one that it does not know."""
    scripts = [*(ROOT / "scripts").iterdir(), ROOT / ".ci/run"]
    set_by = {f.name: re.findall(r"\bDSPEX_\w+(?==)", f.read_text()) for f in scripts if f.is_file()}
    assert {name: found for name, found in set_by.items() if found} == {}
