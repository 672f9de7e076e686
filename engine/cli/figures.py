"""What `status` and `run` show of an application, as tables: engines, stages, operators, letters that wait, pools."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, cast

from dspex.bus.settings.duration import human
from dspex.engine.cli.terminal.client import count
from dspex.engine.cli.terminal.live import Block

if TYPE_CHECKING:
    from dspex.engine.client.status.limits import LimitRow
    from dspex.engine.client.status.routes import LmRow, RouteRow
    from dspex.engine.client.status.rows import EngineRow, LetterRow, OperatorRow, PoolRow, StageReport, StageRow, Status


def blocks(found: Status, *, routes: bool = False) -> list[Block]:
    """All that there is to show of what runs. `routes`: models that are well, what they are asked a minute, and which way calls
    went, too.
    """
    made = [_stages(found["stages"]), _operators(found["operators"]), _letters(found["letters"]), _pools(found["pools"])]
    made += [times(found["operators"]), _batches(found["pools"])]
    made += [_lms([row for row in found["lms"] if routes or row["breaker"] != "closed"])]
    made += [_routes(found["routes"])] if routes else []
    made += [_limits([row for row in found["limits"] if routes or row["most"] is not None or row["what"] == "cost"])]
    return [block for block in made if block.rows]


def engines(rows: Sequence[EngineRow]) -> Block:
    """The engines, and whether they are alive and well."""
    shown = [
        {
            "engine": e["engine"],
            "state": _state(e),
            "seen": f"{e['age']:.0f} s ago",
            "topologies": ", ".join(e["topologies"]),
            "commits": e["commits"],
            "waits": e["full"],
        }
        for e in rows
    ]
    columns = {"engine": "engine", "state": "state", "seen": "seen", "topologies": "topologies", "commits": "commits"}
    return Block(shown, columns | ({"waits": "waits for"} if any(r["waits"] for r in shown) else {}))


def _state(engine: EngineRow) -> str:
    health = engine.get("health", "ok")  # an older engine does not report it
    if not engine["alive"]:
        return "silent"
    return "running" if health == "ok" else health


def _stages(stages: Sequence[StageRow]) -> Block:
    rows = [
        {
            "stage": f"{s['topology']}/{s['stage']}",
            "source": f"{s['source']} (dropped)" if s["dropped"] else s["source"],
            "events": f"{s['events']:,}",
            "rate": "" if s["rate"] is None else f"{s['rate']:g}/s",
            "lag": "" if s["dropped"] else "?" if s["lag"] is None else f"{s['lag']:,}",
            "oldest": _time(s["oldest"]),
            "open": f"{s['open_calls']:,}",
            "put_off": f"{s['put_off']:,}" if s["put_off"] else "",
            "owner": _owner(s),
        }
        for s in stages
    ]
    columns = {"stage": "stage", "source": "source", "lag": "lag", "oldest": "oldest", "rate": "rate", "events": "events"}
    later = {"put_off": "put off"} if any(r["put_off"] for r in rows) else {}
    remarks = tuple(remark for s in stages for remark in _gates(s))
    return Block(rows, columns | {"open": "open calls"} | later | {"owner": "owner"}, remarks)


FULL = "engine.max_open_calls"
LONG = 60.0  # seconds by which a watermark is held that people are told of: every open call holds it
WAITS = {
    "table": "which a lookup reads to its end first",
    "behind": "which is far behind in event time (engine.align)",
    "unread": "behind which too much is not read yet",
}


def _gates(s: StageRow) -> Iterator[str]:
    """Who keeps a stage from admitting events, and windows from ending."""
    name, gate = f"{s['topology']}/{s['stage']}", s["gate"]
    if s["full"] and gate is not None:
        pools = ", ".join(f"{number:,} of pool {pool}" for pool, number in sorted(gate["calls"].items()))
        held = f"{count(gate['open_calls'], 'open call')}{f' ({pools})' if pools else ''}"
        later = f" and {count(gate['put_off'], 'put-off event')}" if gate["put_off"] else ""
        yield f"{name}: {s['full']} of {s['partitions']} partitions admit no event: {held}{later} ({FULL})"
    if gate is not None and gate["stream"]:
        yield f"{name}: {gate['stream']}"
    for source, why in (gate["sources"] if gate is not None else {}).items():
        yield f"{name}: {s['source']} waits for {source}, {WAITS.get(why, why)}"
    for node, waiting in s["approvals"].items():
        wait = "waits" if waiting == 1 else "wait"
        yield f"{name}: {count(waiting, 'event')} at {node} {wait} for a person: dspex approvals ls"
    for node, behind in s["holds"].items():
        if behind >= LONG:
            yield f"{name}: {node} holds the watermark {human(behind)} behind: open calls, or events that wait"


def _owner(s: StageRow) -> str:
    if s["stopped"]:
        return f"STOPPED: {s['stopped']}"
    if not s["owners"]:
        return "no owner"
    rest = f"AT REST for dspex apply --backfill until {s['rests_until']} at the latest; " if s["rests_until"] else ""
    until = f" until {s['paused_until']}" if s["paused_until"] else ""
    paused = f"PAUSED{until}; " if s["paused"] else ""
    unowned = f" ({s['unowned']} of {s['partitions']} partitions have no owner)" if s["unowned"] else ""
    return rest + paused + ", ".join(s["owners"]) + unowned


def _lms(lms: Sequence[LmRow]) -> Block:
    rows = [
        {
            "model": f"lm.{row['lm']}" if "lm" in row else row.get("program", ""),
            "breaker": row["breaker"],
            "again": f"in {row['retry_after']:.1f} s" if row["breaker"] == "open" else "",
            "calls": f"{row['calls']:,}",
            "errors": f"{row['errors']:,}",
            "p50": _time(row["p50"]),
            "p95": _time(row["p95"]),
        }
        for row in lms
    ]
    names = ("model", "breaker", "again", "calls", "errors", "p50", "p95")
    return Block(rows, {name: name for name in names if name != "again" or any(row["again"] for row in rows)})


def _routes(routes: Sequence[RouteRow]) -> Block:
    rows = [
        {
            "calls of": f"{row['topology']}/{row['node']}" if row["topology"] else "no topology",
            "route": row["route"],
            "model": f"lm.{row['lm']}" if row["lm"] else "",
            "reason": row["reason"],
            "count": f"{row['calls']:,}",
        }
        for row in routes
    ]
    return Block(rows, {name: name for name in ("calls of", "route", "model", "reason", "count")})


def _operators(operators: Sequence[OperatorRow]) -> Block:
    names = ("events", "calls", "errors", "retries", "fallbacks")
    rows = [
        {
            "operator": f"{o['topology']}/{o['node']}",
            **({name: f"{counts[name]:,}" for name in names} if o["pool"] else {}),
            "p50": _time(o["p50"]),
            "tokens": f"{tokens:,}" if (tokens := o["input_tokens"] + o["output_tokens"]) else "",
            "cost": "" if o["cost"] is None else f"${o['cost']:.4f}",
            "dead": f"{o['dead_letters']:,}" if o["dead_letters"] else "",
        }
        for o in operators
        for counts in [cast("Mapping[str, int]", o)]
        if o["pool"] or o["dead_letters"] or "seconds" not in o
    ]
    columns = {"operator": "operator"} | {name: name for name in (*names, "p50", "tokens", "cost")}
    return Block(rows, columns | {"dead": "given up"}, tuple(_remarks(operators)))


def times(operators: Sequence[OperatorRow]) -> Block:
    """What each operator took in the engines, where that is measured; the longest first."""
    found = sorted((o for o in operators if o.get("handled") or o.get("seconds")), key=lambda o: -o.get("seconds", 0.0))
    total = sum(o.get("seconds", 0.0) for o in found)
    rows = [
        {
            "operator": f"{o['topology']}/{o['node']}",
            "handled": f"{o.get('handled', 0):,}",
            "time": _time(seconds),
            "each": f"{seconds / handled * 1e6:,.1f} µs" if (handled := o.get("handled", 0)) else "",
            "share": f"{seconds / total:.1%}" if total else "",
        }
        for o in found
        for seconds in [o.get("seconds", 0.0)]
    ]
    return Block(rows, {"operator": "operator", "handled": "events", "time": "time", "each": "each", "share": "share"})


def _remarks(operators: Sequence[OperatorRow]) -> Iterator[str]:
    """What figures do not say."""
    for o in operators:
        name = f"{o['topology']}/{o['node']}"
        if o["fallbacks"]:
            often = f"{o['fallbacks']:,} of {count(o['events'], 'event')}"
            yield f"{name} fell back for {often}, the last time because of {o['why'] or 'no reason given'}"
        if o.get("order") == "key":
            n = o.get("keyless", 0)
            without = f": {n:,} of {o['events']:,} had none, and those wait for each other ({GIVE_A_KEY})" if n else ""
            yield f"{name} keeps results in the order of the events' keys{without}"


GIVE_A_KEY = "dspex publish --key gives one"


def _letters(letters: Sequence[LetterRow]) -> Block:
    rows = [
        {
            "letters": f"{row['count']:,}",
            "operator": f"{row['topology']}/{row['node']}" if row["topology"] else "more, of which the reasons were not read",
            "reason": row["reason"] or "",
            "code": row["code"] or "",
            "oldest": _time(row["oldest"]),
        }
        for row in letters
    ]
    return Block(rows, {"letters": "dead letters", "operator": "of", "reason": "reason", "code": "code", "oldest": "oldest"})


def _pools(pools: Sequence[PoolRow]) -> Block:
    rows = [
        {
            "pool": p["pool"],
            "id": p["id"] or "not running",
            "ready": f"{p['ready']}/{p['size']}" if p["id"] else "",
            "busy": f"{p['busy']}/{p['slots'] * p['ready']}" if p["id"] else "",
            "restarts": p["restarts"] if p["id"] else None,
            "served": p.get("served"),
            "dspy": p.get("dspy_version"),
            "state": "failed" if p.get("failed") else "draining" if p.get("draining") else "",
        }
        for p in pools
    ]
    columns = {"pool": "pool", "id": "id", "ready": "ready", "busy": "busy slots", "restarts": "restarts", "served": "served"}
    return Block(rows, columns | {"dspy": "dspy", "state": ""})


def _batches(pools: Sequence[PoolRow]) -> Block:
    rows = [
        {
            "batch": row["id"] or "not made yet",
            "lm": f"lm.{row['lm']}",
            "pool": pool["pool"],
            "status": row["status"],
            "done": f"{row['done']:,} of {row['of']:,}" if row["of"] else "",
            "calls": f"{row['calls']:,}",
        }
        for pool in pools
        for row in pool.get("batches", [])
    ]
    columns = {"batch": "batch", "lm": "model", "pool": "pool", "status": "status", "done": "answered"}
    return Block(rows, columns | {"calls": "calls that wait"})


_PER = {1: "second", 60: "minute", 3600: "hour", 86400: "day"}


def _limits(limits: Sequence[LimitRow]) -> Block:
    rows = [
        {
            "of": _of_limit(row),
            "what": {"cost": "USD", "concurrent": "at once"}.get(row["what"], row["what"]),
            "used": _amount(row["used"]),
            "reserved": _amount(row["reserved"]) if row["reserved"] else "",
            "left": "" if row["left"] is None else f"{_amount(row['left'])} of {_amount(row['most'])}",
            "per": "run" if row["run"] else _PER.get(int(row["per"]), ""),
            "anew": "" if row["ends"] is None or row["left"] is None else human(row["ends"]),
        }
        for row in limits
    ]
    columns = {"of": "limits", "what": "of", "used": "used", "reserved": "reserved", "left": "left", "per": "per"}
    return Block(rows, columns | {"anew": "anew in"})


def _of_limit(row: LimitRow) -> str:
    if row["lm"] is not None:
        return f"lm.{row['lm']}"
    whose = row["tenant"] or (row["run"] or "")[-8:]
    return f"budgets.{row['budget']}{f' ({whose})' if whose else ''}"


def _amount(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.4g}"


def _time(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else human(seconds)


def logged(stage: StageReport) -> dict[str, object]:
    """What is logged of a stage when it has changed."""
    return {
        "topology": stage["topology"],
        "stage": stage["stage"],
        "events": stage["events"],
        "open_calls": sum(p["open_calls"] for p in stage["partitions"]),
        "partitions": len(stage["partitions"]),
        "dead_letters": stage["dead_letters"],
        "fallbacks": stage.get("fallbacks", 0),
        "stopped": stage["stopped"],
    }
