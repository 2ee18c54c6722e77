"""Spans in protobuf are what the official classes read, and answers of any kind are understood or refused."""

from __future__ import annotations

import random
from typing import Any

import pytest
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from stormphase.otel._journal_facts import SessionFacts
from stormphase.otel._otlp_protobuf import (
    MAX_REQUEST_BYTES,
    MAX_REQUEST_SPANS,
    Answer,
    AnswerError,
    answer_of,
    requests_of,
)
from stormphase.otel._plain_span import RecoveredSpan, SpanEvent, SpanLink

FACTS = SessionFacts(
    trace_id=1,
    root_id=2,
    rank_id=3,
    scope_name="stormphase",
    scope_version="1.2",
    schema_url="https://schema.example/scope",
    resource={"service.name": "resnet", "tags": ["a", "b"]},
    resource_dropped=4,
    resource_schema_url="https://schema.example/resource",
)


def span(**more: Any) -> RecoveredSpan:
    """Return a span with nothing but what it must have."""
    plain: dict[str, Any] = {
        "trace_id": 0xA1,
        "span_id": 0xB2,
        "parent_id": 0,
        "flags": 0x103,
        "tracestate": "",
        "name": "step",
        "started_ns": 5,
        "ended_ns": 7,
        "attributes": {},
    }
    return RecoveredSpan(**{**plain, **more})


def read(facts: SessionFacts, *spans: RecoveredSpan) -> ExportTraceServiceRequest:
    """Return the one request as the official class reads it."""
    (body,) = requests_of(facts, spans)
    return ExportTraceServiceRequest.FromString(body)


def test_a_span_with_all_that_it_can_have() -> None:
    """Every field is where the official class looks for it."""
    request = read(
        FACTS,
        span(
            parent_id=0xC3,
            tracestate="v=1",
            attributes={
                "text": "é",
                "empty": "",
                "yes": True,
                "no": False,
                "n": -5,
                "zero": 0,
                "big": 2**63 - 1,
                "x": 0.5,
                "nan": float("inf"),
                "list": ("a", "b"),
                "none": (),
            },
            dropped_attributes=1,
            events=(SpanEvent(name="exception", time_ns=6, attributes={"exception.type": "E"}, dropped_attributes=2),),
            dropped_events=3,
            links=(SpanLink(trace_id=0xD4, span_id=0xE5, flags=0x301),),
            dropped_links=4,
            status=2,
            status_message="E: x",
        ),
    )
    (of_resource,) = request.resource_spans
    assert ("https://schema.example/resource", 4) == (
        of_resource.schema_url,
        of_resource.resource.dropped_attributes_count,
    )
    assert ["service.name", "tags"] == [pair.key for pair in of_resource.resource.attributes]
    (of_scope,) = of_resource.scope_spans
    assert ("stormphase", "1.2", "https://schema.example/scope") == (
        of_scope.scope.name,
        of_scope.scope.version,
        of_scope.schema_url,
    )
    (found,) = of_scope.spans
    assert (b"\0" * 15 + b"\xa1", b"\0" * 7 + b"\xb2", b"\0" * 7 + b"\xc3") == (
        found.trace_id,
        found.span_id,
        found.parent_span_id,
    )
    assert ("v=1", "step", 1, 5, 7, 0x103) == (
        found.trace_state,
        found.name,
        found.kind,
        found.start_time_unix_nano,
        found.end_time_unix_nano,
        found.flags,
    )
    values = {pair.key: pair.value for pair in found.attributes}
    assert ("é", "", True, False, -5, 0, 2**63 - 1, 0.5) == (
        values["text"].string_value,
        values["empty"].string_value,
        values["yes"].bool_value,
        values["no"].bool_value,
        values["n"].int_value,
        values["zero"].int_value,
        values["big"].int_value,
        values["x"].double_value,
    )
    assert {value.WhichOneof("value") for value in values.values()} == {
        "string_value",
        "bool_value",
        "int_value",
        "double_value",
        "array_value",
    }
    assert ["a", "b"] == [item.string_value for item in values["list"].array_value.values]
    assert (1, 3, 4) == (found.dropped_attributes_count, found.dropped_events_count, found.dropped_links_count)
    (event,) = found.events
    assert ("exception", 6, "exception.type", 2) == (
        event.name,
        event.time_unix_nano,
        event.attributes[0].key,
        event.dropped_attributes_count,
    )
    (link,) = found.links
    assert (0xD4, 0xE5, 0x301) == (
        int.from_bytes(link.trace_id, "big"),
        int.from_bytes(link.span_id, "big"),
        link.flags,
    )
    assert (2, "E: x") == (found.status.code, found.status.message)


def test_a_root_has_no_parent() -> None:
    """A parent of zero is none, and so the field is not there."""
    (found,) = read(FACTS, span()).resource_spans[0].scope_spans[0].spans
    assert (b"", 0, "") == (found.parent_span_id, found.status.code, found.status.message)


def test_what_otlp_has_no_form_for_is_counted() -> None:
    """An integer beyond 64 bits, bytes or a list with such in it is left out; a lone surrogate becomes `?`."""
    odd = {"huge": 2**64, "raw": b"x", "mixed": (1, b"x"), "torn": "a\ud800b"}
    (found,) = read(FACTS, span(attributes=odd, name="\udfff")).resource_spans[0].scope_spans[0].spans
    assert [("torn", "a?b")] == [(pair.key, pair.value.string_value) for pair in found.attributes]
    assert (3, "?") == (found.dropped_attributes_count, found.name)


def test_values_that_are_equal_are_not_the_same() -> None:
    """True is not 1, nor 0.0 the same as -0.0, wherever they stood before."""
    for value, kind in ((1, "int_value"), (True, "bool_value"), (1.0, "double_value"), (0.0, "double_value")):
        (found,) = read(FACTS, span(attributes={"a": value})).resource_spans[0].scope_spans[0].spans
        assert kind == found.attributes[0].value.WhichOneof("value")
    (found,) = read(FACTS, span(attributes={"a": -0.0})).resource_spans[0].scope_spans[0].spans
    assert "-0.0" == str(found.attributes[0].value.double_value)


def test_spans_are_spread_over_requests() -> None:
    """No request has too many spans or bytes; together they have all, in order; and twice is the same to the byte."""
    many = [span(span_id=number) for number in range(1, 2 * MAX_REQUEST_SPANS + 2)]
    bodies = list(requests_of(FACTS, many))
    sizes = [len(ExportTraceServiceRequest.FromString(body).resource_spans[0].scope_spans[0].spans) for body in bodies]
    assert [MAX_REQUEST_SPANS, MAX_REQUEST_SPANS, 1] == sizes
    assert bodies == list(requests_of(FACTS, list(many)))
    large = [span(span_id=number, attributes={"a": "x" * (MAX_REQUEST_BYTES // 3)}) for number in range(1, 8)]
    bodies = list(requests_of(FACTS, large))
    assert 7 == sum(
        len(ExportTraceServiceRequest.FromString(body).resource_spans[0].scope_spans[0].spans) for body in bodies
    )
    assert max(map(len, bodies)) < MAX_REQUEST_BYTES + 1_000
    assert [] == list(requests_of(FACTS, []))


def partial(rejected: int, message: str) -> bytes:
    """Return an answer of the official class."""
    answer = ExportTraceServiceResponse()
    answer.partial_success.rejected_spans = rejected
    answer.partial_success.error_message = message
    return answer.SerializeToString()


@pytest.mark.parametrize(
    ("body", "content_type", "expected"),
    [
        (b"", "application/x-protobuf", Answer()),
        (b"", "", Answer()),
        (ExportTraceServiceResponse().SerializeToString(), "application/x-protobuf", Answer()),
        (partial(3, "too\nold\x1b[0m"), "application/x-protobuf", Answer(rejected=3, message="too old\\x1b[0m")),
        (partial(-1, ""), "application/x-protobuf", Answer(rejected=-1)),
        (b'{"partialSuccess":null}', "application/json", Answer()),
        (b"{}", "application/json; charset=utf-8", Answer()),
        (b'{"partialSuccess":{"rejectedSpans":"2"}}', "application/json", Answer(rejected=2)),
        (b'{"partialSuccess":{"errorMessage":"no"}}', "application/json", Answer(message="no")),
        (b"[]", "application/json", Answer()),
        (b"OK", "text/plain", Answer()),
    ],
)  # fmt: skip
def test_answers_are_understood(body: bytes, content_type: str, expected: Answer) -> None:
    """What a collector rejected is seen, in whichever of OTLP's two forms it says so."""
    assert expected == answer_of(body, content_type)


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"<html>", "text/html; charset=utf-8"),
        (b"<html>", "application/json"),
        (b'{"partialSuccess":7}', "application/json"),
        (b'{"partialSuccess":{"rejectedSpans":"many"}}', "application/json"),
        (b"[" * 100_000, "application/json"),
        (b"\x0a\xff", "application/x-protobuf"),
        (b"\x0a", "application/x-protobuf"),
        (b"\xff" * 20, "application/x-protobuf"),
        (b"\x0b", "application/x-protobuf"),
    ],
)
def test_what_is_no_answer_is_refused(body: bytes, content_type: str) -> None:
    """A login page or garbage with a 200 confirms nothing."""
    with pytest.raises(AnswerError):
        answer_of(body, content_type)


def test_no_answer_does_more_than_be_refused() -> None:
    """Random bytes give an answer or the one error, and what the official class reads is read alike."""
    chance = random.Random(11)
    agreed = 0
    for _ in range(3_000):
        body = bytearray(partial(chance.randrange(200), "x" * chance.randrange(40)))
        for _ in range(chance.randrange(3)):
            if body:
                body[chance.randrange(len(body))] = chance.randrange(256)
        data = bytes(body[: chance.randrange(len(body) + 1)])
        try:
            official = ExportTraceServiceResponse.FromString(data)
        except DecodeError:
            official = None
        try:
            found = answer_of(data, "application/x-protobuf")
        except AnswerError:
            continue
        if official is not None:
            agreed += 1
            assert official.partial_success.rejected_spans == found.rejected
    assert agreed > 100
