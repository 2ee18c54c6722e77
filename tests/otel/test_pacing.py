"""Never more on its way to a batch processor than half its queue."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from stormphase.otel._pacing import Pacer

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Bridged


class Counting(SpanExporter):
    """Counts what arrives, and whether it was ever exported in parallel."""

    def __init__(self) -> None:
        """Start at 0."""
        self.count = 0
        self.lock = threading.Lock()

    def export(self, spans: Any) -> SpanExportResult:
        """Count."""
        with self.lock:
            self.count += len(spans)
        return SpanExportResult.SUCCESS


def test_it_flushes_at_half_a_queue_and_asks_for_its_size_each_time() -> None:
    """Half of what the queue holds now."""
    sizes = [10, 4, 1, 100]
    flushes: list[int] = []
    pacer = Pacer(lambda: sizes[len(flushes)], lambda: None, lambda timeout: flushes.append(pacer_count[0]) is None)
    pacer_count = [0]
    for number in range(1, 9):
        pacer_count[0] = number
        pacer.handed_over()
    assert [5, 7, 8] == flushes
    assert 3 == pacer.flush_count


def test_what_no_flush_has_confirmed_is_counted() -> None:
    """A flush that says that it failed confirms nothing."""
    answers = [False, True]
    pacer = Pacer(lambda: 6, lambda: None, lambda _: answers.pop(0))
    for _ in range(3):
        pacer.handed_over()
    assert 3 == pacer.unflushed_count
    pacer.handed_over()
    assert (4, True, 0) == (pacer.unflushed_count, pacer.flush(1), pacer.unflushed_count)


def test_a_flush_begins_a_new_round_also_if_it_fails() -> None:
    """An explicit flush counts as one, and what raises is not swallowed here."""

    def fail(timeout_ms: int) -> bool:
        raise RuntimeError

    pacer = Pacer(lambda: 4, lambda: 0, fail)
    pacer.handed_over()
    with pytest.raises(RuntimeError):
        pacer.flush(1)
    pacer.handed_over()
    with pytest.raises(RuntimeError):
        pacer.handed_over()
    assert 2 == pacer.flush_count


def test_it_flushes_only_where_there_is_little_room() -> None:
    """A queue that its own thread has drained meanwhile begins a new round, as long as the room that is left."""
    rooms = [16, 5, 4, 16]
    asked: list[int] = []
    flushes: list[int] = []
    count = 0

    def room() -> int:
        asked.append(count)
        return rooms[len(asked) - 1]

    pacer = Pacer(lambda: 32, room, lambda timeout: flushes.append(count) is None)
    for _ in range(16 + 16 + 5 + 16):
        count += 1
        pacer.handed_over()
    assert ([16, 32, 37, 53], [37]) == (asked, flushes)


@pytest.mark.parametrize("max_queue_size", [None, 64])
def test_a_burst_loses_nothing_in_a_batch_processor(
    bridged: Callable[..., Bridged], max_queue_size: int | None
) -> None:
    """A hundred thousand phases arrive, every one, through a default queue; and some through a small one."""
    count = 100_000 if max_queue_size is None else 2_000
    exporter = Counting()
    provider = TracerProvider(shutdown_on_exit=False)
    batch = 512 if max_queue_size is None else 32
    provider.add_span_processor(
        BatchSpanProcessor(exporter, max_queue_size=max_queue_size, max_export_batch_size=batch)
    )
    rig = bridged(provider=provider, span_budget=None)
    with rig.enter("outer"):
        for _ in range(count):
            with rig.enter("step"):
                pass
    rig.finish()
    assert rig.bridge.flush(10)
    assert count + 3 == exporter.count
    stats = rig.bridge.stats()
    assert (count + 3, count + 3, 0) == (stats["offered"], stats["handed_over"], stats["dropped"])
    provider.shutdown()


def test_log_events_are_paced_too(bridged: Callable[..., Bridged]) -> None:
    """The log processor's queue is as silent as the spans'."""
    from opentelemetry.sdk._logs import LoggerProvider
    from opentelemetry.sdk._logs.export import BatchLogRecordProcessor

    class CountingLogs:
        """Counts what arrives."""

        count = 0

        def export(self, batch: Any) -> None:
            """Count."""
            self.count += len(batch)

        def shutdown(self) -> None:
            """Do nothing."""

        def force_flush(self, timeout_millis: int = 0) -> bool:
            """Do nothing."""
            return True

    exporter = CountingLogs()
    provider = LoggerProvider(shutdown_on_exit=False)
    provider.add_log_record_processor(BatchLogRecordProcessor(exporter, max_queue_size=64, max_export_batch_size=32))
    rig = bridged(logger_provider=provider, events="all")
    for _ in range(1_000):
        with rig.enter("step"):
            pass
    rig.deliver()
    assert rig.bridge.flush(10)
    assert 2_000 == exporter.count == rig.bridge.stats()["events_emitted"]
    provider.shutdown()
