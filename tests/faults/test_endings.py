"""All the ways in which a process ends: what its journal says of it, of what was open and of what had ended."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from stormphase._model import PhaseStatus
from stormphase.journal import read_directory

BEGIN = """
import atexit, ctypes, os, resource, signal, sys, threading, time
from stormphase import PhaseTracker

signal.signal(signal.SIGINT, signal.default_int_handler)  # Ignored where the suite runs in the background of a shell.

def wait():
    threading.Event().wait(50)

tracker = PhaseTracker(
    session_id="s", rank=0, world_size=1, bridge=None, summary=False, journal=sys.argv[1],
    stop_on_sigterm=sys.argv[2:] == ["stop_on_sigterm"],
)
"""

# What is open where the program ends.
OPEN = """
tracker.start()
tracker.set_step(7)
for _ in range(3):
    tracker.enter_phase("done").close()
tracker.enter_phase("train", {"epochs": 3})
tracker.enter_phase("step").pause()
tracker.enter_phase("load")
is_open = threading.Event()

def load():
    tracker.enter_phase("prefetch", {"worker": 1})
    is_open.set()
    wait()

threading.Thread(target=load, name="loader", daemon=True).start()
is_open.wait(10)
"""


def journals(directory):
    """Return the journals, by whether their process was forked, and then by pid."""
    found = list(read_directory(directory))
    return sorted(found, key=lambda image: (image.facts["forked_from"] is not None, image.process.pid))


def open_as(image):
    """Return what is open, as those who look for it want it."""
    return [(each.path, each.status.value, each.step, dict(each.attributes), each.thread_name) for each in image.open]


KEPT_OPEN = [
    (("train",), "active", 7, {"epochs": 3}, "MainThread"),
    (("train", "step"), "paused", 7, {}, "MainThread"),
    (("train", "load"), "active", 7, {}, "MainThread"),
    (("prefetch",), "active", 7, {"worker": 1}, "loader"),
]


@pytest.mark.parametrize(
    ("ending", "returncode"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL),
        ("os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM),
        ("os.abort()", -signal.SIGABRT),
        ("ctypes.string_at(0)", -signal.SIGSEGV),
        ("os._exit(3)", 3),
    ],
)
def test_a_process_that_says_nothing_any_more_leaves_what_was_open(run_python, tmp_path, ending, returncode):
    """Killed, crashed, or gone without a word: the open stack of every thread, and what had ended."""
    done = run_python(BEGIN + OPEN + ending, str(tmp_path / "runs"), check=False)
    assert returncode == done.returncode
    (image,) = journals(tmp_path / "runs")
    assert KEPT_OPEN == open_as(image)
    assert (None, None, 7, ()) == (image.end_note, image.stop_signal, image.step, image.damage)
    assert 3 == image.totals["done",].count


@pytest.mark.parametrize(
    ("ending", "kind", "said"),
    [
        ("", "ended", None),
        ("raise ValueError('no more data')", "exception", "no more data"),
        ("sys.exit(4)", "ended", None),
        ("os.kill(os.getpid(), signal.SIGINT); wait()", "signal", signal.SIGINT),
    ],
)
def test_an_interpreter_that_shuts_down_says_how(run_python, tmp_path, ending, kind, said):
    """Phases that nobody ended are ABANDONED; the end note has the exception that ended the program, and claims nothing
    where there is none: what `sys.exit` was given is nowhere to be found by then.
    """
    run_python(BEGIN + OPEN + ending, str(tmp_path / "runs"), check=False)
    (image,) = journals(tmp_path / "runs")
    assert () == image.open
    assert kind == image.end_note.kind
    assert said in (None, image.end_note.error_message, image.end_note.signal)
    statuses = {phase.path: phase.status for phase in image.ended if phase.path != ("done",)}
    assert dict.fromkeys((path for path, *_ in KEPT_OPEN), PhaseStatus.ABANDONED) == statuses
    assert {"loader"} == {phase.thread_name for phase in image.ended if phase.path == ("prefetch",)}


OWN_HOOK = """
def hook(*exc_info):
    os.write(1, b"mine")

sys.excepthook = hook
raise ValueError("bad")
"""


def test_a_programs_own_excepthook_is_left_alone(run_python, tmp_path):
    """It shows the exception that ends the program, and the journal has it as well."""
    done = run_python(BEGIN + OPEN + OWN_HOOK, str(tmp_path / "runs"), check=False)
    assert (1, "mine", "") == (done.returncode, done.stdout, done.stderr)
    (image,) = journals(tmp_path / "runs")
    assert ("exception", "bad") == (image.end_note.kind, image.end_note.error_message)


SHOWN_AND_SURVIVED = """
def show():
    try:
        raise ValueError("a test has failed")
    except ValueError as error:
        sys.last_exc = sys.last_value = error  # As a runner of tests does, or a callback from C.

show()
"""


def test_an_exception_that_was_shown_and_survived_ended_nothing(run_python, tmp_path):
    """Whoever shows exceptions leaves them where the interpreter leaves the one that ends a program."""
    run_python(BEGIN + OPEN + SHOWN_AND_SURVIVED, str(tmp_path / "runs"))
    (image,) = journals(tmp_path / "runs")
    assert ("ended", None) == (image.end_note.kind, image.end_note.error_type)


def test_a_module_that_ends_by_an_exception_says_so(tmp_path):
    """`python -m` runs the program inside `runpy`."""
    (tmp_path / "job.py").write_text(BEGIN + "tracker.start()\nraise ValueError('bad')\n", encoding="utf-8")
    command = [sys.executable, "-m", "job", str(tmp_path / "runs")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=100, check=False)
    assert 1 == done.returncode
    (image,) = journals(tmp_path / "runs")
    assert ("exception", "bad") == (image.end_note.kind, image.end_note.error_message)


IN_CHILDREN = """
import multiprocessing, os, sys
from stormphase import PhaseTracker

def work(ending):
    options = {"bridge": None, "summary": False, "journal": sys.argv[1]}
    PhaseTracker(session_id=ending, rank=0, world_size=1, **options).start().enter_phase("train")
    sys.stderr = open(os.devnull, "w")
    if ending == "raises":
        raise ValueError("bad")
    if ending != "returns":
        sys.exit(int(ending))

if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[2])
    for ending in ("returns", "raises", "0", "3"):
        child = context.Process(target=work, args=(ending,))
        child.start()
        child.join()
        print(child.exitcode)
"""


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_child_of_multiprocessing_says_how_its_function_ended(tmp_path, method):
    """Without a `with` block: it returned, raised, or asked for an exit status, which is known there up to 3.12."""
    script = tmp_path / "job.py"
    script.write_text(IN_CHILDREN, encoding="utf-8")
    command = [sys.executable, script, tmp_path / "runs", method]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert (["0", "1", "0", "3"], "") == (done.stdout.split(), done.stderr)
    notes = {image.identity.session_id: image.end_note for image in read_directory(tmp_path / "runs")}
    expected = {"returns": "clean", "raises": "exception", "0": "clean", "3": "exit"}
    messages = {"returns": None, "raises": "bad", "0": None, "3": "3"}
    if sys.version_info >= (3, 13):  # It lets all sessions end only when what was raised has passed.
        expected = dict.fromkeys(expected, "ended")
        messages = dict.fromkeys(messages)
    assert expected == {session: note.kind for session, note in notes.items()}
    assert messages == {session: note.error_message for session, note in notes.items()}


FORKED_BY_A_PARENT = """
import os, sys
from stormphase import PhaseTracker

if __name__ == "__main__":
    options = {"bridge": None, "summary": False, "journal": sys.argv[1]}
    with PhaseTracker(session_id="s", rank=0, world_size=1, **options) as tracker:
        import multiprocessing, multiprocessing.util

        def work():
            tracker.enter_phase("load")
            sys.stderr = open(os.devnull, "w")
            raise ValueError("bad")

        child = multiprocessing.get_context("fork").Process(target=work)
        child.start()
        child.join()
        print(child.exitcode)
"""


def test_a_child_forked_from_a_running_session_is_never_called_clean_if_it_raised(tmp_path):
    """Also where multiprocessing was imported after the session had started, and so ends it."""
    script = tmp_path / "job.py"
    script.write_text(FORKED_BY_A_PARENT, encoding="utf-8")
    command = [sys.executable, "-W", "ignore::DeprecationWarning", script, tmp_path / "runs"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert ("1\n", "") == (done.stdout, done.stderr)
    parent, child = journals(tmp_path / "runs")
    assert ("clean", ()) == (parent.end_note.kind, child.open)
    assert ("ended" if sys.version_info >= (3, 13) else "exception") == child.end_note.kind


@pytest.mark.parametrize(
    ("ending", "kind", "status"),
    [
        ("raise ValueError('no more data')", "exception", PhaseStatus.FAILED),
        ("sys.exit(4)", "exit", PhaseStatus.CANCELLED),
        ("os.kill(os.getpid(), signal.SIGINT); wait()", "signal", PhaseStatus.CANCELLED),
    ],
)
def test_what_ends_a_with_block_is_the_outcome(run_python, tmp_path, ending, kind, status):
    """The phases that it unwound say so, and the journal has it as well."""
    source = f"{BEGIN}\nwith tracker, tracker.enter_phase('train'), tracker.enter_phase('step'):\n    {ending}\n"
    run_python(source, str(tmp_path / "runs"), check=False)
    (image,) = journals(tmp_path / "runs")
    assert (kind, ()) == (image.end_note.kind, image.open)
    assert [status, status] == [phase.status for phase in image.ended]


@pytest.mark.parametrize(
    ("ending", "kind", "said"),
    [
        ("try:\n    raise ValueError('bad')\nfinally:\n    tracker.stop()", "exception", "bad"),
        ("try:\n    sys.exit(3)\nfinally:\n    tracker.stop()", "exit", "3"),
        ("try:\n    sys.exit(0)\nfinally:\n    tracker.stop()", "clean", None),
        ("try:\n    raise ValueError('bad')\nexcept ValueError:\n    tracker.stop()", "exception", "bad"),
        ("try:\n    next(iter(()))\nexcept StopIteration:\n    tracker.stop()", "clean", None),
        ("try:\n    pass\nfinally:\n    tracker.stop()", "clean", None),
        ("atexit.register(tracker.stop)\nraise ValueError('bad')", "exception", "bad"),
        ("atexit.register(tracker.stop)", "clean", None),
    ],
)
def test_a_stop_while_an_exception_passes_tells_of_it_as_a_with_block_does(run_python, tmp_path, ending, kind, said):
    """`start` with `stop` in a `finally` is what `with` does: a rank that raised is not called clean."""
    run_python(BEGIN + "tracker.start()\n" + ending, str(tmp_path / "runs"), check=False)
    (image,) = journals(tmp_path / "runs")
    assert (kind, said) == (image.end_note.kind, image.end_note.error_message)


def test_a_session_within_an_except_block_does_not_end_by_what_that_handles(run_python, tmp_path):
    """What was being handled when the session began is not its outcome; what is raised in it is."""
    program = """
try:
    raise OSError("no cluster")
except OSError:
    tracker.start()
    tracker.stop()
"""
    run_python(BEGIN + program, str(tmp_path / "runs"))
    (image,) = journals(tmp_path / "runs")
    assert "clean" == image.end_note.kind


def test_an_exception_in_the_place_of_one_that_was_handled_at_the_start_is_told(run_python, tmp_path):
    """What was handled then is freed, and the next exception may get its very address."""
    program = """
def begin():
    try:
        raise OSError("no cluster")
    except OSError:
        handled.append(id(sys.exc_info()[1]))
        tracker.start()

def same_place():
    kept = [OSError("bad") for _ in range(10_000)]
    return next((error for error in kept if id(error) == handled[0]), kept[0])

handled = []
begin()
try:
    raise same_place()
finally:
    tracker.stop()
"""
    run_python(BEGIN + program, str(tmp_path / "runs"), check=False)
    (image,) = journals(tmp_path / "runs")
    assert ("exception", "bad") == (image.end_note.kind, image.end_note.error_message)


NOTEBOOK = """
import sys
from IPython.core.interactiveshell import InteractiveShell

shell = InteractiveShell.instance()
shell.run_cell("from stormphase import PhaseTracker")
shell.run_cell(f"tracker = PhaseTracker(bridge=None, journal={sys.argv[1]!r}).start()")
shell.run_cell("1 / 0")
shell.run_cell("tracker.stop()")
"""


def test_a_cell_that_failed_is_not_how_a_notebooks_session_ended(run_python, tmp_path):
    """The exception was shown and the notebook went on: a stop in a later cell ends in order."""
    shown = run_python(NOTEBOOK, str(tmp_path / "runs"))
    assert "ZeroDivisionError" in shown.stdout
    (image,) = journals(tmp_path / "runs")
    assert "clean" == image.end_note.kind


def test_sigterm_is_told_if_the_session_was_asked_to_stop_by_it(run_python, tmp_path):
    """With stop_on_sigterm the journal has the signal, when it came, and an ordered end."""
    ending = "os.kill(os.getpid(), signal.SIGTERM)\nwait()"
    done = run_python(BEGIN + OPEN + ending, str(tmp_path / "runs"), "stop_on_sigterm", check=False)
    assert -signal.SIGTERM == done.returncode
    (image,) = journals(tmp_path / "runs")
    assert (signal.SIGTERM, ("signal", signal.SIGTERM)) == (
        image.stop_signal,
        (image.end_note.kind, image.end_note.signal),
    )
    assert image.started_ns < image.stop_asked_ns <= image.end_note.ended_ns
    assert () == image.open


def test_a_thread_that_exits_ends_its_own_phases_alone(run_python, tmp_path):
    """`sys.exit` in a thread: its block is unwound, the others go on."""
    ending = """
def leave():
    with tracker.enter_phase("leaving"):
        sys.exit(5)

thread = threading.Thread(target=leave, name="leaver")
thread.start()
thread.join()
os._exit(0)
"""
    run_python(BEGIN + OPEN + ending, str(tmp_path / "runs"))
    (image,) = journals(tmp_path / "runs")
    assert KEPT_OPEN == open_as(image)
    (left,) = [phase for phase in image.ended if phase.path == ("leaving",)]
    assert ("leaver", "SystemExit") == (left.thread_name, left.error.type.rpartition(".")[2])


FORKED = """
reads, writes = os.pipe()
if not (child := os.fork()):
    with tracker.enter_phase("in the child", {"k": 1}):
        tracker.enter_phase("new name").close()
        tracker.enter_phase("open in the child")
        os.write(writes, b"!")
        wait()
os.read(reads, 1)
os.kill(child, signal.SIGKILL)
os.waitpid(child, 0)
for _ in range(500):
    tracker.enter_phase("after").close()
os._exit(0)
"""


def test_a_forked_child_that_is_killed_costs_its_parent_nothing(run_python, tmp_path):
    """Each has a journal of its own: the child's phases are in the child's, and the parent goes on."""
    run_python(BEGIN + OPEN + FORKED, str(tmp_path / "runs"))
    parent, child = journals(tmp_path / "runs")
    assert KEPT_OPEN == open_as(parent)
    assert {"done": 3, "after": 500} == {path[-1]: totals.count for path, totals in parent.totals.items()}
    assert parent.process.pid == child.facts["forked_from"]
    assert ["in the child", "open in the child"] == [phase.path[-1] for phase in child.open]
    assert {"k": 1} == child.open[0].attributes
    assert ["new name"] == [phase.path[-1] for phase in child.ended]
    assert {phase.scope_id for phase in (*parent.open, *parent.ended)}.isdisjoint(
        phase.scope_id for phase in (*child.open, *child.ended)
    )


FORKED_AT_WORK = """
tracker.start()
stopping = threading.Event()
counts = []

def work(number):
    count = 0
    with tracker.enter_phase(f"worker {number}"):
        while not stopping.is_set():
            with tracker.enter_phase("step", {"n": count}):
                count += 1
    counts.append(count)

threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
for thread in threads:
    thread.start()
children = []
for number in range(6):
    if not (child := os.fork()):
        for name in ("child", f"only {number}"):
            with tracker.enter_phase(name):
                pass
        os.kill(os.getpid(), signal.SIGKILL) if number % 2 else os._exit(0)
    children.append(child)
if not os.fork():
    os._exit(0)  # without a phase
for child in (*children, -1):
    os.waitpid(child, 0)
stopping.set()
for thread in threads:
    thread.join()
tracker.stop()
print(sum(counts))
"""


AT_WORK_UNTIL_THE_END = """
import contextlib
from stormphase.exceptions import StormphaseError

tracker.start()
are_busy = [threading.Event() for _ in range(4)]

def work(number):
    with contextlib.suppress(StormphaseError):
        with tracker.enter_phase(f"worker {number}", {"k": number}):
            while True:
                with tracker.enter_phase("step"):
                    are_busy[number].set()

for number in range(4):
    threading.Thread(target=work, args=(number,), daemon=True).start()
for is_busy in are_busy:
    is_busy.wait(10)
"""


def test_threads_that_work_while_the_interpreter_shuts_down_disturb_nothing(run_python, tmp_path):
    """Daemons are stopped anywhere: what they have open is ABANDONED, but for a step that one was just entering.

    They fill the journal faster than it can be folded, so one of them may take the room of another's record that has
    just ended: that is counted.
    """
    run_python(BEGIN + AT_WORK_UNTIL_THE_END, str(tmp_path / "runs"))
    (image,) = journals(tmp_path / "runs")
    assert ((), "ended") == (image.damage, image.end_note.kind)
    assert {"step"} >= {phase.path[-1] for phase in image.open}
    workers = {path[0]: totals for path, totals in image.totals.items() if len(path) == 1 and path != ("step",)}
    assert {f"worker {number}" for number in range(4)} >= set(workers)
    assert {(1, 1)} >= {(each.count, each.abandoned) for each in workers.values()}
    assert 4 - len(workers) <= image.unfolded


@pytest.mark.parametrize("raised", ["ValueError('bad')", "SystemExit(5)", "KeyboardInterrupt()"])
def test_an_exception_that_ends_a_thread_ends_no_process(run_python, tmp_path, raised):
    """Its phases say how they ended; the session goes on, and ends in order."""
    ending = f"""
threading.excepthook = lambda arguments: None

def work():
    with tracker.enter_phase("work"):
        raise {raised}

with tracker:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    tracker.enter_phase("after").close()
"""
    run_python(BEGIN + ending, str(tmp_path / "runs"))
    (image,) = journals(tmp_path / "runs")
    statuses = {phase.path[0]: phase.status for phase in image.ended}
    expected = PhaseStatus.FAILED if raised.startswith("Value") else PhaseStatus.CANCELLED
    assert {"work": expected, "after": PhaseStatus.SUCCEEDED} == statuses
    assert ((), "clean") == (image.open, image.end_note.kind)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_forks_while_threads_work_disturb_no_journal(run_python, tmp_path):
    """Whatever the threads were doing in the moment of the fork; a child without phases leaves no file."""
    done = run_python(BEGIN + FORKED_AT_WORK, str(tmp_path / "runs"), env={"PYTHONWARNINGS": "ignore"})
    parent, *children = journals(tmp_path / "runs")
    steps = sum(totals.count for path, totals in parent.totals.items() if path[-1] == "step")
    assert int(done.stdout) == steps + parent.unfolded + parent.unwritten
    assert ((), (), "clean") == (parent.open, parent.damage, parent.end_note.kind)
    assert 6 == len(children)
    assert {("child",)} == {child.ended[0].path for child in children}
    assert {f"only {number}" for number in range(6)} == {child.ended[1].path[-1] for child in children}
    assert {((), (), 0)} == {(child.open, child.damage, child.unwritten) for child in children}


WITHOUT_MEMORY = """
tracker.start()
with tracker.enter_phase("warm"):
    pass

def mapped_bytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")

resource.setrlimit(resource.RLIMIT_AS, (mapped_bytes() + (24 << 20), resource.RLIM_INFINITY))
failed = ended = entered = 0
kept = []
for number in range(6_000):
    try:
        with tracker.enter_phase(f"path {number % 300}", {"n": number, "text": "x" * 300}) as phase:
            entered += 1
            kept.append(bytearray(20_000 + number))
            phase.set_attribute("late", "y" * 500)
        ended += 1
    except (MemoryError, SystemError):  # CPython itself sometimes raises the latter, where it has no memory.
        failed += 1
        if failed % 30 == 0:
            del kept[:]
del kept[:]
os.write(1, b"%d %d %d\\n" % (entered, ended, failed))
last = tracker.enter_phase("last", {"n": 1})
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_out_of_memory_the_journal_goes_on(run_python, tmp_path):
    """Under a limit of address space nothing can be allocated for a while: counts are right, what is open is open."""
    done = run_python(BEGIN + WITHOUT_MEMORY, str(tmp_path / "runs"), check=False)
    assert -signal.SIGKILL == done.returncode, done.stderr
    entered, ended, failed = map(int, done.stdout.split())
    assert ended + failed == 6_000
    assert failed > 100
    (image,) = journals(tmp_path / "runs")
    assert [("last",)] == [phase.path for phase in image.open]
    total = sum(totals.count for totals in image.totals.values()) + image.unfolded + image.unwritten
    assert () == image.damage
    # An enter that failed may have been counted for want of memory to take it back.
    assert entered + 1 <= total <= 6_001
