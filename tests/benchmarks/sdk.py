"""The OTel SDK, as its documentation sets it up, and logfire on top of it; both deliver to exporters that count.

A phase of a training loop lies within another one, so spans are made inside an open span.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from measure import Subject
from opentelemetry._logs import SeverityNumber
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor, LogRecordExporter, LogRecordExportResult
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from workload import OUTER, PHASE, PIECES_PER_STEP, STATUS_ATTRIBUTE, THREE_ATTRIBUTES, TWO_EVENTS, work_without_gil

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager

FLUSH_TIMEOUT_MS = 30_000
# Less than the 512 that make the SDK's batch processors export at once: their threads sleep while a batch is timed.
QUIET_BATCH = 400
# Two log records each still fit the default queue of 2,048.
DELIVERY_BATCH = 1_000
_PATH = f"{OUTER} / {PHASE}"


class CountingSpanExporter(SpanExporter):
    """Counts the benchmark's own spans and their events, and lets go of them; a session may have spans around them."""

    def __init__(self) -> None:
        """Start at zero."""
        self.span_count = 0
        self.event_count = 0

    def export(self, spans: Sequence[Any]) -> SpanExportResult:
        """Count."""
        for span in spans:
            if span.name == PHASE:
                self.span_count += 1
                self.event_count += len(span.events)
        return SpanExportResult.SUCCESS


class CountingLogExporter(LogRecordExporter):
    """Counts log records of the benchmark's own spans, and lets go of them; ours name the phase that they belong to."""

    def __init__(self) -> None:
        """Start at zero."""
        self.log_count = 0

    def export(self, batch: Sequence[Any]) -> LogRecordExportResult:
        """Count."""
        for record in batch:
            if record.log_record.attributes.get("stormphase.phase.path", _PATH) == _PATH:
                self.log_count += 1
        return LogRecordExportResult.SUCCESS

    def force_flush(self, timeout_millis: int = FLUSH_TIMEOUT_MS) -> bool:
        """Do nothing: nothing is kept."""
        return True

    def shutdown(self) -> None:
        """Do nothing."""


class Providers:
    """A tracer and a logger provider with batch processors; nothing is set globally."""

    def __init__(self) -> None:
        """Start the processors' threads."""
        self.spans = CountingSpanExporter()
        self.tracer_provider = TracerProvider(shutdown_on_exit=False)
        self.tracer_provider.add_span_processor(BatchSpanProcessor(self.spans))
        self.logs = CountingLogExporter()
        self.logger_provider = LoggerProvider(shutdown_on_exit=False)
        self.logger_provider.add_log_record_processor(BatchLogRecordProcessor(self.logs))

    def flush(self) -> None:
        """Wait until everything has been exported."""
        self.tracer_provider.force_flush(FLUSH_TIMEOUT_MS)
        self.logger_provider.force_flush(FLUSH_TIMEOUT_MS)

    def shutdown(self) -> None:
        """End the processors' threads."""
        self.tracer_provider.shutdown()
        self.logger_provider.shutdown()

    def delivered_count(self) -> int:
        """How many spans, span events and log records have arrived."""
        return self.spans.span_count + self.spans.event_count + self.logs.log_count


class SdkSpan(Subject):
    """`start_as_current_span` with a BatchSpanProcessor."""

    name = "OTel SDK start_as_current_span + BatchSpanProcessor"
    largest_batch = QUIET_BATCH
    delivered_per_operation = 1

    def open(self) -> None:
        """Make providers and a tracer."""
        self._providers = Providers()
        self._tracer = self._providers.tracer_provider.get_tracer("benchmark")
        self._logger = self._providers.logger_provider.get_logger("benchmark")

    def prepare(self) -> None:
        """Start the span around the batch."""
        self._outer: AbstractContextManager[object] = self._tracer.start_as_current_span(OUTER)
        self._outer.__enter__()

    def batch(self, count: int) -> None:
        """Start and end `count` spans."""
        for _ in range(count):
            with self._tracer.start_as_current_span(PHASE):
                pass

    def settle(self) -> None:
        """End the span around the batch, and export all."""
        self._outer.__exit__(None, None, None)
        self._providers.flush()

    def close(self) -> None:
        """End the threads."""
        self._providers.shutdown()

    def delivered_count(self) -> int:
        """How many spans, span events and log records have arrived."""
        return self._providers.delivered_count()


class SdkSpanWithAttributes(SdkSpan):
    """The same with three attributes."""

    name = "OTel SDK, with 3 attributes"

    def batch(self, count: int) -> None:
        """Start and end `count` spans."""
        for _ in range(count):
            with self._tracer.start_as_current_span(PHASE, attributes=THREE_ATTRIBUTES):
                pass


class SdkStep(SdkSpan):
    """A short step that lets go of the GIL, with a span around it and one around each of its pieces."""

    name = "step of 8 pieces, 9 SDK spans"
    delivered_per_operation = 1 + PIECES_PER_STEP

    def batch(self, count: int) -> None:
        """Do `count` steps."""
        start = self._tracer.start_as_current_span
        for _ in range(count):
            with start(PHASE):
                for _ in range(PIECES_PER_STEP):
                    with start(PHASE):
                        work_without_gil()


class SdkSpanDelivered(SdkSpan):
    """The plain span again, in batches as large as its queue allows."""

    name = "OTel SDK, plain span, delivered"
    largest_batch = DELIVERY_BATCH


class SdkSpanWithTwoEvents(SdkSpanDelivered):
    """A span with two events that say what ours do: the second one has the status."""

    name = "OTel SDK, span with two span events, delivered"
    delivered_per_operation = 3

    def batch(self, count: int) -> None:
        """Start and end `count` spans."""
        for _ in range(count):
            with self._tracer.start_as_current_span(PHASE) as span:
                span.add_event(TWO_EVENTS[0])
                span.add_event(TWO_EVENTS[1], STATUS_ATTRIBUTE)


class SdkSpanWithTwoRichEvents(SdkSpanDelivered):
    """A span with two events of three attributes each, as people write them."""

    name = "OTel SDK, span with two span events of 3 attributes, delivered"
    delivered_per_operation = 3

    def batch(self, count: int) -> None:
        """Start and end `count` spans."""
        for _ in range(count):
            with self._tracer.start_as_current_span(PHASE) as span:
                for event in TWO_EVENTS:
                    span.add_event(event, THREE_ATTRIBUTES)


class SdkSpanWithTwoLogs(SdkSpanDelivered):
    """A span with two log-based events of three attributes each; ours have more."""

    name = "OTel SDK, span with two log events, delivered"
    delivered_per_operation = 3

    def batch(self, count: int) -> None:
        """Start and end `count` spans."""
        for _ in range(count):
            with self._tracer.start_as_current_span(PHASE):
                for event in TWO_EVENTS:
                    self._logger.emit(
                        event_name=event, severity_number=SeverityNumber.INFO, attributes=THREE_ATTRIBUTES
                    )


class Logfire(SdkSpan):
    """`logfire.span`, which sends nothing to its makers and prints nothing."""

    name = "logfire.span + BatchSpanProcessor"

    def open(self) -> None:
        """Configure its process-wide instance with our exporter only."""
        import logfire

        self._spans = CountingSpanExporter()
        self._processor = BatchSpanProcessor(self._spans)
        logfire.configure(
            send_to_logfire=False,
            console=False,
            inspect_arguments=False,
            metrics=False,
            additional_span_processors=[self._processor],
        )
        self._logfire = logfire

    def prepare(self) -> None:
        """Start the span around the batch."""
        self._outer = self._logfire.span(OUTER)
        self._outer.__enter__()

    def batch(self, count: int) -> None:
        """Start and end `count` spans."""
        for _ in range(count):
            with self._logfire.span(PHASE):
                pass

    def settle(self) -> None:
        """End the span around the batch, and export all."""
        self._outer.__exit__(None, None, None)
        self._logfire.force_flush()

    def close(self) -> None:
        """End the threads."""
        self._logfire.shutdown()

    def delivered_count(self) -> int:
        """How many spans have arrived."""
        return self._spans.span_count
