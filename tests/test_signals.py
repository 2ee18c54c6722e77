"""SIGTERM: only if asked, the session first and then whatever the signal did before, also at the worst moment."""

from __future__ import annotations

import signal
from typing import Any

import pytest

from stormphase import ConfigurationError
from stormphase._signals import SigtermHook

PRELUDE = """
import os, signal, sys, threading
from stormphase import PhaseTracker, _session

def sink(boundary):
    scope = boundary.metadata["phase_scope"]
    print(scope["action"], scope["name"], scope["status"], flush=True)

def tracker(**options):
    return PhaseTracker(bridge=None, **{"sinks": [sink], "stop_on_sigterm": True, **options}).start()

def terminate():
    os.kill(os.getpid(), signal.SIGTERM)
    for _ in range(100_000): pass  # Python's handler runs at one of the next bytecodes.

"""
DELIVERED = ["enter train active", "exit train abandoned"]


def lines(run_python: Any, source: str, returncode: int = -signal.SIGTERM) -> list[str]:
    """Run a program that SIGTERM ends, and return what it printed."""
    child = run_python(PRELUDE + source, check=False)
    assert (returncode, "") == (child.returncode, child.stderr)
    return child.stdout.splitlines()


@pytest.fixture
def sigterm() -> Any:
    """Let the test change the handler of SIGTERM, and put it back."""
    before = signal.getsignal(signal.SIGTERM)
    yield lambda handler: signal.signal(signal.SIGTERM, handler)
    signal.signal(signal.SIGTERM, before)


def test_sigterm_delivers_and_then_ends_the_process(run_python):
    """What is open reaches the sinks as ABANDONED, and the process dies of SIGTERM as ever."""
    assert DELIVERED == lines(run_python, 't = tracker(); t.enter_phase("train"); terminate(); print("not reached")')


def test_sigterm_is_left_alone_unless_asked(run_python):
    """A library installs no signal handler of its own accord."""
    source = 't = tracker(stop_on_sigterm=False); t.enter_phase("train"); t.flush(); terminate()'
    assert ["enter train active"] == lines(run_python, source)


def test_the_programs_own_handler_decides(run_python):
    """What it raises unwinds the phases, which end truthfully, and the exit status is the program's."""
    source = """
signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))
with PhaseTracker(bridge=None, sinks=[sink], stop_on_sigterm=True) as t:
    with t.enter_phase("train"):
        terminate()
"""
    assert ["enter train active", "exit train cancelled"] == lines(run_python, source, returncode=3)


def test_a_handler_that_goes_on_keeps_the_session(run_python):
    """A program that only notes the signal, to save a checkpoint first, still has its phases."""
    source = """
signal.signal(signal.SIGTERM, lambda *_: print("noted", flush=True))
t = tracker()
terminate()
with t.enter_phase("checkpoint"): pass
t.stop()
"""
    expected = ["noted", "enter checkpoint active", "exit checkpoint succeeded"]
    assert expected == lines(run_python, source, returncode=0)


def test_an_ignored_sigterm_stays_ignored(run_python):
    """The process goes on, and so does the session."""
    source = """
signal.signal(signal.SIGTERM, signal.SIG_IGN)
t = tracker()
terminate()
with t.enter_phase("train"): pass
t.stop()
"""
    assert ["enter train active", "exit train succeeded"] == lines(run_python, source, returncode=0)


def test_sigterm_while_the_main_thread_holds_our_lock(run_python):
    """The thread that stops the session would wait for it in vain: the main one is let go on a little first."""
    source = """
t = tracker()
t.enter_phase("train")
with t.lane_set._lock:
    terminate()
signal.pause()
"""
    assert DELIVERED == lines(run_python, source)


def test_sigterm_while_the_main_thread_holds_threadings_lock(run_python):
    """Threads of the program's are being started when the signal comes."""
    source = """
t = tracker()
t.enter_phase("train")
with threading._active_limbo_lock:
    terminate()
"""
    assert DELIVERED == lines(run_python, source)


def test_sigterm_twice_is_sigterm_once(run_python):
    """Launchers signal the process and its group; the second signal does not cut the delivery short."""
    source = """
def slow(boundary):
    os.kill(os.getpid(), signal.SIGTERM)
    sink(boundary)

t = tracker(sinks=[slow])
t.enter_phase("train")
signal.pause()
"""
    assert DELIVERED == lines(run_python, source)


def test_sigterm_while_a_sink_hangs(run_python):
    """The wait is bounded; the other sinks have all."""
    source = """
_session.STOP_TIMEOUT_S = 0.2
t = tracker(sinks=[lambda boundary: threading.Event().wait(), sink])
t.enter_phase("train")
import logging; logging.disable()
terminate()
"""
    assert DELIVERED == lines(run_python, source)


def test_sigterm_during_stop_lets_stop_finish(run_python):
    """The signal comes while the main thread waits for the sinks; they get all, and then the process ends."""
    source = """
def slow(boundary):
    if boundary.event_type == "phase_exit":
        os.kill(os.getpid(), signal.SIGTERM)
    sink(boundary)

t = tracker(sinks=[slow])
t.enter_phase("train")
t.stop()
terminate()
"""
    assert DELIVERED == lines(run_python, source)


def test_nested_trackers_both_stop(run_python):
    """The inner one first, then the outer one, then the process."""
    source = """
outer = tracker()
outer.enter_phase("train")
outer.flush()
inner = tracker()
inner.enter_phase("step")
inner.flush()
terminate()
"""
    expected = ["enter train active", "enter step active", "exit step abandoned", "exit train abandoned"]
    assert expected == lines(run_python, source)


def test_a_terminated_child_of_multiprocessing_delivers(run_python):
    """`Process.terminate` sends SIGTERM: the child's own phases are handed over before it dies."""
    source = """
import multiprocessing
context = multiprocessing.get_context("fork")
entered = context.Event()

def work():
    t.enter_phase("load")
    entered.set()
    signal.pause()

t = tracker()
child = context.Process(target=work)
child.start()
entered.wait(30)
child.terminate()
child.join()
print(child.exitcode)
t.stop()
"""
    assert ["enter load active", "exit load abandoned", "-15"] == lines(run_python, source, returncode=0)


def test_the_handler_before_comes_back_at_stop(make_tracker, sigterm):
    """After the session SIGTERM is what it was."""

    def own(number: int, frame: Any) -> None:
        pass

    sigterm(own)
    with make_tracker(stop_on_sigterm=True):
        during = signal.getsignal(signal.SIGTERM)
    assert (own, True) == (signal.getsignal(signal.SIGTERM), during is not own)


def test_a_handler_set_since_is_left_in_place(make_tracker, sigterm):
    """Whoever came after us has the last word."""

    def later(number: int, frame: Any) -> None:
        pass

    with make_tracker(stop_on_sigterm=True):
        sigterm(later)
    assert later is signal.getsignal(signal.SIGTERM)


def test_a_stop_on_another_thread_leaves_a_handler_that_only_passes_on(make_tracker, sigterm, step_thread):
    """Python sets handlers on the main thread only; the one left behind calls the one before."""
    seen: list[int] = []
    sigterm(lambda number, frame: seen.append(number))
    tracker = make_tracker(stop_on_sigterm=True).start()
    step_thread().do(tracker.stop)
    signal.raise_signal(signal.SIGTERM)
    assert [signal.SIGTERM] == seen


def test_another_thread_cannot_ask_for_sigterm(make_tracker, step_thread):
    """The error comes at start, before anything has begun, and says what to do."""
    tracker = make_tracker(stop_on_sigterm=True)
    with pytest.raises(ConfigurationError, match="Start the tracker in the main thread"):
        step_thread().do(tracker.start)
    assert False is tracker.is_running


def test_a_handler_that_is_not_pythons_cannot_be_chained(make_tracker, monkeypatch):
    """What Python cannot call, it would silently replace."""
    monkeypatch.setattr(signal, "getsignal", lambda number: None)
    with pytest.raises(ConfigurationError, match="Leave stop_on_sigterm out"):
        SigtermHook(lambda: None, lambda: True)
