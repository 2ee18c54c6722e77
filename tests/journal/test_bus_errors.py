"""Who else wants SIGBUS keeps it: our handler comes first, takes faults in our own files, and passes on all others."""

from __future__ import annotations

import signal
import sys

import pytest

from stormphase import _native

pytestmark = [
    pytest.mark.skipif(_native.speedups is None, reason="not built here, or STORMPHASE_PURE is set"),
    pytest.mark.skipif(sys.platform != "linux", reason="lays out struct sigaction as Linux has it"),
]

PRELUDE = '''
import ctypes, faulthandler, gc, glob, mmap, os, signal, sys, tempfile, threading, time, stormphase

libc = ctypes.CDLL(None, use_errno=True)
HANDLER = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)


class Action(ctypes.Structure):
    _fields_ = [("handler", ctypes.c_void_p), ("mask", ctypes.c_ubyte * 128), ("flags", ctypes.c_int),
                ("restorer", ctypes.c_void_p)]


def handler_now():
    action = Action()
    assert libc.sigaction(signal.SIGBUS, None, ctypes.byref(action)) == 0
    return action.handler


@HANDLER
def user_handler(number, info, context):
    """Say so, and end: what a crash reporter does."""
    os.write(1, b"the user's handler")
    os._exit(7)


def take_as_user():
    action = Action(ctypes.cast(user_handler, ctypes.c_void_p), flags=4)  # SA_SIGINFO
    assert libc.sigaction(signal.SIGBUS, ctypes.byref(action), None) == 0


def let_us_come_first():
    """Wait until the worker has seen that somebody else has taken the signal."""
    ours, deadline = handlers_of_ours(), time.monotonic() + 60
    while handler_now() not in ours and time.monotonic() < deadline:
        time.sleep(0.01)
    assert handler_now() in ours


def handlers_of_ours():
    """Return where the compiled half begins and ends in memory."""
    with open("/proc/self/maps") as lines:
        places = [line.split()[0].split("-") for line in lines if "_speedups" in line]
    return range(min(int(place[0], 16) for place in places), max(int(place[1], 16) for place in places))


def fault_elsewhere():
    with tempfile.TemporaryFile() as file:
        file.truncate(mmap.PAGESIZE)
        mapped = mmap.mmap(file.fileno(), mmap.PAGESIZE)
        file.truncate(0)
        mapped[0]


def cut_and_go_on():
    for file in glob.glob(runs + "/s/*.journal"):
        os.truncate(file, 0)
    for number in range(1000):
        with tracker.enter_phase("step"):
            pass
    print("went on", flush=True)


runs = tempfile.mkdtemp(dir=os.getcwd())
tracker = stormphase.PhaseTracker("x", bridge=None, journal=runs, session_id="s")
signals = signal.getsignal(signal.SIGBUS)
'''


@pytest.fixture
def run(run_python):
    """Run what follows the prelude; return the exit code and what was printed."""

    def run(source):
        done = run_python(PRELUDE + source, check=False)
        return done.returncode, done.stdout.strip(), done.stderr

    return run


BEFORE_AND_AFTER = pytest.mark.parametrize(
    "start", ["{take}\ntracker.start()\n", "tracker.start()\n{take}\nlet_us_come_first()\n"], ids=["before", "after"]
)


@BEFORE_AND_AFTER
@pytest.mark.parametrize(
    "take",
    [
        "faulthandler.enable()",
        "take_as_user()",
        "signal.signal(signal.SIGBUS, lambda *_: None)",
        "signal.signal(signal.SIGBUS, signal.SIG_IGN)",
        "faulthandler.enable(); take_as_user()",
        "take_as_user(); faulthandler.enable()",
    ],
)
def test_a_cut_journal_is_ours_whoever_has_the_signal(run, start, take):
    """A crash reporter that was there before us, or came later, hears nothing of it."""
    code, printed, errors = run(start.format(take=take) + "cut_and_go_on()\n")
    assert (0, "went on") == (code, printed), errors
    assert "Bus error" not in errors


@BEFORE_AND_AFTER
def test_faulthandler_tells_of_another_files_fault(run, start):
    """With the traceback, and the process ends by the signal."""
    code, _, errors = run(start.format(take="faulthandler.enable()") + "fault_elsewhere()\n")
    assert -signal.SIGBUS == code
    assert 1 == errors.count("Fatal Python error: Bus error")
    assert "in fault_elsewhere" in errors


@BEFORE_AND_AFTER
def test_a_handler_of_the_programs_own_gets_another_files_fault(run, start):
    """One that was installed in C."""
    assert (7, "the user's handler") == run(start.format(take="take_as_user()") + "fault_elsewhere()\n")[:2]


@pytest.mark.parametrize("start", ["", "tracker.start()\n", "tracker.start()\ncut_and_go_on()\n"])
@pytest.mark.parametrize("fault", ["fault_elsewhere()", "os.kill(os.getpid(), signal.SIGBUS)"])
def test_without_anybody_else_it_kills_as_ever(run, start, fault):
    """Also on a thread, and after a fault of ours."""
    thread = f"thread = threading.Thread(target=lambda: {fault}); thread.start(); thread.join()\n"
    assert -signal.SIGBUS == run(start + fault + "\n")[0]
    assert -signal.SIGBUS == run(start + thread)[0]


@BEFORE_AND_AFTER
def test_a_signal_that_is_ignored_stays_ignored(run, start):
    """When somebody sends it; a fault cannot be ignored."""
    start = start.format(take="signal.signal(signal.SIGBUS, signal.SIG_IGN)")
    sent = "os.kill(os.getpid(), signal.SIGBUS)\nprint('ignored', flush=True)\n"
    assert (-signal.SIGBUS, "ignored") == run(start + sent + "fault_elsewhere()\n")[:2]


@BEFORE_AND_AFTER
def test_a_python_handler_hears_of_a_sent_signal(run, start):
    """And `signal.getsignal` says what the program has set."""
    start = start.format(take="signal.signal(signal.SIGBUS, lambda *_: print('heard', flush=True))")
    sent = "os.kill(os.getpid(), signal.SIGBUS)\nprint(callable(signal.getsignal(signal.SIGBUS)))\n"
    assert (0, "heard\nTrue") == run(start + sent)[:2]


def test_faulthandler_is_switched_off_and_on_again(run):
    """It puts back what it found, and that is no reason to die."""
    source = """
faulthandler.enable()
tracker.start()
for _ in range(20):
    faulthandler.disable()
    faulthandler.enable()
let_us_come_first()
faulthandler.disable()
faulthandler.enable()
let_us_come_first()
cut_and_go_on()
fault_elsewhere()
"""
    code, printed, errors = run(source)
    assert (-signal.SIGBUS, "went on") == (code, printed), errors
    assert 1 == errors.count("Fatal Python error: Bus error")


def test_the_signal_is_given_back(run):
    """Once no mapping is left, whoever had it has it; one who took it meanwhile keeps it."""
    source = """
found = handler_now()
tracker.start()
assert handler_now() != found
tracker.stop()
del tracker
gc.collect()
print(handler_now() == found, signal.getsignal(signal.SIGBUS) == signals)
tracker = stormphase.PhaseTracker("x", bridge=None, journal=runs, session_id="t").start()
tracker.stop()
take_as_user()
taken = handler_now()
del tracker
gc.collect()
print(handler_now() == taken)
"""
    assert (0, "True True\nTrue") == run(source)[:2]


def test_a_forked_child_goes_on_as_well(run):
    """It has the handler, and a cut of its own journal costs that alone."""
    source = """
tracker.start()
with tracker.enter_phase("in the parent"):
    pass
child = os.fork()
if child == 0:
    with tracker.enter_phase("in the child"):
        pass
    cut_and_go_on()
    os._exit(0)
print(os.waitpid(child, 0)[1])
cut_and_go_on()
"""
    assert (0, "went on\n0\nwent on") == run(source)[:2]


def test_as_many_files_as_there_are_places(tmp_path):
    """A place is free again when its mapping has gone; without one a mapping is not guarded, and works."""
    from stormphase.journal._mapping import MappedFile

    file = (tmp_path / "file").open("w+b")
    file.truncate(4096)
    made = [MappedFile(file.fileno(), 4096) for _ in range(1_100)]
    assert not made[-1].is_guarded
    assert not made[-1].has_faulted
    made.clear()
    assert MappedFile(file.fileno(), 4096).is_guarded
    file.close()


def test_a_number_that_nobody_guards_is_refused():
    """None is forgotten twice."""
    for call in (_native.speedups.unguard, _native.speedups.has_faulted):
        for number in (-1, 1_023, 2**70):
            with pytest.raises((IndexError, OverflowError)):
                call(number)


STACKS = """
SA_SIGINFO, SA_ONSTACK, SS_ONSTACK = 4, 0x08000000, 1


class Stack(ctypes.Structure):
    _fields_ = [("place", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]


def alternate_stack():
    stack = Stack()
    assert libc.sigaltstack(None, ctypes.byref(stack)) == 0
    return stack


@HANDLER
def tell_stack(number, info, context):
    print("alternate" if alternate_stack().flags & SS_ONSTACK else "own", flush=True)


def take(flags):
    action = Action(ctypes.cast(tell_stack, ctypes.c_void_p), flags=SA_SIGINFO | flags)
    assert libc.sigaction(signal.SIGBUS, ctypes.byref(action), None) == 0


def have_alternate_stack():
    faulthandler.enable()  # has one made for the main thread
    assert alternate_stack().size
"""


@pytest.mark.parametrize(
    ("prepare", "flags", "expected"),
    [
        ("have_alternate_stack()", "0", "own"),
        ("have_alternate_stack()", "SA_ONSTACK", "alternate"),
        ("pass", "0", "own"),
        ("pass", "SA_ONSTACK", "own"),
    ],
)
def test_a_handler_runs_on_the_stack_that_it_asked_for(run, prepare, flags, expected):
    """With us before it as without, whether its thread has an alternate stack or not; a cut journal is ours."""
    code, printed, _ = run(
        STACKS
        + f"""
{prepare}
take({flags})
signal.raise_signal(signal.SIGBUS)
tracker.start()
signal.raise_signal(signal.SIGBUS)
cut_and_go_on()
tracker.stop()
signal.raise_signal(signal.SIGBUS)
"""
    )
    assert (0, [expected, expected, "went on", expected]) == (code, printed.splitlines())


def test_where_nobody_else_is_called_a_fault_is_taken_on_the_alternate_stack(run):
    """A thread whose own stack has no room left has one for faults, and that serves ours as well."""
    code, printed, _ = run(
        STACKS
        + """
have_alternate_stack()
faulthandler.disable()
signal.signal(signal.SIGBUS, signal.SIG_DFL)
tracker.start()
action = Action()
libc.sigaction(signal.SIGBUS, None, ctypes.byref(action))
print(bool(action.flags & SA_ONSTACK))
cut_and_go_on()
tracker.stop()
"""
    )
    assert (0, "True\nwent on") == (code, printed)
