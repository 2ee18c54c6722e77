"""What the user's providers are; and every private name of the SDK that is used, so that a test fails when it moves."""

from __future__ import annotations

import copy
import inspect
import logging
import threading
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry import _logs, trace
from opentelemetry.sdk import _logs as sdk_logs
from opentelemetry.sdk._logs import export as sdk_log_export
from opentelemetry.sdk.trace import ConcurrentMultiSpanProcessor, SpanLimits, SpanProcessor, Tracer, TracerProvider
from opentelemetry.sdk.trace.export import (
    BatchSpanProcessor,
    ConsoleSpanExporter,
    SimpleSpanProcessor,
    SpanExporter,
    SpanExportResult,
)
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from stormphase.otel import _provider
from stormphase.otel._provider import LogSink, SdkTracer, Way, resolve_logger, resolve_tracer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conftest import RunPython


class EndsOnly(SpanProcessor):
    """Wants nothing but ended spans."""

    def on_end(self, span: Any) -> None:
        """Do nothing."""


class Starts(SpanProcessor):
    """Wants to see spans start."""

    def on_start(self, span: Any, parent_context: Any = None) -> None:
        """Do nothing."""


class Ending(SpanProcessor):
    """Wants to see spans while they are ending."""

    def _on_ending(self, span: Any) -> None:
        """Do nothing."""


class BatchOfMine(BatchSpanProcessor):
    """A batch processor that changes nothing of importance."""


class Delayed(BatchSpanProcessor):
    """A batch processor that is not called one."""


class BatchThatStarts(BatchSpanProcessor):
    """A batch processor with a start of its own."""

    def on_start(self, span: Any, parent_context: Any = None) -> None:
        """Do nothing."""


class Wrapped:
    """A tracer provider of somebody else's."""

    def __init__(self, provider: TracerProvider) -> None:
        """Wrap the SDK's."""
        self.provider = provider

    def get_tracer(self, *args: Any, **more: Any) -> trace.Tracer:
        """Return a tracer that is not the SDK's class."""
        return type("OtherTracer", (trace.ProxyTracer,), {})(*args, **more)


@pytest.fixture
def provider() -> Iterator[TracerProvider]:
    """An SDK provider that leaves no thread behind."""
    provider = TracerProvider(shutdown_on_exit=False)
    yield provider
    provider.shutdown()


def log_memory() -> Any:
    """Return the exporter that keeps log records, by its name in this release."""
    return (getattr(sdk_log_export, "InMemoryLogRecordExporter", None) or sdk_log_export.InMemoryLogExporter)()


def way_of(provider: Any) -> Way:
    """Return how spans would be made."""
    return resolve_tracer(provider)[0]


def patched_batch() -> BatchSpanProcessor:
    """Return a batch processor on which an instrumentation has set a hook."""
    processor = BatchSpanProcessor(InMemorySpanExporter())
    processor.on_start = lambda span, parent_context=None: None
    return processor


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: SimpleSpanProcessor(InMemorySpanExporter()), Way.DIRECT),
        (lambda: BatchSpanProcessor(InMemorySpanExporter()), Way.DIRECT),
        (lambda: BatchOfMine(InMemorySpanExporter()), Way.DIRECT),
        (EndsOnly, Way.DIRECT),
        (Starts, Way.STARTED),
        (Ending, Way.STARTED),
        (lambda: BatchThatStarts(InMemorySpanExporter()), Way.STARTED),
        (patched_batch, Way.STARTED),
    ],
    ids=("simple", "batch", "own batch", "ends only", "starts", "ending", "batch that starts", "patched"),
)
def test_the_way_follows_from_the_processors(
    provider: TracerProvider, make: Callable[[], SpanProcessor], expected: Way
) -> None:
    """Spans are built directly unless a processor wants to see one start."""
    assert Way.DIRECT is way_of(provider)
    provider.add_span_processor(make())
    assert expected is way_of(provider)


def test_processors_in_parallel_and_nested() -> None:
    """The SDK's multi processors are looked into."""
    multi = ConcurrentMultiSpanProcessor(1)
    provider = TracerProvider(active_span_processor=multi, shutdown_on_exit=False)
    provider.add_span_processor(EndsOnly())
    assert Way.DIRECT is way_of(provider)
    inner = ConcurrentMultiSpanProcessor(1)
    inner.add_span_processor(Starts())
    provider.add_span_processor(inner)
    assert Way.STARTED is way_of(provider)
    for used in (multi, inner):
        used._executor.shutdown()


def test_a_processor_instead_of_the_sdks_multi(provider: TracerProvider) -> None:
    """A provider made with a processor of its owner's in the middle is asked like any other."""
    assert Way.STARTED is way_of(TracerProvider(active_span_processor=Starts(), shutdown_on_exit=False))
    assert Way.DIRECT is way_of(TracerProvider(active_span_processor=EndsOnly(), shutdown_on_exit=False))


def test_providers_that_are_not_the_sdks(provider: TracerProvider, monkeypatch: pytest.MonkeyPatch) -> None:
    """No provider yet, one that does nothing, one that is switched off, and one of somebody else's."""
    assert Way.LATE is way_of(trace.ProxyTracerProvider())
    assert Way.NONE is way_of(trace.NoOpTracerProvider())
    assert Way.REAL is way_of(Wrapped(provider))
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    assert Way.NONE is way_of(TracerProvider(shutdown_on_exit=False))


def test_a_provider_subclass_with_the_sdks_tracer_is_the_sdks(provider: TracerProvider) -> None:
    """A subclass is one, unless its tracers are other than the SDK's."""
    kind = type("Mine", (TracerProvider,), {})
    assert Way.DIRECT is way_of(kind(shutdown_on_exit=False))
    other = type("Other", (TracerProvider,), {"get_tracer": Wrapped.get_tracer})
    assert Way.REAL is way_of(other(shutdown_on_exit=False))


def test_the_tracer_has_our_scope(provider: TracerProvider) -> None:
    """Name, version and schema URL."""
    from stormphase import __version__

    _, tracer, sdk = resolve_tracer(provider)
    scope = sdk.tracer._instrumentation_scope
    assert tracer is sdk.tracer
    assert ("stormphase", __version__) == (scope.name, scope.version)
    assert scope.schema_url.startswith("https://opentelemetry.io/schemas/")


def test_private_names_of_the_span_sdk(provider: TracerProvider) -> None:
    """What is read of the SDK's private parts is where it was: else the fallbacks are all that works."""
    limits = SpanLimits(max_events=3)
    limited = TracerProvider(span_limits=limits, shutdown_on_exit=False)
    _, _, sdk = resolve_tracer(limited)
    assert limits is sdk.tracer._span_limits
    assert limits is sdk.limits
    assert () == sdk.tracer.span_processor._span_processors
    batch = BatchSpanProcessor(InMemorySpanExporter(), max_queue_size=600)
    provider.add_span_processor(batch)
    assert 600 == batch._batch_processor._max_queue_size
    assert 600 == resolve_tracer(provider)[2].queue_size()
    assert 300 == resolve_tracer(provider)[2].room()
    batch._batch_processor._queue.append(object())
    assert 299 == resolve_tracer(provider)[2].room()
    assert 1 == resolve_tracer(provider)[2].waiting()
    batch._batch_processor._queue.clear()
    assert 0 == resolve_tracer(provider)[2].waiting()
    with batch._batch_processor._export_lock:
        assert batch._batch_processor._max_export_batch_size == resolve_tracer(provider)[2].waiting()
    assert resolve_tracer(provider)[2].force_flush(1_000)
    batch.shutdown()
    assert (None, False) == (resolve_tracer(provider)[2].waiting(), resolve_tracer(provider)[2].force_flush(1_000))
    assert {"sampler", "resource", "span_processor", "id_generator"} <= vars(sdk.tracer).keys()
    has_configurator = hasattr(provider, "_tracer_configurator")
    assert has_configurator is hasattr(Tracer, "_is_enabled")


def test_private_names_of_the_log_sdk() -> None:
    """Likewise for logs."""
    provider = sdk_logs.LoggerProvider(shutdown_on_exit=False)
    processor = sdk_log_export.BatchLogRecordProcessor(log_memory(), max_queue_size=700)
    provider.add_log_record_processor(processor)
    assert (processor,) == provider._multi_log_record_processor._log_record_processors
    assert 700 == processor._batch_processor._max_queue_size
    sink = resolve_logger(provider)
    assert (700, 350) == (sink.queue_size(), sink.room())
    assert sink.force_flush(1_000)
    if hasattr(sdk_logs, "ReadWriteLogRecord"):
        assert _provider._sdk_record_emitter(sink.logger) is not None
    provider.shutdown()


def test_without_private_names_public_ones_do(provider: TracerProvider, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hidden limits are the environment's, a hidden queue is taken as a small one, a hidden processor list as one."""
    monkeypatch.setenv("OTEL_SPAN_EVENT_COUNT_LIMIT", "5")

    class Hidden:
        """A tracer and a processor that show nothing."""

        span_processor = None

    tracer = Hidden()
    tracer.span_processor = type("BatchHidden", (EndsOnly,), {})()
    sdk = SdkTracer(provider, tracer)
    assert 5 == sdk.limits.max_events
    assert sdk.is_enabled()
    assert (512, None, None) == (sdk.queue_size(), sdk.room(), sdk.waiting())
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "100")
    assert 100 == sdk.queue_size()
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "many")
    assert 512 == sdk.queue_size()
    assert sdk.takes_readable()


def test_the_queue_in_which_most_wait_counts(provider: TracerProvider) -> None:
    """A span is on its way as long as any processor has it; one that exports at once never has any."""
    provider.add_span_processor(SimpleSpanProcessor(InMemorySpanExporter()))
    assert 0 == resolve_tracer(provider)[2].waiting()
    for count in (3, 2):
        batch = BatchSpanProcessor(InMemorySpanExporter())
        provider.add_span_processor(batch)
        batch._batch_processor._queue.extend([object()] * count)
    assert 3 == resolve_tracer(provider)[2].waiting()
    for processor in provider._active_span_processor._span_processors[1:]:
        processor._batch_processor._queue.clear()


def test_a_batch_processor_of_any_name_has_a_queue(provider: TracerProvider) -> None:
    """A backend's own processor that is built on the SDK's batching one keeps spans as that does, whatever its name."""
    mine = Delayed(InMemorySpanExporter(), max_queue_size=600)
    provider.add_span_processor(mine)
    mine._batch_processor._queue.append(object())
    sdk = resolve_tracer(provider)[2]
    assert (600, 299, 1) == (sdk.queue_size(), sdk.room(), sdk.waiting())
    mine._batch_processor._queue.clear()


def test_an_export_under_way_is_waited_for(provider: TracerProvider) -> None:
    """What has left the queue is not exported before its exporter has returned."""
    exporting, may_return = threading.Event(), threading.Event()

    class Slow(SpanExporter):
        """Returns when it is told to."""

        def export(self, spans: Any) -> SpanExportResult:
            """Wait."""
            exporting.set()
            may_return.wait(30)
            return SpanExportResult.SUCCESS

    batch = BatchSpanProcessor(Slow(), schedule_delay_millis=3_600_000, max_export_batch_size=8)
    provider.add_span_processor(batch)
    tracer = provider.get_tracer("user")
    for _ in range(3):
        tracer.start_span("x").end()
    sdk = resolve_tracer(provider)[2]
    assert 3 == sdk.waiting()
    flush = threading.Thread(target=batch.force_flush)
    flush.start()
    assert exporting.wait(30)
    tracer.start_span("y").end()
    assert 1 + 8 == sdk.waiting()
    may_return.set()
    flush.join(30)
    assert 0 == sdk.waiting()


def test_the_smallest_queue_counts(provider: TracerProvider) -> None:
    """Pacing follows the processor that would drop first."""
    assert 2_048 == resolve_tracer(provider)[2].queue_size()
    provider.add_span_processor(BatchSpanProcessor(InMemorySpanExporter(), max_queue_size=4_096))
    assert (4_096, 2_048) == (resolve_tracer(provider)[2].queue_size(), resolve_tracer(provider)[2].room())
    provider.add_span_processor(SimpleSpanProcessor(InMemorySpanExporter()))
    assert 2_048 == resolve_tracer(provider)[2].queue_size()


class Flushed(EndsOnly):
    """Says what it is told when it is flushed."""

    def __init__(self, answer: Any) -> None:
        """Keep the answer."""
        self.answer = answer
        self.flushes = 0

    def force_flush(self, timeout_millis: int = 0) -> Any:
        """Count, and raise or return the answer."""
        self.flushes += 1
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def test_every_processor_is_flushed(provider: TracerProvider, caplog: pytest.LogCaptureFixture) -> None:
    """One that fails, raises or returns None does not keep those behind it from being flushed."""
    answers = (None, True, False, RuntimeError("no"), True)
    processors = [Flushed(answer) for answer in answers]
    for processor in processors[:2]:
        provider.add_span_processor(processor)
    _, _, sdk = resolve_tracer(provider)
    assert sdk.force_flush(1)
    for processor in processors[2:]:
        provider.add_span_processor(processor)
    with caplog.at_level(logging.WARNING, "stormphase"):
        assert not sdk.force_flush(1)
    assert [2, 2, 1, 1, 1] == [processor.flushes for processor in processors]


class OldLogger(_logs.Logger):
    """A logger as the API had them before 1.38."""

    def __init__(self) -> None:
        """Keep records."""
        super().__init__("old")
        self.records: list[Any] = []

    def emit(self, record: Any) -> None:
        """Keep one."""
        self.records.append(record)

    def enabled(self, **question: Any) -> bool:
        """Say yes."""
        return True


class KeywordLogger(OldLogger):
    """A logger as the API has them now."""

    def emit(self, record: Any = None, **fields: Any) -> None:
        """Keep what was given."""
        self.records.append(fields)


@pytest.mark.parametrize("kind", [OldLogger, KeywordLogger])
def test_any_loggers_emit_is_served(kind: type[OldLogger]) -> None:
    """Keywords where they are taken, else a record of the API."""
    logger = kind()
    provider = type("Provider", (_logs.LoggerProvider,), {"get_logger": lambda *args, **more: logger})()
    sink = resolve_logger(provider)
    sink.emit(timestamp=5, event_name="e", severity_number=_logs.SeverityNumber.INFO, attributes={"a": 1})
    (record,) = logger.records
    fields = record if isinstance(record, dict) else vars(record)
    assert (5, "e", {"a": 1}) == (fields["timestamp"], fields["event_name"], fields["attributes"])
    assert sink.force_flush(1)


def test_loggers_that_take_nothing() -> None:
    """No provider yet, one that does nothing."""
    assert None is resolve_logger(_logs.NoOpLoggerProvider())
    assert None is resolve_logger(_logs._internal.ProxyLoggerProvider())


def test_batch_log_processors_get_what_the_sdk_would_give_them() -> None:
    """The short way into their queues makes the very record that the logger's own emit makes."""

    class Keep:
        def __init__(self) -> None:
            self.batch: list[Any] = []

        def export(self, batch: Any) -> None:
            self.batch += batch

        def shutdown(self) -> None:
            pass

        def force_flush(self, timeout_millis: int = 0) -> bool:
            return True

    exporter = Keep()
    provider = sdk_logs.LoggerProvider(shutdown_on_exit=False)
    provider.add_log_record_processor(sdk_log_export.BatchLogRecordProcessor(exporter))
    sink = LogSink(provider)
    span = trace.NonRecordingSpan(trace.SpanContext(1, 2, is_remote=False, trace_flags=trace.TraceFlags(1)))
    fields = {
        "timestamp": 5,
        "observed_timestamp": 6,
        "event_name": "e",
        "severity_number": _logs.SeverityNumber.INFO,
        "context": trace.set_span_in_context(span),
    }
    sink.emit(attributes={"a": 1}, **fields)
    if "event_name" in inspect.signature(sink.logger.emit).parameters:
        sink.logger.emit(attributes={"a": 1}, **fields)
    else:
        sink.emit(attributes={"a": 1}, **fields)
    provider.force_flush()
    ours, theirs = exporter.batch
    assert type(theirs) is type(ours)
    assert theirs.instrumentation_scope == ours.instrumentation_scope
    mine, sdks = ({**vars(item.log_record)} for item in (ours, theirs))
    for record in (mine, sdks):
        record["attributes"] = dict(record["attributes"])
        record.pop("context")
    assert sdks == mine
    assert (1, 2, {"a": 1}) == (mine["trace_id"], mine["span_id"], mine["attributes"])
    provider.shutdown()


def test_the_short_way_for_logs_is_left_when_another_processor_comes() -> None:
    """A processor of somebody else's, or a patched one, gets what the logger emits."""
    if not hasattr(sdk_logs, "ReadWriteLogRecord"):
        assert None is _provider._sdk_record_emitter(LogSink(sdk_logs.LoggerProvider(shutdown_on_exit=False)).logger)
        return
    provider = sdk_logs.LoggerProvider(shutdown_on_exit=False)
    batch = sdk_log_export.BatchLogRecordProcessor(log_memory())
    provider.add_log_record_processor(batch)
    logger = LogSink(provider).logger
    batches = _provider._LogBatches(logger)
    assert batches.are_all()
    memory = log_memory()
    provider.add_log_record_processor(sdk_log_export.SimpleLogRecordProcessor(memory))
    assert not batches.are_all()
    sink = LogSink(provider)
    sink.emit(timestamp=5, event_name="e", severity_number=_logs.SeverityNumber.INFO, attributes={"a": 1})
    assert 1 == len(memory.get_finished_logs())
    batch.on_emit = lambda record: None
    assert None is _provider._batch_emits(provider._multi_log_record_processor)
    provider.shutdown()


def test_narrow_log_limits_are_the_sdks_to_apply(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where attributes may be cut the SDK's own keyword emit cuts them."""
    monkeypatch.setenv("OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT", "3")
    exporter = log_memory()
    provider = sdk_logs.LoggerProvider(shutdown_on_exit=False)
    provider.add_log_record_processor(sdk_log_export.SimpleLogRecordProcessor(exporter))
    sink = LogSink(provider)
    assert None is _provider._sdk_record_emitter(sink.logger)
    sink.emit(
        timestamp=5,
        observed_timestamp=6,
        event_name="e",
        severity_number=_logs.SeverityNumber.INFO,
        attributes={"a": "abcdef"},
        context=trace.set_span_in_context(trace.INVALID_SPAN),
    )
    assert 1 == len(exporter.get_finished_logs())


def test_the_bridge_loads_no_sdk_of_its_own(run_python: RunPython) -> None:
    """With no SDK provider in use, attaching, working and finishing leave the SDK unloaded."""
    source = """
import sys
from stormphase._tracker import PhaseTracker
from stormphase.otel import OTelBridge
bridge = OTelBridge(metrics=True, events="all")
with PhaseTracker(session_id="s", rank=0, world_size=1, bridge=bridge) as tracker:
    with tracker.enter_phase("step"):
        pass
print([name for name in sys.modules if name.startswith("opentelemetry.sdk")])
"""
    assert "[]\n" == run_python(source).stdout


def test_the_console_exporter_shows_a_phase(provider: TracerProvider) -> None:
    """What the SDK's own exporters read of a span is there."""
    import io

    from opentelemetry.trace import SpanContext

    from stormphase.otel._build import DirectSender, SpanFacts
    from stormphase.otel._traces import Trace

    out = io.StringIO()
    provider.add_span_processor(SimpleSpanProcessor(ConsoleSpanExporter(out=out)))
    _, _, sdk = resolve_tracer(provider)
    trace_facts = Trace(trace_id=1, flags=trace.TraceFlags(3))
    context = SpanContext(1, 2, is_remote=False, trace_flags=trace_facts.flags)
    kept: list[object] = []
    sender = DirectSender(sdk, kept.append)
    sender.send(SpanFacts("step", context, None, trace_facts, 10, 20, {"a": 1}, [("e", 15, {})]))
    assert ('"name": "step"' in out.getvalue(), 1) == (True, len(kept))


def test_contexts_made_without_the_apis_checks_are_those_that_it_makes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal, valid and copied alike; where a context is another tuple, or none, it is asked for one."""
    facts = (1 << 100, trace.TraceFlags(3), trace.TraceState([("a", "b")]))
    asked = trace.SpanContext(facts[0], 7, is_remote=False, trace_flags=facts[1], trace_state=facts[2])
    made = _provider.local_contexts(*facts)(7)
    assert (asked, trace.SpanContext, True) == (made, type(made), made.is_valid)
    assert asked == copy.copy(made)
    assert (7, facts[1], facts[2], False) == (made.span_id, made.trace_flags, made.trace_state, made.is_remote)

    class Longer(trace.SpanContext):
        """A context of a release to come."""

        def __new__(cls, *fields: Any) -> Any:
            return tuple.__new__(cls, (*fields, True, "more"))

    monkeypatch.setattr(_provider, "SpanContext", Longer)
    assert (facts[0], 7, False, *facts[1:], True, "more") == tuple(_provider.local_contexts(*facts)(7))
