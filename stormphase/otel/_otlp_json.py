"""Spans and log records of the SDK as OTLP in its JSON encoding: one compact line for each batch.

Source: the OTLP specification's "JSON Protobuf Encoding" (ids in lower-case hex, not base64; enums as numbers; names in
lowerCamelCase) over proto3's JSON mapping (64-bit integers as strings, bytes in base64, NaN and infinities by name),
and the file exporter's page: lines of UTF-8, each one `TracesData` or `LogsData`, which are written like the requests
that an OTLP/HTTP endpoint takes as `application/json`. Fields with their default value are left out.

Only the public attributes of SDK objects are read, and nothing here imports the SDK.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import Event, ReadableSpan
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope
    from opentelemetry.trace import Link, SpanContext, Status

Json: TypeAlias = "dict[str, Any]"

_INT64_MIN: Final = -(2**63)
_INT64_MAX: Final = 2**63 - 1
# OTLP's SpanFlags: the W3C trace flags in the low byte, then whether is_remote is known, and what it is.
_TRACE_FLAGS_MASK: Final = 0xFF
_HAS_IS_REMOTE: Final = 0x100
_IS_REMOTE: Final = 0x200


def encode_spans(spans: Iterable[ReadableSpan]) -> bytes:
    """Return one line, with its line end, that holds all the spans; grouped by resource and scope, in their order.

    An attribute value that OTLP has no form for is left out and counted in `droppedAttributesCount`.

    Raises:
        Exception: something in `spans` is not a span, or a span without ids.
    """
    groups = _grouped(((span, span.resource) for span in spans), _span)
    return _line({"resourceSpans": [_of_resource(resource, "scopeSpans", "spans", of) for resource, of in groups]})


def encode_logs(records: Iterable[Any]) -> bytes:
    """Return one line, with its line end, that holds all the log records; else like `encode_spans`.

    Args:
        records: the SDK's `ReadableLogRecord`s; before SDK 1.39, its `LogData`.
    """
    groups = _grouped(((record, _resource_of_log(record)) for record in records), _log)
    return _line({"resourceLogs": [_of_resource(resource, "scopeLogs", "logRecords", of) for resource, of in groups]})


def _line(document: Json) -> bytes:
    text = json.dumps(document, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    # A lone surrogate has no UTF-8 and would make the line unreadable to every importer.
    return text.encode("utf-8", "replace") + b"\n"


# Grouped by identity: equal twins make two groups, which is as valid, and hashing a Resource costs more than a span.
_Scopes: TypeAlias = "dict[int, tuple[InstrumentationScope | None, list[Json]]]"


def _grouped(
    items: Iterable[tuple[Any, Resource | None]], encode: Callable[[Any], Json]
) -> list[tuple[Resource | None, _Scopes]]:
    resources: dict[int, tuple[Resource | None, _Scopes]] = {}
    for item, resource in items:
        _, scopes = resources.setdefault(id(resource), (resource, {}))
        scope = item.instrumentation_scope
        _, encoded = scopes.setdefault(id(scope), (scope, []))
        encoded.append(encode(item))
    return list(resources.values())


def _of_resource(resource: Resource | None, scopes_name: str, items_name: str, scopes: _Scopes) -> Json:
    of_resource: Json = {"resource": {}}
    if resource is not None:
        of_resource["resource"] = _with_attributes({}, resource.attributes, 0)
        _put_text(of_resource, "schemaUrl", resource.schema_url)
    of_resource[scopes_name] = [_of_scope(scope, items_name, encoded) for scope, encoded in scopes.values()]
    return of_resource


def _of_scope(scope: InstrumentationScope | None, items_name: str, encoded: list[Json]) -> Json:
    of_scope: Json = {"scope": {}}
    if scope is not None:
        described: Json = {"name": scope.name}
        _put_text(described, "version", scope.version)
        of_scope["scope"] = _with_attributes(described, scope.attributes, 0)
        _put_text(of_scope, "schemaUrl", scope.schema_url)
    of_scope[items_name] = encoded
    return of_scope


def _span(span: ReadableSpan) -> Json:
    context, parent = span.get_span_context(), span.parent
    if context is None:
        raise ValueError(f"The span {span.name!r} has no context, hence no ids.")
    encoded: Json = _ids(context)
    if parent is not None:
        encoded["parentSpanId"] = f"{parent.span_id:016x}"
    encoded["flags"] = _flags(context, parent)
    encoded["name"] = span.name
    encoded["kind"] = span.kind.value + 1  # OTLP has 0 for "unspecified"
    _put_time(encoded, "startTimeUnixNano", span.start_time)
    _put_time(encoded, "endTimeUnixNano", span.end_time)
    _with_attributes(encoded, span.attributes, span.dropped_attributes)
    _put_list(encoded, "events", [_event(event) for event in span.events], span.dropped_events)
    _put_list(encoded, "links", [_link(link) for link in span.links], span.dropped_links)
    encoded["status"] = _status(span.status)
    return encoded


def _event(event: Event) -> Json:
    encoded: Json = {"name": event.name}
    _put_time(encoded, "timeUnixNano", event.timestamp)
    return _with_attributes(encoded, event.attributes, event.dropped_attributes)


def _link(link: Link) -> Json:
    encoded = _ids(link.context)
    encoded["flags"] = _flags(link.context, link.context)
    return _with_attributes(encoded, link.attributes, link.dropped_attributes)


def _log(item: Any) -> Json:
    record = item.log_record
    encoded: Json = {}
    _put_time(encoded, "timeUnixNano", record.timestamp)
    _put_time(encoded, "observedTimeUnixNano", record.observed_timestamp)
    if record.severity_number is not None:
        encoded["severityNumber"] = record.severity_number.value
    _put_text(encoded, "severityText", record.severity_text)
    _put_text(encoded, "eventName", record.event_name)
    if record.body is not None:
        encoded["body"] = _value_or_text(record.body)
    if record.trace_id:
        encoded["traceId"] = f"{record.trace_id:032x}"
    if record.span_id:
        encoded["spanId"] = f"{record.span_id:016x}"
    if record.trace_flags:
        encoded["flags"] = int(record.trace_flags) & _TRACE_FLAGS_MASK
    dropped = item.dropped_attributes if hasattr(item, "dropped_attributes") else record.dropped_attributes
    return _with_attributes(encoded, record.attributes, dropped)


def _resource_of_log(item: Any) -> Resource | None:
    resource: Resource | None = item.resource if hasattr(item, "resource") else item.log_record.resource
    return resource


def _ids(context: SpanContext) -> Json:
    encoded: Json = {"traceId": f"{context.trace_id:032x}", "spanId": f"{context.span_id:016x}"}
    if context.trace_state:
        encoded["traceState"] = context.trace_state.to_header()
    return encoded


def _flags(context: SpanContext, whose_origin_is_meant: SpanContext | None) -> int:
    is_remote = whose_origin_is_meant is not None and whose_origin_is_meant.is_remote
    return (int(context.trace_flags) & _TRACE_FLAGS_MASK) | _HAS_IS_REMOTE | (_IS_REMOTE if is_remote else 0)


def _status(status: Status) -> Json:
    encoded: Json = {}
    if status.status_code.value:
        encoded["code"] = status.status_code.value
    _put_text(encoded, "message", status.description)
    return encoded


def _put_text(into: Json, name: str, text: str | None) -> None:
    if text:
        into[name] = text


def _put_time(into: Json, name: str, time_ns: int | None) -> None:
    if time_ns is not None:
        into[name] = str(time_ns)


def _put_list(into: Json, name: str, encoded: list[Json], dropped: int) -> None:
    if encoded:
        into[name] = encoded
    if dropped:
        into[f"dropped{name.capitalize()}Count"] = dropped


def _with_attributes(into: Json, attributes: Mapping[str, Any] | None, dropped: int) -> Json:
    pairs = []
    for name, value in (attributes or {}).items():
        try:
            pairs.append({"key": name, "value": _value(value)})
        except Exception:  # noqa: BLE001 - one bad value must not cost the others; a foreign class may raise anything
            dropped += 1
    if pairs:
        into["attributes"] = pairs
    if dropped:
        into["droppedAttributesCount"] = dropped
    return into


def _value_or_text(value: Any) -> Json:
    try:
        return _value(value)
    except Exception:  # noqa: BLE001 - as above; a log record has no count of dropped bodies, so say what was there
        return {"stringValue": f"<{type(value).__name__} without a form in OTLP>"}


def _value(value: Any) -> Json:  # noqa: PLR0911 - one line for each kind of OTLP's AnyValue
    if isinstance(value, str):
        return {"stringValue": value}
    if isinstance(value, bool):
        return {"boolValue": value}
    if isinstance(value, int):
        if not _INT64_MIN <= value <= _INT64_MAX:
            raise OverflowError("OTLP has integers of 64 bits")
        return {"intValue": f"{value:d}"}
    if isinstance(value, float):
        return {"doubleValue": _double(float(value))}
    if value is None:
        return {}
    if isinstance(value, bytes):
        return {"bytesValue": base64.b64encode(value).decode("ascii")}
    if isinstance(value, Mapping):
        return {"kvlistValue": {"values": [{"key": str(key), "value": _value(item)} for key, item in value.items()]}}
    if isinstance(value, Sequence):
        return {"arrayValue": {"values": [_value(item) for item in value]}}
    raise TypeError(f"OTLP has no form for a {type(value).__name__}")


def _double(value: float) -> float | str:
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
