"""Our JSON lines: the official protobuf in another spelling, whole lines only, and never an exception."""

from __future__ import annotations

import base64
import json
import logging
import math
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from google.protobuf.json_format import ParseDict
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from opentelemetry import trace
from opentelemetry._logs import SeverityNumber
from opentelemetry.exporter.otlp.proto.common._log_encoder import encode_logs as official_logs
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans as official_spans
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs import export as log_export
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan, SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

from stormphase.exceptions import ConfigurationError
from stormphase.otel._otlp_json import encode_logs, encode_spans
from stormphase.otel.json_lines import JsonLinesCounts, JsonLinesLogExporter, JsonLinesSpanExporter

if TYPE_CHECKING:
    from collections.abc import Sequence

    from conftest import RunPython

RESOURCE = Resource({"service.name": "digits", "stormphase.rank": 3}, "https://schema.invalid/resource")
SCOPE = InstrumentationScope("stormphase", "0.1.0", "https://schema.invalid/scope", {"of": "scope"})
PARENT = SpanContext(0xA1, 0xB1, is_remote=True, trace_flags=TraceFlags(1))
ALL_RESULTS = getattr(log_export, "LogRecordExportResult", None) or log_export.LogExportResult


def a_span(name: str = "step", **fields: Any) -> ReadableSpan:
    """Return an ended span; `fields` replace what it would have."""
    whole = {
        "context": SpanContext(0xA1, 0xB2, is_remote=False, trace_flags=TraceFlags(3)),
        "resource": RESOURCE,
        "instrumentation_scope": SCOPE,
        "start_time": 1_700_000_000_000_000_001,
        "end_time": 1_700_000_000_000_000_009,
    }
    return ReadableSpan(name, **{**whole, **fields})


def ids_to_base64(value: Any) -> Any:
    """Return a JSON document with its ids as proto3's JSON mapping has bytes; OTLP has them in hex."""
    if isinstance(value, list):
        return [ids_to_base64(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        name: base64.b64encode(bytes.fromhex(item)).decode()
        if name in ("traceId", "spanId", "parentSpanId")
        else ids_to_base64(item)
        for name, item in value.items()
    }


def parsed_spans(line: bytes) -> ExportTraceServiceRequest:
    """Return what the official protobuf classes read from a line."""
    return ParseDict(ids_to_base64(json.loads(line)), ExportTraceServiceRequest())


def parsed_logs(line: bytes) -> ExportLogsServiceRequest:
    """Return what the official protobuf classes read from a line."""
    return ParseDict(ids_to_base64(json.loads(line)), ExportLogsServiceRequest())


def without_trace_flags(request: ExportTraceServiceRequest) -> ExportTraceServiceRequest:
    """Return a request without the W3C flags, which OTLP has a place for and the official exporter leaves out."""
    for of_resource in request.resource_spans:
        for of_scope in of_resource.scope_spans:
            for span in of_scope.spans:
                span.flags &= ~0xFF
                for link in span.links:
                    link.flags &= ~0xFF
    return request


def sent_logs(records: Sequence[Any]) -> ExportLogsServiceRequest:
    """Return what the official exporter would have sent, without the empty bodies that newer ones give to all."""
    request = official_logs(records)
    for of_resource in request.resource_logs:
        for of_scope in of_resource.scope_logs:
            for record in of_scope.log_records:
                if record.body.WhichOneof("value") is None:
                    record.ClearField("body")
    return request


def emitted_logs(*records: dict[str, Any]) -> Sequence[Any]:
    """Return the records as the SDK hands them to an exporter."""
    in_memory = getattr(log_export, "InMemoryLogRecordExporter", None) or log_export.InMemoryLogExporter
    exporter = in_memory()
    provider = LoggerProvider(resource=RESOURCE, shutdown_on_exit=False)
    provider.add_log_record_processor(log_export.SimpleLogRecordProcessor(exporter))
    logger = provider.get_logger("stormphase", "0.1.0", schema_url="https://schema.invalid/scope")
    for fields in records:
        try:
            logger.emit(**fields)
        except TypeError:  # before SDK 1.38
            from opentelemetry.sdk._logs import LogRecord

            logger.emit(LogRecord(resource=RESOURCE, **fields))
    provider.shutdown()
    return exporter.get_finished_logs()


SPANS = {
    "plain": [a_span()],
    "root with status and kind": [
        a_span(status=Status(StatusCode.ERROR, "loss is nan"), kind=SpanKind.CLIENT),
        a_span(status=Status(StatusCode.OK), kind=SpanKind.CONSUMER),
    ],
    "child of a remote span": [a_span(parent=PARENT)],
    "child of a local span": [a_span(parent=SpanContext(0xA1, 0xB1, is_remote=False))],
    "ids with leading zeros": [a_span(context=SpanContext(1, 1, is_remote=False))],
    "trace state": [
        a_span(context=SpanContext(1, 2, is_remote=False, trace_state=TraceState([("a", "b"), ("c", "d=e")])))
    ],
    "events and links": [
        a_span(
            events=[Event("checkpoint", {"size": 3}, 1_700_000_000_000_000_005), Event("bare", None, 7)],
            links=[Link(PARENT, {"why": "retry"}), Link(SpanContext(9, 9, is_remote=False))],
        )
    ],
    "every kind of value": [
        a_span(
            attributes={
                "text": "naïve \u2028 \x00 \x1b[31m 😀",
                "true": True,
                "zero": 0,
                "int64": -(2**63),
                "float": 0.1,
                "nan": math.nan,
                "infinite": math.inf,
                "minus": -math.inf,
                "texts": ("a", "b"),
                "mixed": [1, "a", [2.5, True]],
                "bytes": b"\x00\xff",
                "map": {"a": {"b": [1]}},
                "empty": "",
            }
        )
    ],
    "several resources and scopes": [
        a_span("a"),
        a_span("b", resource=Resource({"service.name": "other"})),
        a_span("c", instrumentation_scope=InstrumentationScope("user")),
        a_span("d"),
    ],
    "no scope": [a_span(instrumentation_scope=None)],
    "no times": [a_span(start_time=None, end_time=None)],
}


@pytest.mark.parametrize("spans", SPANS.values(), ids=SPANS.keys())
def test_spans_read_as_the_official_protobuf(spans: list[ReadableSpan]) -> None:
    """A line of spans, parsed by the official classes, is what the official exporter would have sent."""
    expected = official_spans(spans)
    actual = without_trace_flags(parsed_spans(encode_spans(spans)))
    # NaN differs from itself, and so would the messages: their canonical bytes do not.
    assert expected.SerializeToString(deterministic=True) == actual.SerializeToString(deterministic=True)


def test_trace_flags_are_there() -> None:
    """The sampled and the random flag of a span and of its link stand in the low byte, as OTLP asks."""
    request = parsed_spans(encode_spans([a_span(links=[Link(PARENT)])]))
    (span,) = request.resource_spans[0].scope_spans[0].spans
    assert (0x103, 0x301) == (span.flags, span.links[0].flags)


def test_logs_read_as_the_official_protobuf() -> None:
    """A line of log records, parsed by the official classes, is what the official exporter would have sent."""
    span = trace.NonRecordingSpan(PARENT)
    records = emitted_logs(
        {
            "timestamp": 5,
            "observed_timestamp": 6,
            "context": trace.set_span_in_context(span),
            "severity_number": SeverityNumber.ERROR,
            "event_name": "stormphase.phase.exit",
            "attributes": {"stormphase.phase.status": "failed", "ns": 2**60},
        },
        {"observed_timestamp": 7, "severity_number": SeverityNumber.INFO, "severity_text": "info", "body": "text"},
        {"observed_timestamp": 8, "severity_number": SeverityNumber.WARN, "body": {"nested": [1, {"a": 2.5}]}},
    )
    assert sent_logs(records) == parsed_logs(encode_logs(records))


def test_a_log_without_severity_is_written() -> None:
    """A record with no severity, at which the official encoder of old SDKs raises, has none in the line either."""
    (record,) = parsed_logs(encode_logs(emitted_logs({"observed_timestamp": 7, "body": "a"}))).resource_logs
    assert 0 == record.scope_logs[0].log_records[0].severity_number


@pytest.mark.parametrize("bad", [2**63, object(), {"a": {1, 2}}, [object()]], ids=["int", "object", "set", "list"])
def test_a_value_without_a_form_is_dropped_and_counted(bad: Any) -> None:
    """One attribute that OTLP cannot hold costs neither its neighbours nor the span."""
    (of_resource,) = parsed_spans(encode_spans([a_span(attributes={"bad": bad, "good": 1})])).resource_spans
    (span,) = of_resource.scope_spans[0].spans
    assert (["good"], 1) == ([pair.key for pair in span.attributes], span.dropped_attributes_count)


def test_a_value_that_holds_itself_is_dropped() -> None:
    """A list within itself ends no worker."""
    endless: list[Any] = []
    endless.append(endless)
    (of_resource,) = parsed_spans(encode_spans([a_span(attributes={"bad": endless})])).resource_spans
    assert 1 == of_resource.scope_spans[0].spans[0].dropped_attributes_count


@pytest.mark.parametrize("resource", [RESOURCE, None])
def test_a_log_body_without_a_form_is_named(resource: Resource | None) -> None:
    """A record whose body OTLP cannot hold says so, with or without a resource."""

    class Record:
        timestamp = observed_timestamp = severity_number = severity_text = event_name = attributes = None
        trace_id = span_id = trace_flags = dropped_attributes = 0
        body = object()

    class Item:
        log_record = Record()
        instrumentation_scope = None

    record = Item()
    record.log_record.resource = resource
    (of_resource,) = parsed_logs(encode_logs([record])).resource_logs
    assert (2 if resource else 0) == len(of_resource.resource.attributes)
    assert "<object without a form in OTLP>" == of_resource.scope_logs[0].log_records[0].body.string_value


def test_what_the_sdk_dropped_is_told() -> None:
    """The counts of attributes, events and links beyond the provider's limits are in the line."""
    provider = TracerProvider(
        span_limits=SpanLimits(max_attributes=1, max_events=1, max_links=1), shutdown_on_exit=False, resource=RESOURCE
    )
    span = provider.get_tracer("t").start_span("s", links=[Link(PARENT), Link(PARENT)], attributes={"a": 1, "b": 2})
    span.add_event("one")
    span.add_event("two")
    span.end()
    assert isinstance(span, ReadableSpan)
    assert official_spans([span]) == without_trace_flags(parsed_spans(encode_spans([span])))
    assert 3 == encode_spans([span]).count(b'Count":1')


values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats() | st.text(st.characters()) | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(name=st.text(st.characters()), attributes=st.dictionaries(st.text(st.characters()), values, max_size=3))
@settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow])
def test_any_name_and_value_give_one_readable_line(name: str, attributes: dict[str, Any]) -> None:
    """Whatever stands in names and values, lone surrogates included, is one line of valid UTF-8 that parses."""
    line = encode_spans([a_span(name, attributes=attributes)])
    assert (1, b"\n") == (line.count(b"\n"), line[-1:])
    (of_resource,) = parsed_spans(line).resource_spans
    assert len(attributes) == len(of_resource.scope_spans[0].spans[0].attributes)


def test_each_batch_is_one_more_line(tmp_path: Path) -> None:
    """Exporting twice, and once more from a second exporter after the first was closed, gives three lines in order."""
    path = tmp_path / "new" / "folder" / "traces.jsonl"
    first = JsonLinesSpanExporter(path)
    assert SpanExportResult.SUCCESS == first.export([a_span("a"), a_span("b")])
    assert SpanExportResult.SUCCESS == first.export([a_span("c")])
    first.shutdown()
    second = JsonLinesSpanExporter(str(path))
    second.export([a_span("d")])
    second.shutdown()
    lines = path.read_bytes().splitlines(keepends=True)
    names = [[span.name for span in parsed_spans(line).resource_spans[0].scope_spans[0].spans] for line in lines]
    assert [["a", "b"], ["c"], ["d"]] == names
    assert (JsonLinesCounts(3, 0), path) == (first.counts(), first.path)


def test_logs_are_exported(tmp_path: Path) -> None:
    """The exporter of log records writes them and says so, in the words of the SDK in use."""
    path = tmp_path / "logs.jsonl"
    exporter = JsonLinesLogExporter(path)
    records = emitted_logs({"observed_timestamp": 7, "severity_number": SeverityNumber.INFO, "event_name": "e"})
    assert ALL_RESULTS.SUCCESS == exporter.export(records)
    assert exporter.force_flush(1)
    exporter.shutdown()
    assert ALL_RESULTS.FAILURE == exporter.export(records)
    assert sent_logs(records) == parsed_logs(path.read_bytes())
    assert (JsonLinesCounts(1, 1), path) == (exporter.counts(), exporter.path)


def test_a_provider_exports_through_it(tmp_path: Path) -> None:
    """A span that ends on a provider with this exporter is in the file, before the provider is shut down."""
    path = tmp_path / "traces.jsonl"
    exporter = JsonLinesSpanExporter(path)
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    with provider.get_tracer("t").start_as_current_span("s"):
        pass
    assert provider.force_flush()
    assert b'"name":"s"' in path.read_bytes()
    provider.shutdown()
    provider.shutdown()


def test_the_file_is_its_owners(tmp_path: Path) -> None:
    """Nobody else on the machine reads the file, whatever the process's umask."""
    before = os.umask(0)
    try:
        JsonLinesSpanExporter(tmp_path / "traces.jsonl").shutdown()
    finally:
        os.umask(before)
    assert 0o600 == (tmp_path / "traces.jsonl").stat().st_mode & 0o777


def test_a_half_line_of_a_killed_process_is_ended(tmp_path: Path) -> None:
    """What a killed process left without an end is kept as a line of its own, and the next line parses."""
    path = tmp_path / "traces.jsonl"
    path.write_bytes(b'{"resourceSpans":[{"res')
    exporter = JsonLinesSpanExporter(path)
    exporter.export([a_span()])
    exporter.shutdown()
    torn, whole = path.read_bytes().splitlines()
    assert b'{"resourceSpans":[{"res' == torn
    assert 1 == len(parsed_spans(whole).resource_spans)


def test_a_full_disk_fails_and_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    """No space gives FAILURE, counted, with one warning; nothing is raised."""
    exporter = JsonLinesSpanExporter("/dev/full")
    with caplog.at_level(logging.WARNING, "stormphase"):
        results = [exporter.export([a_span(), a_span()]) for _ in range(2)]
    exporter.shutdown()
    assert [SpanExportResult.FAILURE] * 2 == results
    assert JsonLinesCounts(0, 4) == exporter.counts()
    assert ["Cannot write OTLP JSON to /dev/full: [Errno 28] No space left on device; what is lost is counted."] == [
        record.getMessage() for record in caplog.records
    ]


def test_a_disk_that_fills_up_amid_a_line_leaves_whole_lines(run_python: RunPython, tmp_path: Path) -> None:
    """A line that the system takes only in part is taken back, and later lines are whole."""
    source = """
import resource, sys
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanContext
from stormphase.otel.json_lines import JsonLinesSpanExporter
def spans(name, count):
    return [ReadableSpan(name, SpanContext(1, 2, False), resource=Resource({}), start_time=1, end_time=2)] * count
resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, resource.RLIM_INFINITY))
exporter = JsonLinesSpanExporter(sys.argv[1])
print([exporter.export(spans(*given)).name for given in [("a", 1), ("big", 100), ("c", 1)]], exporter.counts())
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))  # for what measures us
"""
    path = tmp_path / "traces.jsonl"
    child = run_python(source, str(path), check=False)
    expected = "['SUCCESS', 'FAILURE', 'SUCCESS'] JsonLinesCounts(written=2, failed=100)\n"
    assert (expected, 0) == (child.stdout, child.returncode)
    assert "File too large" in child.stderr
    names = [
        parsed_spans(line).resource_spans[0].scope_spans[0].spans[0].name for line in path.read_bytes().splitlines()
    ]
    assert ["a", "c"] == names


@pytest.mark.parametrize("wrong", [None, ReadableSpan("without ids", resource=RESOURCE)], ids=["none", "no ids"])
def test_a_batch_that_is_no_span_fails(tmp_path: Path, wrong: Any) -> None:
    """Something in the batch that is no span, or has no ids, gives FAILURE, and nothing is written."""
    exporter = JsonLinesSpanExporter(tmp_path / "traces.jsonl")
    assert SpanExportResult.FAILURE == exporter.export([a_span(), wrong])
    exporter.shutdown()
    assert (JsonLinesCounts(0, 2), b"") == (exporter.counts(), exporter.path.read_bytes())


def test_after_shutdown_exports_fail(tmp_path: Path) -> None:
    """What comes after shutdown is refused and counted, and a second shutdown does nothing."""
    exporter = JsonLinesSpanExporter(tmp_path / "traces.jsonl")
    exporter.shutdown()
    exporter.shutdown()
    assert SpanExportResult.FAILURE == exporter.export([a_span()])
    assert exporter.force_flush()
    assert JsonLinesCounts(0, 1) == exporter.counts()


@pytest.mark.parametrize("wrong", ["folder", "folder/file/traces.jsonl"])
def test_a_path_that_cannot_be_written_fails_at_once(tmp_path: Path, wrong: str) -> None:
    """A wrong path is an error where it is given, with the path and what to do."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").touch()
    with pytest.raises(ConfigurationError, match="Name a file in a folder that this process may write to") as caught:
        JsonLinesSpanExporter(tmp_path / wrong)
    assert "path" == caught.value.setting
    assert str(tmp_path / wrong) in str(caught.value)


def test_a_disk_without_room_for_a_line_end_fails_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A half line that cannot even be ended is an error at the start, and the file is closed."""
    path = tmp_path / "traces.jsonl"
    path.write_bytes(b"{")
    opened = len(list(Path("/proc/self/fd").iterdir()))

    def full(descriptor: int, text: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(ConfigurationError, match="No space left on device"):
        JsonLinesSpanExporter(path)
    assert opened == len(list(Path("/proc/self/fd").iterdir()))


def test_threads_write_whole_lines(tmp_path: Path) -> None:
    """Lines of several threads never mix, and every span is counted."""
    exporter = JsonLinesSpanExporter(tmp_path / "traces.jsonl")
    threads = [
        threading.Thread(target=lambda name: [exporter.export([a_span(name)]) for _ in range(50)], args=[f"t{number}"])
        for number in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    exporter.shutdown()
    lines = exporter.path.read_bytes().splitlines()
    assert (200, JsonLinesCounts(200, 0)) == (len(lines), exporter.counts())
    assert 200 == sum(len(parsed_spans(line).resource_spans) for line in lines)


def test_a_fork_amid_an_export_hangs_nobody(run_python: RunPython, tmp_path: Path) -> None:
    """A child that was forked while another thread was writing exports into the same file."""
    source = """
import os, sys
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanContext
from stormphase.otel.json_lines import JsonLinesSpanExporter
exporter = JsonLinesSpanExporter(sys.argv[1])
JsonLinesSpanExporter(sys.argv[1]).shutdown()  # gone before the fork: its hook finds nothing
span = ReadableSpan("s", SpanContext(1, 2, False), resource=Resource({}), start_time=1, end_time=2)
exporter._file._lock.acquire()
child = os.fork()
if not child:
    os._exit(exporter.export([span]).value)
exporter._file._lock.release()
_, status = os.waitpid(child, 0)
print(status, exporter.export([span]).name)
"""
    assert "0 SUCCESS\n" == run_python(source, str(tmp_path / "traces.jsonl")).stdout
    assert 2 == len((tmp_path / "traces.jsonl").read_bytes().splitlines())
