"""What models and tools were asked and said, in spans: only where `telemetry.content` asks for it, and never of secret fields.

Attributes and their form are those of OpenTelemetry's conventions for generative AI, v0.1.0.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, cast

from dspex.bus import codecs
from dspex.bus.codecs.checking import checked
from dspex.bus.records import CallRecord
from dspex.bus.serving.call_spec import CallSpec
from dspex.bus.serving.keys.redaction import Redaction
from dspex.bus.serving.programs.exchanges import Exchange, read_exchanges
from dspex.engine.runtime.failure import Failure, attempt
from dspex.operators.native.lm.prompts_again import prompt_again


class SaidInCall(NamedTuple):
    """A request whose content may be told.

    Attributes:
        asked: what the call is, and its inputs. It may raise anything: expressions of users make inputs.
        one: the request itself, where it is known; None: the last one that `record` has kept, or what it gave.
    """

    asked: Callable[[], tuple[CallSpec, Mapping[str, Any]]]
    record: CallRecord | None = None
    one: Exchange | None = None


class Content:
    """Tells it, without what `redaction` takes out."""

    def __init__(self, redaction: Redaction) -> None:
        self._redaction = redaction

    def of(self, said: SaidInCall) -> Mapping[str, str]:
        """The attributes of a span; none where nobody knows what was asked, or something of it is secret."""
        found = attempt(lambda: self._of(said), lambda: "")
        return {} if isinstance(found, Failure) else found

    def _of(self, said: SaidInCall) -> Mapping[str, str]:
        spec, inputs = said.asked()
        if spec.secrets:
            return {}
        record, one = said.record, said.one if said.one is not None else _kept(said.record)
        outputs = record.outputs if record is not None else None
        hide = self._redaction.of(inputs, outputs)
        if one is not None and one.kind == "tool":
            return {"gen_ai.tool.call.arguments": _json(hide(one.asked)), "gen_ai.tool.call.result": _json(hide(one.said))}
        asked = _messages(one.asked if one is not None else None) or prompt_again(spec, inputs) or []
        answer = one.said if one is not None else _json(outputs) if outputs is not None else None
        return _attributes(asked, answer, hide)


def _kept(record: CallRecord | None) -> Exchange | None:
    kept = read_exchanges(record.exchanges).exchanges if record is not None else ()
    return next((one for one in reversed(kept) if one.kind == "model" and not one.journaled), None)


def _messages(asked: Any) -> list[Any] | None:
    """The messages of a request, as it is kept."""
    found = asked.get("messages") if isinstance(asked, Mapping) else asked
    return [*cast("Sequence[Any]", found)] if isinstance(found, (list, tuple)) else None


def _attributes(asked: Sequence[Any], answer: Any, hide: Callable[[Any], Any]) -> Mapping[str, str]:
    known = [checked(dict[str, Any], "a message", one) for one in asked]
    system = [part for one in known if one.get("role") in ("system", "developer") for part in _parts(one.get("content"), hide)]
    others = [one for one in known if one.get("role") not in ("system", "developer")]
    found = {}
    if system:
        found["gen_ai.system_instructions"] = _json(system)
    if others:
        messages = [{"role": str(one.get("role")), "parts": [*_parts(one.get("content"), hide)]} for one in others]
        found["gen_ai.input.messages"] = _json(messages)
    if answer is not None:
        replies = answer if isinstance(answer, list) else [answer]
        said = [{"role": "assistant", "parts": [*_parts(one, hide)], "finish_reason": "stop"} for one in replies]
        found["gen_ai.output.messages"] = _json(said)
    return found


def _parts(content: Any, hide: Callable[[Any], Any]) -> Iterator[dict[str, Any]]:
    """Texts as texts; of an image or a sound, which may be large, only that there is one."""
    for one in content if isinstance(content, list) else [content]:
        if isinstance(one, str):
            yield {"type": "text", "content": hide(one)}
        elif isinstance(one, Mapping) and isinstance(one.get("text"), str):
            yield {"type": "text", "content": hide(one["text"])}
        elif isinstance(one, Mapping) and str(one.get("type", "")).endswith(("_url", "_audio", "file")):
            yield {"type": str(one["type"])}
        elif one is not None:
            yield {"type": "text", "content": _json(hide(one))}


def _json(data: Any) -> str:
    """As JSON; what is no plain data, as its type."""
    try:
        return json.dumps(data, ensure_ascii=False) if not isinstance(data, str) else data
    except (TypeError, ValueError):
        return codecs.json_bytes(str(type(data))).decode()
