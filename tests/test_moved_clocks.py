"""Tests freeze and move time: phases keep order and durations, and no wait hangs or gives up early."""

from __future__ import annotations

import datetime as dt
import subprocess
import sys
import time

import freezegun
import pytest
import time_machine
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from stormphase import PHASE_OVERDUE
from stormphase._bell import Bell
from stormphase._clock import SystemClock
from stormphase.capture import _descriptors
from stormphase.otel import OTelBridge
from stormphase.records import read_records
from stormphase.stores import SqliteStore

THEN = dt.datetime(2012, 1, 14, 12, tzinfo=dt.UTC)
EARLIER = dt.datetime(1999, 12, 31, tzinfo=dt.UTC)
WORK_S = 0.02

FREEZES = {
    "freezegun": lambda: freezegun.freeze_time(THEN),
    "freezegun, ticking": lambda: freezegun.freeze_time(THEN, tick=True),
    "freezegun, an hour a look": lambda: freezegun.freeze_time(THEN, auto_tick_seconds=3_600),
    "time-machine": lambda: time_machine.travel(THEN, tick=False),
    "time-machine, ticking": lambda: time_machine.travel(THEN),
}
FROZEN = pytest.mark.parametrize("freeze", FREEZES.values(), ids=FREEZES)

IMPORTED_FROZEN = """
import datetime as dt, sys, tempfile

EXPRESSION

moved = freeze()
moved.start()
import stormphase
from stormphase.stores import MemoryStore

def run(directory):
    store = MemoryStore()
    with stormphase.PhaseTracker(bridge=None, store=store, journal=directory, summary=False) as tracker:
        with tracker.enter_phase("outer"):
            for _ in range(100):
                with tracker.enter_phase("inner", {"k": 1}):
                    pass
        assert tracker.flush(20)
        outer, *inner = store.query(kind="phase")
    times = [each for phase in inner for each in (phase.entered_ns, phase.ended_ns)]
    times = [outer.entered_ns, *times, outer.ended_ns]
    assert sorted(times) == times
    assert 0 < outer.ended_ns - outer.entered_ns < 20e9
    assert (100, outer.self_ns >= 0) == (len(inner), True)

with tempfile.TemporaryDirectory() as directory:
    run(directory)
    moved.stop()
    run(directory)
"""


def work():
    """Let real time pass: a lock's timeout is counted by the system, whatever Python's clocks show."""
    Bell().wait(WORK_S)


@pytest.fixture
def spans():
    """Return an exporter and a bridge on a real SDK's batch processor that sends to it."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(exporter))
    yield exporter, OTelBridge(tracer_provider=provider)
    provider.shutdown()


@FROZEN
def test_a_session_within_a_frozen_time_is_told_as_any_other(make_tracker, tmp_path, spans, freeze):
    """Journal, store and spans have real durations and the real order, and everything is delivered in time."""
    exporter, bridge = spans
    with (
        freeze(),
        make_tracker(
            journal=tmp_path / "j", store=SqliteStore(tmp_path / "runs.db"), bridge=bridge, hang_factor=10.0
        ) as tracker,
    ):
        with tracker.enter_phase("outer"):
            for _ in range(3):
                with tracker.enter_phase("inner", sync=True):
                    work()
        assert tracker.flush(20)
    stored = list(read_records(tmp_path / "runs.db", kind="phase"))
    journaled = list(read_records(tmp_path / "j", kind="phase"))
    sent = [span for span in exporter.get_finished_spans() if span.name in ("outer", "inner")]
    for times in (
        [(each.entered_ns, each.ended_ns) for each in stored],
        [(each.entered_ns, each.ended_ns) for each in journaled],
        [(each.start_time, each.end_time) for each in sent],
    ):
        outer, *inner = sorted(times)
        flat = [outer[0], *(each for pair in inner for each in pair), outer[1]]
        assert (4, sorted(flat)) == (len(times), flat)
        assert min(end - start for start, end in inner) >= WORK_S * 1e9
        assert outer[1] - outer[0] < 20e9


@FROZEN
def test_phases_that_a_time_is_frozen_and_moved_in_keep_their_order(make_tracker, freeze):
    """The session began before and goes on after; within it the time is moved to and fro."""
    seen = []
    with make_tracker(sinks=[seen.append]) as tracker:
        with tracker.enter_phase("a"), freeze() as moved, tracker.enter_phase("b"):
            work()
            if hasattr(moved, "move_to"):
                moved.move_to(EARLIER)
            with tracker.enter_phase("c"):
                work()
        assert tracker.flush(20)
    times = [boundary.metadata["phase_scope"]["monotonic_ns"] for boundary in seen]
    a, b, c, c_end, b_end, a_end = times
    assert (sorted(times), True, True) == (
        [a, b, c, c_end, b_end, a_end],
        c_end - c >= WORK_S * 1e9,
        b_end - b >= 2 * WORK_S * 1e9,
    )


@FROZEN
def test_a_phase_that_is_open_for_too_long_is_told_also_while_time_stands(make_tracker, freeze):
    """Who watches has a clock of its own."""
    told = Bell()

    def hear(boundary):
        if boundary.event_type == PHASE_OVERDUE:
            told.ring()

    with freeze(), make_tracker(sinks=[hear]) as tracker, tracker.enter_phase("slow", timeout_s=0.01):
        assert told.wait(20)


@pytest.mark.parametrize(
    "source",
    [
        "import freezegun\nfreeze = lambda: freezegun.freeze_time('2012-01-14')",
        "import freezegun\nfreeze = lambda: freezegun.freeze_time('2012-01-14', auto_tick_seconds=3600)",
        "import time_machine\nfreeze = lambda: time_machine.travel(dt.datetime(2012, 1, 14), tick=False)",
    ],
    ids=["freezegun", "freezegun, an hour a look", "time-machine"],
)
def test_what_is_first_used_within_a_frozen_time_goes_on_after_it(run_python, source):
    """A library that only might use phases is imported anywhere: what it found then is not kept for good."""
    run_python(IMPORTED_FROZEN.replace("EXPRESSION", source))


@FROZEN
def test_the_system_clock_cannot_be_moved(freeze):
    """It is the one that the compiled half reads, and other processes."""
    times = [time.monotonic_ns()]  # noqa: TID251 - the system's own, to compare with
    with freeze():
        times += [SystemClock.monotonic_ns() for _ in range(3)]
    times.append(time.monotonic_ns())  # noqa: TID251 - likewise
    assert sorted(times) == times


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="descriptors are captured on Linux")
def test_a_stop_within_a_frozen_time_does_not_wait_for_a_child_that_still_writes(make_tracker):
    """It waits for half a second of real time, and not until the frozen one has come so far."""
    with freezegun.freeze_time(THEN), make_tracker(capture="fd") as tracker, tracker.enter_phase("spawn"):
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        assert not tracker.is_running
        assert None is child.poll()
    finally:
        child.communicate(b"\n")
        for tee in _descriptors._lingering:  # Which ends with the child.
            tee.wait(20)
