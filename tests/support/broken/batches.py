"""The stand-in model server with a batch API, which is as slow and as unreliable as a test asks for.

A batch is "validating" at first, and answered when it is looked at, unless it is `held`. Its lines are answered as requests
are: by rule, with the faults that their texts ask for. What is asked of the API is counted in `asked`, by its name: upload,
create, get, list, content, cancel.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import re
from collections import Counter, defaultdict, deque
from dataclasses import dataclass, field
from typing import Any

from standin import Response, StandIn

_API = {
    ("POST", "/v1/files"): "upload",
    ("POST", "/v1/batches"): "create",
    ("GET", "/v1/batches"): "list",
}


@dataclass
class BatchServer(StandIn):
    """The server.

    Attributes:
        held: batches run on, and are not answered.
        ends: how the next batches end: "completed", "expired", "cancelled" or "failed"; when it is empty, completed.
        answered: of a batch that expires or is cancelled, how many lines are answered before.
        why: the code of the error of those that fail.
        refusing: by what is asked, the statuses that it answers in place of doing it, in turn; "lost": it does it, and closes
            the connection.
        lost: files whose content is gone: "output", "error".
        missing: lines that no file has, by their number.
        slow: by what is asked, when the server says that it has done it.
    """

    held: bool = False
    ends: deque[str] = field(default_factory=deque[str])
    answered: int = 0
    why: str = "invalid_request"
    refusing: dict[str, deque[str]] = field(default_factory=lambda: defaultdict(deque[str]))
    lost: set[str] = field(default_factory=set[str])
    missing: set[int] = field(default_factory=set[int])
    slow: dict[str, asyncio.Event] = field(default_factory=dict[str, asyncio.Event])
    asked: Counter[str] = field(default_factory=Counter[str])
    files: dict[str, bytes] = field(default_factory=dict[str, bytes])
    batches: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])

    def __post_init__(self) -> None:
        self._ids = itertools.count(1)

    @property
    def cancelled(self) -> list[str]:
        """Batches that somebody asked to cancel."""
        return [id for id, batch in self.batches.items() if batch["status"] == "cancelled"]

    def lines(self, id: str) -> list[str]:
        """The names of the requests in a batch."""
        return [json.loads(line)["custom_id"] for line in self.files[self.batches[id]["input_file_id"]].splitlines()]

    async def respond(self, method: str, path: str, body: bytes) -> Response | None:
        what = _API.get((method, path.partition("?")[0]), "")
        if not what and (found := re.fullmatch(r"/v1/(files|batches)/([^/]+)(?:/(content|cancel))?", path)):
            what = found[3] or "get"
        if not what:
            return await super().respond(method, path, body)
        self.asked[what] += 1
        refused = self.refusing[what].popleft() if self.refusing[what] else ""
        if refused.isdigit():
            error = {"error": {"message": f"the stand-in was asked for {refused}", "type": "standin", "code": refused}}
            return int(refused), json.dumps(error).encode(), {}
        status, said = await self._do(what, path, body)
        if what in self.slow:
            await self.slow[what].wait()
        return None if refused == "lost" else (status, said if isinstance(said, bytes) else json.dumps(said).encode(), {})

    async def _do(self, what: str, path: str, body: bytes) -> tuple[int, Any]:
        if what == "upload":
            file = re.search(rb'name="file".*?\r\n\r\n(.*)\r\n--', body, re.S)
            assert file is not None
            assert b'name="purpose"\r\n\r\nbatch' in body
            return 200, {"id": self._file(file[1]), "object": "file", "purpose": "batch"}
        if what == "create":
            return 200, self._create(json.loads(body))
        if what == "list":
            return 200, {"object": "list", "data": list(self.batches.values())[::-1], "has_more": False}
        id = path.split("/")[3]
        if what == "content":
            return (200, self.files[id]) if id in self.files else (404, {})
        if id not in self.batches:
            return 404, {}
        if what == "cancel":
            self.batches[id]["status"] = "cancelled"
        elif self.batches[id]["status"] == "validating":
            self.batches[id]["status"] = "in_progress"
            await self._failed(self.batches[id])
        elif self.batches[id]["status"] == "in_progress" and not self.held:
            await self._finish(self.batches[id])
        return 200, self.batches[id]

    def _file(self, data: bytes, name: str = "file") -> str:
        id = f"{name}-{next(self._ids)}"
        self.files[id] = data
        return id

    def _create(self, asked: dict[str, Any]) -> dict[str, Any]:
        assert asked["completion_window"] == "24h"
        assert asked["endpoint"] == "/v1/chat/completions"
        assert asked["input_file_id"] in self.files
        total = len(self.files[asked["input_file_id"]].splitlines())
        counts = {"total": total, "completed": 0, "failed": 0}
        batch = {"id": f"batch-{next(self._ids)}", "object": "batch", "status": "validating", "request_counts": counts, **asked}
        self.batches[batch["id"]] = batch
        return batch

    async def _failed(self, batch: dict[str, Any]) -> None:
        if self.ends and self.ends[0] == "failed":
            batch["status"] = self.ends.popleft()
            batch["errors"] = {"object": "list", "data": [{"code": self.why, "message": f"the stand-in says {self.why}"}]}

    async def _finish(self, batch: dict[str, Any]) -> None:
        end = self.ends.popleft() if self.ends else "completed"
        good, bad = list[str](), list[str]()
        for number, text in enumerate(self.files[batch["input_file_id"]].decode().splitlines()):
            line = json.loads(text)
            assert (line["method"], line["url"]) == ("POST", "/v1/chat/completions")
            said: dict[str, Any] = {"id": f"line-{number}", "custom_id": line["custom_id"], "response": None, "error": None}
            if end in ("expired", "cancelled") and number >= self.answered:
                bad.append(json.dumps({**said, "error": {"code": f"batch_{end}", "message": "it was not asked"}}))
                continue
            response = await self._complete(line["body"])
            assert response is not None
            assert isinstance(response[1], bytes)
            said["response"] = {"status_code": response[0], "body": json.loads(response[1])}
            if number not in self.missing:
                (good if response[0] == 200 else bad).append(json.dumps(said))
        for name, lines in (("output", good), ("error", bad)):
            if lines:
                batch[f"{name}_file_id"] = self._file("\n".join(lines).encode() + b"\n", name)
                if name in self.lost:
                    del self.files[batch[f"{name}_file_id"]]
        batch["request_counts"] |= {"completed": len(good), "failed": len(bad)}
        batch["status"] = end
