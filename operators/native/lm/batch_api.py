"""A client of OpenAI's batch API: requests go to the server as a file, and their answers come in another one, within a day."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Literal, Self, TypeAlias, cast
from urllib.parse import quote, urlencode

import orjson

from dspex.bus.errors import CallError, LMRefused, LMUnavailable, NoBatchAnswer
from dspex.operators.native.lm.completion import Completion, read
from dspex.operators.native.lm.endpoint import Endpoint
from dspex.operators.native.lm.provider_errors import of_body, of_status, word

KEY: Final = "dspex"  # of the metadata of a batch, under which what was drawn for it lies
URL: Final = "/v1/chat/completions"
WITHIN: Final = 120.0  # seconds for one request: files are large
PAGE: Final = 100  # batches in one page of the list
PAGES: Final = 20  # that are looked through: the latest come first
FULL: Final = ("token_limit_exceeded", "rate_limit_exceeded")  # errors of a batch that may be made again later
BatchState: TypeAlias = Literal["new", "runs", "over", "full", "failed"]
_STATES: Final[Mapping[str, BatchState]] = {
    "validating": "new",
    "completed": "over",
    "expired": "over",
    "cancelled": "over",
    "failed": "failed",
}
_UNASKED: Final = ("batch_expired", "batch_cancelled")  # of a line: its request was never made


@dataclass(frozen=True)
class ProviderBatch:
    """A batch as its provider tells of it.

    Attributes:
        state: "new": it is not looked at yet. "over": it has the answers that it will ever have. "full": there is no room
            for it now.
        status: the provider's word. why: it failed; "" where it did not.
        files: with answers and errors. total: its requests; 0: not known yet. done: those that are answered.
    """

    id: str
    state: BatchState
    status: str = ""
    why: str = ""
    files: tuple[str, ...] = ()
    total: int = 0
    done: int = 0

    @classmethod
    def read(cls, raw: Mapping[str, object], where: str) -> Self:
        """A batch as its provider wrote it. Raises LMUnavailable for what is none."""
        id, status = word(raw.get("id")), word(raw.get("status"))
        if not id or not status:
            raise LMUnavailable(f"{where} answered with something that is no batch")
        why, codes = _errors(raw.get("errors"))
        state: BatchState = _STATES.get(status, "runs")
        if state == "failed" and codes & set(FULL):
            state = "full"
        files = tuple(name for key in ("output_file_id", "error_file_id") if (name := word(raw.get(key))))
        counts = raw.get("request_counts")
        told = cast("Mapping[str, object]", counts) if isinstance(counts, dict) else {}
        total, done = _count(told.get("total")), _count(told.get("completed")) + _count(told.get("failed"))
        return cls(id, state, status[:40], why, files, total, done)


class BatchApi:
    """The batches of one server."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint

    async def upload(self, lines: Iterable[bytes]) -> str:
        """Send a file of requests; its id. Raises LMRefused where the server has no such API, and what an endpoint raises."""
        boundary = os.urandom(16).hex()
        head = [
            f'--{boundary}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n',
            f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="dspex.jsonl"\r\n',
            "Content-Type: application/jsonl\r\n\r\n",
        ]
        body = b"".join(["".join(head).encode(), b"\n".join(lines), f"\n\r\n--{boundary}--\r\n".encode()])
        kind = f"multipart/form-data; boundary={boundary}"
        return self._id(await self._endpoint.fetch("POST", "/files", body, kind=kind, timeout=WITHIN))

    async def create(self, file: str, key: str) -> ProviderBatch:
        """Make a batch of the requests in a file. `key`: by which it is found again. Raises as `upload`."""
        asked = {"input_file_id": file, "endpoint": URL, "completion_window": "24h", "metadata": {KEY: key}}
        body = await self._endpoint.fetch("POST", "/batches", orjson.dumps(asked), timeout=WITHIN)
        return ProviderBatch.read(self._object(body), self._endpoint.where)

    async def get(self, id: str) -> ProviderBatch | None:
        """A batch; None where the server knows none of this id. Raises what an endpoint raises."""
        body = await self._endpoint.fetch("GET", f"/batches/{quote(id, safe='')}", timeout=WITHIN)
        return None if body is None else ProviderBatch.read(self._object(body), self._endpoint.where)

    async def find(self, key: str) -> ProviderBatch | None:
        """The last batch that was made with this key, unless it failed. Raises as `upload`."""
        after: dict[str, str] = {}
        for _ in range(PAGES):
            path = f"/batches?{urlencode({'limit': PAGE, **after})}"
            if (body := await self._endpoint.fetch("GET", path, timeout=WITHIN)) is None:
                return None  # a server that lists none
            page = self._object(body)
            found = _objects(page.get("data"))
            for raw in found:
                data = raw.get("metadata")
                if isinstance(data, dict) and cast("Mapping[str, object]", data).get(KEY) == key:
                    batch = ProviderBatch.read(raw, self._endpoint.where)
                    if batch.state not in ("failed", "full"):
                        return batch
            if not found or page.get("has_more") is not True:
                break
            after = {"after": word(found[-1].get("id"))}
        return None

    def answers(self, file: str) -> AsyncGenerator[bytes, None]:
        """The lines of a file with answers. Raises FileNotFoundError, and what an endpoint raises."""
        return self._endpoint.lines(f"/files/{quote(file, safe='')}/content", timeout=WITHIN)

    async def cancel(self, id: str) -> None:
        """Have a batch made no further. Raises what an endpoint raises."""
        await self._endpoint.fetch("POST", f"/batches/{quote(id, safe='')}/cancel", b"{}", timeout=WITHIN)

    def read(self, line: Mapping[str, object]) -> Completion | CallError:
        """What one line of a file with answers says."""
        where = self._endpoint.where
        if error := line.get("error"):
            told = of_body(error, where)
            code = word(cast("Mapping[str, object]", error).get("code")) if isinstance(error, dict) else ""
            return NoBatchAnswer(told.message) if code in _UNASKED else told
        response = line.get("response")
        found = cast("Mapping[str, object]", response) if isinstance(response, dict) else {}
        status = found.get("status_code")
        try:
            body = orjson.dumps(found.get("body"))
        except TypeError:  # nested too deeply to be written again
            return LMUnavailable(f"{where} answered with something that is no completion")
        try:
            return (
                read(body, where) if status == 200 else of_status(status if isinstance(status, int) else 500, body, {}, where)
            )
        except CallError as error:
            return error

    def _object(self, body: bytes | None) -> Mapping[str, object]:
        if body is None:
            raise LMRefused(f"{self._endpoint.where} has no batch API", fix='leave out lane="batch", or name another profile')
        try:
            found = orjson.loads(body)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise LMUnavailable(f"{self._endpoint.where} answered with something that is no JSON object")
        return cast("Mapping[str, object]", found)

    def _id(self, body: bytes | None) -> str:
        if id := word(self._object(body).get("id")):
            return id
        raise LMUnavailable(f"{self._endpoint.where} answered without an id")


def request_line(name: str, body: bytes) -> bytes:
    """A line of a file of requests. `body`: of the request, as JSON."""
    return b'{"custom_id":%b,"method":"POST","url":"%b","body":%b}' % (orjson.dumps(name), URL.encode(), body)


def _count(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 31 else 0


def _objects(value: object) -> list[Mapping[str, object]]:
    listed = cast("list[object]", value) if isinstance(value, list) else []
    return [cast("Mapping[str, object]", one) for one in listed if isinstance(one, dict)]


def _errors(raw: object) -> tuple[str, set[str]]:
    """What a batch says of why it failed, and the codes of that."""
    found = _objects(cast("Mapping[str, object]", raw).get("data")) if isinstance(raw, dict) else []
    return (word(found[0].get("message"))[:300] if found else ""), {word(e.get("code")) for e in found}
