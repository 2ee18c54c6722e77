"""A fork beside the end of a session, or beside SIGTERM: the child tells nothing of its parent's, and can be ended."""

from __future__ import annotations

import pytest

from stormphase.records import read_records

STOPPING = """
import os, sys, threading
from stormphase import PhaseTracker

parent = os.getpid()
held, may_go = threading.Event(), threading.Event()

def hold(*_):
    held.set()
    may_go.wait(10)

def sink(boundary):
    scope = boundary.metadata["phase_scope"]
    os.write(1, f"{'parent' if os.getpid() == parent else 'child'} {scope['action']} {scope['name']}\\n".encode())

def child_of(tracker):
    # Forks, uses the tracker in the child in every way, and returns how that ended.
    pid = os.fork()
    if pid == 0:
        with tracker.enter_phase("own"):
            pass
        tracker.flush(5)
        tracker.stop(5)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
"""

# Where the stop is halted on its own thread while the main one forks.
MOMENTS = {
    "begun": "tracker._session._on_stop = lambda on_stop=tracker._session._on_stop: (hold(), on_stop())",
    "lanes closed": "tracker._session.capture.stop = lambda stop=tracker._session.capture.stop: (hold(), stop())",
    "sinks asked": "sinks[0] = hold",
    "sinks gone": "tracker._session.journal.finish = "
    "lambda *a, finish=tracker._session.journal.finish, **b: (hold(), finish(*a, **b))",
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_child_forked_while_the_session_stops_tells_nothing(run_python, tmp_path, moment):
    """Its tracker is over: no phase of the parent's is told twice, and flush and stop return."""
    source = f"""
sinks = [lambda _: None]
tracker = PhaseTracker(bridge=None, sinks=[lambda each: sinks[0](each), sink], on_misuse="record",
                       journal={str(tmp_path)!r}).start()
train = tracker.enter_phase("train")
{MOMENTS[moment]}
stop = threading.Thread(target=tracker.stop)
stop.start()
held.wait(10)
code = child_of(tracker)
may_go.set()
stop.join()
print("child ended with", code)
"""
    said = run_python(STOPPING + source).stdout.splitlines()
    assert ["parent enter train", "parent exit train", "child ended with 0"] == said


TERMINATED = """
import os, signal, sys, time
import stormphase
from stormphase import PhaseTracker

parent = os.getpid()

def sink(boundary):
    scope = boundary.metadata["phase_scope"]
    os.write(1, f"{'parent' if os.getpid() == parent else 'child'} {scope['action']} {scope['name']}\\n".encode())

def ended(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
"""


def test_a_sigterm_that_comes_to_a_child_before_it_knows_of_the_fork_stops_its_own_session(run_python):
    """It waits until the parent's phases are put aside, and then ends the child."""
    source = """
armed = []
os.register_at_fork(after_in_child=lambda: armed and signal.raise_signal(signal.SIGTERM))
tracker = PhaseTracker(bridge=None, sinks=[sink], stop_on_sigterm=True).start()
with tracker.enter_phase("train"):
    armed.append(True)
    pid = os.fork()
    if not pid:
        os._exit(0)
    print("child ended with", ended(pid), flush=True)
    del armed[:]
tracker.stop()
"""
    said = sorted(run_python(TERMINATED + source).stdout.splitlines())
    assert ["child ended with -15", "parent enter train", "parent exit train"] == said


def test_a_sigterm_that_comes_before_a_child_has_run_ends_it(run_python):
    """Python would forget it, and a pool that ends its workers would wait for ever."""
    source = """
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # So that the child runs after the signal was sent.
with PhaseTracker(bridge=None, stop_on_sigterm=True):
    for _ in range(10):
        pid = os.fork()
        if not pid:
            time.sleep(2)
            os._exit(0)
        os.kill(pid, signal.SIGTERM)
        print(ended(pid))
"""
    assert ["-15"] * 10 == run_python(TERMINATED + source).stdout.splitlines()


def test_a_fork_leaves_the_parents_mask_as_it_was(run_python):
    """SIGTERM is held back only while the process forks."""
    source = """
with PhaseTracker(bridge=None, stop_on_sigterm=True):
    pid = os.fork()
    masks = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    if not pid:
        os._exit(len(masks))
    print(masks, ended(pid))
"""
    assert ["set() 0"] == run_python(TERMINATED + source).stdout.splitlines()


SIGNALLED = """
import os, signal, sys, threading
from stormphase import PhaseTracker

parent, may_go, is_armed = os.getpid(), threading.Event(), []

def sink(boundary):
    scope = boundary.metadata["phase_scope"]
    if os.getpid() == parent:
        may_go.wait(10)  # So that all of it waits in the queue.
    os.write(1, f"{'parent' if os.getpid() == parent else 'child'} {scope['action']} {scope['name']}\\n".encode())

def told_of(act, number):
    # What a signal does in a child before any of our hooks has run there.
    signal.signal(number, act)
    os.register_at_fork(after_in_child=lambda: is_armed and signal.raise_signal(number))
    tracker = PhaseTracker(bridge=None, sinks=[sink], journal=sys.argv[1], on_misuse="record").start()
    globals()["tracker"] = tracker
    train = tracker.enter_phase("train")
    with tracker.enter_phase("step"):
        pass
    is_armed.append(True)
    pid = os.fork()
    if not pid:
        tracker.stop()
        os._exit(0)
    del is_armed[:]
    print(os.waitpid(pid, 0)[1], flush=True)
    may_go.set()
    train.close()
    tracker.stop()
"""


@pytest.mark.parametrize(
    "act",
    ["lambda *_: tracker.stop()", "lambda *_: tracker.flush(5)", "lambda *_: tracker._session.lanes.close('done')"],
    ids=["stops", "flushes", "closes"],
)
@pytest.mark.parametrize("number", ["SIGUSR1", "SIGINT"])
def test_a_handler_that_runs_in_a_child_finds_the_childs_own_session(run_python, tmp_path, act, number):
    """Signals wait while a process forks: the parent's phases are told once, and its journal is not written to."""
    said = run_python(SIGNALLED + f"told_of({act}, signal.{number})", str(tmp_path)).stdout.splitlines()
    expected = ["0", "parent enter step", "parent enter train", "parent exit step", "parent exit train"]
    assert expected == sorted(said)
    statuses = [record.status.value for record in read_records(tmp_path, kind="phase")]
    assert ["succeeded", "succeeded"] == statuses


def test_ctrl_c_in_a_child_that_resets_its_session_leaves_it_reset(run_python):
    """Python lets no exception out of what runs at a fork, so that must have done its work all the same."""
    source = """
from stormphase import _drain
reset, may_raise = _drain.SinkWorker.after_fork_in_child, [True]

def interrupted(self):
    if may_raise:
        may_raise.clear()
        signal.raise_signal(signal.SIGINT)
    reset(self)

_drain.SinkWorker.after_fork_in_child = interrupted
told_of(signal.SIG_DFL, signal.SIGUSR2)
"""
    source = SIGNALLED.replace("is_armed and", "False and") + source
    said = run_python(source.replace("journal=sys.argv[1], ", ""), check=False).stdout.splitlines()
    expected = ["0", "parent enter step", "parent enter train", "parent exit step", "parent exit train"]
    assert expected == sorted(said)
