"""`dspex replay RUN --at OPERATOR --pdb`: Python's debugger in the function of an operator, with the state of then."""

from __future__ import annotations

import inspect
import os
import pdb
import signal
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Final, cast

from dspex.bus.errors import ConfigError, TopologyError
from dspex.bus.port import NewMessage
from dspex.bus.settings.similar import did_you_mean
from dspex.engine.again.change.fits import unfit
from dspex.engine.cli.runs.differing import GivenAgain, SeenRun, difference
from dspex.engine.cli.terminal.client import client
from dspex.engine.graph.graph import Graph
from dspex.engine.graph.nodes import StateNode
from dspex.engine.replay.altered import GoingOn
from dspex.engine.replay.watched import ReplayPlace
from dspex.engine.runtime.arrival import Arrival

if TYPE_CHECKING:
    from dspex.engine.cli.terminal.terminal import Terminal

_ROOT: Final = Path(__file__).parents[len(__name__.split(".")) - 2]  # where dspex lies, wherever this file does
_LIBRARIES: Final = (
    *(f"{_ROOT / room}{os.sep}" for room in ("bus", "engine", "operators", "topologies", "workers")),
    *(f"{path}{os.sep}" for name, path in sysconfig.get_paths().items() if name.endswith(("stdlib", "lib"))),
    "<",
)
"""How files begin whose functions are nobody's operators."""
_HELP: Final = "operator (op): to the next one; c: to the next event here; q: leave. event, context and state are there"


class OperatorDebugger(pdb.Pdb):
    """Stops in the first line of a user's own that an operator runs.

    Attributes:
        everywhere: it stops at the next operator, whichever that is. gone: somebody has left. interrupted: by ^C at the prompt.
    """

    def __init__(self) -> None:
        super().__init__(nosigint=True)
        self.prompt = "(dspex) "
        self.everywhere = self.gone = self.seeking = self.interrupted = False
        self._there: dict[str, Any] = {}

    def seek(self, node: str, there: dict[str, Any]) -> None:
        """Stop in the function that runs next. `there`: names that are to be known there."""
        self.everywhere, self.seeking, self._there = False, True, there
        self._at = f"{node}: {_HELP}"
        self.reset()
        self.botframe = inspect.stack(0)[2].frame
        self.set_step()
        sys.settrace(self.trace_dispatch)

    def lose(self) -> None:
        """No function ran."""
        self.seeking = False
        sys.settrace(None)

    def stop_here(self, frame: FrameType) -> bool:
        """See bdb. Until it has stopped, what is no user's own is passed over."""
        return (not self.seeking or _is_users(frame)) and super().stop_here(frame)

    def user_call(self, frame: FrameType, argument_list: None) -> None:
        """See bdb: it stops in the first line, and not before it."""
        if not self.seeking:
            super().user_call(frame, argument_list)

    def user_line(self, frame: FrameType) -> None:
        """See bdb."""
        if self.seeking:
            self.seeking = False
            self.message(self._at)
        super().user_line(frame)

    def setup(self, f: FrameType | None, tb: Any) -> None:
        """See pdb: with what else is there."""
        super().setup(f, tb)
        there = cast("dict[str, Any]", self.curframe_locals)
        for name, value in self._there.items():
            there.setdefault(name, value)

    def cmdloop(self, intro: Any = None) -> None:
        """See cmd. ^C at the prompt leaves: to asyncio it would be the end of a task, which waits for the prompt."""
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            super().cmdloop(intro)
        except KeyboardInterrupt:
            self.interrupted = True
            self.message("")  # the prompt ends with its line
            self.set_quit()
        finally:
            signal.signal(signal.SIGINT, before)

    def do_operator(self, arg: str) -> bool | None:
        """operator
        Go on to the next operator, whichever that is."""
        self.everywhere = True
        return self.do_continue(arg)

    do_op = do_operator

    def set_quit(self) -> None:
        """See bdb. What raised here would be taken for an error of the function."""
        self.gone = True
        self.clear_all_breaks()
        self.set_continue()


def _is_users(frame: FrameType) -> bool:
    """Whether a frame runs what somebody has written: no part of dspex, no library, nothing made up."""
    file = frame.f_code.co_filename
    if file == __file__:
        return frame.f_code is stands_for.__code__
    return not file.startswith(_LIBRARIES)


def stands_for(data: Any, given: Any, event: Any, context: Any) -> Any:
    """Stands for the function of an operator that has none in Python, such as an expression. It gives what `given` is then."""
    return given


class _Debugged(SeenRun):
    """Stops at an operator."""

    def __init__(self, run: str, graph: Graph, given: GivenAgain, debugger: OperatorDebugger, at: str) -> None:
        super().__init__(run, graph, given)
        self._graph, self._debugger, self._at, self._going_on = graph, debugger, at, GoingOn(run)
        self._data: Any = None
        self._stopped = dict[str, tuple[Any, list[str]]]()  # where it stopped → what came, and what of it fits no type
        self.reached = False

    def arrives(self, where: ReplayPlace, arrival: Arrival, *, again: bool) -> Arrival:
        return super().arrives(where, self._going_on.arrives(arrival), again=again)

    async def gave(self, where: ReplayPlace, messages: Sequence[NewMessage]) -> None:
        self._going_on.gave(messages)
        await super().gave(where, messages)

    def enters(self, node: str, data: Any, walk: Any) -> Any:
        super().enters(node, data, walk)
        debugger = self._debugger
        self._lose(walk)
        if walk.origin.run == self._run and not debugger.gone and (node == self._at or debugger.everywhere):
            self.reached, self._data = True, data
            self._stopped[node] = data, unfit(self._graph, self._graph.nodes[node], "inputs", data)
            there = {"event": replace(walk.event, data=data), "context": walk}
            debugger.seek(node, there | self._state(node, walk))
        return data

    def gives(self, node: str, outlet: int, data: Any, walk: Any) -> Any:
        if self._debugger.seeking:
            data = stands_for(self._data, data, walk.event, walk)
            self._lose(walk)
        if node in self._stopped:
            self._warn(node, data)
        return super().gives(node, outlet, data, walk)

    def leaves(self, node: str, walk: Any) -> None:
        if self._debugger.seeking:  # it gave nothing
            stands_for(self._data, None, walk.event, walk)
            self._lose(walk)
        self._stopped.pop(node, None)
        super().leaves(node, walk)

    def fails(self, node: str, error: BaseException, walk: Any) -> None:
        self._lose(walk)
        self._stopped.pop(node, None)
        super().fails(node, error, walk)

    def _lose(self, walk: Any) -> None:
        if self._debugger.seeking:
            self._debugger.lose()

    def _warn(self, name: str, data: Any) -> None:
        """Say what does not fit the types of an operator, of what was changed there: it goes on all the same."""
        (came, before), node = self._stopped[name], self._graph.nodes[name]
        now = [line for line in unfit(self._graph, node, "inputs", came) if line not in before]
        for line in [*now, *(line for line in unfit(self._graph, node, "outputs", data) if line not in now)]:
            self._debugger.message(f"does not fit: {line}")

    def _state(self, name: str, walk: Any) -> dict[str, Any]:
        """What an operator with state keeps of the key, before it gets the event."""
        node = self._graph.nodes[name]
        if not isinstance(node, StateNode):
            return {}
        there, walk.node = walk.node, name
        rows = {sub: row for sub in ("", *walk.subs()) if (row := walk.row(sub)) is not None}
        walk.node = there
        return {"state": node.state.shown(rows) if node.state.shown is not None and rows else rows or None}


async def debugged(t: Terminal, run: str, target: str | None, at: str) -> None:
    """Replay a run in the debugger, and print what it does otherwise then. Nothing is written.

    Raises RunNotFound; TopologyError (DX235) where the code has no such operator, or none that runs in the engine; ConfigError
    (DX105) where the run did not come to it.
    """
    debugger, seen, graphs = OperatorDebugger(), list[_Debugged](), list[Graph]()

    def watcher(id: str, graph: Graph, given: GivenAgain) -> _Debugged:
        graphs.append(graph)
        seen.append(_Debugged(id, graph, given, debugger, at))
        return seen[-1]

    tracing = sys.gettrace()
    try:
        async with client(t, "replay") as c:
            found = await difference(t, c, run, target, watcher=watcher)
    finally:
        sys.settrace(tracing)
    if debugger.interrupted:
        raise KeyboardInterrupt("nothing was written")
    if not any(one.reached for one in seen):
        for graph in graphs if not any(at in graph.nodes for graph in graphs) else [one for one in graphs if at in one.nodes]:
            checked_operator(graph, at)
        came = dict.fromkeys(value.node for one in seen for some in one.found.values() for value in some)
        fix = f"it came to {', '.join(came)}" if came else "dspex runs show says what it did"
        raise ConfigError(f"the run did not come to {at}", code="DX105", fix=fix)
    for line in found.lines(explain=False) if found is not None else ["same"]:
        t.line(line)


def checked_operator(graph: Graph, at: str) -> str:
    """The operator of that name. Raises TopologyError (DX235) where there is none that the engine runs."""
    there = [name for name, node in graph.nodes.items() if node.role in ("native", "state")]
    if at in there:
        return at
    what = "is run by workers, or is none" if at in graph.nodes else "is not there"
    fix = did_you_mean(at, there, f"one of {', '.join(there)}" if there else "the topology has no native operator")
    raise TopologyError(f"the operator {at!r} of {graph.name} {what}", code="DX235", fix=fix)
