"""Jobs of optimizers while they run: how far one is, and its end before its time."""

from __future__ import annotations

from contextlib import suppress

import orjson
from typing_extensions import TypedDict

from dspex.bus import subjects
from dspex.bus.codecs.checking import checked
from dspex.bus.errors import DecodeError, Fenced, RunNotFound, Saturated, Unreachable
from dspex.bus.port import Bus, NewMessage
from dspex.bus.serving.programs.optimizers import OPTIMIZE
from dspex.engine.client.calls.answers import Submission, user_of
from dspex.engine.client.calls.submit import token_of

_WITHIN = 2.0  # seconds for the process that runs it to answer


class _OfJob(TypedDict):
    said: str
    worker: str


async def said_of(bus: Bus, app: str, run: str) -> str | None:
    """What a job has said last, "scoring before 12/96"; None where it does not run now.

    `run`: its id, `pool/call`. Raises Saturated where no process of the pool is there to run it; RunNotFound for another id.
    """
    return await _asked(bus, app, run, "job")


async def end(bus: Bus, app: str, run: str) -> bool:
    """Cancel a job; whether it was running. One that waits ends where a process of the pool takes it up, whenever that is.

    Raises RunNotFound as `said_of`; NotStored where the application takes no submitted calls.
    """
    job = _job_of(run)
    with suppress(Fenced):  # it is cancelled already
        await bus.publish(NewMessage(subjects.job_end(app, job.pool, job.call), b"", expect=0))
    try:
        return await _asked(bus, app, run, "end job") is not None
    except Saturated:
        return False


def run_of_job(bus: Bus, pool: str, id: str) -> str:
    """The run of the job that this user has submitted, or will submit, with this id."""
    return f"{pool}/{token_of(user_of(bus), OPTIMIZE, id)}"


def _job_of(run: str) -> Submission:
    """Raises RunNotFound for the id of another run."""
    job = Submission.of(run)
    if job is None or not subjects.is_token(job.pool) or not subjects.is_token(job.call):
        fix = "give the id that its run had when it was submitted: optimizer/…"
        raise RunNotFound(f"{run!r} does not name a submitted call", run=run, fix=fix)
    return job


async def _asked(bus: Bus, app: str, run: str, kind: str) -> str | None:
    """Processes of a pool that do not run the job say nothing."""
    job = _job_of(run)
    asked = orjson.dumps({"kind": kind, "call": job.call})
    try:
        answer = await bus.request(subjects.control(app, job.pool), asked, timeout=_WITHIN)
    except Unreachable:
        return None
    except Saturated as error:
        fix = f"start one: dspex worker {job.pool}, with [pools.{job.pool}] in dspex.toml"
        raise Saturated(f"no process of pool {job.pool} is running, so nothing runs the job", node=job.pool, fix=fix) from error
    with suppress(ValueError, DecodeError):
        found: _OfJob = checked(_OfJob, "what is said of a job", orjson.loads(answer.data))
        return found["said"]
    return None
