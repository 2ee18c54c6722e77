"""Telemetry never hurts training: whatever sinks, signals and threads do, training goes on and the counts are exact."""

from __future__ import annotations

import ctypes
import gc
import logging
import signal
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest

import stormphase
from stormphase import PhaseStatus, PhaseTracker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from stormphase import PhaseBoundary

LONG_S = 30


class Gate:
    """A sink that hangs from its first boundary until it is opened."""

    __name__ = "gate"

    def __init__(self) -> None:
        self.taking = threading.Event()
        self.leave = threading.Event()

    def __call__(self, boundary: PhaseBoundary) -> None:
        """Hang."""
        self.taking.set()
        self.leave.wait(LONG_S)


@pytest.fixture
def gate() -> Iterator[Gate]:
    """Return a sink that hangs until the test's end."""
    each = Gate()
    yield each
    each.leave.set()


@pytest.fixture
def interrupt() -> Iterator[Callable[[threading.Thread], None]]:
    """Raise KeyboardInterrupt in another thread."""

    def raise_in(thread: threading.Thread) -> None:
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(SystemExit))

    return raise_in


@pytest.fixture
def alarm() -> Iterator[None]:
    """Have SIGALRM raise KeyboardInterrupt, as an impatient user does, until the test's end."""

    def ring(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, ring)
    gc.disable()  # Where garbage is collected, other packages' callbacks run, and what is raised there is lost.
    yield
    gc.enable()
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def untraced() -> Iterator[None]:
    """Keep coverage and debuggers out: what is raised anywhere would be raised in the middle of their work, too."""
    before, before_in_threads = sys.gettrace(), threading.gettrace()
    sys.settrace(None)
    threading.settrace(None)
    yield
    threading.settrace(before_in_threads)
    sys.settrace(before)


def train(tracker: PhaseTracker, steps: int = 10) -> None:
    """Run a training loop with a phase a step."""
    with tracker.enter_phase("train"):
        for step in range(steps):
            tracker.set_step(step)
            with tracker.enter_phase("step"):
                pass


def counts(tracker: PhaseTracker) -> dict[str, dict[str, int]]:
    """Return what the sinks counted, after checking that it adds up for each."""
    sinks = tracker.stats()["sinks"]
    for each in sinks.values():
        assert each["offered"] == each["handed_over"] + each["queued"] + each["dropped"]
        assert tracker.is_running or each["queued"] == 0
    return sinks


# Sinks


@pytest.mark.parametrize("error", [ValueError, SystemExit, KeyboardInterrupt, MemoryError])
def test_a_sink_that_raises_costs_training_and_others_nothing(make_tracker, error):
    """The other sink has all, the raising one was called each time, and each failure is counted."""

    def broken(boundary: PhaseBoundary) -> None:
        raise error

    seen: list[PhaseBoundary] = []
    with make_tracker(sinks=[broken, seen.append]) as tracker:
        train(tracker)
    expected = {"offered": 22, "handed_over": 22, "failed": 22, "queued": 0, "dropped": 0}
    assert expected == counts(tracker)["0:broken"]
    assert 22 == len(seen)


def test_a_sink_that_hangs_costs_the_others_nothing(make_tracker, gate):
    """The other sink has all while the first one hangs; flush and stop keep their timeouts and say so."""
    seen: list[PhaseBoundary] = []
    tracker = make_tracker(sinks=[gate, seen.append]).start()
    train(tracker)
    gate.taking.wait(LONG_S)
    assert False is tracker.flush(0.05)
    assert 22 == len(seen)
    tracker.stop(0.05)
    assert {"offered": 22, "handed_over": 1, "failed": 0, "queued": 0, "dropped": 21} == counts(tracker)["0:gate"]
    assert 0 == counts(tracker)["1:append"]["dropped"]


def test_a_sink_that_is_too_slow_drops_and_reports(make_tracker, gate, caplog):
    """The queue is bounded, what it could not hold is counted, and stop says so with the fix."""
    tracker = make_tracker(sinks=[gate], queue_bound=4).start()
    gate.taking.clear()
    train(tracker, steps=50)
    gate.leave.set()
    tracker.stop()
    stats = counts(tracker)["0:gate"]
    assert 102 == stats["offered"]
    assert stats["dropped"] >= 97
    assert f"stormphase: boundaries dropped (0:gate: {stats['dropped']}): these sinks did not" in caplog.messages[-1]


def test_a_sink_that_does_not_confirm_is_reported(make_tracker, caplog):
    """Where nothing was dropped and yet not all was confirmed, stop says where to look."""

    def broken(boundary: PhaseBoundary) -> None:
        return

    tracker = make_tracker(sinks=[broken]).start()
    train(tracker)
    tracker._session.sinks._sinks[0]._flush_sink = lambda left_s: False
    tracker.stop()
    assert ["stormphase: a sink did not confirm that it delivered all; see tracker.stats()"] == caplog.messages


def test_a_sink_that_enters_phases_does_not_feed_itself(make_tracker):
    """On a sink's own thread every phase is a no-op, also through the ambient tracker."""
    seen: list[str] = []
    tracker: PhaseTracker

    def curious(boundary: PhaseBoundary) -> None:
        with tracker.enter_phase("inside a sink"), stormphase.phase("library"):
            token = tracker.enter("token")
            tracker.exit(token)
        seen.append(boundary.path[-1])

    with make_tracker(sinks=[curious]) as tracker:
        train(tracker, steps=2)
    assert 6 == len(seen)
    assert {"train", "step"} == set(seen)
    assert 0 == counts(tracker)["0:curious"]["failed"]


def test_a_sink_that_flushes_is_not_waited_for(make_tracker):
    """It is told that not all is delivered, and gets the rest afterwards."""
    answers: list[bool] = []
    tracker: PhaseTracker

    def flushing(boundary: PhaseBoundary) -> None:
        answers.append(tracker.flush(LONG_S))

    with make_tracker(sinks=[flushing, flushing]) as tracker:
        train(tracker, steps=2)
        assert True is tracker.flush(LONG_S)
        assert [False] * 12 == answers


def test_a_sink_may_stop_the_session(make_tracker):
    """It gets all that was offered before, itself included, and later phases are misuse."""
    seen: list[PhaseBoundary] = []
    tracker: PhaseTracker

    def stopping(boundary: PhaseBoundary) -> None:
        if not seen:
            tracker.stop()
        seen.append(boundary)

    tracker = make_tracker(sinks=[stopping], on_misuse="record").start()
    train(tracker, steps=100)
    tracker.stop()
    stats = counts(tracker)["0:stopping"]
    assert (False, 0, stats["offered"]) == (tracker.is_running, stats["dropped"], len(seen))


def test_sinks_never_see_an_unfinished_phase_as_finished(make_tracker):
    """The enter of a phase says that it is active, also where the phase has ended before the worker comes to it."""
    seen: list[str] = []
    with make_tracker(sinks=[lambda boundary: seen.append(boundary.metadata["phase_scope"]["status"])]) as tracker:
        train(tracker, steps=1)
    assert ["active", "active", "succeeded", "succeeded"] == seen


# Threads


def test_a_worker_that_dies_comes_back(make_tracker, interrupt, untraced):
    """However often exceptions are raised into it, every boundary is handed over or counted, and stop is in order."""
    seen: list[PhaseBoundary] = []
    tracker = make_tracker(sinks=[seen.append]).start()
    for _ in range(100):
        train(tracker, steps=5)
        for thread in threading.enumerate():
            if thread.name == "stormphase-0:append":
                interrupt(thread)
    tracker.stop()
    stats = counts(tracker)["0:append"]
    assert 1_200 == stats["offered"]
    assert len(seen) <= stats["handed_over"] <= len(seen) + stats["failed"]


def test_no_thread_to_be_had_never_raises_into_training(make_tracker, monkeypatch, caplog):
    """At the system's limit the session runs without its sinks, says so once, and everything is counted as dropped."""

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    seen: list[PhaseBoundary] = []
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        tracker = make_tracker(sinks=[seen.append]).start()
        train(tracker)
        tracker.stop(0.01)
    assert {"offered": 22, "handed_over": 0, "failed": 0, "queued": 0, "dropped": 22} == counts(tracker)["0:append"]
    assert 1 == sum("raise the limit of threads" in message for message in caplog.messages)


def test_a_thread_to_be_had_later_delivers_all(make_tracker, monkeypatch):
    """The next thread that enters a phase tries again."""

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    seen: list[PhaseBoundary] = []
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        tracker = make_tracker(sinks=[seen.append]).start()
        train(tracker)
    worker = threading.Thread(target=train, args=(tracker,))
    worker.start()
    worker.join()
    tracker.stop()
    assert 44 == len(seen)


def test_a_hundred_threads_and_queues_that_overflow(make_tracker):
    """Whatever overflows, every boundary is handed over or counted, for each sink."""
    seen: list[PhaseBoundary] = []
    tracker = make_tracker(sinks=[seen.append, lambda boundary: None], queue_bound=16).start()
    threads = [threading.Thread(target=train, args=(tracker, 50)) for _ in range(100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    tracker.stop()
    stats = counts(tracker)
    assert [100 * 51 * 2] * 2 == [each["offered"] for each in stats.values()]
    assert len(seen) == stats["0:append"]["handed_over"]


def test_stop_while_threads_enter_and_exit(make_tracker):
    """A session may end under the feet of its threads; they go on, and the counts add up."""
    tracker = make_tracker(sinks=[lambda boundary: None], on_misuse="record").start()
    running, enough = threading.Barrier(5), threading.Event()

    def work() -> None:
        running.wait(LONG_S)
        while not enough.is_set():
            train(tracker, steps=20)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    running.wait(LONG_S)
    tracker.flush()
    tracker.stop()
    enough.set()
    for thread in threads:
        thread.join()
    counts(tracker)
    assert [] == list(tracker.lane_set.open_phases())


def test_a_phase_paused_on_a_thread_that_ended_is_counted(make_tracker):
    """Its lane is forgotten long before it is abandoned at stop."""
    seen: list[PhaseBoundary] = []
    phases = []
    tracker = make_tracker(sinks=[seen.append]).start()

    def work() -> None:
        phases.append(tracker.enter_phase("paused"))
        phases[-1].pause()

    for _ in range(3):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    tracker.stop()
    assert [PhaseStatus.ABANDONED] * 3 == [phase.status for phase in phases]
    assert {"offered": 6, "handed_over": 6, "failed": 0, "queued": 0, "dropped": 0} == counts(tracker)["0:append"]


# Signals


def test_interrupts_all_over_training(make_tracker, alarm, untraced):
    """KeyboardInterrupts land anywhere, between two queues too: offered is handed over plus dropped, for each sink."""
    seen: list[PhaseBoundary] = []
    tracker = make_tracker(sinks=[seen.append, lambda boundary: None], on_misuse="record").start()
    interrupted = 0
    for round_ in range(400):
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.0001 + (round_ % 40) * 0.00001)
            train(tracker, steps=100_000)
        except KeyboardInterrupt:
            interrupted += 1
    tracker.stop()
    stats = counts(tracker)
    assert 400 == interrupted
    assert len(seen) == stats["0:append"]["handed_over"]
    assert [0, 0] == [each["failed"] for each in stats.values()]


def test_an_impatient_interrupt_ends_stop(make_tracker, gate, alarm, untraced):
    """Ctrl-C while stop waits for a sink passes at once; nothing is left behind, and what was not taken is counted."""
    tracker = make_tracker(sinks=[gate]).start()
    train(tracker)
    gate.taking.wait(LONG_S)

    def stop() -> None:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        tracker.stop(LONG_S)

    with pytest.raises(KeyboardInterrupt):
        stop()
    assert {"offered": 22, "handed_over": 1, "failed": 0, "queued": 0, "dropped": 21} == counts(tracker)["0:gate"]
    with stormphase.phase("not ambient any more") as phase:
        assert () == phase.path
    tracker.stop(LONG_S)


def test_a_signal_handler_may_flush_and_stop(make_tracker, alarm, untraced):
    """Wherever it interrupts the training loop it waits for nothing that the loop holds."""
    seen: list[PhaseBoundary] = []
    for round_ in range(30):
        tracker = make_tracker(sinks=[seen.append], on_misuse="record").start()
        rung: list[bool] = []

        def ring(number: int, frame: Any, tracker: PhaseTracker = tracker, rung: list[bool] = rung) -> None:
            tracker.flush(LONG_S)
            tracker.stop(LONG_S)
            rung.append(True)

        signal.signal(signal.SIGALRM, ring)
        signal.setitimer(signal.ITIMER_REAL, 0.0005 + round_ * 0.0001)
        while not rung:
            train(tracker, steps=100)
        counts(tracker)


# Outcomes


def test_the_users_exception_passes_through_phases_and_tracker(make_tracker):
    """The very object, with nothing in its context that we raised."""
    error = ValueError("the user's")

    def fail() -> None:
        with make_tracker(sinks=[lambda boundary: 1 / 0]) as tracker, tracker.enter_phase("train"):
            raise error

    with pytest.raises(ValueError, match="the user's") as raised:
        fail()
    assert (error, None, None) == (raised.value, raised.value.__context__, raised.value.__cause__)


def test_a_broken_stdout_loses_the_summary_and_nothing_else(make_tracker, monkeypatch):
    """A closed pipe at the end of a run of days is no reason to fail."""

    class Closed:
        def isatty(self) -> bool:
            raise ValueError("I/O operation on closed file")

    monkeypatch.setattr("sys.stdout", Closed())
    with make_tracker(summary=True) as tracker:
        train(tracker)
    assert 0 == counts(tracker)["summary"]["dropped"]


def test_a_program_without_a_log_handler_is_told_on_stderr(run_python):
    """Drops are reported where nobody configured logging."""
    source = """
from stormphase import PhaseTracker
import threading
with PhaseTracker(bridge=None, sinks=[lambda boundary: 1 / 0]) as tracker:
    tracker.enter_phase("train")
"""
    child = run_python(source, check=False)
    assert (0, True) == (child.returncode, "sink '0:<lambda>' raised" in child.stderr)


def test_the_log_of_a_sink_that_raises_has_its_traceback(make_tracker, caplog):
    """Who reads it sees where the sink failed."""
    with make_tracker(sinks=[lambda boundary: 1 / 0]) as tracker:
        train(tracker)
    (record,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "ZeroDivisionError" in str(record.exc_info)


def test_attributes_that_are_no_mapping_never_raise_into_training_in_production():
    """With `on_misuse="record"` they are left out and counted; strictly, they are a TypeError."""
    with PhaseTracker("job", bridge=None, on_misuse="record") as lenient:
        with lenient.enter_phase("step", 5) as phase:
            phase.set_attributes(5)
        lenient.exit(lenient.enter("step", 5))
        assert 3 == lenient.stats()["attributes"]["failed"]
    with PhaseTracker("job", bridge=None) as strict:
        with pytest.raises(TypeError, match="attributes="):
            strict.enter_phase("step", 5)
        with strict.enter_phase("step") as phase, pytest.raises(TypeError):
            phase.set_attributes(5)
