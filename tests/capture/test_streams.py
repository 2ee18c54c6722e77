"""stdout and stderr are seen on the stream objects themselves, and nothing about them changes."""

from __future__ import annotations

import contextlib
import functools
import gc
import io
import pickle
import sys
import weakref
from types import ModuleType
from typing import TYPE_CHECKING

import pytest

from stormphase.capture._streams import StreamProxy, WatchedSys

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from stormphase._lanes import LaneSet
    from stormphase._phase import PhaseHandle
    from stormphase.capture import CaptureSession

Make = "Callable[..., CaptureSession]"


def shown(stream: io.TextIOWrapper) -> str:
    """Return what a terminal at the stream's end has got."""
    stream.flush()
    return stream.buffer.getvalue().decode("utf-8", "surrogateescape")


class Said:
    """A captured phase, and what was said in it once it has ended."""

    capture: CaptureSession
    phase: PhaseHandle
    lines: tuple = ()

    def texts(self, stream: str = "stdout") -> list[str]:
        """Return the texts of one stream."""
        return [line.text for line in self.lines if line.stream == stream]


@pytest.fixture
def phase(lanes: LaneSet, capture_on: Make) -> Callable[[], contextlib.AbstractContextManager[Said]]:
    """Open a captured phase, and take its output at the end."""

    @contextlib.contextmanager
    def opened() -> Iterator[Said]:
        said = Said()
        said.capture = capture_on()
        with lanes.enter_phase("phase") as said.phase:
            yield said
        said.lines = said.capture.take(said.phase).lines

    return opened


def test_every_way_of_writing_is_seen(phase, terminal) -> None:
    """print, write, writelines and the buffer beneath; what reaches the terminal is what did before, in order."""
    with phase() as said:
        print("print", 1, sep="-", end="!\n")
        assert 6 == sys.stdout.write("write\n")
        sys.stdout.writelines(["line 1\n", "line 2\n"])
        sys.stdout.flush()
        assert 7 == sys.stdout.buffer.write(b"buffer\n")
        sys.stdout.buffer.writelines([b"bytes\n"])
        print("flushed", flush=True)
        print("file", file=sys.stdout)
    expected = ["print-1!", "write", "line 1", "line 2", "buffer", "bytes", "flushed", "file"]
    assert "".join(f"{text}\n" for text in expected) == shown(terminal)
    assert [text for text in expected if text != "bytes"] == said.texts()


def test_text_that_the_stream_writes_later_is_seen_once(phase, terminal) -> None:
    """What a text stream passes on to its buffer when that is full, or flushed, was seen when it was printed."""
    texts = [f"{number:04} " + "x" * 200 for number in range(200)]
    with phase() as said:
        for text in texts:
            print(text)
        sys.stdout.flush()
        sys.stdout.reconfigure(line_buffering=True)
        print("last")
    assert [*texts[:10], "last"] == [*said.texts()[:10], said.texts()[-1]]
    assert len(texts) + 1 == len(said.texts()) + said.capture.take(said.phase).cut_lines
    assert len(texts) + 1 == shown(terminal).count("\n")


def test_references_that_were_taken_before_are_seen(lanes: LaneSet, capture_on: Make, terminal) -> None:
    """A handler, a default argument or `from sys import stdout` keeps the very object that is seen."""
    early = functools.partial(print, file=terminal)
    capture = capture_on()
    with lanes.enter_phase("phase") as phase:
        early("early")
    assert ["early"] == [line.text for line in capture.take(phase).lines]
    assert sys.stdout is terminal


def test_the_stream_stays_what_it_was(phase, terminal) -> None:
    """Its type, its descriptor, its encoding and its buffer are its own; only an attribute is on it, and goes."""
    buffer = terminal.buffer
    with phase() as said:
        assert terminal is sys.stdout
        assert io.TextIOWrapper is type(sys.stdout)
        assert buffer is sys.stdout.buffer
        assert "utf-8" == sys.stdout.encoding
        with pytest.raises(OSError, match="fileno"):
            sys.stdout.fileno()
    said.capture.remove()
    assert {} == {**vars(terminal), **vars(buffer)}


def test_errors_of_the_stream_are_the_programs(phase, terminal) -> None:
    """What raised before raises still, with our frame in between and nothing of ours kept."""
    ascii_only = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    with phase() as said, contextlib.redirect_stdout(ascii_only):
        with pytest.raises(UnicodeEncodeError):
            print("é")
        with pytest.raises(TypeError):
            sys.stdout.write(1)
        print("fine \udcff".encode("ascii", "replace").decode())
        sys.stdout.close()
        with pytest.raises(ValueError, match="closed"):
            print("x")
    assert ["fine ?"] == [text for text in said.texts() if text]


def test_surrogates_and_controls_are_kept_safe(phase, terminal) -> None:
    """Whatever can be printed can be stored."""
    with phase() as said:
        print("file \udcff\x00\x1b[31m red\x1b[0m")
        sys.stdout.flush()
        sys.stdout.buffer.write(b"\xff\xfe\n")
    assert ["file \\udcff\\x00 red", "\\xff\\xfe"] == said.texts()
    assert "file \udcff\x00\x1b[31m red\x1b[0m\n\udcff\udcfe\n" == shown(terminal)


def test_a_stream_that_is_put_there_later_is_seen(phase, terminal) -> None:
    """pytest, Jupyter and `redirect_stdout` replace `sys.stdout` whenever they like."""
    other = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    with phase() as said:
        sys.stdout = other
        print("other")
        sys.stdout = terminal
        print("back")
        with contextlib.redirect_stdout(io.StringIO()) as inner, contextlib.redirect_stderr(inner):
            print("redirected")
            print("both", file=sys.stderr)
    assert ["other", "back", "redirected", "both"] == said.texts()
    assert "redirected\nboth\n" == inner.getvalue()
    assert [{}, {}] == [vars(other), vars(inner)]


def test_a_stream_that_was_replaced_is_let_go(phase, terminal) -> None:
    """A file that was stdout for a while is closed when its owner lets go of it, and not at some collection later."""
    with phase():
        gc.disable()
        try:
            other = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
            gone = weakref.ref(other)
            sys.stdout = other
            print("x")
            sys.stdout = terminal
            del other
            assert gone() is None
        finally:
            gc.enable()


class Tee:
    """Writes to a file of its own and to the stdout that it found."""

    def __init__(self, stream) -> None:
        self.stream = stream
        self.copy: list[str] = []

    def write(self, text: str) -> int:
        """Write to both."""
        self.copy.append(text)
        return self.stream.write(text)

    def flush(self) -> None:
        """Flush what was found."""
        self.stream.flush()


def test_a_stream_that_hands_on_to_another_is_seen_once(phase, terminal) -> None:
    """A tee of the program's own writes to the stream that we see as well."""
    with phase() as said:
        sys.stdout = tee = Tee(sys.stdout)
        print("teed", flush=True)
        sys.stdout = terminal
        tee.write("straight to the tee\n")
    assert ["teed", "straight to the tee"] == said.texts()
    assert "teed\nstraight to the tee\n" == shown(terminal) == "".join(tee.copy)


def test_a_stream_of_bytes_or_with_a_flush_of_its_own_is_seen(phase, terminal) -> None:
    """Jupyter's and others' streams are classes of their own; what their `write` takes is kept."""

    class Loud(io.TextIOWrapper):
        def write(self, text) -> int:
            """Take bytes as well."""
            return super().write(text if isinstance(text, str) else bytes(text).decode())

    loud = Loud(io.BytesIO(), encoding="utf-8")
    with phase() as said, contextlib.redirect_stdout(loud):
        print("text")
        sys.stdout.write(b"bytes\n")
        sys.stdout.flush()
        sys.stdout.write("open")
    assert ["bytes", "open", "text"] == sorted(said.texts())
    assert "text\nbytes\nopen" == shown(loud)


class Slotted:
    """A stream that takes no attributes."""

    __slots__ = ("stream",)

    def __init__(self, stream) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        """Hand on."""
        return self.stream.write(text)


def test_a_stream_without_a_dictionary_is_replaced_for_the_while(phase, terminal) -> None:
    """Only then something else stands at `sys.stdout`, which hands everything on; at the end the stream is back."""
    slotted = Slotted(terminal)
    with phase() as said:
        sys.stdout = slotted
        print("slotted")
        sys.stdout.writelines(["a\n"])
        assert isinstance(sys.stdout, StreamProxy)
        assert terminal is sys.stdout.stream.stream
        proxy = sys.stdout
    assert ["slotted", "a"] == said.texts()
    said.capture.remove()
    assert slotted is sys.stdout
    proxy.write("afterwards\n")
    assert "slotted\na\nafterwards\n" == shown(terminal)


def test_somebody_who_wraps_us_keeps_working(phase, terminal) -> None:
    """Who replaced `write` after us has ours inside; it hands on for ever, and captures nothing twice."""
    with phase() as said:
        inner = sys.stdout.write
        sys.stdout.write = lambda text: inner(text.upper())
        print("a")
    said.capture.remove()
    print("b")
    said.capture.install()
    print("c")
    said.capture.remove()
    assert "A\nB\nC\n" == shown(terminal)
    assert ["A"] == said.texts()
    assert "c\n" == said.capture.output_of(None).text
    del sys.stdout.write


def test_a_write_that_was_there_before_is_put_back(lanes: LaneSet, capture_on: Make, terminal, monkeypatch) -> None:
    """An attribute that another library had put on the stream is there again afterwards."""
    written = []
    monkeypatch.setattr(terminal, "write", written.append, raising=False)
    capture = capture_on()
    with lanes.enter_phase("phase") as phase:
        print("a")
    capture.remove()
    assert ["a", "\n"] == written
    assert written.append == terminal.write
    assert ["a"] == [line.text for line in capture.take(phase).lines]


def test_a_program_without_streams_runs(lanes: LaneSet, capture_on: Make, monkeypatch) -> None:
    """Under pythonw and in some services there is no stdout at all."""
    capture_on().remove()
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "__stdout__", None)
    capture = capture_on()
    with lanes.enter_phase("phase") as phase:
        print("nowhere")
        sys.stdout = "no stream at all"
        sys.stdout = None
    assert () == capture.take(phase).lines
    capture.remove()


def test_sys_stays_a_module(capture_on: Make) -> None:
    """Picklers and checks that know modules know this one, and its class is as before in the end."""
    before = sys.stdout
    capture = capture_on()
    assert isinstance(sys, ModuleType)
    assert WatchedSys is type(sys)
    assert sys is pickle.loads(pickle.dumps(sys))  # noqa: S301 - our own
    capture.remove()
    assert ModuleType is type(sys)
    sys.stdout = before


def test_blank_lines_belong_where_they_are_printed(lanes: LaneSet, capture_on: Make, terminal) -> None:
    """`print()` is a line, and a partial line ends with the newline that ends it."""
    capture = capture_on()
    with lanes.enter_phase("one") as one:
        print()
        print("a")
        print()
        print("b", end="")
    with lanes.enter_phase("two") as two:
        print()
        print()
    assert ["", "a", "", "b"] == [line.text for line in capture.take(one).lines]
    assert [""] == [line.text for line in capture.take(two).lines]


def test_an_unbuffered_python_is_captured(run_python) -> None:
    """With `python -u` the buffer is the raw file; every line is seen once, and so is what goes to it directly."""
    child = run_python(
        """
import sys
from stormphase._recorder import PhaseRecorder
from stormphase.capture import CaptureOptions, CaptureSession

lanes = PhaseRecorder().lane_set("s", 0)
capture = CaptureSession(lanes, CaptureOptions())
capture.install()
with lanes.enter_phase("phase") as phase:
    print("text")
    sys.stdout.buffer.write(b"bytes\\n")
    print("error", file=sys.stderr)
capture.remove()
sys.stdout.write(repr([(line.stream, line.text) for line in capture.take(phase).lines]))
""",
        env={"PYTHONUNBUFFERED": "1"},
    )
    expected = [("stdout", "text"), ("stdout", "bytes"), ("stderr", "error")]
    assert f"text\nbytes\n{expected!r}" == child.stdout
    assert "error\n" == child.stderr
