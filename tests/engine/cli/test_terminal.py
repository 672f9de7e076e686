"""What the CLI prints: results on stdout, the rest on stderr, and bars only where somebody can see them."""

from __future__ import annotations

import json
import logging
import os
import pty
import subprocess
import sys
from datetime import UTC, datetime

import pytest
import structlog

from dspex.bus.errors import ConfigError, DspexError, Problem, TopologyError
from dspex.engine.cli.terminal import log, progress
from dspex.engine.cli.terminal.terminal import Terminal, error_lines, to_json

BARS = """
import sys
from dspex.engine.cli.terminal.terminal import Terminal
with Terminal().progress("publish", 3) as bar:
    for _ in range(3):
        bar.advance(note="1 duplicate")
"""
LOG = """
import structlog
from dspex.engine.cli.terminal import log
log.configure("info,dspex.bus=error")
structlog.get_logger("dspex.engine").info("hello", stage=1)
structlog.get_logger("dspex.engine").debug("hidden")
structlog.get_logger("dspex.bus").warning("hidden")
structlog.get_logger("other").info("hidden")
structlog.get_logger("other").warning("seen")
"""

PROBLEMS = TopologyError(
    "2 problems",
    problems=[
        Problem("DX203", "error", "t", "count", "t.py", 24, "a window needs a keyed stream", "add key_by"),
        Problem("DX310", "warning", "t", None, None, None, "reads the clock", "use ctx.now"),
    ],
)


def on_a_terminal(code: str, **env: str) -> str:
    """What the code writes to stdout and stderr when they are a terminal."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", code]
    process = subprocess.Popen(command, stdout=theirs, stderr=theirs, env={**os.environ, "TERM": "xterm", **env})
    os.close(theirs)
    text = b""
    while True:
        try:
            chunk = os.read(ours, 65536)
        except OSError:  # the other end is closed
            break
        if not chunk:
            break
        text += chunk
    os.close(ours)
    assert process.wait() == 0
    return text.decode()


def off_a_terminal(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, check=True).stderr


def test_an_error_is_printed_with_node_and_fix() -> None:
    error = DspexError("is saturated", code="DX601", node="classify", fix="wait")
    assert error_lines(error) == ["error[DX601] classify: is saturated", "  fix: wait"]
    assert error_lines(PROBLEMS) == [
        "error[DX203] count (t.py:24): a window needs a keyed stream",
        "  fix: add key_by",
        "warning[DX310] t: reads the clock",
        "  fix: use ctx.now",
    ]


def test_with_json_an_error_is_an_object_with_the_pinned_keys(capsys: pytest.CaptureFixture[str]) -> None:
    Terminal(json=True).error(DspexError("x", node="n", run="r"))
    Terminal(json=True).error(PROBLEMS)
    out, err = capsys.readouterr()
    assert out == ""
    first, second = map(json.loads, err.splitlines())
    assert first["v"] == 1
    assert list(first["error"]) == ["code", "message", "fix", "node", "run", "retryable"]
    assert [p["code"] for p in second["error"]["problems"]] == ["DX203", "DX310"]


def test_results_are_printed_as_json_text_or_tables(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"id": "[red]x", "n": 1, "hidden": 0}, {"id": "y", "n": None}]
    for t in (Terminal(), Terminal(json=True)):
        t.emit({"a": 1}, "text")
        t.table(rows, {"id": "name", "n": "count"})
        t.problem(PROBLEMS.problems[0])
        t.note("remark")
    Terminal(quiet=True).note("not seen")
    out, err = capsys.readouterr()
    text, objects = out.splitlines()[:6], [json.loads(line) for line in out.splitlines()[6:]]
    assert [line.split() for line in text[:4]] == [["text"], ["name", "count"], ["[red]x", "1"], ["y"]]
    assert objects[:3] == [{"v": 1, "a": 1}, {"v": 1, **rows[0]}, {"v": 1, **rows[1]}]
    assert list(objects[3]) == ["v", "code", "level", "topology", "node", "file", "line", "message", "fix"]
    assert err == "remark\nremark\n"


TABLE = """
from dspex.engine.cli.terminal.terminal import Terminal
row = {"seq": 1, "node": "support-triage/classify", "run": "019b76da-aa58-7856-a3cc-200000000003", "message": "so bad " * 20}
Terminal().table([row], {"seq": "seq", "node": "node", "run": "run", "message": "message"}, wrap="message")
Terminal().table([row], {"seq": "seq", "node": "node", "run": "run", "message": "message"})
"""


def test_no_id_in_a_table_is_cut_on_a_narrow_terminal() -> None:
    shown = on_a_terminal(TABLE, COLUMNS="60")
    assert shown.count("019b76da-aa58-7856-a3cc-200000000003") == shown.count("support-triage/classify") == 2
    assert "…" not in shown


LIVE = """
from dspex.engine.cli.terminal.live import Block
from dspex.engine.cli.terminal.terminal import Terminal
row = {"node": "support-triage/classify", **{f"n{i}": 1234 + i for i in range(9)}}
with Terminal().live() as draw:
    draw([Block([row], {"node": "operator"} | {f"n{i}": f"count{i}" for i in range(9)})])
"""


@pytest.mark.parametrize("columns", ["40", "80", "200"])
def test_no_name_and_no_figure_of_the_live_view_is_cut_on_a_narrow_terminal(columns: str) -> None:
    shown = on_a_terminal(LIVE, COLUMNS=columns, NO_COLOR="1")
    assert "…" not in shown
    assert all(word in shown for word in ("support-triage/classify", "count8", "1242"))


def test_what_others_wrote_moves_no_cursor_and_adds_no_line(capsys: pytest.CaptureFixture[str]) -> None:
    evil, t = "a\x1b[2J\x9b31m\r\n\u2028\u202eb\x00\ud800", Terminal()
    written_out = r"a\x1b[2J\x9b31m\r\n\u2028\u202eb\x00\ud800"
    t.emit({}, evil)
    t.line(evil)
    t.table([{"run": evil, "data": {"k": "\x9b2J"}}], {"run": "run", "data": "data"})
    t.note(evil)
    out, err = capsys.readouterr()
    first, second, _, row = out.splitlines()
    assert [first, second, row.rstrip(), err] == [written_out] * 2 + [written_out + r'  {"k":"\u009b2J"}', written_out + "\n"]
    Terminal(verbosity=1).error(DspexError(evil, node=evil, fix=evil))
    t.problem(Problem("DX203", "error", evil, None, None, None, evil, evil))
    for text in capsys.readouterr():
        assert not [c for c in text if c != "\n" and not c.isprintable()]


def test_text_of_several_lines_in_any_script_is_printed_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    Terminal().error(DspexError("line 1\n\tline 2: שלום, naïve, 日本\u3000語, 👩\u200d🚀", code="DX900", fix="none"))
    assert capsys.readouterr().err == "error[DX900] line 1\n\tline 2: שלום, naïve, 日本\u3000語, 👩\u200d🚀\n  fix: none\n"


def test_with_json_control_characters_are_those_of_the_data(capsys: pytest.CaptureFixture[str]) -> None:
    evil = "\x1b[2J\n\x9b31m\x7f\u2028\u202eüb"
    Terminal(json=True).emit({"run": evil}, "not printed")
    out = capsys.readouterr().out
    assert json.loads(out) == {"v": 1, "run": evil}
    assert out.rstrip("\n").isprintable()
    assert "üb" in out


def test_logs_for_people_move_no_cursor() -> None:
    evil = 'structlog.get_logger("dspex").warning("e\\x1b[2Jv", run="a\\x1b]0;t\\x07\\nb", **{"\\x1b[2Jkey": 1})\n'
    assert r"e\x1b[2Jv" in (text := on_a_terminal(LOG + evil))
    assert r"a\x1b]0;t\x07\nb" in text
    assert r"\x1b[2Jkey" in text


def test_a_traceback_in_the_logs_for_people_moves_no_cursor_and_shows_no_data() -> None:
    evil = 'data = "secret"\ntry: raise ValueError("e\\x1bc\\x1b]0;t\\x07")\nexcept ValueError as e: '
    evil += 'structlog.get_logger("dspex").error("failed", exc_info=e)\n'
    assert r"ValueError: e\x1bc\x1b]0;t\x07" in (text := on_a_terminal(LOG + evil))
    assert "secret" not in text


def test_a_traceback_in_json_shows_no_data() -> None:
    code = 'data = "sec" + "ret"\ntry: 1 / 0\nexcept ArithmeticError as e: '
    code += 'structlog.get_logger("dspex").error("failed", exc_info=e)'
    process = subprocess.run([sys.executable, "-c", LOG + code], capture_output=True, text=True, check=True)
    assert "ZeroDivisionError" in (line := process.stderr.splitlines()[-1])
    assert json.loads(line)["message"] == "failed"
    assert "secret" not in line


def test_any_value_is_printed_as_one_line_of_json() -> None:
    assert to_json({"a": ValueError("x"), 1: datetime(2026, 1, 2, tzinfo=UTC)}) == '{"a":"x","1":"2026-01-02T00:00:00Z"}'


def test_colours_follow_the_option_and_no_color(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    Terminal(color="always").error(DspexError("x"))
    assert "\x1b[1;31merror[DX900]\x1b[0m" in capsys.readouterr().err
    Terminal().error(DspexError("x"))
    assert "\x1b" not in capsys.readouterr().err
    imports = "from dspex.bus.errors import DspexError; from dspex.engine.cli.terminal.terminal import Terminal"
    code = f"{imports}; Terminal().error(DspexError('x'))"
    assert "\x1b" in on_a_terminal(code, NO_COLOR="")
    assert "\x1b" not in on_a_terminal(code, NO_COLOR="1")


def test_progress_is_a_bar_on_a_terminal_and_a_line_elsewhere() -> None:
    drawn = on_a_terminal(BARS)
    assert "3/3" in drawn
    assert "━" in drawn
    told = off_a_terminal(BARS)
    assert told.startswith("publish  3/3  ")
    assert told.endswith("1 duplicate\n")


def test_a_long_job_prints_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(progress, "LINE_EVERY", 0.0)
    with Terminal().progress("replay") as bar:
        bar.advance()
        bar.advance(2)
    lines = [line.split()[:2] for line in capsys.readouterr().err.splitlines()]
    assert lines == [["replay", "1"], ["replay", "3"], ["replay", "3"]]


@pytest.mark.parametrize("silent", [Terminal(quiet=True), Terminal(bars=False)])
def test_no_progress_is_printed_where_none_is_wanted(silent: Terminal, capsys: pytest.CaptureFixture[str]) -> None:
    with silent.progress("x", 1) as bar:
        bar.advance()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("nobody", [Terminal(bars=False), Terminal(quiet=True), Terminal(json=True), Terminal()])
def test_nothing_is_drawn_in_place_where_nobody_looks_or_wants_it(
    nobody: Terminal, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if nobody != Terminal():  # that one has no terminal
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with nobody.live() as draw:
        assert draw is None
    assert capsys.readouterr() == ("", "")


def test_logs_are_json_lines_off_a_terminal_and_text_on_one() -> None:
    entries = [json.loads(line) for line in off_a_terminal(LOG).splitlines()]
    assert [(e["message"], e["level"], e["logger"]) for e in entries] == [
        ("hello", "info", "dspex.engine"),
        ("seen", "warning", "other"),
    ]
    assert entries[0]["stage"] == 1
    assert entries[0]["timestamp"].endswith("Z")
    text = on_a_terminal(LOG)
    assert "hello" in text
    assert not text.startswith("{")


def test_an_unknown_log_level_is_a_settings_error() -> None:
    handlers = list(logging.getLogger().handlers)
    try:
        with pytest.raises(ConfigError, match="no log level 'loud'") as caught:
            log.configure("info,dspex.engine=loud")
    finally:
        logging.getLogger().handlers[:] = handlers
        structlog.reset_defaults()
    assert caught.value.code == "DX121"
