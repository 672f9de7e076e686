"""Predict and ChainOfThought without DSPy: inputs → prompt → one request → the reply's fields.

The request is the one that DSPy would send, so the answer is the one that DSPy would get. `why_not_native` tells where that
is not known.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, ClassVar

import orjson

from dspex.bus.errors import InvalidInput, InvalidOutput
from dspex.bus.records import Usage
from dspex.operators.native import adapters
from dspex.operators.native.adapters import Adapter
from dspex.operators.native.fields.fields import NOTHING, Values
from dspex.operators.native.lm.completion import Completion
from dspex.operators.native.lm.endpoint import Endpoint
from dspex.operators.native.lm.native_support import LOCAL, REASONING, body_params, model_name, own_server, why_not_native
from dspex.operators.native.lm.openai_models import json_mode
from dspex.operators.native.problems import listed, problem
from dspex.operators.native.prompts.versions import version_of
from dspex.operators.native.signature import Signature, as_signature

_JSON_OBJECT = {"type": "json_object"}


@dataclass(frozen=True, slots=True)
class Prediction:
    """The result of a prediction.

    Attributes:
        outputs: typed, by name, in the order of the signature.
        usage: tokens of all attempts. text: the last reply of the model, unchanged.
        attempts: 2 where the first reply could not be read. model: the server's name of it.
    """

    outputs: Values
    usage: Usage
    text: str
    attempts: int = 1
    model: str = ""

    def __getitem__(self, name: str) -> Any:
        return self.outputs[name]


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of a field's text, as it arrives."""

    field: str
    text: str


def _ignore(answer: Completion) -> None:
    """Do nothing: the caller does not want to know each reply."""


class Predict:
    """A signature that a model fills in (`dspy.Predict`): `await predict(text="…")`. Serves any number of calls at a time.

    Args:
        signature: text, a Signature, or a dspy.Signature class.
        endpoint: the model's server; the caller closes it.
        model: its name in DSPy: "openai/gpt-4.1-mini"; "local/…" for a server that follows a JSON Schema.
        adapter: "chat", "json" or "xml".
        demos: examples, with inputs and outputs by name.
        params: temperature, max_tokens, top_p, stop, seed, frequency_penalty, presence_penalty.
        version: the version of DSPy whose requests are sent, "3.4"; None: the newest known one.

    Raises TopologyError: DX236 for a call that only DSPy can answer; DX209 and DX210 for the signature.
    """

    kind: ClassVar[str] = "predict"

    def __init__(
        self,
        signature: object,
        endpoint: Endpoint,
        *,
        model: str,
        adapter: Adapter = "chat",
        demos: Sequence[Mapping[str, object]] = (),
        params: Mapping[str, object] = NOTHING,
        version: str | None = None,
    ) -> None:
        given = as_signature(signature)
        own = own_server(endpoint.base_url)
        if why := why_not_native(self.kind, given, adapter, model, params, own_server=own, version=version):
            raise problem("DX236", f"native {self.kind} cannot answer: {why}", "ask DSPy")
        self.signature = self._extended(given)
        self._endpoint, self._version = endpoint, version
        self._adapter: Adapter = adapter
        self._demos = tuple(demos)
        self._needed = [f.name for f in self.signature.inputs.values() if f.required]
        self._constant = {"model": model_name(model), **body_params(params, version), **self._format(model)}
        self._end = b"," + orjson.dumps(self._constant)[1:]

    def _extended(self, signature: Signature) -> Signature:
        return signature

    def _format(self, model: str) -> dict[str, object]:
        """`response_format` of the request, as the JSON adapter chooses it for the model."""
        mode = "schema" if model.startswith(LOCAL) else json_mode(model_name(model) or "")
        if mode is None and not version_of(self._version).own_client:
            mode = "object"  # LiteLLM takes every server for one that knows this
        if self._adapter != "json" or mode is None:
            return {}
        if mode == "object":
            return {"response_format": _JSON_OBJECT}
        from dspex.operators.native.lm.response_format import response_format

        return {"response_format": response_format(self.signature)}

    async def __call__(self, /, **inputs: object) -> Prediction:
        """The prediction. After a reply that cannot be read, the request is sent once more.

        Raises InvalidInput: an input is missing or cannot be sent. InvalidOutput: the second reply too is cut or does not fit.
        RateLimited, LMRefused, LMUnavailable, CallTimeout: from the endpoint.
        """
        return await self.ask(inputs)

    async def ask(
        self,
        inputs: Mapping[str, object],
        *,
        timeout: float | None = None,
        retry: bool = True,
        heard: Callable[[Completion], None] = _ignore,
    ) -> Prediction:
        """The prediction, as by calling the object.

        Args:
            timeout: seconds for each request.
            retry: whether to send the request once more after a reply that cannot be read.
            heard: called with each reply, also with one that cannot be read.
        """
        body = self.body(inputs)
        answer = await self._endpoint.complete(body, timeout)
        heard(answer)
        try:
            return Prediction(self.outputs(answer), answer.usage, answer.text, 1, answer.model)
        except InvalidOutput:
            if not retry:
                raise
        again = await self._endpoint.complete(body, timeout)
        heard(again)
        return Prediction(self.outputs(again), answer.usage + again.usage, again.text, 2, again.model)

    async def stream(self, /, **inputs: object) -> AsyncIterator[Piece | Prediction]:
        """Pieces of the outputs as they arrive, and last the prediction. Closing the iterator closes the request.

        After a reply that cannot be read, the request is not sent again: the caller has seen the pieces. Raises what a call
        raises.
        """
        async with aclosing(self._pieces(inputs, None, _ignore)) as pieces:
            async for piece in pieces:
                yield piece

    async def told(
        self,
        inputs: Mapping[str, object],
        tell: Callable[[str, str], None],
        *,
        timeout: float | None = None,
        heard: Callable[[Completion], None] = _ignore,
    ) -> Prediction:
        """`stream` for who wants to be called: `tell` gets each piece, as (field, text). Returns the prediction.

        Args:
            timeout: seconds for the request.
            heard: called with the reply, also with one that cannot be read.
        """
        found: Prediction | None = None
        async with aclosing(self._pieces(inputs, timeout, heard)) as pieces:
            async for piece in pieces:
                if isinstance(piece, Prediction):
                    found = piece
                else:
                    tell(piece.field, piece.text)
        assert found is not None, "the last piece is the prediction"
        return found

    async def _pieces(
        self, inputs: Mapping[str, object], timeout: float | None, heard: Callable[[Completion], None]
    ) -> AsyncGenerator[Piece | Prediction, None]:
        from dspex.operators.native.replies.streaming import Splitter

        splitter = Splitter(self.signature.outputs, self._adapter)
        answer = Completion("")
        async with aclosing(self._endpoint.stream(self.body(inputs), timeout)) as parts:
            async for part in parts:
                if isinstance(part, Completion):
                    answer = part
                    break
                for name, text in splitter.feed(part):
                    yield Piece(name, text)
        heard(answer)
        for name, text in splitter.finish():
            yield Piece(name, text)
        yield Prediction(self.outputs(answer), answer.usage, answer.text, 1, answer.model)

    def body(self, inputs: Mapping[str, object]) -> bytes:
        """The request as JSON. Raises InvalidInput: an input is missing, or has a lone surrogate in it."""
        for name in self._needed:
            if name not in inputs:
                raise self._missing(inputs)
        predicted = inputs.get("prediction")
        if isinstance(predicted, dict) and predicted.get("type") == "content":
            message = "prediction: DSPy takes a value with type: content for a parameter of the model"
            raise InvalidInput(message, fix='call it with route="worker", or give text')
        messages = adapters.messages(self.signature, inputs, adapter=self._adapter, demos=self._demos, version=self._version)
        try:
            return b'{"messages":' + orjson.dumps(messages) + self._end
        except TypeError as error:
            raise InvalidInput(f"the inputs hold text with a lone surrogate, which is not Unicode: {error}") from error

    def _missing(self, inputs: Mapping[str, object]) -> InvalidInput:
        missing = [n for n in self._needed if n not in inputs]
        has = listed(inputs) or "nothing"
        return InvalidInput(f"the signature wants {', '.join(missing)}; there is {has}", fix=f"give {missing[0]}")

    def outputs(self, answer: Completion) -> Values:
        """The outputs in an answer.

        Raises InvalidOutput for a reply that was cut, that is empty, or that does not fit the signature or a constraint;
        LMRefused where the model, or a filter of its provider, refused to answer.
        """
        if (error := answer.incomplete()) is not None:
            raise error
        return self.signature.parse(answer.text, adapter=self._adapter)


class ChainOfThought(Predict):
    """A signature that a model fills in after it has reasoned (`dspy.ChainOfThought`): `reasoning` is its first output."""

    kind: ClassVar[str] = "chain_of_thought"

    def _extended(self, signature: Signature) -> Signature:
        return signature.prepend(REASONING, "output")


KINDS: Mapping[str, type[Predict]] = {Predict.kind: Predict, ChainOfThought.kind: ChainOfThought}
