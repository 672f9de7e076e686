"""What a request says about the form of the answer is what DSPy's JSONAdapter sends: seen by a real server on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import json
import warnings
from typing import Any, Optional

import corpus
import pytest
import standin
from pydantic import BaseModel, Field

from dspex.operators.native.lm.response_format import response_format
from dspex.operators.native.signature import Signature


class Report(BaseModel):
    """Objects in objects, by reference, with defaults, and one that holds itself."""

    again: Report | None = None
    counts: dict[str, int] = {}
    where: Optional[corpus.Address] = Field(None, description="may be unknown")  # noqa: UP045
    home: corpus.Address = Field(corpus.Address(street="s"), description="with siblings of a reference")
    parts: list[corpus.Person] = Field([], max_length=3)
    kind: corpus.Color = corpus.Color.RED
    note: str | None = None
    more: Any = None


class Loop(BaseModel):
    """A reference to itself beside a description, which would be written out without end."""

    again: Loop = Field(None, description="x")


TYPES = {**corpus.TYPES, "Report": Report, "Loop": Loop}
SIGNATURES = [
    "q -> a",
    "q -> z: int, a: float, m: bool, text",
    "q -> a: list[str], b: list[Person], c: Optional[Person], d: Literal['x', 'é', 3]",
    "q -> a: Report, b: list[Report]",
    "q -> a: tuple[int, str], b: set[int], c: Any, d: list, e: int | str | None",
    "q -> a: Color, b: Level, c: Point, d: Movie, e: Node, f: Decimal, g: UUID, h: bytes",
    "q -> a: Annotated[int, Field(ge=1, le=5)]",
    "q -> a: dict, b: Optional[dict[str, int]], c: list[dict[str, Person]]",
    "q -> a: dict[str, int], b: str",
]


class Listener(standin.StandIn):
    """Keeps the body of the last request."""

    last: dict[str, Any]

    async def respond(self, method: str, path: str, body: bytes) -> Any:
        self.last = json.loads(body)
        return await super().respond(method, path, body)


@pytest.fixture(scope="module")
def local(dspy) -> Any:
    """Models called `local/…` hold to a JSON Schema."""
    lm15 = dspy.lm15
    access = lm15.AccessPolicy(
        provider="local", supports=lm15.EndpointSupport(complete=True, stream=True), base_url="http://127.0.0.1/v1"
    )
    definition = lm15.ProviderDefinition.chat(access, compat=lm15.OpenAIChatCompat(), placeholder_key="none")
    with contextlib.suppress(ValueError):  # the tests of the workers declare it too
        lm15.register_provider(definition, supports=lm15.ModelSupport(response_schema=True))
    return dspy


async def sent(dspy: Any, texts: list[str]) -> list[Any]:
    """What DSPy sends as response_format for each signature."""
    found = []
    async with Listener() as server:
        lm = dspy.LM("local/x", api_base=server.url, cache=False, num_retries=0)
        for text in texts:
            server.last = {}
            names = {n: t for n, t in TYPES.items() if n in text}
            signature = dspy.Signature(text, "x", custom_types=names or None)
            with dspy.context(lm=lm, adapter=dspy.JSONAdapter()), contextlib.suppress(dspy.utils.exceptions.AdapterParseError):
                await asyncio.wait_for(dspy.Predict(signature).acall(q="x"), 30)
            found.append(server.last["response_format"])
    return found


@pytest.mark.asyncio
async def test_the_schema_is_what_a_server_gets_from_dspy_in_the_same_order(local):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wanted = await sent(local, SIGNATURES)
    for text, body in zip(SIGNATURES, wanted, strict=True):
        assert json.dumps(response_format(Signature(text, types=TYPES))) == json.dumps(body), text


def test_an_output_with_any_keys_requests_any_json_object():
    assert response_format(Signature("q -> a: dict[str, int], b")) == {"type": "json_object"}


def test_a_recursive_or_missing_schema_requests_any_json_object():
    for kind in ("Loop", "Strange"):
        types = {**TYPES, "Strange": BaseModel.__class__}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert response_format(Signature(f"q -> a: {kind}", types=types)) == {"type": "json_object"}


def test_the_response_format_of_a_signature_is_made_once():
    s = Signature("q -> a")
    assert response_format(s) is response_format(s)
