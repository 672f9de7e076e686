"""CloudEvents 1.0: what one says is read from a message, and an event is written as one.

Both content modes of the NATS binding are read and written. `structured`: the body is the event in the JSON format, and holds
attributes and data. `binary`: the body is the data, and each attribute is a header `ce-<name>`, percent-encoded. Other formats,
and batches, are refused: a batch is several events, and a message is one.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final, Literal, NamedTuple, TypeAlias
from urllib.parse import quote, unquote

from dspex.bus.codecs.json import json_bytes, load_json
from dspex.bus.errors import DecodeError, InvalidInput
from dspex.bus.subjects import CLOUD_EVENT, CONTENT_TYPE

CloudEventMode: TypeAlias = Literal["structured", "binary"]

STRUCTURED: Final = "application/cloudevents+json"
_FAMILY: Final = "application/cloudevents"
_FORMATS: Final = (_FAMILY, STRUCTURED)  # without a suffix it is JSON, which every reader of the NATS binding knows
_VERSION: Final = "specversion"
_NAME = re.compile(r"[a-z0-9]+")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_TIME = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)")
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"')
_UNQUOTED: Final = "".join(chr(c) for c in range(0x21, 0x7F) if chr(c) not in '"%')
_JSON: Final = "application/json"


class CloudEvent(NamedTuple):
    """What a CloudEvent says.

    Attributes:
        attributes: the context attributes by name, as text; all but `specversion` and `datacontenttype`.
        time: seconds since the epoch; None where it names no time.
        content_type, data: of what the event is about.
    """

    attributes: Mapping[str, str]
    time: float | None
    content_type: str
    data: bytes

    @property
    def headers(self) -> dict[str, str]:
        """The attributes as headers, as plain text: what they say, not how they were sent."""
        return {f"{CLOUD_EVENT}{name}": value for name, value in self.attributes.items()}


def is_structured(content_type: str | None) -> bool:
    """Whether a body of this type is a CloudEvent in one of its formats, or several."""
    return content_type is not None and content_type[: len(_FAMILY)].lower() == _FAMILY


def without(headers: Mapping[str, str]) -> dict[str, str]:
    """The headers that are no attributes of a CloudEvent."""
    return {name: value for name, value in headers.items() if not _is_attribute(name)}


def _is_attribute(header: str) -> bool:
    return header[: len(CLOUD_EVENT)].lower() == CLOUD_EVENT


def read(content_type: str | None, headers: Mapping[str, str], data: bytes) -> CloudEvent | None:
    """The CloudEvent that a message is; None where it is none. Raises DecodeError for one that breaks the specification."""
    if is_structured(content_type):
        assert content_type is not None
        return _structured(content_type, data)
    said = {name[len(CLOUD_EVENT) :].lower(): text for name, text in headers.items() if _is_attribute(name)}
    if _VERSION not in said:
        return None
    attributes = {name: _decoded(name, text) for name, text in said.items()}
    named = attributes.get("datacontenttype")
    if content_type is None and named is None and not data:
        data = b"null"  # an event without data
    return _checked(attributes, named or content_type or _JSON, data)


def _structured(content_type: str, body: bytes) -> CloudEvent:
    name = content_type.partition(";")[0].strip().lower()
    if name not in _FORMATS:
        fix = f"publish each event as a message of its own, with the content type {STRUCTURED}"
        raise DecodeError(f"content type {name!r} is no form of a CloudEvent that is read; {STRUCTURED} is", fix=fix)
    found = load_json(body)
    if not isinstance(found, dict):
        raise _broken(f"it is no JSON object but {type(found).__name__}")
    given: dict[str, Any] = found
    data: dict[str, Any] = {name: given.pop(name) for name in ("data", "data_base64") if name in given}
    attributes = {name: _text(name, value) for name, value in given.items() if value is not None}
    kind = attributes.get("datacontenttype", _JSON)
    return _checked(attributes, kind, _bytes(data, kind))


def _bytes(data: Mapping[str, Any], kind: str) -> bytes:
    """The data of a structured event."""
    if len(data) == 2:
        raise _broken("it has both data and data_base64")
    if "data_base64" in data:
        try:
            return base64.b64decode(data["data_base64"], validate=True)
        except (TypeError, ValueError, binascii.Error) as e:
            raise _broken(f"its data_base64 is not base64: {e}") from e
    value = data.get("data")
    if kind.partition(";")[0].strip().lower().endswith(("/json", "+json")):
        try:
            return json_bytes(value)
        except InvalidInput as e:  # it was read, and is nested deeper than can be written
            raise _broken(e.message) from e
    if isinstance(value, str):
        return value.encode()
    raise _broken(f"its data is of type {kind!r}, and neither text nor data_base64")


def _text(name: str, value: object) -> str:
    """An attribute as text, from JSON."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (str, int)):
        return str(value)
    raise _broken(f"its attribute {name!r} is of the JSON type {type(value).__name__}")


def _decoded(name: str, text: str) -> str:
    """An attribute from a header. Older writers quote what newer ones encode."""
    if (quoted := _QUOTED.fullmatch(text)) is not None:
        text = re.sub(r"\\(.)", r"\1", quoted[1])
    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError as e:
        raise _broken(f"the header {CLOUD_EVENT}{name} is percent-encoded, and not UTF-8") from e


def _checked(attributes: dict[str, str], kind: str, data: bytes) -> CloudEvent:
    if (version := attributes.pop(_VERSION, None)) != "1.0":
        raise _broken(f"its specversion is {version!r}" if version else "it has no specversion")
    for name, value in attributes.items():
        if not _NAME.fullmatch(name):
            raise _broken(f"{name[:40]!r} is no name of an attribute: those have lower-case letters and digits")
        if _CONTROL.search(value):
            raise _broken(f"its attribute {name!r} has control characters")
    if missing := [name for name in ("id", "source", "type") if not attributes.get(name)]:
        raise _broken(f"it has no {' and no '.join(missing)}")
    attributes.pop("datacontenttype", None)
    return CloudEvent(attributes, _time(attributes.get("time")), kind, data)


def _time(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        if _TIME.fullmatch(text):
            at = datetime.fromisoformat(text.upper()).timestamp()
            datetime.fromtimestamp(at, tz=UTC)  # in UTC, and rounded, it may be in a year that no datetime has
            return at
    except (ValueError, OverflowError):
        ...
    raise _broken(f"its time {text[:40]!r} is none of RFC 3339")


def _broken(why: str) -> DecodeError:
    fix = "write it as CloudEvents 1.0 says: specversion 1.0, id, source and type, each not empty"
    return DecodeError(f"not a CloudEvent: {why}", fix=fix)


def write(mode: CloudEventMode, attributes: Mapping[str, str], data: bytes, content_type: str) -> tuple[bytes, dict[str, str]]:
    """An event as a CloudEvent: the body, and the headers that say what it is.

    Args:
        attributes: all but `specversion` and `datacontenttype`.
    """
    said = {_VERSION: "1.0", **attributes, "datacontenttype": content_type}
    if mode == "binary":
        headers = {f"{CLOUD_EVENT}{name}": quote(value, safe=_UNQUOTED) for name, value in said.items()}
        return data, {**headers, CONTENT_TYPE: content_type}
    head = json_bytes(said)[:-1]
    if content_type == _JSON:  # as it is: read and written again, it would cost twice as much
        return b'%b,"data":%b}' % (head, data), {CONTENT_TYPE: STRUCTURED}
    return b'%b,"data_base64":"%b"}' % (head, base64.b64encode(data)), {CONTENT_TYPE: STRUCTURED}


def rfc3339(seconds: float) -> str:
    """A time, in seconds since the epoch, as the attribute `time` has it."""
    return datetime.fromtimestamp(seconds, tz=UTC).isoformat().replace("+00:00", "Z")
