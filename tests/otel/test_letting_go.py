"""Spans that were handed over: kept for a while, never many, and let go of by the bridge's worker."""

from __future__ import annotations

import threading
import weakref
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from stormphase import PhaseTracker
from stormphase.otel import OTelBridge
from stormphase.otel._letting_go import FEW, KEPT_SPANS, LET_GO_A_TICK, LettingGo

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Bridged


class Thing:
    """What somebody can notice the end of."""


class Exports(SpanExporter):
    """Counts spans, and notes on which thread each of them is taken apart."""

    def __init__(self) -> None:
        """Begin with none."""
        self.count = 0
        self.freed_on: list[int] = []

    def export(self, spans: Any) -> SpanExportResult:
        """Count."""
        self.count += len(spans)
        for span in spans:
            weakref.finalize(span, lambda: self.freed_on.append(threading.get_ident())).atexit = False
        return SpanExportResult.SUCCESS


@pytest.fixture
def letting_go() -> LettingGo:
    """Return one that keeps nothing yet; of what it will keep all has been exported."""
    return LettingGo(lambda: 0)


def test_each_that_comes_frees_an_old_one(letting_go: LettingGo) -> None:
    """So memory is bounded, and freeing costs a little each time."""
    things = [Thing() for _ in range(KEPT_SPANS)]
    for thing in things:
        letting_go.keep(thing)
    first, second = (weakref.ref(thing) for thing in things[:2])
    del things, thing
    letting_go.keep(Thing())
    assert (None, True, KEPT_SPANS) == (first(), second() is not None, len(letting_go))


def test_where_hardly_any_come_they_go_a_few_a_tick(letting_go: LettingGo) -> None:
    """Nothing is kept for long after the phases have ceased, and it is not let go of at one go."""
    for number in range(LET_GO_A_TICK + FEW + 1):
        letting_go.keep(number)
    handed_over_count = len(letting_go)
    letting_go.let_go_of_old(handed_over_count)
    assert handed_over_count == len(letting_go)
    letting_go.let_go_of_old(handed_over_count + FEW)
    assert FEW + 1 == len(letting_go)
    letting_go.let_go_of_old(handed_over_count + FEW)
    letting_go.let_go_of_old(handed_over_count + FEW)
    assert 0 == len(letting_go)


@pytest.mark.parametrize(("waiting", "kept"), [(None, 0), (0, 0), (3, 3), (5, 5), (9_000, 5)])
def test_what_may_wait_for_its_export_is_kept(waiting: int | None, kept: int) -> None:
    """Whoever exports it would have to take it apart; where nobody knows what waits, all goes."""
    letting_go = LettingGo(lambda: waiting)
    for number in range(5):
        letting_go.keep(number)
    letting_go.let_go_of_old(5)
    assert kept == len(letting_go)


def test_after_a_flush_nothing_is_kept(bridged: Callable[..., Bridged]) -> None:
    """Neither after one that fails."""
    rig = bridged()
    spans = rig.bridge._outlet
    assert spans is not None
    for _ in range(3):
        with rig.enter("outer"), rig.enter("inner"):
            pass
    rig.deliver()
    assert 6 == spans.kept_count
    assert rig.bridge.flush(1.0)
    assert 0 == spans.kept_count
    with rig.enter("outer"):
        pass
    rig.deliver()
    assert 1 == spans.kept_count
    spans.pacer.flush = strike  # type: ignore[method-assign]
    with pytest.raises(SystemExit):
        rig.bridge.flush(1.0)
    assert 0 == spans.kept_count


def test_after_a_stop_nothing_is_kept() -> None:
    """Neither the spans of phases nor the rank's and the session's, which come last."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=3_600_000))
    bridge = OTelBridge(provider)
    with PhaseTracker("job", session_id="letting-go", rank=0, bridge=bridge) as tracker:
        for _ in range(KEPT_SPANS // 8):
            with tracker.enter_phase("step"):
                pass
    assert bridge._outlet is not None
    assert (KEPT_SPANS // 8 + 2, 0) == (len(exporter.get_finished_spans()), bridge._outlet.kept_count)
    provider.shutdown()


def strike(timeout_ms: int) -> bool:
    """Raise what a processor may."""
    raise SystemExit(timeout_ms)


def test_a_forked_child_keeps_none_of_its_parents(bridged: Callable[..., Bridged]) -> None:
    """They are the parent's."""
    rig = bridged()
    with rig.enter("outer"):
        pass
    rig.deliver()
    rig.bridge.after_fork_in_child()
    assert rig.bridge._outlet is not None
    assert 0 == rig.bridge._outlet.kept_count


def test_ticks_let_go_once_phases_have_ceased(bridged: Callable[..., Bridged]) -> None:
    """What the SDK still has in its queue is kept until it was exported."""
    batch = BatchSpanProcessor(InMemorySpanExporter(), schedule_delay_millis=3_600_000)
    rig = bridged(processors=[batch])
    spans = rig.bridge._outlet
    assert spans is not None
    with rig.enter("outer"), rig.enter("inner"):
        pass
    rig.deliver()
    rig.bridge.tick()
    assert 2 == spans.kept_count
    batch.force_flush()
    rig.bridge.tick()
    assert 0 == spans.kept_count
    batch.shutdown()


def test_it_is_not_the_exporting_thread_that_takes_spans_apart(bridged: Callable[..., Bridged]) -> None:
    """That would be a batch at one go, with the GIL held."""
    exporter = Exports()
    batch = BatchSpanProcessor(exporter, schedule_delay_millis=3_600_000, max_export_batch_size=32, max_queue_size=256)
    rig = bridged(processors=[batch])
    for _ in range(16):
        with rig.enter("step"):
            pass
    rig.deliver()
    flusher = threading.Thread(target=batch.force_flush)
    flusher.start()
    flusher.join()
    rig.exporter.clear()
    assert (16, []) == (exporter.count, exporter.freed_on)
    assert rig.bridge.flush(1.0)
    assert [threading.get_ident()] * 16 == exporter.freed_on
    batch.shutdown()
