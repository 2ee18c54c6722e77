"""Forked, spawned and vanished processes: ids are never reused, and a child never ends what its parent has open."""

from __future__ import annotations

import pytest

FORK = """
import os, sys, json
from stormphase._recorder import PhaseRecorder
from stormphase import PhaseProtocolError

recorder = PhaseRecorder()
lanes = recorder.lane_set("s", 0)
ended = []
lanes.exit_queues = (ended.append,)

def in_child(call):
    # Runs `call` in a forked child that leaves by os._exit, and returns what it said.
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            said = json.dumps(call())
        except BaseException as error:
            said = json.dumps(f"{type(error).__name__}: {error}")
        os.write(writing, said.encode())
        os._exit(0)
    os.close(writing)
    with open(reading) as pipe:
        said = json.load(pipe)
    assert os.waitpid(pid, 0)[1] == 0
    return said

def reason_of(call, *arguments):
    try:
        call(*arguments)
    except PhaseProtocolError as error:
        return error.reason
    return "not refused"
"""


def run(run_python, source):
    """Run the common beginning and `source` in a new process; return its lines."""
    return run_python(FORK + source).stdout.splitlines()


def test_a_child_never_reuses_an_id(run_python):
    """Parent and two children go on counting; nobody's ids are another's."""
    said = run(
        run_python,
        """
def some_ids():
    found = []
    for _ in range(200):
        with lanes.enter_phase("x") as phase:
            found.append(phase.scope_id)
    return found

ids = [some_ids(), in_child(some_ids), in_child(some_ids), some_ids()]
print(len(set(sum(ids, []))))
""",
    )
    assert ["800"] == said


def test_a_child_cannot_touch_what_its_parent_has_open(run_python):
    """Exit in every way, pause, resume, release and acquire are refused; the parent's phases go on."""
    said = run(
        run_python,
        """
token = lanes.enter("train")
phase = token._handle
paused = lanes.enter_phase("paused")
paused.pause()
released = lanes.enter_phase("released").release()
top = lanes.enter_phase("top")

def steal():
    import threading
    return [
        reason_of(lanes.exit, token),
        reason_of(top.close),
        reason_of(top.pause),
        reason_of(top.release),
        reason_of(paused.resume),
        reason_of(paused.close),
        reason_of(paused.release),
        reason_of(lanes.acquire, released),
        reason_of(lambda: recorder.exit_phase(
            session_id="s", rank=0, scope_id=top.scope_id, thread_id=threading.get_ident())),
    ]

print(*in_child(steal))
top.close()
lanes.acquire(released).close()
paused.resume()
paused.close()
lanes.exit(token)
print(*[each.name + ":" + each.status.value for each in ended])
try:
    print(in_child(lambda: lanes.exit(token)))
except Exception as error:
    print(error)
""",
    )
    assert " ".join(["foreign_process"] * 8 + ["unknown_scope"]) == said[0]
    assert "top:succeeded released:succeeded paused:succeeded train:succeeded" == said[1]
    assert "already ended as succeeded" in said[2]


def test_a_refusal_says_that_the_phase_is_the_parents(run_python):
    """With the child's process id and what to do."""
    said = run(
        run_python,
        """
phase = lanes.enter_phase("train")
print(in_child(lambda: [os.getpid(), reason_of(phase.close)])[1])
print(in_child(lambda: phase.close()))
phase.close()
""",
    )
    assert "foreign_process" == said[0]
    assert "belongs to the process this one was forked from. Let the parent end it" in said[1]


def test_a_child_starts_with_empty_lanes_under_the_phase_open_at_the_fork(run_python):
    """Its own phases hang under what its parent had open, on a lane of its own; its counts start at none."""
    said = run(
        run_python,
        """
with lanes.enter_phase("train") as train:
    with lanes.enter_phase("step") as step:
        def work():
            before = [len(list(lanes.open_phases())), lanes.boundary_counts(), lanes.counts.to_dict()]
            with lanes.enter_phase("work") as phase, lanes.enter_phase("inner") as inner:
                pass
                is_nested = phase.parent is step and inner.parent is phase
            return [before, phase.path, is_nested, lanes.boundary_counts(), len(ended)]
        lanes.counts.add("misuse of the parent")
        print(in_child(work))
print(lanes.boundary_counts(), len(ended))
""",
    )
    assert "[[0, [0, 0], {}], ['train', 'step', 'work'], True, [0, 2], 2]" == said[0]
    assert "(0, 2) 2" == said[1]


def test_a_child_that_leaves_its_parents_block_ends_nothing(run_python):
    """As one does that forks inside a with block and goes on: counted, in its own context, and the parent ends it."""
    said = run(
        run_python,
        """
pid = None
with lanes.enter_phase("train") as train:
    with lanes.enter_phase("step") as step:
        pid = os.fork()
        if pid == 0:
            with lanes.enter_phase("in child"):
                pass
    inside = lanes.carrier.current_phase() is train
if pid == 0:
    with lanes.enter_phase("root of child") as root:
        pass
    print("child", inside, [each.name for each in ended], step.status, root.parent, root.path,
          lanes.counts.to_dict(), lanes.carrier.current_phase(), flush=True)
    os._exit(0)
os.waitpid(pid, 0)
print("parent", inside, [each.name for each in ended], step.status, lanes.counts.to_dict())
""",
    )
    assert (
        "child True ['in child', 'root of child'] active None ('root of child',) {'foreign_process': 2} None" == said[0]
    )
    assert "parent True ['step', 'train'] succeeded {}" == said[1]


def test_an_exception_that_leaves_a_parents_block_in_the_child_wins(run_python):
    """Neither masked nor noted."""
    said = run(
        run_python,
        """
def leave():
    try:
        with step:
            raise ValueError("the user's")
    except ValueError as error:
        return [str(error), getattr(error, "__notes__", [])]

step = lanes.enter_phase("step")
print(in_child(leave), step.status)
step.close()
""",
    )
    assert ['["the user\'s", []] active'] == said


def test_a_fork_while_a_session_is_seen_for_the_first_time_leaves_no_lock_held(run_python):
    """Another thread of the parent makes lanes at that moment; the child, which has no such thread, makes its own."""
    said = run(
        run_python,
        """
import signal, threading, warnings
warnings.simplefilter("ignore")  # Python 3.12 and later warn of forks with threads.
is_held, may_go = threading.Event(), threading.Event()

def hold():
    with recorder._lock:
        is_held.set()
        may_go.wait(60)

def use():
    signal.alarm(20)  # So that a lock nobody will ever release ends the child.
    recorder.enter(session_id="new", rank=7, name="train")
    return len(list(recorder.lane_set("new", 7).open_phases()))

holder = threading.Thread(target=hold, daemon=True)
holder.start()
is_held.wait(60)
print(in_child(use))
may_go.set()
holder.join()
""",
    )
    assert ["1"] == said


def test_any_number_of_recorders_hooks_into_forks_once(run_python):
    """A process that makes a recorder for each job does not get slower to fork with each."""
    child = run_python(
        """
import os
hooks = []
os.register_at_fork = lambda **hook: hooks.append(hook["after_in_child"].__module__)
from stormphase._recorder import PhaseRecorder

recorders = [PhaseRecorder() for _ in range(3)]
print(hooks.count("stormphase._recorder"))
"""
    )
    assert "1\n" == child.stdout


def test_where_there_is_no_fork_phases_are_recorded_all_the_same(run_python):
    """A Python whose os has no hooks for forks has no forks."""
    child = run_python(
        """
import os
del os.fork, os.register_at_fork
from stormphase._recorder import PhaseRecorder

recorder = PhaseRecorder()
print(recorder.exit(recorder.enter(session_id="s", rank=0, name="train")[0]).context)
"""
    )
    assert "Phase exited: train\n" == child.stdout


def test_a_fork_while_other_threads_work_leaves_no_lock_held(run_python):
    """A child forked while threads see names for the first time enters, nests and resets at once."""
    said = run(
        run_python,
        """
import threading
stop = threading.Event()

def work(number):
    count = 0
    while not stop.is_set():
        count += 1
        with lanes.enter_phase(f"name {number} {count % 3000}"):
            pass
        thread = threading.Thread(target=lambda: lanes.enter_phase("short").close())
        thread.start()
        thread.join()

threads = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(3)]
for thread in threads:
    thread.start()

def use():
    with lanes.enter_phase("never seen before"):
        pass
    fresh = threading.Thread(target=lambda: lanes.enter_phase("in a thread of the child").close())
    fresh.start()
    fresh.join()
    recorder.reset()
    recorder.lane_set("another", 1)
    return len(list(lanes.open_phases()))

import warnings
warnings.simplefilter("ignore")  # Python 3.12 and later warn of forks with threads.
print(sum(in_child(use) for _ in range(15)))
stop.set()
for thread in threads:
    thread.join()
""",
    )
    assert ["0"] == said


def test_a_child_of_a_child_is_a_child(run_python):
    """Forked from a fork: new ids again, and both ancestors' phases are fenced off."""
    said = run(
        run_python,
        """
phase = lanes.enter_phase("of the first")

def second():
    own = lanes.enter_phase("of the second")
    return [own.scope_id, in_child(lambda: [reason_of(phase.close), reason_of(own.close), third()])]

def third():
    with lanes.enter_phase("of the third") as own:
        return [own.scope_id, own.phase_path]

own_id, (one, two, (third_id, path)) = in_child(second)
print(one, two, path, len({phase.scope_id, own_id, third_id}))
phase.close()
""",
    )
    assert ["foreign_process foreign_process of the first / of the second / of the third 3"] == said


def test_a_fork_inside_a_task_keeps_lanes_apart(run_python):
    """The child of a task does not own the task's phases either."""
    said = run(
        run_python,
        """
import asyncio

async def main():
    with lanes.enter_phase("in task") as phase:
        return in_child(lambda: [reason_of(phase.close), lanes.enter_phase("child").phase_path])

print(*asyncio.run(main()))
""",
    )
    assert ["foreign_process in task / child"] == said


MULTIPROCESSING = """
import multiprocessing, sys
from stormphase._recorder import PhaseRecorder

recorder = PhaseRecorder()
lanes = recorder.lane_set("s", 0)

def work(number):
    with lanes.enter_phase("work") as phase:
        return phase.scope_id, phase.phase_path

if __name__ == "__main__":
    with lanes.enter_phase("main"):
        with multiprocessing.get_context(sys.argv[1]).Pool(2) as pool:
            found = pool.map(work, range(6), chunksize=1)
    print(len({scope_id for scope_id, _ in found}), *sorted({path for _, path in found}))
"""


@pytest.mark.parametrize(("method", "path"), [("fork", "main / work"), ("spawn", "work")])
def test_pools_of_processes(run_python, tmp_path, method, path):
    """A forked worker hangs under where it was forked, a spawned one starts anew; every id differs."""
    script = tmp_path / "pool.py"
    script.write_text(MULTIPROCESSING)
    source = (
        "import runpy, sys; sys.argv = [sys.argv[1], *sys.argv[2:]]; runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    if method == "spawn":
        source = "import subprocess, sys; sys.exit(subprocess.call([sys.executable, *sys.argv[1:]]))"
    assert [f"6 {path}"] == run_python(source, str(script), method).stdout.splitlines()


def test_a_process_that_vanishes_takes_nobody_with_it(run_python):
    """`os._exit` with phases open: no output, no hang, and its parent goes on."""
    said = run(
        run_python,
        """
with lanes.enter_phase("train"):
    pid = os.fork()
    if pid == 0:
        lanes.enter_phase("left open")
        os._exit(3)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
print([each.name for each in ended])
""",
    )
    assert ["3", "['train']"] == said


def test_a_lenient_child_changes_nothing_of_its_parents_either(run_python):
    """Every refusal is counted, gives a handle of nothing, and leaves the parent's phases alone."""
    said = run(
        run_python,
        """
lanes = PhaseRecorder(on_misuse="record").lane_set("s", 0)
released = lanes.enter_phase("released").release()
paused = lanes.enter_phase("paused")
paused.pause()
top = lanes.enter_phase("top")

def steal():
    found = repr(lanes.acquire(released))
    paused.resume()
    token = paused.release()
    top.pause()
    top.close()
    lanes.exit(token)
    return [found, len(list(lanes.open_phases())), lanes.counts.to_dict(), top.status, paused.status]

print(*in_child(steal))
print(top.status, paused.status, released._handle.status)
""",
    )
    counts = {"foreign_process": 5, "forged_token": 1}
    assert [f"<no phase> 0 {counts} active paused", "active paused paused"] == said
