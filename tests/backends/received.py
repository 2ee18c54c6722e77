"""What a backend received, as plain frozen objects: the one vocabulary of all backends in these tests.

A collector's printed text, an OTLP request and a page of MLflow's API all become the same `ReceivedSpan`, so a test
can compare them with ``==``. Ids are lower-case hex, times are integer nanoseconds since 1970, attribute values are
plain Python.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias, Union

from attrs import field, frozen

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
    from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
    from opentelemetry.proto.trace.v1.trace_pb2 import Span

Value: TypeAlias = Union[str, bool, int, float, bytes, "list[Value]", "Mapping[str, Value]", None]
Attributes: TypeAlias = "Mapping[str, Value]"


@frozen(kw_only=True)
class ReceivedEvent:
    """One event on a span."""

    name: str
    time_ns: int
    attributes: Attributes = field(factory=dict)


@frozen(kw_only=True)
class ReceivedLink:
    """One link from a span to another."""

    trace_id: str
    span_id: str
    attributes: Attributes = field(factory=dict)


@frozen(kw_only=True)
class ReceivedScope:
    """The instrumentation scope that a span or log record came from."""

    name: str = ""
    version: str = ""
    schema_url: str = ""
    attributes: Attributes = field(factory=dict)


@frozen(kw_only=True)
class ReceivedSpan:
    """One span. `parent_span_id` is None for a root; `kind` and `status` are OTel's names without their prefix."""

    trace_id: str
    span_id: str
    parent_span_id: str | None
    name: str
    kind: str
    started_ns: int
    ended_ns: int
    status: str = "UNSET"
    status_message: str = ""
    trace_state: str = ""
    attributes: Attributes = field(factory=dict)
    events: tuple[ReceivedEvent, ...] = ()
    links: tuple[ReceivedLink, ...] = ()
    resource: Attributes = field(factory=dict)
    scope: ReceivedScope = field(factory=ReceivedScope)

    @property
    def duration_ns(self) -> int:
        """How long the span lasted, in nanoseconds."""
        return self.ended_ns - self.started_ns


@frozen(kw_only=True)
class ReceivedLog:
    """One log record. `trace_id` and `span_id` are None when it belongs to no span; no event name is an empty one."""

    event_name: str
    time_ns: int
    observed_ns: int
    severity: str = "UNSPECIFIED"
    severity_text: str = ""
    body: Value = None
    trace_id: str | None = None
    span_id: str | None = None
    attributes: Attributes = field(factory=dict)
    resource: Attributes = field(factory=dict)
    scope: ReceivedScope = field(factory=ReceivedScope)


def outline(spans: Iterable[ReceivedSpan]) -> list[str]:
    """Draw the forest of `spans`, one line each: two blanks per level, then the name.

    Siblings stand in the order in which they started. A span whose parent is not among `spans` starts a tree of its
    own, and its line ends with ``(parent missing)``. A span that is there twice is drawn twice.
    """
    ordered = sorted(spans, key=lambda span: (span.started_ns, -span.ended_ns, span.span_id))
    known = {(span.trace_id, span.span_id) for span in ordered}
    children: dict[tuple[str, str], list[ReceivedSpan]] = {}
    for span in ordered:
        if span.parent_span_id is not None:
            children.setdefault((span.trace_id, span.parent_span_id), []).append(span)
    lines: list[str] = []
    tops = [span for span in ordered if (span.trace_id, span.parent_span_id) not in known]
    pending = [(0, span) for span in reversed(tops)]
    while pending:
        depth, span = pending.pop()
        orphaned = depth == 0 and span.parent_span_id is not None
        lines.append("  " * depth + span.name + (" (parent missing)" if orphaned else ""))
        # Popped: of two copies of a parent only the first shows the children.
        beneath = children.pop((span.trace_id, span.span_id), [])
        pending.extend((depth + 1, child) for child in reversed(beneath))
    return lines


def by_name(received: Sequence[ReceivedSpan], name: str) -> ReceivedSpan:
    """Give the only span called `name`.

    Raises:
        LookupError: there is none, or more than one.
    """
    found = [span for span in received if span.name == name]
    if len(found) != 1:
        message = f"There are {len(found)} spans called {name!r} among {sorted({span.name for span in received})}."
        raise LookupError(message)
    return found[0]


def spans_of(request: ExportTraceServiceRequest) -> list[ReceivedSpan]:
    """Read the spans of an OTLP trace request, in its order."""
    return [
        _span_of(span, _attributes_of(of_resource.resource.attributes), scope)
        for of_resource in request.resource_spans
        for of_scope in of_resource.scope_spans
        for scope in [
            ReceivedScope(
                name=of_scope.scope.name,
                version=of_scope.scope.version,
                schema_url=of_scope.schema_url,
                attributes=_attributes_of(of_scope.scope.attributes),
            )
        ]
        for span in of_scope.spans
    ]


def logs_of(request: ExportLogsServiceRequest) -> list[ReceivedLog]:
    """Read the log records of an OTLP logs request, in its order."""
    from opentelemetry.proto.logs.v1.logs_pb2 import SeverityNumber

    return [
        ReceivedLog(
            event_name=log.event_name,
            time_ns=log.time_unix_nano,
            observed_ns=log.observed_time_unix_nano,
            severity=SeverityNumber.Name(log.severity_number).removeprefix("SEVERITY_NUMBER_"),
            severity_text=log.severity_text,
            body=_value_of(log.body),
            trace_id=log.trace_id.hex() or None,
            span_id=log.span_id.hex() or None,
            attributes=_attributes_of(log.attributes),
            resource=_attributes_of(of_resource.resource.attributes),
            scope=ReceivedScope(
                name=of_scope.scope.name,
                version=of_scope.scope.version,
                schema_url=of_scope.schema_url,
                attributes=_attributes_of(of_scope.scope.attributes),
            ),
        )
        for of_resource in request.resource_logs
        for of_scope in of_resource.scope_logs
        for log in of_scope.log_records
    ]


def _span_of(span: Span, resource: Attributes, scope: ReceivedScope) -> ReceivedSpan:
    from opentelemetry.proto.trace.v1.trace_pb2 import Span as OtlpSpan
    from opentelemetry.proto.trace.v1.trace_pb2 import Status

    return ReceivedSpan(
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_span_id=span.parent_span_id.hex() or None,
        name=span.name,
        kind=OtlpSpan.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"),
        started_ns=span.start_time_unix_nano,
        ended_ns=span.end_time_unix_nano,
        status=Status.StatusCode.Name(span.status.code).removeprefix("STATUS_CODE_"),
        status_message=span.status.message,
        trace_state=span.trace_state,
        attributes=_attributes_of(span.attributes),
        events=tuple(
            ReceivedEvent(name=event.name, time_ns=event.time_unix_nano, attributes=_attributes_of(event.attributes))
            for event in span.events
        ),
        links=tuple(
            ReceivedLink(
                trace_id=link.trace_id.hex(), span_id=link.span_id.hex(), attributes=_attributes_of(link.attributes)
            )
            for link in span.links
        ),
        resource=resource,
        scope=scope,
    )


def _attributes_of(pairs: Iterable[KeyValue]) -> Attributes:
    return {pair.key: _value_of(pair.value) for pair in pairs}


def _value_of(value: AnyValue) -> Value:
    kind = value.WhichOneof("value")
    if kind is None:
        return None
    if kind == "array_value":
        return [_value_of(item) for item in value.array_value.values]
    if kind == "kvlist_value":
        return _attributes_of(value.kvlist_value.values)
    plain: str | bool | int | float | bytes = getattr(value, kind)
    return plain
