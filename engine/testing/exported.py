"""A run that was exported, done again in a driver: its event is published, and its calls are answered as they were."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Collection, Coroutine, Mapping
from functools import partial
from os import PathLike
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from dspex.bus.errors import ConfigError, Divergence, ProgramError, from_dict
from dspex.engine.client.client import Client
from dspex.engine.client.runs.diff import Replay, compare
from dspex.engine.client.runs.export import RunFile, load

if TYPE_CHECKING:
    from dspex.engine.testing.driver import Driver

OTHER: Final = ("lm", "program")
"""What another one answers in a driver: no model is asked."""
Use: TypeAlias = Callable[[Callable[[Client], Coroutine[Any, Any, Any]]], Any]
_STEP: Final = 1.0  # seconds that pass between two looks
_AGAIN: Final = 60.0  # seconds that a run may take longer than it did: attempts wait with jitter


class _Recorded:
    """What the calls of an operator were answered. `missing`: inputs that none of them had."""

    def __init__(self, file: RunFile) -> None:
        self.served, self.missing = 0, list[tuple[str, Mapping[str, Any]]]()
        self._ends: dict[str, dict[str, deque[Any]]] = defaultdict(dict)
        for call in file.calls:
            ends = deque([error or dict(step.outputs or {}) for step, error in zip(call.attempts, call.failures)])
            self._ends[call.node].setdefault(repr(call.data), deque()).append((ends, call.failures))
        self.nodes = set(self._ends)

    def answer(self, node: str, inputs: dict[str, Any]) -> Mapping[str, Any]:
        """The next answer to a call with these inputs. Raises the error that it was; ProgramError where there is none."""
        calls = self._ends[node].get(repr(inputs))
        if not calls:
            self.missing.append((node, inputs))
            raise ProgramError("it is not in the recording")
        ends, failures = calls[0]
        end, failed = ends.popleft(), failures[len(failures) - len(ends) - 1]
        if not ends:
            calls.popleft()
        self.served += 1
        if failed is not None:
            raise from_dict(dict(failed))
        found: Mapping[str, Any] = end
        return found


def replayed(
    d: Driver, topologies: Collection[str], use: Use, given: str | PathLike[str] | RunFile, harmless: Collection[str]
) -> Replay:
    """See `Driver.replay`. `use`: has a coroutine of a client done."""
    file, path = (given, given.info.id) if isinstance(given, RunFile) else (load(given), str(given))
    if file.info.topology not in topologies:
        why = f"{path} is a run of {file.info.topology!r}, and the driver runs {', '.join(sorted(topologies))}"
        raise ConfigError(why, code="DX105", fix="give the driver that topology")
    recorded = _Recorded(file)
    for node in recorded.nodes:
        d.answer(node, partial(recorded.answer, node))
    root, started = file.root, file.info.started
    run = d.publish(root.node, root.data, key=file.key, session=file.session)
    left = _AGAIN + ((file.info.finished or started) - started).total_seconds()
    while left > 0 and use(lambda client: client.run(run).info()).status == "running":
        d.advance(min(left, _STEP))
        left -= _STEP
    if recorded.missing:
        node, inputs = recorded.missing[0]
        why = f"replay of …{file.info.id[-8:]} stopped at {node}: {dict(inputs)} was not asked then, and has no answer"
        raise Divergence(why, run=file.info.id, node=node, fix="undo the change, or export a run of today")
    tree, info = use(lambda client: client.run(run).tree()), use(lambda client: client.run(run).info())
    diff = compare(root, tree, (file.info, info), None, [*OTHER, *harmless])
    return Replay(diff.same, 1, recorded.served, 0, 0, diff.first, diff)
