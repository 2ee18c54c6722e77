"""Spans as OTLP requests in protobuf, always the same to the byte, and what a collector answers. Needs no package.

Protobuf's own libraries do not promise that two releases write one message alike, and recovery must. Source: the
messages `ExportTraceServiceRequest` and `ExportTraceServiceResponse` of opentelemetry-proto 1.x, and protobuf's
encoding: a field is its number and wire type, then a varint, eight or four bytes little-endian, or a length and bytes.
Fields are written in order of their numbers; those with their default value are left out.
"""

from __future__ import annotations

import functools
import json
import struct
from typing import TYPE_CHECKING, Any, Final

import attrs

from stormphase.otel._plain_span import INTERNAL

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from stormphase.otel._journal_facts import SessionFacts
    from stormphase.otel._plain_span import RecoveredSpan, SpanEvent, SpanLink

MAX_REQUEST_SPANS: Final = 512
MAX_REQUEST_BYTES: Final = 1 << 20  # collectors take 4 MiB or more

_VARINT: Final = 0
_EIGHT_BYTES: Final = 1
_BYTES: Final = 2
_FOUR_BYTES: Final = 5
_MIN_INT64: Final = -(2**63)
_MAX_INT64: Final = 2**63 - 1
_MASK64: Final = 2**64 - 1
_MAX_VARINT_BYTES: Final = 10
_MAX_REASON_CHARS: Final = 200
_KEPT: Final = frozenset({"str", "int", "bool"})
_MAX_KEPT_CHARS: Final = 64


@attrs.frozen(kw_only=True)
class Answer:
    """What a collector says of a request that it took.

    Attributes:
        rejected: how many spans it did not take.
        message: what it says of that, or of something else; shortened.
    """

    rejected: int = 0
    message: str = ""


class AnswerError(ValueError):
    """What came back is no answer of an OTLP endpoint."""


def requests_of(facts: SessionFacts, spans: Sequence[RecoveredSpan]) -> Iterator[bytes]:
    """Yield the bodies of the requests that carry all spans, in their order; none if there are no spans."""
    head = _field(1, _resource(facts))
    scope = _field(1, _text(1, facts.scope_name) + _text(2, facts.scope_version))
    schema = _text(3, facts.schema_url)
    resource_schema = _text(3, facts.resource_schema_url)
    batch: list[bytes] = []
    size = 0
    for span in spans:
        encoded = _field(2, _span(span))
        if batch and (len(batch) >= MAX_REQUEST_SPANS or size + len(encoded) > MAX_REQUEST_BYTES):
            yield _field(1, head + _field(2, scope + b"".join(batch) + schema) + resource_schema)
            batch, size = [], 0
        batch.append(encoded)
        size += len(encoded)
    if batch:
        yield _field(1, head + _field(2, scope + b"".join(batch) + schema) + resource_schema)


def answer_of(body: bytes, content_type: str) -> Answer:
    """Return what a successful response says.

    Raises:
        AnswerError: if it is no OTLP response: a web page, say, or damaged.
    """
    kind = content_type.partition(";")[0].strip().lower()
    if not body:
        return Answer()
    if kind == "application/json":
        return _answer_of_json(body)
    if kind == "application/x-protobuf":
        return _answer_of_protobuf(body)
    if "html" in kind:
        raise AnswerError("a web page was answered, so this is no OTLP endpoint")
    return Answer()


def _answer_of_json(body: bytes) -> Answer:
    try:
        found = json.loads(body)
        partial = (found.get("partialSuccess") or {}) if isinstance(found, dict) else {}
        return Answer(
            rejected=int(partial.get("rejectedSpans") or 0), message=_shortened(partial.get("errorMessage") or "")
        )
    except (ValueError, TypeError, AttributeError, RecursionError):
        raise AnswerError("the answer is no OTLP response") from None


def _answer_of_protobuf(body: bytes) -> Answer:
    rejected, message = 0, ""
    for number, value in _fields(body):
        if number != 1 or not isinstance(value, bytes):
            continue
        for inner, content in _fields(value):
            if inner == 1 and isinstance(content, int):
                rejected = content if content <= _MAX_INT64 else content - _MASK64 - 1
            elif inner == 2 and isinstance(content, bytes):  # noqa: PLR2004 - the message's number in the proto
                message = _shortened(content.decode("utf-8", "replace"))
    return Answer(rejected=rejected, message=message)


def _shortened(text: object) -> str:
    words = " ".join(str(text).split())
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in words)[:_MAX_REASON_CHARS]


def _fields(data: bytes) -> list[tuple[int, int | bytes]]:
    """Return numbers and values of a message's fields; those of eight or four bytes as bytes."""
    found: list[tuple[int, int | bytes]] = []
    position = 0
    while position < len(data):
        key, position = _read_varint(data, position)
        wire_type = key & 7
        if wire_type == _VARINT:
            number, position = _read_varint(data, position)
            found.append((key >> 3, number))
            continue
        if wire_type == _BYTES:
            length, position = _read_varint(data, position)
        elif wire_type in (_EIGHT_BYTES, _FOUR_BYTES):
            length = 8 if wire_type == _EIGHT_BYTES else 4
        else:
            raise AnswerError("the answer is no OTLP response")
        if length > len(data) - position:
            raise AnswerError("the answer is cut off")
        found.append((key >> 3, data[position : position + length]))
        position += length
    return found


def _read_varint(data: bytes, position: int) -> tuple[int, int]:
    value = 0
    for index in range(_MAX_VARINT_BYTES):
        if position + index >= len(data):
            raise AnswerError("the answer is cut off")
        byte = data[position + index]
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:  # noqa: PLR2004 - the bit that says that more follow
            return value & _MASK64, position + index + 1
    raise AnswerError("the answer is no OTLP response")


def _resource(facts: SessionFacts) -> bytes:
    pairs, dropped = _attributes(1, facts.resource)
    return pairs + _number(2, facts.resource_dropped + dropped)


def _span(span: RecoveredSpan) -> bytes:
    pairs, dropped = _attributes(9, span.attributes)
    return b"".join(
        (
            _field(1, span.trace_id.to_bytes(16, "big")),
            _field(2, span.span_id.to_bytes(8, "big")),
            _text(3, span.tracestate),
            _field(4, span.parent_id.to_bytes(8, "big")) if span.parent_id else b"",
            _text(5, span.name),
            _number(6, INTERNAL),
            _fixed64(7, span.started_ns),
            _fixed64(8, span.ended_ns),
            pairs,
            _number(10, span.dropped_attributes + dropped),
            *(_field(11, _event(event)) for event in span.events),
            _number(12, span.dropped_events),
            *(_field(13, _link(link)) for link in span.links),
            _number(14, span.dropped_links),
            _field(15, _text(2, span.status_message) + _number(3, span.status)),
            _fixed32(16, span.flags),
        )
    )


def _event(event: SpanEvent) -> bytes:
    pairs, dropped = _attributes(3, event.attributes)
    return _fixed64(1, event.time_ns) + _text(2, event.name) + pairs + _number(4, event.dropped_attributes + dropped)


def _link(link: SpanLink) -> bytes:
    return (
        _field(1, link.trace_id.to_bytes(16, "big"))
        + _field(2, link.span_id.to_bytes(8, "big"))
        + _fixed32(6, link.flags)
    )


def _attributes(number: int, attributes: Mapping[str, Any]) -> tuple[bytes, int]:
    """Return the pairs, and how many there were that OTLP has no form for."""
    pairs = []
    for key, value in attributes.items():
        # The same few words and numbers stand on most spans. By kind, since True equals 1; no floats, as 0.0 is -0.0.
        kind = type(value).__name__
        is_short = kind in _KEPT and (kind != "str" or len(value) <= _MAX_KEPT_CHARS)
        pair = _kept_pair(number, key, kind, value) if is_short else _pair(number, key, value)
        if pair is not None:
            pairs.append(pair)
    return b"".join(pairs), len(attributes) - len(pairs)


def _pair(number: int, key: str, value: object) -> bytes | None:
    encoded = _value(value)
    return None if encoded is None else _field(number, _text(1, key) + _field(2, encoded))


@functools.lru_cache(maxsize=1_024)
def _kept_pair(number: int, key: str, _kind: str, value: object) -> bytes | None:
    return _pair(number, key, value)


def _value(value: object) -> bytes | None:
    # An AnyValue says by the field that is there which kind it is, so also defaults are written.
    if isinstance(value, str):
        return _field(1, _utf8(value))
    if isinstance(value, bool):
        return _key(2, _VARINT) + _varint(int(value))
    if isinstance(value, int):
        return _key(3, _VARINT) + _varint(value & _MASK64) if _MIN_INT64 <= value <= _MAX_INT64 else None
    if isinstance(value, float):
        return _key(4, _EIGHT_BYTES) + struct.pack("<d", value)
    if isinstance(value, (list, tuple)):
        items = [_value(item) for item in value]
        return _field(5, b"".join(_field(1, item) for item in items if item is not None)) if None not in items else None
    return None


def _utf8(text: str) -> bytes:
    # Protobuf refuses a message with a lone surrogate in it.
    return text.encode("utf-8", "replace")


def _text(number: int, text: str) -> bytes:
    return _field(number, _utf8(text)) if text else b""


def _number(number: int, value: int) -> bytes:
    return _key(number, _VARINT) + _varint(value) if value else b""


def _fixed64(number: int, value: int) -> bytes:
    return _key(number, _EIGHT_BYTES) + value.to_bytes(8, "little") if value else b""


def _fixed32(number: int, value: int) -> bytes:
    return _key(number, _FOUR_BYTES) + value.to_bytes(4, "little") if value else b""


def _field(number: int, content: bytes) -> bytes:
    return _key(number, _BYTES) + _varint(len(content)) + content


def _key(number: int, wire_type: int) -> bytes:
    return _varint(number << 3 | wire_type)


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:  # noqa: PLR2004 - seven bits a byte
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
