"""The harness reads from the real collector exactly what was sent to it."""

from __future__ import annotations

import math
import os
import signal
import threading
import urllib.request
from typing import TYPE_CHECKING

import pytest
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.logs.v1.logs_pb2 import SeverityNumber
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
from opentelemetry.trace import Link, SpanKind, Status, StatusCode, set_span_in_context

from .collector import Collector, CollectorError
from .received import ReceivedEvent, ReceivedLink, ReceivedLog, ReceivedScope, by_name, outline
from .rotel_text import UnreadableTextError, read_text, read_value

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from opentelemetry.sdk.trace import SpanProcessor
    from opentelemetry.trace import Tracer
    from opentelemetry.util.types import AttributeValue

    from .faulty import FaultyEndpoint

EVERY_TYPE: dict[str, AttributeValue] = {
    "string": "a value",
    "empty string": "",
    "two lines": "one\ntwo",
    "looks like a heading": "one\nResourceSpans #0",
    "brackets": "f(x), Str(y)",
    "not ASCII": "é\u202e\x1b[31m\x0c",
    "integer": -5,
    "large integer": 2**62,
    "float": 1.5,
    "whole float": 3.0,
    "tiny float": 1e-7,
    "huge float": 1e300,
    "infinity": math.inf,
    "true": True,
    "false": False,
    "strings": ["a", "b, c", "f(x)"],
    "integers": [1, 2],
    "floats": [1.0, 2.5],
    "booleans": [True, False],
    "nothing": [],
}


@pytest.fixture
def tracer_with() -> Iterator[Callable[..., Tracer]]:
    """Makes tracers with given processors, and shuts their providers down afterwards."""
    providers: list[TracerProvider] = []

    def make(*processors: SpanProcessor) -> Tracer:
        provider = TracerProvider(resource=Resource({"service.name": "harness", "rank": 3}))
        for processor in processors:
            provider.add_span_processor(processor)
        providers.append(provider)
        return provider.get_tracer("a scope", "1.2.3", "https://example.com/schema", {"of": "scope"})

    yield make
    for provider in providers:
        provider.shutdown()


def to(endpoint: Collector | FaultyEndpoint) -> SpanProcessor:
    """Export each span as it ends."""
    return SimpleSpanProcessor(OTLPSpanExporter(f"{endpoint.http_endpoint}/v1/traces"))


def test_the_tree_arrives_with_its_ids_and_times(collector: Collector, tracer_with: Callable[..., Tracer]) -> None:
    """Names, ids, parents and nanosecond times are read as they were sent."""
    tracer = tracer_with(to(collector))
    train = tracer.start_span("train", start_time=1_000)
    beneath_train = set_span_in_context(train)
    tracer.start_span("load data", beneath_train, start_time=1_001).end(1_002)
    step = tracer.start_span("step", beneath_train, start_time=1_003)
    tracer.start_span("forward", set_span_in_context(step), start_time=1_004).end(1_125)
    step.end(1_126)
    train.end(1_127)

    spans = collector.spans()

    assert ["train", "  load data", "  step", "    forward"] == outline(spans)
    forward = by_name(spans, "forward")
    assert f"{train.get_span_context().trace_id:032x}" == forward.trace_id
    assert f"{step.get_span_context().span_id:016x}" == forward.parent_span_id
    assert (1_004, 1_125, 121) == (forward.started_ns, forward.ended_ns, forward.duration_ns)
    assert by_name(spans, "train").parent_span_id is None


def test_status_events_and_links_arrive(collector: Collector, tracer_with: Callable[..., Tracer]) -> None:
    """A failed span shows its status, message, events and links; a plain one shows none."""
    tracer = tracer_with(to(collector))
    first = tracer.start_span("first")
    first.end()
    retry = tracer.start_span("retry", kind=SpanKind.CLIENT, links=[Link(first.get_span_context(), {"why": "retry"})])
    retry.add_event("exception", {"exception.type": "ValueError", "exception.stacktrace": "line 1\n  line 2"}, 77)
    retry.add_event("bare", timestamp=78)
    retry.set_status(Status(StatusCode.ERROR, "bad: (value)\nsecond line"))
    retry.end()

    spans = collector.spans()

    failed, plain = by_name(spans, "retry"), by_name(spans, "first")
    assert ("ERROR", "bad: (value)\nsecond line", "CLIENT") == (failed.status, failed.status_message, failed.kind)
    assert ("UNSET", "", "INTERNAL") == (plain.status, plain.status_message, plain.kind)
    exception = {"exception.type": "ValueError", "exception.stacktrace": "line 1\n  line 2"}
    assert (
        ReceivedEvent(name="exception", time_ns=77, attributes=exception),
        ReceivedEvent(name="bare", time_ns=78),
    ) == failed.events
    assert (ReceivedLink(trace_id=plain.trace_id, span_id=plain.span_id, attributes={"why": "retry"}),) == failed.links
    assert ((), ()) == (plain.events, plain.links)


def test_attributes_of_every_type_arrive(collector: Collector, tracer_with: Callable[..., Tracer]) -> None:
    """Each attribute value keeps its type and value, on the span, its resource and its scope."""
    tracer_with(to(collector)).start_span("typed", attributes=EVERY_TYPE).end()

    span = by_name(collector.spans(), "typed")

    assert EVERY_TYPE == span.attributes
    assert {key: type(value) for key, value in EVERY_TYPE.items()} == {
        key: type(value) for key, value in span.attributes.items()
    }
    assert {"service.name": "harness", "rank": 3} == span.resource
    assert (
        ReceivedScope(
            name="a scope", version="1.2.3", schema_url="https://example.com/schema", attributes={"of": "scope"}
        )
        == span.scope
    )


def test_text_and_protobuf_are_read_alike(
    collector: Collector, faulty: FaultyEndpoint, tracer_with: Callable[..., Tracer]
) -> None:
    """What is read from the collector's text equals what is read from the same spans' OTLP."""
    tracer = tracer_with(to(collector), to(faulty))
    outer = tracer.start_span("outer", attributes=EVERY_TYPE)
    inner = tracer.start_span("inner", set_span_in_context(outer), links=[Link(outer.get_span_context())])
    inner.add_event("an event", EVERY_TYPE)
    inner.end()
    outer.end()

    assert faulty.spans == collector.spans()


def test_log_records_arrive(collector: Collector, faulty: FaultyEndpoint) -> None:
    """Event name, severity, times, body, attributes and ids of a log record are read as they were sent."""
    # Not through the SDK, whose logs are still experimental and change their API between releases.
    request = ExportLogsServiceRequest()
    of_resource = request.resource_logs.add()
    of_resource.resource.attributes.add(key="rank").value.int_value = 1
    of_scope = of_resource.scope_logs.add()
    of_scope.scope.name = "log scope"
    event = of_scope.log_records.add(
        time_unix_nano=5,
        observed_time_unix_nano=6,
        event_name="stormphase.phase.exit",
        severity_number=SeverityNumber.SEVERITY_NUMBER_ERROR,
        trace_id=bytes(range(16)),
        span_id=bytes(range(8)),
    )
    event.attributes.add(key="failed").value.bool_value = True
    of_path = event.attributes.add(key="path").value.array_value
    of_path.values.add(string_value="train")
    of_path.values.add(string_value="step")
    plain = of_scope.log_records.add(time_unix_nano=7, observed_time_unix_nano=8, severity_text="WARN")
    plain.body.string_value = "two\nlines"
    for endpoint in (collector, faulty):
        post(f"{endpoint.http_endpoint}/v1/logs", request.SerializeToString())

    received = collector.logs()

    scope = ReceivedScope(name="log scope")
    assert [
        ReceivedLog(
            event_name="stormphase.phase.exit",
            time_ns=5,
            observed_ns=6,
            severity="ERROR",
            trace_id="000102030405060708090a0b0c0d0e0f",
            span_id="0001020304050607",
            attributes={"failed": True, "path": ["train", "step"]},
            resource={"rank": 1},
            scope=scope,
        ),
        ReceivedLog(
            event_name="",
            time_ns=7,
            observed_ns=8,
            severity_text="WARN",
            body="two\nlines",
            resource={"rank": 1},
            scope=scope,
        ),
    ] == received
    assert faulty.logs == received


def post(url: str, body: bytes) -> None:
    """Send an OTLP request; an answer other than success raises."""
    request = urllib.request.Request(url, body, {"content-type": "application/x-protobuf"})  # noqa: S310 (our own server)
    with urllib.request.urlopen(request, timeout=10):  # noqa: S310 (our own server)
        pass


def test_grpc_arrives_as_well(collector: Collector, run_python: Callable[..., object]) -> None:
    """Spans sent over gRPC, by another process, are read like those over HTTP."""
    # gRPC's own threads would stay in this process, and other tests fork.
    source = """
import sys
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter(endpoint=sys.argv[1], insecure=True)))
provider.get_tracer("a scope").start_span("over gRPC").end()
provider.shutdown()
"""
    run_python(source, collector.grpc_endpoint)

    assert ["over gRPC"] == outline(collector.wait_for_spans(1))


def test_a_burst_is_complete_after_the_flush(collector: Collector, tracer_with: Callable[..., Tracer]) -> None:
    """Of 5,000 spans in large batches none is missing once the provider's flush has returned."""
    processor = BatchSpanProcessor(OTLPSpanExporter(f"{collector.http_endpoint}/v1/traces"), max_queue_size=5_000)
    tracer = tracer_with(processor)
    for number in range(5_000):
        tracer.start_span(f"span {number}").end()
    processor.force_flush()

    assert {f"span {number}" for number in range(5_000)} == {span.name for span in collector.spans()}


def test_nothing_that_was_answered_is_missing(collector: Collector) -> None:
    """Spans of many connections at once are all there behind the marker, with no waiting and no count."""

    def send(sender: int) -> None:
        for number in range(25):
            request = ExportTraceServiceRequest()
            spans = request.resource_spans.add().scope_spans.add().spans
            spans.add(name=f"{sender}.{number}", trace_id=bytes(16), span_id=bytes(8))
            post(f"{collector.http_endpoint}/v1/traces", request.SerializeToString())

    senders = [threading.Thread(target=send, args=(sender,)) for sender in range(8)]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join()

    expected = sorted(f"{sender}.{number}" for sender in range(8) for number in range(25))
    assert expected == sorted(span.name for span in collector.spans())


def test_waiting_for_more_than_comes_says_what_came(collector: Collector, tracer_with: Callable[..., Tracer]) -> None:
    """Waiting for too many spans ends at its limit, with an error that names those that came."""
    tracer_with(to(collector)).start_span("the only one").end()

    assert ["the only one"] == [span.name for span in collector.wait_for_spans(1)]
    with pytest.raises(CollectorError, match=r"Of 2 spans 1 came within 0.1 s: .*the only one"):
        collector.wait_for_spans(2, timeout_s=0.1)


def test_clearing_forgets(collector: Collector, tracer_with: Callable[..., Tracer]) -> None:
    """After a clear only later spans are seen."""
    tracer = tracer_with(to(collector))
    tracer.start_span("before").end()
    collector.clear()
    tracer.start_span("after").end()

    assert ["after"] == [span.name for span in collector.wait_for_spans(1)]


def test_it_ends_and_comes_back_on_the_same_ports(own_collector: Collector, tracer_with: Callable[..., Tracer]) -> None:
    """A stopped collector is gone, keeps what it received, and takes more on the same address when started again."""
    endpoint, pid = own_collector.http_endpoint, own_collector.pid
    tracer = tracer_with(to(own_collector))
    tracer.start_span("first life").end()
    own_collector.stop()

    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert ["first life"] == [span.name for span in own_collector.spans()]

    own_collector.start()
    tracer.start_span("second life").end()

    assert endpoint == own_collector.http_endpoint
    assert ["first life", "second life"] == [span.name for span in own_collector.spans()]


def test_a_frozen_collector_answers_nothing_until_it_thaws(
    own_collector: Collector, tracer_with: Callable[..., Tracer]
) -> None:
    """Within `frozen` the collector is there and mute; afterwards it takes what is sent."""
    with own_collector.frozen(), pytest.raises(CollectorError, match="does not answer"):
        own_collector.spans(timeout_s=0.2)
    tracer_with(to(own_collector)).start_span("after the thaw").end()

    assert ["after the thaw"] == [span.name for span in own_collector.spans()]


def test_a_collector_that_was_killed_is_an_error_not_a_wait(own_collector: Collector) -> None:
    """Asking a collector that has died gives an error at once."""
    os.kill(own_collector.pid, signal.SIGKILL)

    with pytest.raises(CollectorError, match="does not answer"):
        own_collector.spans()


def test_asking_for_the_pid_of_a_stopped_one_is_an_error() -> None:
    """A collector that is not running says how to start it."""
    with pytest.raises(CollectorError, match=r"start\(\) it"):
        _ = Collector().pid


def test_starting_twice_is_an_error(own_collector: Collector) -> None:
    """A second start would lose the first process, so it is refused."""
    with pytest.raises(CollectorError, match="Stop it first"):
        own_collector.start()


@pytest.mark.parametrize(
    ("expected", "text"),
    [
        (None, "Empty"),
        (b"\x00\xffab", "Bytes([0, 255, 97, 98])"),
        (b"", "Bytes([])"),
        ({"a": [1, {"x": None}], "b": "c:d"}, "Map(a:Slice(Int(1), Map(x:Empty)), b:Str(c:d))"),
        ({}, "Map()"),
        ([[1, 2], [], ["a", "b"]], "Slice(Slice(Int(1), Int(2)), Slice(), Slice(Str(a), Str(b)))"),
    ],
)
def test_printed_values_are_read(expected: object, text: str) -> None:
    """Values that the SDK does not send, or sends nested, are read too."""
    assert expected == read_value(text)


@pytest.mark.parametrize("text", ["", "Str(open", "Int(x)", "Bool(maybe)", "Slice(Int(1), Int()", "Money(3)"])
def test_what_is_no_value_is_refused(text: str) -> None:
    """A text that is no whole value raises instead of giving half of one."""
    with pytest.raises(UnreadableTextError, match="Not a"):
        read_value(text)


def test_unknown_lines_are_refused() -> None:
    """A line that no rule knows raises, so that a new release of the collector cannot go unnoticed."""
    with pytest.raises(UnreadableTextError, match="No rule for the line 'Something new'"):
        read_text("ResourceSpans #0\nSomething new\n")


def test_an_orphan_is_drawn_as_one(collector: Collector, tracer_with: Callable[..., Tracer]) -> None:
    """A span whose parent never arrived stands at the top and says so."""
    tracer = tracer_with(to(collector))
    never_ended = tracer.start_span("never ended")
    tracer.start_span("orphan", set_span_in_context(never_ended)).end()

    assert ["orphan (parent missing)"] == outline(collector.spans())
