"""Who answers a call in this process: native Predict where it can, DSPy otherwise (docs/adr/0007).

DSPy is imported when it is first needed, in a thread, so that calls go on meanwhile; and at the start where the pool names
programs, which are DSPy's to run.
"""

from __future__ import annotations

import asyncio
import importlib
import sys
import time
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import structlog

from dspex.bus.errors import Cancelled, ConfigError, InvalidInput, InvalidOutput, LMUnavailable, ProgramError
from dspex.bus.records import Work
from dspex.operators.native.prompts import versions
from dspex.workers.answerers.attempt import Attempt, as_error, checked, enter_context, spec_of
from dspex.workers.answerers.native import Native
from dspex.workers.answerers.refs import bounded
from dspex.workers.config import PoolConfig, Profile
from dspex.workers.frames import Frame, Pipe

if TYPE_CHECKING:
    from dspex.workers.dspy.programs import Programs


class Router:
    """Everything that a child can run. Raises ConfigError where the pool has programs and its Python has no DSPy."""

    def __init__(self, config: Frame) -> None:
        profiles = {name: Profile(**p) for name, p in config["profiles"].items()}
        self._config = config
        self._pool = PoolConfig(app="", name=config["pool"], lm=config["lm"], profiles=profiles, slots=config["slots"])
        self._native = Native(self._pool)
        self._dspy: Programs | None = None
        self._importing: asyncio.Future[Any] | None = None
        self.dspy_version = versions.installed() or ""
        if config["programs"]:
            self._dspy = self._made(_import())

    def scan(self) -> tuple[list[str], dict[str, str]]:
        """What the pool's allow-list names: (refs found, why the rest failed by pattern)."""
        return self._dspy.scan() if self._dspy else ([], {})

    async def run(self, work: Work, local: str | None, status: Callable[[str], None]) -> Frame:
        """One attempt: the fields of an Outcome that only this process knows. Never raises."""
        started = time.time()
        spec = spec_of(work)
        answer: Frame = {"program": f"{spec.kind}:{spec.target}", "lm": "", "dspy_version": self.dspy_version}
        answer |= {"route": "worker", "outputs": None, "error": None, "usage": {}, "started": started}
        enter_context(work, started, status)
        try:
            answer["outputs"] = await self._first_available(Attempt(checked(work, spec), spec, local, answer))
        except asyncio.CancelledError:
            answer["error"] = Cancelled(f"{work.node}: the call was cancelled").as_dict()
        except (Exception, SystemExit) as error:  # noqa: BLE001  a user's program may raise anything
            failure = as_error(error, work.node, spec.target)
            shown = bounded("".join(traceback.format_exception(error))) if isinstance(failure, ProgramError) else ""
            answer["error"] = {**failure.as_dict(), "traceback": shown}
        answer["elapsed"] = time.time() - started
        return answer

    async def close(self) -> None:
        """Close what is open."""
        await self._native.close()

    async def _first_available(self, attempt: Attempt) -> dict[str, Any]:
        """The outputs, with the first profile whose model can be reached."""
        spec, node = attempt.spec, attempt.work.node
        default = self._pool.default_profile()
        names = spec.lm or ((default.name,) if default else ())
        if not names and spec.kind != "program":
            raise ConfigError("the pool has no language model", code="DX113", fix="name one: pools.<pool>.lm", node=node)
        tried = names or ("",)  # a program may need no model at all
        for name in tried:
            half = await self._half(attempt, name)
            attempt.answer.update(lm=name, route=half.route, dspy_version=half.dspy_version)
            try:
                return await half.ask(attempt, name)
            except LMUnavailable as error:
                if name == tried[-1]:
                    raise
                structlog.get_logger().warning("model unavailable, trying the next", lm=name, error=error.message[:200])
        raise AssertionError("unreachable: the last profile returns or raises")

    async def _half(self, attempt: Attempt, name: str) -> Native | Programs:
        route = attempt.spec.route
        why = "its route is worker" if route == "worker" else self._native.refuses(attempt, name)
        if why is None:
            return self._native
        if route == "native":
            raise ProgramError(
                f'{attempt.work.node}: route="native" cannot be: {why}',
                fix='route="auto" lets DSPy answer what native calls do not cover',
                node=attempt.work.node,
            )
        return self._dspy or await self._load(why)

    async def _load(self, why: str) -> Programs:
        """DSPy's half, imported by the first call that needs it; the others wait for it too."""
        if self._importing is None:
            self._importing = asyncio.ensure_future(asyncio.to_thread(_import))
        module = await asyncio.shield(self._importing)
        if self._dspy is None:
            self._dspy = self._made(module, why)
        return self._dspy

    def _made(self, module: Any, why: str = "the pool has programs") -> Programs:
        if isinstance(module, ImportError):
            raise ConfigError(
                f"pool {self._pool.name}: {sys.executable} cannot run DSPy programs: {module}; DSPy is needed because {why}",
                code="DX134",
                fix="pip install 'dspex[dspy]' in that environment",
                node=self._pool.name,
            ) from module
        made: Programs = module.Programs(self._pool, self._config)
        return made


class Runner:
    """Runs the calls that the parent sends, as tasks of one loop."""

    def __init__(self, pipe: Pipe, router: Router) -> None:
        self._pipe, self._router = pipe, router
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self.stopped = asyncio.Event()

    def handle(self, frame: Frame) -> None:
        """Act on a frame; called on the loop."""
        if frame["op"] == "call":
            task = asyncio.create_task(self._run(frame))
            self._tasks[frame["id"]] = task
            task.add_done_callback(lambda _: self._tasks.pop(frame["id"], None))
        elif frame["op"] == "cancel" and frame["id"] in self._tasks:
            self._tasks[frame["id"]].cancel()
        elif frame["op"] == "stop":
            self.stopped.set()

    async def _run(self, frame: Frame) -> None:
        number = frame["id"]

        def status(text: str) -> None:
            self._pipe.send({"op": "status", "id": number, "text": text})

        work = Work.unpack(frame["work"])
        answer = await self._router.run(work, frame.get("local"), status)
        done = {"op": "done", "id": number, **answer}
        try:
            self._pipe.send(done)
        except InvalidInput as error:  # a call that never ends would end this process, and its other calls with it
            self._pipe.send(_sendable(done, work.node, error.message))


def _sendable(done: Frame, node: str, why: str) -> Frame:
    """The same end of a call without what MessagePack cannot hold: an int of more than 64 bits, half a character."""
    error = done["error"] or {
        **InvalidOutput(f"{node}: the answer cannot be sent: {why}", node=node).as_dict(),
        "traceback": "",
    }
    texts = {k: v.encode(errors="replace").decode() for k, v in error.items() if isinstance(v, str)}
    return {**done, "outputs": None, "error": {**error, **texts}}


def _import() -> Any:
    """The module of DSPy's half; the error where it cannot be imported."""
    try:
        return importlib.import_module("dspex.workers.dspy.programs")
    except ImportError as error:
        return error
