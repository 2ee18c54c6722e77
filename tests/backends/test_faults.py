"""What an endpoint that is down, slow, hanging, failing or coming back does to training: nothing; and the counts.

Two counts are exact, whatever the endpoint does. Of the boundaries, `stats()["sinks"]["bridge"]`: offered = handed_over
+ dropped, once the tracker has stopped. Of the spans, `stats()["bridge"]`: offered = handed_over + dropped. What the
endpoint accepted is at most what was handed over to the SDK, each span once, with one exception: OTLP delivers at
least once, so an exporter that got no answer sends again what may have arrived, and the copies are alike to the byte.
"""

from __future__ import annotations

import os
from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

import stormphase
from stormphase._clock import SystemClock
from stormphase.otel import OTelBridge, configure

from .example import example_environ
from .faulty import Behaviour
from .received import outline

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conftest import RunPython

    from stormphase.otel import Telemetry

    from .collector import Collector
    from .faulty import FaultyEndpoint

STEPS = 1_500  # phases enough for several rounds of a queue's half, which is 1,024 spans
SESSION_SPANS = 2  # session and rank
# Kept timeouts are compared with many times as much: a busy machine may delay any thread.
FLUSH_S, FLUSH_LIMIT_S = 0.3, 15.0
EXPORT_TIMEOUT_S = "2"


@pytest.fixture(autouse=True)
def only_spans(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set exporters up as a user does, for spans only and with a short timeout."""
    for name in foreign_names():
        monkeypatch.delenv(name)
    monkeypatch.setenv("OTEL_LOGS_EXPORTER", "none")
    monkeypatch.setenv("OTEL_METRICS_EXPORTER", "none")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", EXPORT_TIMEOUT_S)


def foreign_names() -> set[str]:
    """Name the variables of this process that would configure a session otherwise."""
    return os.environ.keys() - example_environ().keys()


@contextmanager
def session(endpoint: FaultyEndpoint | Collector, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Any, Telemetry]]:
    """Give a tracker that is yet to stop, and the providers beneath it, which are shut down at the end."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.http_endpoint)
    with configure("faults") as telemetry:
        bridge = OTelBridge(telemetry.tracer_provider, telemetry.logger_provider, span_budget=None)
        tracker = stormphase.PhaseTracker("faults", bridge=bridge).start()
        try:
            yield tracker, telemetry
        finally:
            tracker.stop(timeout_s=1)


def train(tracker: stormphase.PhaseTracker, steps: int = STEPS) -> None:
    """Go through a loop with two phases a step."""
    for step in range(steps):
        tracker.set_step(step)
        with tracker.enter_phase("step"), tracker.enter_phase("forward"):
            pass


def elapsed_s(started_ns: int) -> float:
    """Return the seconds since a reading of the clock."""
    return (SystemClock.monotonic_ns() - started_ns) / 1e9


def check_counts(tracker: stormphase.PhaseTracker, phases: int) -> int:
    """Compare a stopped tracker's two counts with the phases that there were; return how many spans it handed over."""
    stats = tracker.stats()
    queue, bridge = stats["sinks"]["bridge"], stats["bridge"]
    assert (phases, 0) == (queue["offered"], queue["queued"])
    assert phases == queue["handed_over"] + queue["dropped"]
    assert bridge["offered"] == bridge["handed_over"] + bridge["dropped"]
    assert queue["handed_over"] <= bridge["offered"] <= queue["handed_over"] + SESSION_SPANS
    handed_over: int = bridge["handed_over"]
    return handed_over


def check_accepted(faulty: FaultyEndpoint, handed_over: int, *, copies: bool = False) -> int:
    """Compare what the endpoint accepted with what was handed over; return how many spans it has, each counted once."""
    seen = {span.span_id: span for span in faulty.spans}
    assert len(seen) <= handed_over
    assert all(span == seen[span.span_id] for span in faulty.spans)
    if not copies:
        assert len(seen) == faulty.totals.accepted_spans
    return len(seen)


def test_a_well_endpoint_has_all(faulty: FaultyEndpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a fault nothing is dropped, and flush says that all has been delivered: the measure for what follows."""
    with session(faulty, monkeypatch) as (tracker, _):
        train(tracker)
        assert tracker.flush(30)
        assert 2 * STEPS == faulty.totals.accepted_spans

    assert 2 * STEPS + SESSION_SPANS == check_counts(tracker, 2 * STEPS)
    assert 2 * STEPS + SESSION_SPANS == check_accepted(faulty, 2 * STEPS + SESSION_SPANS)


def test_down(faulty: FaultyEndpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """While nobody listens training goes on, flush keeps its timeout, and every phase is counted on one side."""
    faulty.stop()
    with session(faulty, monkeypatch) as (tracker, _):
        train(tracker)
        started_ns = SystemClock.monotonic_ns()
        tracker.flush(FLUSH_S)
        assert elapsed_s(started_ns) < FLUSH_LIMIT_S
        train(tracker)

    check_counts(tracker, 4 * STEPS)
    assert 0 == faulty.totals.requests


def test_hanging(faulty: FaultyEndpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """An endpoint that never answers holds up neither training nor a flush nor the stop."""
    faulty.behave(Behaviour.hanging())
    with session(faulty, monkeypatch) as (tracker, _):
        train(tracker)
        faulty.wait_for_requests(1)
        train(tracker)  # while the exporter hangs
        started_ns = SystemClock.monotonic_ns()
        assert not tracker.flush(FLUSH_S)
        tracker.stop(FLUSH_S)
        assert elapsed_s(started_ns) < FLUSH_LIMIT_S
        queue = tracker.stats()["sinks"]["bridge"]
        assert 0 < queue["dropped"]
        faulty.behave()  # lets the exporter go, so that no thread of it is left

    check_accepted(faulty, check_counts(tracker, 4 * STEPS))


def test_slow(faulty: FaultyEndpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """An endpoint that takes its time gets everything, once, for whoever waits."""
    faulty.behave(Behaviour.slow(0.2))
    with session(faulty, monkeypatch) as (tracker, telemetry):
        train(tracker)
        tracker.stop(60)
        assert telemetry.force_flush(60)

    assert 2 * STEPS + SESSION_SPANS == check_counts(tracker, 2 * STEPS)
    assert 2 * STEPS + SESSION_SPANS == check_accepted(faulty, 2 * STEPS + SESSION_SPANS)


def test_errors_500(faulty: FaultyEndpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """An endpoint that answers 500 to all gets spans again and again, keeps none, and hurts nobody."""
    faulty.behave(Behaviour.failing(500))
    with session(faulty, monkeypatch) as (tracker, _):
        train(tracker)
        faulty.wait_for_requests(1)
        train(tracker)
        started_ns = SystemClock.monotonic_ns()
        tracker.flush(FLUSH_S)
        assert elapsed_s(started_ns) < FLUSH_LIMIT_S

    check_counts(tracker, 4 * STEPS)
    assert 0 == faulty.totals.accepted_spans
    assert 0 < faulty.totals.refused_spans


def test_errors_that_end(faulty: FaultyEndpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """After one 503 the exporter tries again, and nothing is lost."""
    faulty.behave(Behaviour.failing(503), requests=1)
    with session(faulty, monkeypatch) as (tracker, telemetry):
        train(tracker)
        tracker.stop(60)
        assert telemetry.force_flush(60)

    assert 2 * STEPS + SESSION_SPANS == check_counts(tracker, 2 * STEPS)
    assert 2 * STEPS + SESSION_SPANS == check_accepted(faulty, 2 * STEPS + SESSION_SPANS)
    assert 0 < faulty.totals.refused_spans


def test_an_answer_that_is_lost(faulty: FaultyEndpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """Spans whose acceptance the exporter never learns of are sent again: the same ids, times and contents."""
    faulty.behave(Behaviour.losing_answer(), requests=1)
    with session(faulty, monkeypatch) as (tracker, telemetry):
        train(tracker)
        tracker.stop(60)
        assert telemetry.force_flush(60)

    handed_over = check_counts(tracker, 2 * STEPS)
    assert handed_over == check_accepted(faulty, handed_over, copies=True)
    assert {1, 2} == set(Counter(span.span_id for span in faulty.spans).values())


def test_a_collector_that_comes_back(own_collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    """Phases of before and after a restart of the collector arrive; of the outage's some may be lost."""
    with session(own_collector, monkeypatch) as (tracker, telemetry):
        with tracker.enter_phase("before"):
            train(tracker, 10)
        assert tracker.flush(30)
        own_collector.stop()
        with tracker.enter_phase("down"):
            train(tracker, 10)
        tracker.flush(FLUSH_S)
        own_collector.start()
        with tracker.enter_phase("after"):
            train(tracker, 10)
        tracker.stop(30)
        assert telemetry.force_flush(30)

    assert 3 * 21 + SESSION_SPANS == check_counts(tracker, 3 * 21)
    spans = own_collector.spans()
    lines = Counter(outline(spans))
    a_phase = {"    before": 1, "    after": 1}
    assert {"session": 1, "  rank 0": 1, **a_phase} == {line: lines[line] for line in ("session", "  rank 0", *a_phase)}
    assert 1 == max(Counter(span.span_id for span in spans).values())
    assert 20 <= lines["      step"] <= 30


def test_training_never_waits_for_the_endpoint(faulty: FaultyEndpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten queues' worth of phases go by while nothing has been accepted."""
    faulty.behave(Behaviour.hanging())
    with session(faulty, monkeypatch) as (tracker, _):
        train(tracker)
        faulty.wait_for_requests(1)
        train(tracker, 10 * 1_024)
        assert 0 == faulty.totals.accepted_spans
        tracker.stop(FLUSH_S)
        faulty.behave()

    check_accepted(faulty, check_counts(tracker, 2 * STEPS + 20 * 1_024))


@pytest.mark.parametrize("fault", ["down", "hanging", "500"])
def test_exit_is_bounded(faulty: FaultyEndpoint, run_python: RunPython, fault: str) -> None:
    """A process ends by itself soon, with its own exit code, whatever the endpoint does; it stops nothing by hand."""
    if fault == "down":
        faulty.stop()
    else:
        faulty.behave(Behaviour.hanging() if fault == "hanging" else Behaviour.failing(500))
    source = """
import sys
import stormphase
from stormphase.otel import OTelBridge, configure

telemetry = configure("faults")
tracker = stormphase.PhaseTracker("faults", bridge=OTelBridge(telemetry.tracer_provider)).start()
for step in range(2_000):
    with tracker.enter_phase("step"):
        pass
tracker.stop(0.5)
telemetry.shutdown(0.5)
queue, bridge = tracker.stats()["sinks"]["bridge"], tracker.stats()["bridge"]
print(queue["offered"] - queue["handed_over"] - queue["dropped"], queue["offered"])
sys.exit(7)
"""
    environ = {**dict.fromkeys(foreign_names(), ""), "OTEL_EXPORTER_OTLP_ENDPOINT": faulty.http_endpoint}
    environ |= {"OTEL_LOGS_EXPORTER": "none", "OTEL_METRICS_EXPORTER": "none", "OTEL_EXPORTER_OTLP_TIMEOUT": "2"}
    started_ns = SystemClock.monotonic_ns()
    done = run_python(source, env=environ, check=False)

    assert (7, "0 2000\n") == (done.returncode, done.stdout), done.stderr
    assert elapsed_s(started_ns) < 60
