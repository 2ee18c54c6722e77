"""Forks and exits: every process delivers its own phases, once, however it was made and however it ends."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

PRELUDE = """
import json, os, sys, threading, time
from stormphase import PhaseTracker, _session

def sink(boundary):
    scope = boundary.metadata["phase_scope"]
    os.write(1, (f"{os.getpid() == parent} {scope['action']} {scope['name']} {scope['status']}\\n").encode())

parent = int(os.environ.setdefault("TEST_PARENT", str(os.getpid())))

def make(**options):
    return PhaseTracker(**{"bridge": None, "sinks": [sink], **options})

def join(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

"""


@pytest.fixture
def run_script(tmp_path: Path) -> Callable[..., list[str]]:
    """Run source text as a script, which multiprocessing can import again, and return the lines that it printed."""

    def run(source: str, *, returncode: int = 0) -> list[str]:
        script = tmp_path / "script.py"
        script.write_text(PRELUDE + source, encoding="utf-8")
        # Python 3.12 and later warn of every fork in a process with threads, and a tracker's sinks are threads.
        command = [sys.executable, "-W", "ignore:This process:DeprecationWarning", str(script)]
        child = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False, cwd=tmp_path)
        assert (returncode, "") == (child.returncode, child.stderr)
        return child.stdout.splitlines()

    return run


def own(phase: str, status: str, *, is_parent: bool) -> list[str]:
    """Return the lines of one phase of one process."""
    return [f"{is_parent} enter {phase} active", f"{is_parent} exit {phase} {status}"]


# Exits


def test_what_is_open_at_interpreter_exit_is_delivered(run_script):
    """A program without a `with` block loses nothing: what is open ends as ABANDONED."""
    assert own("train", "abandoned", is_parent=True) == run_script('t = make().start(); t.enter_phase("train")')


def test_exit_waits_for_threads_and_abandons_what_daemons_have_open(run_script):
    """A thread that Python waits for ends its phases itself; a daemon thread's phases end with the session."""
    source = """
t = make().start()
entered = threading.Event()

def daemon():
    with t.enter_phase("daemon"):
        entered.set()
        threading.Event().wait()

def normal():
    entered.wait()
    threading.main_thread().join()
    with t.enter_phase("normal"):
        pass

threading.Thread(target=daemon, daemon=True).start()
threading.Thread(target=normal).start()
"""
    expected = own("daemon", "abandoned", is_parent=True) + own("normal", "succeeded", is_parent=True)
    assert sorted(expected) == sorted(run_script(source))


def test_exit_is_not_held_up_by_a_sink_that_hangs(run_script):
    """The timeout of stop is kept at exit too, and the other sinks have all."""
    source = """
import logging; logging.disable()
_session.STOP_TIMEOUT_S = 0.2
t = make(sinks=[lambda boundary: threading.Event().wait(), sink]).start()
t.enter_phase("train")
"""
    assert own("train", "abandoned", is_parent=True) == run_script(source)


def test_a_sink_may_stop_the_session_as_its_last_act(run_script):
    """A stop on a sink's own thread returns at once; the program's exit waits for the thread that stops."""
    source = """
def stopping(boundary):
    sink(boundary)
    if boundary.event_type == "phase_exit":
        t.stop()

t = make(sinks=[stopping]).start()
with t.enter_phase("train"):
    pass
t.flush()
"""
    assert own("train", "succeeded", is_parent=True) == run_script(source)


BRIDGE = """
from stormphase._lanes import ContextCarrier

class Bridge:
    exit_hook = None
    def attach(self, session): return ContextCarrier()
    def bind(self, lanes): pass
    def take(self, phase): pass
    def tick(self): pass
    def flush(self, timeout_s): return True
    def finish(self, outcome, ended_ns): os.write(1, f"outcome {outcome!r}\\n".encode())
    def after_fork_in_child(self): os.write(1, b"forked\\n")
    def stats(self): return {}
    def environment(self): return {}

t = make(bridge=Bridge(), sinks=[]).start()
"""


def test_an_uncaught_exception_is_the_sessions_outcome(run_python):
    """A program that dies of an exception has no session that succeeded."""
    child = run_python(PRELUDE + BRIDGE + 'raise ValueError("diverged")', check=False)
    assert (1, "outcome ValueError('diverged')\n") == (child.returncode, child.stdout)


def test_an_orderly_exit_is_a_good_outcome(run_script):
    """Also through `sys.exit`."""
    assert ["outcome None"] == run_script(BRIDGE + "sys.exit(0)")


def test_an_interactive_exception_is_not_the_sessions_outcome(run_python):
    """A shell shows exceptions and goes on."""
    source = 'sys.ps1 = ">>> "; sys.last_value = ValueError("typo")'
    assert "outcome None\n" == run_python(PRELUDE + BRIDGE + source).stdout


# Forks


def test_a_forked_child_delivers_its_own_phases_and_only_those(run_script):
    """The child goes on with empty lanes, under the phase that was open, and leaves through `sys.exit`."""
    source = """
with make() as t:
    with t.enter_phase("train"):
        pid = os.fork()
        if pid == 0:
            with t.enter_phase("load") as phase:
                assert ("train", "load") == phase.path
            sys.exit(3)
        assert 3 == join(pid)
"""
    expected = own("train", "succeeded", is_parent=True) + own("load", "succeeded", is_parent=False)
    assert sorted(expected) == sorted(run_script(source))


def test_a_forked_child_that_is_killed_by_itself_keeps_nothing_back(run_script):
    """`os._exit` runs nothing of ours: what was flushed is there, and the parent's session is untouched."""
    source = """
with make() as t:
    pid = os.fork()
    if pid == 0:
        t.enter_phase("flushed")
        assert t.flush(30)
        os._exit(0)
    join(pid)
    with t.enter_phase("train"):
        pass
"""
    expected = ["False enter flushed active", *own("train", "succeeded", is_parent=True)]
    assert expected == run_script(source)


def test_a_forked_child_counts_for_itself(run_script):
    """Offered is handed over plus dropped in each process, whatever was queued at the fork."""
    source = """
import logging; logging.disable()
gate = threading.Event()
t = make(sinks=[lambda boundary: gate.wait()], queue_bound=5).start()
for _ in range(20):
    with t.enter_phase("step"): pass
pid = os.fork()
if pid == 0:
    gate = threading.Event()
    gate.set()
    with t.enter_phase("step"): pass
t.flush(30 if pid == 0 else 0.01)
gate.set()
t.stop()
if pid: join(pid)
(counts,) = t.stats()["sinks"].values()
assert counts["offered"] == counts["handed_over"] + counts["dropped"]
os.write(1, f"{counts['offered']}\\n".encode())
os._exit(0)
"""
    assert ["2", "40"] == run_script(source)


def test_a_child_without_phases_ends_without_a_thread(run_script):
    """At interpreter exit Python 3.12 starts no more threads, and none is needed."""
    source = """
with make(summary=True) as t:
    pid = os.fork()
    if pid == 0:
        sys.stdout = None
        sys.exit(0)
    assert 0 == join(pid)
    sys.stdout = None
"""
    assert [] == run_script(source)


def test_a_child_of_a_child(run_script):
    """Each generation delivers its own."""
    source = """
with make() as t:
    pid = os.fork()
    if pid == 0:
        with t.enter_phase("child"): pass
        inner = os.fork()
        if inner == 0:
            with t.enter_phase("grandchild"): pass
            sys.exit(0)
        join(inner)
        sys.exit(0)
    join(pid)
"""
    expected = own("child", "succeeded", is_parent=False) + own("grandchild", "succeeded", is_parent=False)
    assert sorted(expected) == sorted(run_script(source))


def test_a_fork_while_another_thread_stops_the_session(run_script):
    """The child's session has stopped: it neither hangs nor delivers what is the parent's."""
    source = """
taking, leave = threading.Event(), threading.Event()

def slow(boundary):
    taking.set()
    leave.wait(30)
    sink(boundary)

t = make(sinks=[slow]).start()
t.enter_phase("train").close()
stopping = threading.Thread(target=t.stop)
stopping.start()
taking.wait(30)
while t.is_running: pass
pid = os.fork()
if pid == 0:
    t.stop(60)
    os._exit(0)
assert 0 == join(pid)
leave.set()
stopping.join()
"""
    assert own("train", "succeeded", is_parent=True) == run_script(source)


def test_only_the_parent_prints_the_summary(run_script):
    """A forked child has phases, and no session of its own to sum up."""
    source = """
with make(summary=True, sinks=[]) as t:
    pid = os.fork()
    if pid == 0:
        with t.enter_phase("child"): pass
        sys.exit(0)
    join(pid)
    with t.enter_phase("train"): pass
"""
    shown = run_script(source)
    assert 1 == sum(line.startswith("stormphase:") for line in shown)
    assert (True, False) == (any("train" in line for line in shown), any("child" in line for line in shown))


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_children_of_multiprocessing_deliver_a_session_of_their_own(run_script, method):
    """They leave by `os._exit` and run no `atexit`; a tracker that one of them never stopped delivers all the same."""
    source = f"""
import multiprocessing

def work():
    t = make().start()
    with t.enter_phase("load"): pass
    t.enter_phase("left open")

if __name__ == "__main__":
    child = multiprocessing.get_context("{method}").Process(target=work)
    child.start()
    child.join()
    print(child.exitcode, flush=True)
"""
    expected = own("load", "succeeded", is_parent=False) + own("left open", "abandoned", is_parent=False) + ["0"]
    assert expected == run_script(source)


def test_a_child_forked_by_multiprocessing_delivers_under_its_parents_session(run_script):
    """It inherits the running tracker, and multiprocessing stops it at the child's end."""
    source = """
import multiprocessing

def work():
    with t.enter_phase("load") as phase:
        assert ("train", "load") == phase.path

with make() as t:
    with t.enter_phase("train"):
        child = multiprocessing.get_context("fork").Process(target=work)
        child.start()
        child.join()
        assert 0 == child.exitcode
"""
    expected = own("train", "succeeded", is_parent=True) + own("load", "succeeded", is_parent=False)
    assert sorted(expected) == sorted(run_script(source))


def test_a_pool_of_processes_delivers(run_script):
    """So do workers that serve many tasks each, when the pool is closed in order."""
    source = """
import concurrent.futures, multiprocessing

def work(number):
    with t.enter_phase("task"): pass

with make() as t:
    with concurrent.futures.ProcessPoolExecutor(2, multiprocessing.get_context("fork")) as pool:
        list(pool.map(work, range(10)))
"""
    assert sorted(own("task", "succeeded", is_parent=False) * 10) == sorted(run_script(source))


def test_a_bridge_is_told_of_a_fork_once_and_of_the_end_by_its_own_process_only(run_script):
    """The session's end is the parent's to tell."""
    source = """
pid = os.fork()
if pid == 0:
    sys.exit(0)
join(pid)
t.stop()
"""
    assert ["forked", "outcome None"] == run_script(BRIDGE + source)


def test_a_stopped_session_does_not_hear_of_forks(run_script):
    """What is over is left alone."""
    source = """
t.stop()
pid = os.fork()
if pid == 0:
    os._exit(0)
join(pid)
"""
    assert ["outcome None"] == run_script(BRIDGE + source)
