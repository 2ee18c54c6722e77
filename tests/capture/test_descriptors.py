"""Descriptor mode, in processes of their own: what C and subprocesses write, in order, and all put back after."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
from ast import literal_eval
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SETUP = """
import ctypes, logging, os, signal, subprocess, sys, threading
from stormphase._recorder import PhaseRecorder
from stormphase.capture import CaptureOptions, CaptureSession
from stormphase.exceptions import ConfigurationError

sys.stdout.reconfigure(line_buffering=True)  # as in a terminal
libc = ctypes.CDLL(None)
lanes = PhaseRecorder().lane_set("s", 0)
os.register_at_fork(after_in_child=lanes.after_fork_in_child)
before = [(os.fstat(fd).st_dev, os.fstat(fd).st_ino) for fd in (1, 2)]

def capturing(lanes=lanes, **options):
    capture = CaptureSession(lanes, CaptureOptions(mode="fd", **options), environ={})
    os.register_at_fork(after_in_child=capture.after_fork_in_child)
    capture.install()
    return capture

def is_restored():
    return before == [(os.fstat(fd).st_dev, os.fstat(fd).st_ino) for fd in (1, 2)]

def said(capture, phase):
    return [(line.stream, line.text) for line in capture.take(phase).lines]
"""


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a program with stdout and stderr in one pipe, until nobody writes to that any more.

    Returns with `stdout` what a terminal would have shown, and with `stderr` the report.
    """

    def go(source: str, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        report = tmp_path / "report"
        report.write_text("")
        child = subprocess.run(
            [sys.executable, "-W", "ignore::DeprecationWarning", "-c", SETUP + source, str(report), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=60,
            check=False,
            cwd=tmp_path,
            text=True,
            env={name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"},
        )
        child.stderr = report.read_text()
        assert not check or child.returncode == 0, child.stdout
        return child

    return go


REPORT = """
with open(sys.argv[1], "a") as file:
    print(*report, sep="\\n", file=file)
"""


def test_all_that_is_written_is_seen_in_its_order(run) -> None:
    """Python, C libraries, `os.write` and subprocesses: one order, in the terminal and in the record."""
    child = run(
        """
capture = capturing()
with lanes.enter_phase("outer") as outer:
    print("python 1")
    libc.puts(b"c 1")
    print("python 2")
    print("python 3", file=sys.stderr)
    os.write(1, b"os 1\\n")
    os.write(2, b"os 2\\n")
    sys.stdout.buffer.write(b"buffer\\n"); sys.stdout.buffer.flush()
    subprocess.run(["sh", "-c", "echo sub 1; echo sub 2 >&2"])
    with lanes.enter_phase("inner") as inner:
        libc.puts(b"c 2")
    libc.puts(b"c 3")
    logging.getLogger("x").warning("logged")
report = [said(capture, outer), said(capture, inner), capture.take(outer).cut_bytes]
libc.puts(b"outside")
capture.remove()
report += [capture.output_of(None).text, is_restored(), capture.stats()["errors"]]
libc.puts(b"after")
libc.fflush(None)
print("python after")
"""
        + REPORT
    )
    outer, inner, *rest = child.stderr.splitlines()
    found = literal_eval(outer)
    expected = [
        *(("stdout", text) for text in ("python 1", "c 1", "python 2", "os 1", "buffer", "sub 1", "c 3")),
        *(("stderr", text) for text in ("python 3", "os 2", "sub 2")),
        ("log", "WARNING x: logged"),
    ]
    assert sorted(expected) == sorted((stream, text.rstrip()) for stream, text in found)
    ordered = ("python 1", "c 1", "python 3", "buffer", "c 3")
    assert list(ordered) == [text for _, text in found if text in ordered]
    assert [("stdout", "c 2")] == literal_eval(inner)
    assert ["0", "outside", "", "True", "0"] == rest
    lines = child.stdout.splitlines()
    assert ["python 1", "c 1"] == lines[:2]
    assert ["outside", "after", "python after"] == lines[-3:]
    assert lines.index("sub 1") < lines.index("c 2") < lines.index("c 3") < lines.index("logged")


def test_what_was_written_before_a_failure_stands_before_its_traceback(run) -> None:
    """It is read a while after the phase has ended, and was not said then."""
    child = run(
        """
capture = capturing()
try:
    with lanes.enter_phase("p") as phase:
        os.write(2, b"out of memory\\n")
        raise ValueError
except ValueError:
    pass
lines = capture.take(phase).lines
capture.remove()
end_ns = lanes.anchor.to_wall_ns(phase._ended_ns)
report = [lines[0].stream, lines[0].text, lines[-1].stream, lines[-1].text, lines[0].time_ns < end_ns]
"""
        + REPORT
    )
    assert ["stderr", "out of memory", "traceback", "ValueError", "True"] == child.stderr.splitlines()


def test_a_library_that_holds_the_gil_does_not_hang(run) -> None:
    """Much text from C in one go, with the GIL held: whoever reads the pipe must not need it."""
    child = run(
        """
capture = capturing()
with lanes.enter_phase("phase") as phase:
    for _ in range(20):
        ctypes.PyDLL(None).printf(b"%s\\n", b"x" * 100_000)
    print("alive")
output = capture.take(phase)
report = [output.lines[-1].text, output.cut_bytes > 1_900_000]
capture.remove()
"""
        + REPORT
    )
    assert "alive\nTrue\n" == child.stderr
    assert 20 * 100_001 + len("alive\n") == len(child.stdout)


def test_a_second_session_errs_and_changes_nothing(run) -> None:
    """There is one stdout: the second is told whose it is, the first goes on, and after it the second may have it."""
    child = run(
        """
first = capturing()
others = PhaseRecorder().lane_set("other", 0)
try:
    capturing(others)
except ConfigurationError as error:
    report = [str(error), first.is_installed]
with lanes.enter_phase("phase") as phase:
    libc.puts(b"one")
report.append(said(first, phase))
first.remove()
report.append(is_restored())
second = capturing(others)
with others.enter_phase("phase") as phase:
    libc.puts(b"two")
report.append(said(second, phase))
second.remove()
report.append(is_restored())
"""
        + REPORT
    )
    error, *rest = child.stderr.splitlines()
    assert "already on in this process, for session 's'" in error
    assert ["True", "[('stdout', 'one')]", "True", "[('stdout', 'two')]", "True"] == rest


def test_lanes_never_cross(run) -> None:
    """Two threads print and call C at once: Python's text is each thread's own, C's is the holder's alone."""
    child = run(
        """
capture = capturing(max_bytes=1_000_000)
begin = threading.Barrier(2)
phases = {}

def work(name):
    with lanes.enter_phase(name) as phase:
        phases[name] = phase
        begin.wait(30)
        for number in range(50):
            print(name, number)
            libc.puts(f"c {name} {number}".encode())
        begin.wait(30)

with lanes.enter_phase("main") as main:
    threads = [threading.Thread(target=work, args=(name,)) for name in ("a", "b")]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
capture.remove()
found = {name: said(capture, phase) for name, phase in {**phases, "main": main}.items()}
for name in ("a", "b"):
    assert found[name] == [("stdout", f"{name} {number}") for number in range(50)], found[name]
assert sorted(text for _, text in found["main"]) == sorted(f"c {n} {i}" for n in "ab" for i in range(50)), found["main"]
report = [is_restored()]
"""
        + REPORT
    )
    assert "True\n" == child.stderr
    assert 200 == child.stdout.count("\n")


@pytest.mark.parametrize(
    ("ending", "code"),
    [
        ("raise SystemExit(3)", 3),
        ("raise KeyboardInterrupt", -signal.SIGINT),
        ("os._exit(4)", 4),
        ("sys.stdout.flush(); os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL),
        ("os.execv('/bin/sh', ['sh', '-c', 'echo replaced; exit 5'])", 5),
        ("os.execlp('sh', 'sh', '-c', 'echo replaced; exit 5')", 5),
    ],
)
def test_nothing_is_lost_at_any_end(run, ending: str, code: int) -> None:
    """However a program ends, its last words reach the terminal; a tracker of its own puts the descriptors back."""
    child = run(
        f"""
from stormphase import PhaseTracker
tracker = PhaseTracker(bridge=None, session_id="s", capture="fd").start()
tracker.enter("phase")
print("python")
libc.puts(b"last words")
libc.fflush(None)
{ending}
""",
        check=False,
    )
    assert code == child.returncode
    lines = child.stdout.splitlines()
    assert ["python", "last words"] == lines[:2]
    assert ("exec" in ending) == ("replaced" in lines)


def test_no_descriptor_is_left_behind(run) -> None:
    """At once, and not when a garbage collection comes: many programs that train turn that off. In a child, too."""
    child = run(
        """
import gc
gc.disable()
captures = [capturing()]  # What a process needs once it has by now.
captures[0].remove()
kept = sorted(os.listdir("/proc/self/fd"))
captures.append(capturing())
pid = os.fork()
report = [sorted(os.listdir("/proc/self/fd")) == kept]
if pid:
    os.waitpid(pid, 0)
    captures[1].remove()
    report = [sorted(os.listdir("/proc/self/fd")) == kept]
"""
        + REPORT
    )
    assert ["True"] * 2 == child.stderr.split()


def test_an_exec_that_fails_goes_on_capturing(run) -> None:
    """The error is the program's, and what comes after it is captured as before."""
    child = run(
        """
capture = capturing()
with lanes.enter_phase("phase") as phase:
    try:
        os.execv("/no/such/program", ["x"])
    except FileNotFoundError:
        libc.puts(b"still here")
report = [said(capture, phase)]
capture.remove()
report += [is_restored(), os.execv.__name__, type(os.execv).__name__]
"""
        + REPORT
    )
    assert ["[('stdout', 'still here')]", "True", "execv", "builtin_function_or_method"] == child.stderr.splitlines()


def test_a_forked_child_has_the_descriptors_of_before(run) -> None:
    """It writes to the terminal itself, captures what its own Python says, and leaves the parent's alone."""
    child = run(
        """
capture = capturing()
with lanes.enter_phase("parent") as parent:
    libc.puts(b"before")
    libc.fflush(None)
    capture.take(parent)
    pid = os.fork()
    if pid == 0:
        report = [is_restored()]
        libc.puts(b"child c")
        libc.fflush(None)
        with lanes.enter_phase("child") as phase:
            print("child python", flush=True)
        report.append(said(capture, phase))
        capture.remove()
        exec(sys.argv[2])
        os._exit(0)
    os.waitpid(pid, 0)
    libc.puts(b"after")
capture.remove()
report = [is_restored(), "child" in capture.take(parent).text]
"""
        + REPORT,
        REPORT,
    )
    assert ["True", "[('stdout', 'child python')]", "True", "False"] == child.stderr.splitlines()
    assert ["after", "before", "child c", "child python"] == sorted(child.stdout.splitlines())


def test_a_subprocess_may_outlive_the_session(run) -> None:
    """What it writes after the stop still reaches the terminal, and nobody waits for it."""
    child = run(
        """
capture = capturing()
with lanes.enter_phase("phase") as phase:
    process = subprocess.Popen(["sh", "-c", "echo early; read line; echo late"], stdin=subprocess.PIPE)
    while "early" not in capture.output_of(phase.scope_id).text:
        pass
capture.remove()
report = [said(capture, phase), is_restored()]
process.communicate(b"go\\n")
from stormphase.capture import _descriptors
for tee in _descriptors._lingering:
    tee.wait(30)
"""
        + REPORT
    )
    assert ["[('stdout', 'early')]", "True"] == child.stderr.splitlines()
    assert "early\nlate\n" == child.stdout


def test_a_tee_that_dies_takes_nothing_with_it(run) -> None:
    """The program goes on with the descriptors of before, what was in the pipes is shown, and it is said once."""
    child = run(
        """
logging.basicConfig(stream=open(sys.argv[1], "a"), format="%(message)s")
capture = capturing()
lost = threading.Event()
raw = capture._raw._descriptors
on_lost, raw._on_lost = raw._on_lost, lambda: (on_lost(), lost.set())
with lanes.enter_phase("phase") as phase:
    process = subprocess.Popen(["sh", "-c", "read line; echo child"], stdin=subprocess.PIPE)
    libc.puts(b"seen")
    raw.settle(10)
    raw._tee.kill()
    assert lost.wait(30)
    libc.puts(b"unseen")
    libc.fflush(None)
    print("python")
    process.communicate(b"go\\n")
report = [said(capture, phase), is_restored(), capture.stats()["errors"]]
capture.remove()
"""
        + REPORT
    )
    said, found, restored, errors = child.stderr.splitlines()
    assert "descriptors are as they were" in said
    assert ["[('stdout', 'seen'), ('stdout', 'python')]", "True", "1"] == [found, restored, errors]
    assert "seen\n" == child.stdout[:5]
    assert ["child", "python", "seen", "unseen"] == sorted(child.stdout.splitlines())


def test_descriptors_that_the_program_led_elsewhere_stay_there(run, tmp_path: Path) -> None:
    """Who redirects descriptor 1 for good while we have it finds it redirected after us."""
    run(
        """
capture = capturing()
other = os.open("other", os.O_WRONLY | os.O_CREAT, 0o600)
os.dup2(other, 1)
capture.remove()
os.write(1, b"to the file\\n")
"""
    )
    assert "to the file\n" == (tmp_path / "other").read_text()


def test_one_phase_may_have_them(run) -> None:
    """`tracker.phase(capture="fd")` takes the descriptors at its first use and keeps them until the tracker stops."""
    child = run(
        """
from stormphase import PhaseTracker
with PhaseTracker(bridge=None, session_id="s") as tracker:
    with tracker.phase("off") as off:
        libc.puts(b"off")
        libc.fflush(None)
    with tracker.phase("on", capture="fd") as on:
        libc.puts(b"on")
        libc.fflush(None)
        subprocess.run(["echo", "sub"])
    report = [said(tracker.capture, phase) for phase in (off, on)]
report.append(is_restored())
"""
        + REPORT
    )
    assert ["[]", "[('stdout', 'on'), ('stdout', 'sub')]", "True"] == child.stderr.splitlines()
    assert "off\non\nsub\n" == child.stdout


def test_a_terminal_is_still_one() -> None:
    """Python's `isatty` says what it said before, so bars look the same, and C's lines are written one by one."""
    source = """
capture = capturing()
print(sys.stdout.isatty(), sys.stderr.isatty())
libc.puts(b"c")
os.write(1, b"os\\n")
capture.remove()
print(sys.stdout.isatty(), vars(sys.stdout).keys() <= {"mode"})
"""
    master, slave = pty.openpty()
    child = subprocess.run(
        [sys.executable, "-c", SETUP + source], stdout=slave, timeout=60, check=True, stderr=subprocess.PIPE
    )
    os.close(slave)
    seen = os.read(master, 1_000).decode().split()
    os.close(master)
    assert ["True", "False", "c", "os", "True", "True"] == seen
    assert b"" == child.stderr


def test_a_process_without_stdout_is_told(run_python) -> None:
    """Without a descriptor 1 there is nothing to capture: an error at the start, and nothing has changed."""
    child = run_python(
        SETUP.replace("before = ", "before = 0 and ")
        + """
os.close(1)
try:
    capturing()
except ConfigurationError as error:
    sys.stderr.write(str(error))
"""
    )
    assert "capture=True" in child.stderr


def test_a_stream_on_a_copy_of_the_descriptor_is_seen_once(run) -> None:
    """Who puts a text stream of its own over a `dup` of descriptor 1 at `sys.stdout` is no C library."""
    child = run(
        """
capture = capturing()
with lanes.enter_phase("phase") as phase:
    first, sys.stdout = sys.stdout, open(os.dup(1), "w", buffering=1)
    print("through a copy")
    libc.puts(b"from c")
    print("once more")
    sys.stdout.close()
    sys.stdout = first
    print("through the first")
capture.remove()
report = [is_restored(), said(capture, phase)]
"""
        + REPORT
    )
    texts = ["through a copy", "from c", "once more", "through the first"]
    assert ["True", str([("stdout", text) for text in texts])] == child.stderr.splitlines()
    assert texts == child.stdout.splitlines()


def test_text_goes_where_the_program_leads_the_descriptor(run, tmp_path: Path) -> None:
    """Who leads descriptor 1 into a file for a while finds Python's text there as well as C's, and none after it."""
    child = run(
        """
capture = capturing()
with lanes.enter_phase("phase") as phase:
    print("before")
    saved, file = os.dup(1), os.open("file", os.O_CREAT | os.O_WRONLY)
    os.dup2(file, 1)
    print("python in the file", flush=True)
    libc.puts(b"c in the file")
    libc.fflush(None)
    os.dup2(saved, 1)
    print("after")
    libc.puts(b"c after")
capture.remove()
report = [is_restored(), said(capture, phase)]
"""
        + REPORT
    )
    assert "python in the file\nc in the file\n" == (tmp_path / "file").read_text()
    assert ["before", "after", "c after"] == child.stdout.splitlines()
    said = ["before", "python in the file", "after", "c after"]
    assert ["True", str([("stdout", text) for text in said])] == child.stderr.splitlines()
