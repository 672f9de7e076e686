"""The loop of the fuzz tests: mutated inputs for an entry point, and what none of them may do to it.

An input may be refused by an error of dspex's own tree. Anything else that is raised is a bug, and so is a result, or a
message of an error, that is far larger than the input: memory is limited (see run.py), so what takes too much of it ends in
MemoryError. What never returns is ended by a watchdog, and the input is in a file by then.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from random import Random

from mutations import Case, mutated

from dspex.bus.errors import DspexError

HANGS = 60.0  # seconds after which an input counts as one that never returns; most take less than a millisecond
WATCHED = 64  # inputs for which the watchdog is set at a time
MOST_SHOWN = 2000  # characters of an input that is a bug, and twice as many of what came
MOST_MESSAGE = 4096  # characters of an error's message
LEAST, FACTOR = 1 << 16, 64  # what may come out: so many parts and bytes, and so many for each byte of the input


class Bug(AssertionError):
    """An input did what none may do."""


@dataclass(frozen=True)
class Entry:
    """A place where bytes that others wrote come in.

    Attributes:
        seeds: makes valid inputs, with our own code. form: how they are changed; see mutations.FORMS.
        taker: makes the function that takes an input; what it gives is measured.
        headers: names of those that mean something there.
        subject: where such a message is sent, of the application "fuzz"; "" for what does not come over the bus.
        slice: inputs in the test suite. refused: classes of errors with which a valid input may be refused; "": it is taken.
    """

    name: str
    seeds: Callable[[], Sequence[Case]]
    taker: Callable[[], Callable[[Case], object]]
    form: str = "msgpack"
    headers: tuple[str, ...] = ()
    subject: str = ""
    slice: int = 100
    refused: tuple[str, ...] = ("",)


@dataclass
class Done:
    """What came of a run. `refused`: how many inputs, by the class of the error; "" for those that were taken.

    `failures`: the first of each kind of bug, by where it was raised: the command that gives the input again, and what came.
    """

    name: str
    inputs: int = 0
    seconds: float = 0.0
    refused: dict[str, int] = field(default_factory=dict[str, int])
    failures: dict[str, str] = field(default_factory=dict[str, str])


def cases(entry: Entry, seed: int, first: int = 0) -> Iterator[Case]:
    """The inputs of an entry point, without end. Number n is always the same."""
    seeds = list(entry.seeds())
    for number in count(first):
        if number < len(seeds):
            yield seeds[number]  # valid ones first: a taker that takes nothing finds nothing
        else:
            yield mutated(Random(f"{seed}/{entry.name}/{number}"), seeds, entry.form, list(entry.headers))


def weight(value: object, most: int) -> int:
    """Parts of a value and bytes of its texts, counted no further than `most`."""
    total, left, seen = 0, [value], set[int]()
    while left and total <= most:
        at = left.pop()
        total += 1
        if isinstance(at, (str, bytes)):
            total += len(at)
        elif isinstance(at, dict):
            left += [*at, *at.values()]
        elif isinstance(at, (list, tuple, set, frozenset)):
            left += at
        elif hasattr(at, "__dict__") and type(at).__module__.startswith("dspex") and id(at) not in seen:
            seen.add(id(at))
            left += vars(at).values()
    return total


def check(entry: Entry, take: Callable[[Case], object], case: Case) -> str:
    """Give an input to an entry point: the class of the error with which it was refused; "" where it was taken.

    Raises what is a bug.
    """
    try:
        found = take(case)
    except DspexError as e:
        own = 0 if entry.subject else 2 * len(case.data)  # files and flags are the user's, who is shown what they wrote
        if len(e.message) > MOST_MESSAGE * max(1, len(getattr(e, "problems", ()))) + own:
            raise Bug(f"an error of {len(e.message)} characters: {e.message[:200]}") from None
        return type(e).__name__
    most = LEAST + FACTOR * (len(case.data) + sum(map(len, case.headers.values())))
    if weight(found, most) > most:
        raise Bug(f"what came of {len(case.data)} bytes is larger than {most}")
    return ""


def run(
    entry: Entry,
    inputs: int,
    *,
    seed: int = 0,
    first: int = 0,
    seconds: float = float("inf"),
    progress: Callable[[Done], None] = lambda done: None,
    most_failures: int = 5,
) -> Done:
    """Try inputs `first`, `first` + 1, … for as long as there are any, and time is left."""
    take, done, began = entry.taker(), Done(entry.name), time.monotonic()
    last = Path(tempfile.gettempdir()) / f"dspex-fuzz-{os.getpid()}"
    with last.open("wb", buffering=0) as file:
        try:
            for number, case in zip(range(first, first + inputs), cases(entry, seed, first)):
                if done.inputs % WATCHED == 0:
                    faulthandler.dump_traceback_later(HANGS, exit=True, file=sys.__stderr__ or sys.stderr)
                os.pwrite(file.fileno(), replay(entry, seed, number).encode() + b"\n", 0)
                _one(entry, take, case, done, replay(entry, seed, number))
                done.inputs, done.seconds = done.inputs + 1, time.monotonic() - began
                progress(done)
                if done.seconds > seconds or len(done.failures) >= most_failures:
                    break
        finally:
            faulthandler.cancel_dump_traceback_later()
    last.unlink()
    return done


def _one(entry: Entry, take: Callable[[Case], object], case: Case, done: Done, again: str) -> None:
    try:
        why = check(entry, take, case)
    except Exception as e:  # noqa: BLE001  what it finds are bugs, of any kind
        kind = f"{type(e).__name__} {traceback.extract_tb(e.__traceback__)[-1]}"
        shown = f"{case.data[:MOST_SHOWN]!r} {case.headers!r}"
        done.failures.setdefault(kind, f"{again}\n{shown}\n{traceback.format_exc()[-2 * MOST_SHOWN :]}")
    else:
        done.refused[why] = done.refused.get(why, 0) + 1


def replay(entry: Entry, seed: int, number: int) -> str:
    """The command that gives one input again."""
    return f"python tests/fuzz/run.py {entry.name!r} --seed {seed} --first {number} --inputs 1"
