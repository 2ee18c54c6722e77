"""Streams that write to other streams: what is kept is what the terminal shows, once, in its order."""

from __future__ import annotations

import io
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from stormphase._lanes import LaneSet
    from stormphase.capture import CaptureSession


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.TextIOWrapper]:
    """Put a stream of the standard library at `sys.stdout`."""
    stream = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)
    monkeypatch.setattr(sys, "stdout", stream)
    return stream


@pytest.fixture
def said(lanes: LaneSet, capture_on: Callable[..., CaptureSession], terminal: io.TextIOWrapper) -> Callable:
    """Return what runs something in a captured phase, and returns the lines that are kept of it."""
    del terminal

    def run(work: Callable[[], object]) -> list[str]:
        capture = capture_on()
        with lanes.enter_phase("phase") as phase:
            work()
        return [line.text for line in capture.take(phase).lines]

    return run


TQDM = """
import contextlib, sys
from tqdm import tqdm
from tqdm.contrib import DummyTqdmFile
from stormphase import PhaseTracker
from stormphase.stores import MemoryStore

@contextlib.contextmanager
def redirected():
    before = sys.stdout, sys.stderr
    try:
        sys.stdout, sys.stderr = map(DummyTqdmFile, before)
        yield before[0]
    finally:
        sys.stdout, sys.stderr = before

store = MemoryStore()
with PhaseTracker("x", bridge=None, store=store, capture=True) as tracker, tracker.enter_phase("a"):
    with redirected() as shown:
        for number in tqdm(range(3), file=shown, mininterval=0, bar_format="{n_fmt} of {total_fmt}"):
            print("line", number)
print(*(line.text for record in store.query(kind="phase") for line in record.output), sep="\\n", file=sys.stderr)
"""


def test_what_is_printed_above_a_bar_is_a_line(run_python) -> None:
    """By tqdm's recipe for `redirect_stdout`: the lines, and at last the bar as it was left."""
    done = run_python(TQDM, check=False)
    assert ["line 0", "line 1", "line 2", "3 of 3"] == done.stderr.splitlines()


class Prefixed:
    """Writes whole lines to the stream that it was given, each with a prefix; or nothing."""

    def __init__(self, stream: io.TextIOBase, prefix: str | None) -> None:
        self.stream = stream
        self.prefix = prefix
        self.text = ""

    def write(self, text: str) -> int:
        """Write the lines that are complete."""
        self.text += text
        *lines, self.text = self.text.split("\n")
        if self.prefix is not None:
            self.stream.writelines(f"{self.prefix}{line}\n" for line in lines)
        return len(text)


def test_lines_are_kept_as_they_are_shown(said: Callable, terminal: io.TextIOWrapper) -> None:
    """A stream that changes what it hands on, and hands it on later than it came."""

    def work() -> None:
        sys.stdout = Prefixed(sys.stdout, "> ")
        print("a", "b")
        print("c")
        sys.stdout = terminal
        print("d")

    assert ["> a b", "> c", "d"] == said(work)


def test_a_stream_that_hands_nothing_on_is_kept(said: Callable, terminal: io.TextIOWrapper) -> None:
    """It has the stream that stood there before, and writes nothing to it."""

    def work() -> None:
        sys.stdout = Prefixed(sys.stdout, None)
        print("a", "b")
        sys.stdout.write("c")
        sys.stdout = terminal

    assert ["a b", "c"] == said(work)


def test_text_without_a_newline_is_not_lost(said: Callable, terminal: io.TextIOWrapper) -> None:
    """What waits for it to be known whether the stream hands on is kept when the stream is let go."""

    def work() -> None:
        sys.stdout = Prefixed(sys.stdout, None)
        sys.stdout.write("no newline")
        sys.stdout = terminal

    assert ["no newline"] == said(work)
