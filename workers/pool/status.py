"""What a pool says about itself: to whoever asks on its control subject, in a log line, and on the terminal."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from typing import TYPE_CHECKING, TypedDict

import orjson

from dspex.bus import subjects
from dspex.bus.message import Message
from dspex.bus.port import Subscription
from dspex.workers.processes.usage import resident

if TYPE_CHECKING:
    from dspex.workers.pool.pool import Pool

MOST_CALL = 100  # characters of the name of a job: who may ask could otherwise fill the memory
FRESH = 0.1  # seconds for which an answer is as good as a new one


class Summary(TypedDict):
    """What a log line and the CLI say about a ready pool. `failed`: why programs cannot run, by pattern."""

    pool: str
    id: str
    size: int
    slots: int
    dspy_version: str
    programs: list[str]
    failed: dict[str, str]


class PoolStatus:
    """Answers the questions that are asked of one pool."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._started = time.time()
        self._said = (-FRESH, b"")

    async def subscribe(self) -> Subscription:
        """Answer, and do what is asked, from now on, until the subscription is closed."""
        config = self._pool.config
        return await self._pool.bus.subscribe(subjects.control(config.app, config.name), self._on_request)

    async def _on_request(self, message: Message) -> None:
        try:
            asked = orjson.loads(message.data)
            kind = asked.get("kind")
        except (ValueError, AttributeError):
            return
        if kind == "cancel" and isinstance(call := asked.get("call"), str):
            self._pool.executions.cancel(call)
        if kind == "still" and isinstance(call := asked.get("call"), str) and subjects.is_inbox(message.reply):
            self._pool.interactive.still(call, message.reply)
        if kind == "programs":
            self._pool.saved.forget()
        if kind == "watch" and isinstance(node := asked.get("node"), str) and subjects.is_inbox(message.reply):
            self._pool.executions.watch(node[:MOST_CALL], message.reply)
        if kind in ("job", "end job") and isinstance(call := asked.get("call"), str) and len(call) <= MOST_CALL:
            await self._of_job(kind, call, message)
        if kind == "status" and subjects.is_inbox(message.reply):
            await self._pool.bus.send(message.reply, self._answer())

    async def _of_job(self, kind: str, call: str, message: Message) -> None:
        """Who runs the job answers; the other processes of the pool say nothing."""
        executions = self._pool.executions
        said = executions.said_of_job(call)
        if kind == "end job":
            executions.end_job(call)
        if said is not None and subjects.is_inbox(message.reply):
            await self._pool.bus.send(message.reply, orjson.dumps({"said": said, "worker": self._pool.worker}))

    def _answer(self) -> bytes:
        """What was said a moment ago, or anew: it takes a millisecond, and anybody who may ask can ask without end."""
        now = asyncio.get_running_loop().time()
        if now - self._said[0] >= FRESH:
            self._said = now, orjson.dumps(self.full())
        return self._said[1]

    def summary(self) -> Summary:
        """A few words about a ready pool."""
        pool, hello = self._pool, self._pool.children.hello
        return {
            "pool": pool.config.name,
            "id": pool.id,
            "size": pool.children.ready,
            "slots": pool.config.slots,
            "dspy_version": hello.dspy_version,
            "programs": hello.found,
            "failed": dict(hello.failed),
        }

    def full(self) -> dict[str, object]:
        """All of it, JSON-able."""
        pool, children, hello = self._pool, self._pool.children, self._pool.children.hello
        return {
            "id": pool.id,
            "pool": pool.config.name,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "size": pool.children.size,
            "slots": pool.config.slots,
            "busy": children.slots.busy,
            "waiting": children.slots.waiting,
            "of": pool.scaling.total,
            "ready": children.ready,
            "restarts": children.restarts,
            "failed": children.failed,
            "draining": pool.draining,
            "served": pool.served,
            "id_collisions": pool.records.collisions,
            "refused": pool.work.refused,
            "lost_records": pool.records.lost,
            "started": self._started,
            "dspy_version": hello.dspy_version,
            "python": hello.python,
            "programs": {"found": hello.found, "failed": hello.failed},
            "children": [{"pid": c.pid, "rss": resident(c.pid), "calls": c.calls} for c in children.children],
            "memory": {
                "allowed": pool.config.memory,
                "by": memory_limit(pool.config.memory, hello.limited, children.in_groups),
            },
            "model_servers": pool.models.pids,
            "cache": pool.cache.figures(),
            "lms": pool.routing.rows(),
            "routes": pool.executions.routes.rows(),
            "batches": [row._asdict() for child in children.children for row in child.batches],
        }


def memory_limit(allowed: int | None, limited: bool, in_groups: bool) -> str | None:
    """What holds a worker process to its memory; None: nothing.

    "system" refuses it more; "cgroup" ends it, and counts what its programs start; "watch" looks at both every second. All that
    can be done is done; the first is told.
    """
    return None if allowed is None else "system" if limited else "cgroup" if in_groups else "watch"
