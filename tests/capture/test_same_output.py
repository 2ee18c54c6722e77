"""Whatever a program does to its streams: with and without capture it prints the same bytes and ends the same way.

Each program is run three times as a process of its own; what it prints with capture off is what is expected.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from stormphase import _native

if TYPE_CHECKING:
    from pathlib import Path

SETUP = """
import atexit, codecs, contextlib, gc, io, logging, os, subprocess, sys, threading, warnings

# From 3.12 on CPython warns of forks in a program that has threads, as one with a tracker has.
warnings.filterwarnings("ignore", category=DeprecationWarning)
CAPTURE = {"off": None, "True": True, "fd": "fd"}[sys.argv[1]]

class Without:  # stands for a tracker where there is none
    def __enter__(self): return self
    def __exit__(self, *_): pass
    def start(self): return self
    stop = start
    def enter_phase(self, name): return self

def tracker(name="x", capture=CAPTURE):
    if capture is None:
        return Without()
    import stormphase
    return stormphase.PhaseTracker(name, bridge=None, capture=capture)

def attributes():
    found = [type(sys)]
    for stream in streams:
        with contextlib.suppress(Exception):
            found += [sorted(vars(part)) for part in (stream, stream.buffer, stream.buffer.raw)]
    return found

streams = [sys.__stdout__, sys.__stderr__]

# Registered before the tracker's, and so called after it.
@atexit.register
def report():
    with open(sys.argv[2], "w") as file, contextlib.suppress(ValueError):  # closed or detached
        print(*attributes(), file=file)
        print(*(stream.write for stream in streams), file=file)
"""

IN_A_PHASE = """
with tracker() as t:
    with t.enter_phase("a"):
        {}
"""

# What is done within one phase of one session.
INSIDE = {
    "print": 'print("a", 1, 2.5); print("é", file=sys.stderr)',
    "wrap the buffer": 'sys.stdout = io.TextIOWrapper(sys.stdout.buffer, encoding="utf-8"); print("result: 42")',
    "wrap and leave": """
        sys.stdout = io.TextIOWrapper(sys.stdout.buffer, encoding="utf-8", line_buffering=True); print("a")
        sys.stdout = sys.__stdout__
        try: print("b")
        except ValueError as error: print(repr(error), file=sys.stderr)
""",
    "wrap twice": """
        for encoding in ("utf-8", "latin-1"):
            try: sys.stdout = io.TextIOWrapper(sys.stdout.buffer, encoding=encoding); print("é", encoding)
            except ValueError as error: print(repr(error), file=sys.stderr)
""",
    "wrap both": """
        for name in ("stdout", "stderr"):
            setattr(sys, name, io.TextIOWrapper(getattr(sys, name).buffer, encoding="utf-8"))
        print("a"); print("b", file=sys.stderr)
""",
    "detach": 'sys.stdout = io.TextIOWrapper(sys.stdout.detach(), encoding="utf-8"); print("result: 42")',
    "detach by the class": """
        sys.stdout = io.TextIOWrapper(io.TextIOWrapper.detach(sys.stdout), encoding="utf-8"); print("result: 42")
""",
    "detach and write bytes": 'out = sys.stdout.detach(); out.write(b"bytes"); sys.stdout = None',
    "detach and drop": """
        print("a")
        out = sys.stdout.detach(); out.write(b"bytes\\n"); sys.stdout = sys.__stdout__ = None; del out
        os.write(1, b"last\\n")
""",
    "codecs writer": 'sys.stdout = codecs.getwriter("utf-8")(sys.stdout.detach()); print("é")',
    "codecs writer on the buffer": 'sys.stdout = codecs.getwriter("utf-16")(sys.stdout.buffer); print("é")',
    "reconfigure": """
        print("a"); sys.stdout.reconfigure(encoding="utf-16", newline="\\r\\n"); print("é")
        sys.stdout.reconfigure(line_buffering=True, errors="replace"); print("b")
""",
    "redirect": """
        with contextlib.redirect_stdout(io.StringIO()) as kept, contextlib.redirect_stderr(kept): print("inside")
        print("outside", kept.getvalue())
""",
    "redirect to stderr": "with contextlib.redirect_stdout(sys.stderr): print('to stderr')\n        print('to stdout')",
    "redirect within a redirect": """
        with contextlib.redirect_stdout(io.StringIO()) as kept:
            print("x")
            with contextlib.redirect_stdout(sys.__stdout__): print("y")
        print(repr(kept.getvalue()))
""",
    "a file that is dropped": """
        sys.stdout = open("out.txt", "w"); print("in the file"); sys.stdout = sys.__stdout__
        print(open("out.txt").read())
""",
    "an interrupt": 'print("a"); os.kill(os.getpid(), 2); print("never")',
    "streams for a subprocess": """
        print("a", flush=True)
        subprocess.run(["echo", "b"], stdout=sys.stdout); subprocess.run(["sh", "-c", "echo c >&2"], stderr=sys.stderr)
""",
    "never put back": 'sys.stdout = io.StringIO(); print("nobody sees this"); print("a", file=sys.stderr)',
    "dup2": """
        print("before", flush=True)
        saved, null = os.dup(1), os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1); print("lost", flush=True); os.dup2(saved, 1)
        print("after")
""",
    "dup2 of stderr": 'os.dup2(2, 1); print("to stderr"); os.write(1, b"too\\n")',
    "fdopen": 'sys.stdout = os.fdopen(1, "w", closefd=False); print("a"); sys.stdout.flush(); print("b")',
    "fdopen and close": """
        with os.fdopen(1, "w") as out: print("a", file=out)
        try: print("b", flush=True)
        except OSError as error: print(error.errno, file=sys.stderr)
        sys.stdout = None
""",
    "fdopen of a copy": 'sys.stdout = os.fdopen(os.dup(1), "w"); print("a"); print("b", file=sys.__stdout__)',
    "binary": 'sys.stdout.buffer.write(bytes(range(256)) * 40); sys.stdout.buffer.flush(); print("text")',
    "binary and text in turns": """
        for number in range(3): print(number); sys.stdout.flush(); sys.stdout.buffer.write(b"%d\\n" % number)
""",
    "views": 'sys.stdout.buffer.write(memoryview(bytearray(b"abc"))); sys.stdout.buffer.writelines([b"d", b"e\\n"])',
    "raw": """
        print("a", flush=True); sys.stdout.buffer.raw.write(b"raw\\n"); os.write(1, b"os\\n"); os.write(2, b"os\\n")
""",
    "buffered against raw": """
        print("late"); os.write(1, b"early\\n"); print("late", file=sys.stderr); os.write(2, b"b\\n")
""",
    "a second buffer, never flushed": """
        log = io.TextIOWrapper(io.BufferedWriter(sys.stdout.buffer.raw), encoding="utf-8"); log.write("result: 42\\n")
        globals()["log"] = log
""",
    "a wrapper that nobody holds": """
        io.TextIOWrapper(sys.stdout.buffer, encoding="utf-8").write("result: 42\\n")
        gc.collect()
        try: print("x")
        except ValueError as error: print(repr(error), file=sys.stderr)
""",
    "a wrapper in a circle": """
        log = io.TextIOWrapper(io.BufferedWriter(io.FileIO(1, "w", closefd=False))); log.me = log
        log.write("a\\n"); del log; gc.collect(); print("b")
""",
    "a subclass": """
        class Loud(io.TextIOWrapper):
            def write(self, text): return super().write(text.upper())
        sys.stdout = Loud(sys.stdout.buffer, encoding="utf-8"); print("a"); sys.stdout.flush(); print("b")
""",
    "a tee": """
        class Tee:
            def __init__(self, *streams): self.streams = streams
            def write(self, text): [stream.write(text) for stream in self.streams]
            def flush(self): [stream.flush() for stream in self.streams]
        sys.stdout = Tee(sys.stdout, sys.stderr); print("a"); print("b", flush=True)
""",
    "a stream with slots": """
        class Slotted:
            __slots__ = ("stream",)
            def write(self, text): return self.stream.write(text)
            def flush(self): self.stream.flush()
        sys.stdout = slotted = Slotted(); slotted.stream = sys.__stdout__; print("a", flush=True); print("b")
""",
    "delete": 'print("a"); del sys.stdout; sys.stderr.write("b\\n")',
    "behind our back": 'vars(sys)["stdout"] = io.TextIOWrapper(sys.stdout.buffer, encoding="utf-8"); print("a")',
    "a write that is kept": """
        write = sys.stdout.write; sys.stdout = io.TextIOWrapper(sys.stdout.detach(), encoding="utf-8")
        try: write("a")
        except ValueError as error: print(repr(error))
        globals()["kept"] = sys.stdout.write; kept("b\\n")
""",
    "a write of its own": """
        inner = sys.stdout.write; sys.stdout.write = lambda text: inner(text.upper()); print("a")
        del sys.stdout.write; print("b")
""",
    "threads": """
        def say(number): [print(f"{number}\\n", end="") for _ in range(200)]
        threads = [threading.Thread(target=say, args=(1,)) for number in range(3)]
        [thread.start() for thread in threads]; [thread.join() for thread in threads]
""",
    "a thread that goes on": """
        done = threading.Event()
        threading.Thread(target=lambda: (done.wait(), print("late"))).start(); atexit.register(lambda: None)
        print("early"); done.set()
""",
    "atexit": 'atexit.register(print, "at exit"); print("a")',
    "fork": """
        print("parent", flush=True)
        child = os.fork()
        if not child: print("child"); sys.stdout.flush(); os._exit(0)
        os.waitpid(child, 0); print("parent again")
""",
    "fork with text that waits": """
        print("twice")
        child = os.fork()
        if child: os.waitpid(child, 0)
        sys.stdout.write("parent\\n" if child else "child\\n")
""",
    "subprocess": 'print("a", flush=True); subprocess.run(["sh", "-c", "echo b; echo c >&2"]); print("d")',
    "exit": 'print("a"); sys.exit(3)',
    "exit with a word": 'print("a"); sys.exit("word")',
    "os._exit": 'print("lost"); sys.stderr.write("kept\\n"); os._exit(4)',
    "kill": 'print("kept", flush=True); print("lost"); sys.stderr.write("part"); os.kill(os.getpid(), 9)',
    "exec": 'print("a", flush=True); os.execlp("sh", "sh", "-c", "echo replaced; exit 5")',
    "close": 'print("a"); sys.stdout.close(); sys.stderr.write("b\\n")',
    "close the descriptor": 'print("a", flush=True); os.close(1); sys.stderr.write("b\\n"); sys.stdout = None',
    "logging": 'logging.basicConfig(stream=sys.stdout); logging.warning("a"); logging.getLogger("b").error("c")',
    "warnings": 'warnings.warn("a", stacklevel=1)',
    "large": 'print("x" * 300_000); sys.stdout.buffer.write(b"y" * 300_000)',
    "many": "for number in range(3_000): print(number, file=(sys.stdout, sys.stderr)[number % 2])",
    "surrogates": 'print("\\udcff".encode("utf-8", "surrogateescape"))',
    "not a string": """
        try: sys.stdout.write(5)
        except TypeError as error: print(error)
        try: sys.stdout.buffer.write("text")
        except TypeError as error: print(error)
""",
    "names of methods": "print(sys.stdout.write.__name__, sys.stdout.write.__self__ is sys.stdout)",
    "a terminal": "print(sys.stdout.isatty())",
    "two streams on stderr in turns": """
        for number in range(200): sys.stderr.write(f"{number}\\n"); os.write(2, b"os\\n")
""",
    "two streams on stdout in turns": """
        for number in range(200): print(number, flush=True); os.write(1, b"os\\n")
""",
}

# Whole programs: what is done before, after and around sessions.
WHOLE = {
    "wrapped before": """
sys.stdout = io.TextIOWrapper(sys.stdout.buffer, encoding="utf-8")
with tracker() as t:
    with t.enter_phase("a"): print("result: 42")
""",
    "wrapped before, and put back inside": """
sys.stdout = io.TextIOWrapper(sys.stdout.buffer, encoding="utf-8")
with tracker() as t:
    with t.enter_phase("a"):
        print("a")
        sys.stdout = sys.__stdout__
        try: print("b")
        except ValueError as error: print(repr(error), file=sys.stderr)
""",
    "put back after": """
first = sys.stdout
with tracker() as t:
    with t.enter_phase("a"): sys.stdout = io.TextIOWrapper(io.FileIO(os.dup(1), "w"), encoding="utf-8"); print("a")
print("b")
sys.stdout = first
print("c")
""",
    "detached inside, printed after": """
with tracker() as t:
    with t.enter_phase("a"): sys.stdout = io.TextIOWrapper(sys.stdout.detach(), encoding="utf-8")
print("result: 42")
""",
    "never stopped": """
t = tracker(); t.start()
with t.enter_phase("a"): sys.stdout = io.TextIOWrapper(sys.stdout.buffer, encoding="utf-8"); print("result: 42")
print("after")
""",
    "never stopped, phase left open": """
t = tracker(); t.start()
t.enter_phase("a"); print("result: 42")
""",
    "text that waits from before": """
sys.stdout.write("before ")
with tracker() as t:
    with t.enter_phase("a"): os.write(1, b"first ")
print("after")
""",
    "two sessions, one after the other": """
for name in "xy":
    with tracker(name) as t:
        with t.enter_phase("a"): print(name)
    print("between")
""",
    "two sessions, stopped in any order": """
one, two = tracker("x"), tracker("y", capture=CAPTURE and True)
one.start(); two.start()
with two.enter_phase("a"): print("a")
one.stop(); print("b"); two.stop(); print("c")
""",
    "wrapped between starts": """
one, two = tracker("x"), tracker("y", capture=CAPTURE and True)
one.start(); sys.stdout = io.TextIOWrapper(sys.stdout.buffer, encoding="utf-8"); two.start()
with two.enter_phase("a"): print("a")
one.stop(); sys.stdout.flush(); two.stop(); print("c")
""",
    "a write put on and taken off around the stop": """
t = tracker(); t.start()
had = sys.stdout.write
sys.stdout.write = lambda text: had("[" + text + "]")
print("a"); t.stop(); print("b")
del sys.stdout.write
print("c")
""",
    "a closed stdin": """
os.close(0)
with tracker() as t:
    with t.enter_phase("a"): print("a", flush=True); subprocess.run(["echo", "b"], stdin=subprocess.DEVNULL)
print(os.open(os.devnull, os.O_RDONLY))
""",
    "a failure": """
with tracker() as t:
    with t.enter_phase("a"):
        print("a"); os.write(2, b"NCCL WARN\\n"); raise RuntimeError("x")
""",
}

# The program's own errors, as they are shown: the compiled half alone leaves no frame in them.
TRACEBACKS = {
    "encoding": ({"PYTHONIOENCODING": "ascii"}, 'print("é")'),
    "closed": ({}, "sys.stdout.close(); print('x')"),
    "closed binary": ({}, "sys.stdout.buffer.close(); sys.stdout.buffer.write(b'x')"),
    "wrong type": ({}, "sys.stdout.write(5)"),
    "detached": ({}, "sys.stdout.detach(); print('x')"),
    "a closed descriptor": ({}, "os.close(1); print('x', flush=True)"),
}


def _start(
    program: str, mode: str, folder: Path, *options: str, stderr: int = subprocess.PIPE, **environ: str
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, *options, program, mode, str(folder / f"report-{mode}")],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=stderr,
        cwd=folder,
        env={**{name: value for name, value in os.environ.items() if not name.startswith("PYTHONUNB")}, **environ},
    )


def _check(program: str, folder: Path, *options: str, stderr: int = subprocess.PIPE, **environ: str) -> None:
    script = folder / "program.py"
    script.write_text(SETUP + program, encoding="utf-8")
    modes = ("off", "True", "fd")
    runs = {mode: _start(str(script), mode, folder, *options, stderr=stderr, **environ) for mode in modes}
    outcomes = {mode: (*run.communicate(timeout=60), run.returncode) for mode, run in runs.items()}
    expected = outcomes.pop("off")
    assert dict.fromkeys(outcomes, expected) == outcomes
    reports = {mode: _report(folder / f"report-{mode}") for mode in runs}
    assert dict.fromkeys(reports, reports["off"]) == reports


def _report(report: Path) -> str:
    """Return what a program said of its streams in the end, without addresses; nothing if it was killed."""
    return re.sub(" at 0x[0-9a-f]+", "", report.read_text()) if report.exists() else ""


@pytest.mark.parametrize("name", INSIDE)
def test_what_a_program_does_in_a_phase(tmp_path: Path, name: str) -> None:
    """Bytes on stdout, bytes on stderr and exit code are those of the same program without capture."""
    _check(IN_A_PHASE.format(INSIDE[name].strip()), tmp_path)


@pytest.mark.parametrize("name", ["two streams on stdout in turns", "two streams on stderr in turns", "many", "fork"])
def test_both_streams_in_one_place(tmp_path: Path, name: str) -> None:
    """Where both lead to one file, the order of what Python writes to both is kept."""
    _check(IN_A_PHASE.format(INSIDE[name].strip()), tmp_path, stderr=subprocess.STDOUT)


@pytest.mark.parametrize("name", WHOLE)
def test_what_a_program_does_around_sessions(tmp_path: Path, name: str) -> None:
    """Whatever stands at `sys.stdout` before, and whenever sessions begin and end, nothing is lost or left."""
    _check(WHOLE[name], tmp_path)


@pytest.mark.parametrize("options", [("-u",), ("-X", "utf8"), ("-X", "dev")], ids=" ".join)
@pytest.mark.parametrize("name", ["print", "wrap the buffer", "detach", "fork"])
def test_however_python_is_started(tmp_path: Path, name: str, options: tuple[str, ...]) -> None:
    """Unbuffered, in UTF-8 mode, with development's checks."""
    _check(IN_A_PHASE.format(INSIDE[name].strip()), tmp_path, *options)


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16", "ascii:backslashreplace"])
def test_whatever_encoding_is_asked_for(tmp_path: Path, encoding: str) -> None:
    """The text layer's encoding and its way with errors are its own."""
    _check(IN_A_PHASE.format("print('é'); print('é', file=sys.stderr)"), tmp_path, PYTHONIOENCODING=encoding)


@pytest.mark.skipif(_native.speedups is None, reason="in Python alone, a frame of ours stands in them")
@pytest.mark.parametrize("name", TRACEBACKS)
def test_the_programs_own_errors_look_the_same(tmp_path: Path, name: str) -> None:
    """What a stream raises is shown without a frame of ours."""
    environ, source = TRACEBACKS[name]
    _check(IN_A_PHASE.format(source), tmp_path, **environ)


def test_a_program_may_close_every_descriptor_above_stderr(tmp_path: Path) -> None:
    """As daemons do: what it prints arrives, nothing goes to files that have our numbers since, and these stay open."""
    source = """
with tracker() as t:
    with t.enter_phase("a"):
        print("a", flush=True); os.write(2, b"b\\n")
        os.closerange(3, 256)
        files = [open(f"{number}", "w+") for number in range(30)]
        print("c", flush=True); os.write(1, b"d\\n")
    with t.enter_phase("b"): print("e")
print("f")
for file in files: file.write("x"); file.flush(); file.seek(0); assert file.read() == "x"
"""
    _check(source, tmp_path)


@pytest.mark.skipif(_native.speedups is None, reason="in Python alone, a handler may run in between")
def test_nothing_is_written_twice_where_a_handler_raises(tmp_path: Path) -> None:
    """An error that a signal handler raises while a buffer is flushed leaves in it what was not written, no more."""
    script = tmp_path / "program.py"
    script.write_text(
        SETUP
        + """
import signal, time
class Stop(Exception): pass
def stop(*_): raise Stop
with tracker() as t, t.enter_phase("a"):
    signal.signal(signal.SIGALRM, stop)
    for number in range(500):
        with contextlib.suppress(Stop):
            signal.setitimer(signal.ITIMER_REAL, 0.000_05 + number % 40 * 0.000_01)
            sys.stdout.write(f"{number} {'x' * 7_000}\\n"); sys.stdout.flush(); time.sleep(0.01)
""",
        encoding="utf-8",
    )
    out, _ = _start(str(script), "fd", tmp_path).communicate(timeout=60)
    numbers = [line.split()[0] for line in out.splitlines() if line]
    assert len(set(numbers)) == len(numbers)


def test_a_program_is_told_that_nobody_reads(tmp_path: Path) -> None:
    """As under `| head`: it ends by the error by which it ends without capture, and does not print for ever."""
    source = """
import stormphase
with stormphase.PhaseTracker("x", bridge=None, capture="fd") as tracker, tracker.enter_phase("a"):
    for number in range(10_000_000):
        print("line", number, flush=True)
"""
    child = subprocess.Popen(
        [sys.executable, "-c", source], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path, text=True
    )
    assert child.stdout is not None
    assert child.stderr is not None
    assert "line 0\n" == child.stdout.readline()
    child.stdout.close()
    said = child.stderr.read()
    child.stderr.close()
    assert "BrokenPipeError" in said
    assert child.wait(60) != 0
