"""Functions that enrich, which the tests run in real workers. Nothing here needs DSPy."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import sys
from dataclasses import dataclass
from datetime import date
from typing import Any

import aiohttp
from pydantic import BaseModel

from dspex.bus.errors import RetryLater
from dspex.workers import context


class Account(BaseModel):
    customer: str
    since: date
    database: str


@dataclass
class Balance:
    balance: float
    since: date


async def customer(data: dict[str, Any]) -> dict[str, Any]:
    """What the shop's service says, over HTTP."""
    async with aiohttp.ClientSession() as session, session.get(data["url"]) as reply:
        if reply.status == 503:
            raise RetryLater("the shop is closed", after=float(reply.headers["Retry-After"]))
        return {"customer": await reply.json(), "call": context().call}


async def balance(account: Account) -> Balance:
    """What a database says. It blocks, so it runs in a thread."""
    return await asyncio.to_thread(_balance, account)


def _balance(account: Account) -> Balance:
    with sqlite3.connect(account.database) as database:
        (found,) = database.execute("SELECT balance FROM accounts WHERE customer = ?", [account.customer]).fetchone()
    return Balance(found, account.since)


class Meeting:
    """An object with an async call: four calls go on when they run at the same time. It says how many did, at most."""

    running = most = 0
    met = asyncio.Barrier(4)

    async def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        self.running += 1
        self.most = max(self.most, self.running)
        await self.met.wait()
        self.running -= 1
        return {"most": self.most}


meeting = Meeting()


async def nothing(data: dict[str, Any]) -> None: ...


async def unsendable(data: dict[str, Any]) -> dict[str, Any]:
    return {"found": object()}


async def raises(data: dict[str, Any]) -> dict[str, Any]:
    raise LookupError(f"nobody is called {data['name']}")


def blocks(data: dict[str, Any]) -> dict[str, Any]:
    return {}


async def imported(data: dict[str, Any]) -> dict[str, Any]:
    return {"dspy": "dspy" in sys.modules}


async def ends_its_process(data: dict[str, Any]) -> dict[str, Any]:
    os._exit(3)


async def hangs(data: dict[str, Any]) -> dict[str, Any]:
    """It never ends by itself."""
    return await asyncio.get_running_loop().create_future()
