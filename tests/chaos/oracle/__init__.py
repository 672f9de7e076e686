"""The oracle: knows what went in, reads what came out, and says what is wrong. It trusts nothing that an engine says.

    ledger = Ledger(events)             # counts while the run goes on: ledger.take(message), ledger.missing
    report = judge(app, events, stored, heard, facts)

`stored` is every message of the application stream as a durable reader sees it; `heard` is what a core NATS subscriber saw of
the sinks; `facts` is what somebody beside the engines knows. Each promise is a check in checks.py.
"""

from __future__ import annotations

from oracle.case import Case, Facts
from oracle.ledger import Ledger, Violation
from oracle.report import Report, judge

__all__ = ["Case", "Facts", "Ledger", "Report", "Violation", "judge"]
