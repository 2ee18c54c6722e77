"""Descriptor mode where much is written at once, and where the terminal is slow."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from ast import literal_eval

import pytest

IN_TURNS = """
import ctypes, os, sys, time
from stormphase import PhaseTracker

libc = ctypes.CDLL(None)
WAYS = {
    "os.write": lambda text: os.write(1, text),
    "C": lambda text: libc.printf(b"%s", text),
}
other = WAYS[sys.argv[1]]
with PhaseTracker("x", bridge=None, capture="fd") as tracker, tracker.enter_phase("train") as phase:
    write = sys.stdout.buffer.write
    for number in range(100):
        for _ in range(number % 5):
            write(b"python %d\\n" % number)
        other(b"other %d\\n" % number)
        time.sleep(0.001)  # Nearer to each other than 0.1 ms their order is not known.
    scope_id = phase.scope_id
print([line.text for line in tracker.capture.output_of(scope_id).lines], file=sys.stderr)
"""

SLOW = """
import os, sys
from stormphase import PhaseTracker
from stormphase.capture import _descriptors

_descriptors.END_S = 0.5
with PhaseTracker("x", bridge=None, capture="fd") as tracker, tracker.enter_phase("train"):
    WRITE
os.write(1, b"after")
"""
MUCH = 250_000


@pytest.mark.parametrize("way", ["os.write", "C"])
def test_lines_of_bytes_and_what_others_write_in_between_keep_their_order(run_python, way: str) -> None:
    """Each line of others stands between the lines of Python's that it was written between."""
    done = run_python(IN_TURNS, way)
    expected = [line for number in range(100) for line in (*[f"python {number}"] * (number % 5), f"other {number}")]
    assert expected == literal_eval(done.stderr)


@pytest.mark.parametrize("way", ["sys.stdout.write('x' * {0})", "os.write(1, b'x' * {0})"])
def test_what_a_slow_terminal_has_not_shown_yet_stands_before_what_follows(way: str) -> None:
    """A stop waits for as long as the terminal takes anything, however long that is."""
    source = SLOW.replace("WRITE", way.format(MUCH))
    with subprocess.Popen([sys.executable, "-c", source], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        shown = b""
        while got := os.read(child.stdout.fileno(), 1_536):
            shown += got
            time.sleep(0.02)  # noqa: TID251 - The terminal is slow: it takes some two seconds in all.
    assert (0, b"x" * MUCH + b"after") == (child.returncode, shown)
