"""Capture in programs that others run: real IPython cells, a real pytest with its own capture, real progress bars."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import RunPython

CELLS = """
import sys
from IPython.core.interactiveshell import InteractiveShell

shell = InteractiveShell.instance()
for cell in (
    '''
from stormphase import PhaseTracker
tracker = PhaseTracker(session_id="s", bridge=None, capture=True).start()
with tracker.enter_phase("first") as first:
    print("in the first cell")
''',
    '''
import sys, threading
with tracker.enter_phase("second") as second:
    print("in the second cell")
    print("on stderr", file=sys.stderr)
    thread = threading.Thread(target=print, args=("in a thread",))
    thread.start(); thread.join()
''',
    '''
found = [[line.text for line in tracker.capture.output_of(phase.scope_id).lines] for phase in (first, second)]
tracker.stop()
print("at the end")
''',
):
    assert shell.run_cell(cell, store_history=True).success
assert shell.user_ns["found"] == [
    ["in the first cell"], ["in the second cell", "on stderr", "in a thread"]
], shell.user_ns["found"]
assert type(sys).__name__ == "module"
assert not any(callback.__module__.startswith("stormphase") for callback in shell.events.callbacks["pre_execute"])
shell.run_cell("print('without us')")
"""


def test_every_cell_is_seen(run_python: RunPython) -> None:
    """IPython takes every `write` off after a cell; capture that began in one goes on in the next."""
    shown = run_python(CELLS).stdout
    assert ["in the first cell", "in the second cell", "in a thread", "at the end", "without us"] == shown.splitlines()


UNDER_PYTEST = """
import logging, os, sys

import pytest
from stormphase import PhaseTracker


@pytest.fixture(scope="session")
def tracker():
    with PhaseTracker(session_id="s", bridge=None, capture=True) as tracker:
        yield tracker


def said(tracker, phase):
    return [line.text for line in tracker.capture.output_of(phase.scope_id).lines]


def test_begin(tracker):
    with tracker.enter_phase("a") as phase:
        print("under pytest's own capture")
    assert ["under pytest's own capture"] == said(tracker, phase)


def test_capsys(tracker, capsys):
    with tracker.enter_phase("b") as phase:
        print("seen by both")
        with capsys.disabled():
            print("seen in the terminal")
        print("on stderr", file=sys.stderr)
    assert ["seen by both", "seen in the terminal", "on stderr"] == said(tracker, phase)
    assert ("seen by both\\n", "on stderr\\n") == capsys.readouterr()


def test_capfd(tracker, capfd, caplog):
    with tracker.enter_phase("c") as phase:
        print("seen by both")
        logging.getLogger("app").error("logged")
        os.write(1, b"by descriptor\\n")
    assert ["seen by both", "ERROR app: logged"] == said(tracker, phase)
    assert "seen by both\\nby descriptor\\n" == capfd.readouterr().out
    assert ["logged"] == caplog.messages


def test_capsysbinary(tracker, capsysbinary):
    with tracker.enter_phase("d") as phase:
        sys.stdout.buffer.write(b"bytes\\n")
        print("text")
    assert ["bytes", "text"] == said(tracker, phase)
    assert b"bytes\\ntext\\n" == capsysbinary.readouterr().out
"""


@pytest.mark.parametrize("method", ["fd", "sys", "no", "tee-sys"])
def test_a_real_pytest_and_we_see_the_same(run_python: RunPython, method: str) -> None:
    """Whatever pytest puts in place for a test, and takes away again, its fixtures see all and so do we."""
    shown = run_python(
        "import pathlib, sys, pytest\n"
        "pathlib.Path('test_it.py').write_text(sys.argv[1])\n"
        "sys.exit(pytest.main(['-q', '-p', 'no:cacheprovider', '--capture', sys.argv[2], 'test_it.py']))",
        UNDER_PYTEST,
        method,
    )
    assert "4 passed" in shown.stdout
    assert "seen in the terminal" in shown.stdout


@pytest.mark.parametrize("mode", ["context", "fd"])
def test_real_progress_bars_are_kept_as_they_last_looked(run_python: RunPython, mode: str) -> None:
    """Of tqdm's bars, also nested ones and what is written above them, each is one line, and all that is told once."""
    shown = run_python(
        """
import sys
from tqdm import tqdm
from stormphase import PhaseTracker
from stormphase.capture import CaptureOptions

form = "{desc}: {n}/{total}"
with PhaseTracker(session_id="s", bridge=None, capture=CaptureOptions(mode=sys.argv[1])) as tracker:
    with tracker.enter_phase("plain") as plain:
        for _ in tqdm(range(500), desc="bar", bar_format=form, mininterval=0):
            pass
        print("after", file=sys.stderr)
    with tracker.enter_phase("nested") as nested:
        for _ in tqdm(range(3), desc="outer", bar_format=form, mininterval=0):
            for _ in tqdm(range(20), desc="inner", bar_format=form, mininterval=0, leave=False):
                pass
        tqdm.write("above the bars", file=sys.stderr)
for phase in (plain, nested):
    print([line.text for line in tracker.capture.output_of(phase.scope_id).lines])
""",
        mode,
    )
    plain, nested = shown.stdout.splitlines()
    assert "['bar: 500/500', 'after']" == plain
    assert "outer: 3/3" in nested
    assert "above the bars" in nested
    assert 1 == nested.count("outer")
    assert nested.count("inner") <= 1
