"""Where a summary is written: to terminals wide and in colour, to pipes plain, to broken streams not at all."""

from __future__ import annotations

import fcntl
import io
import os
import re
import struct
import subprocess
import sys
import termios
from typing import Any

import pytest

from stormphase import RankIdentity
from stormphase._render import columns
from stormphase._summary import SummaryReport, SummaryRow, SummaryTree
from stormphase._terminal import StreamFacts, show
from stormphase._totals import PathFigures

FIGURES = PathFigures(1, 9, 9, 0, 9, 9, 9, {"failed": 1})
MAIN = SummaryTree(rows=(SummaryRow("データ", 1, FIGURES),), other=None)
EMPTY = SummaryTree(rows=(), other=None)
REPORT = SummaryReport("job", RankIdentity("s", 0, 0, 0, 1, 1, None, "h", "single"), 10, 9, MAIN, EMPTY, 0)


class Stream(io.StringIO):
    """A stream that says what it is told to say of itself."""

    encoding = "utf-8"

    def __init__(self, *, is_terminal: bool) -> None:
        super().__init__()
        self.is_terminal = is_terminal

    def isatty(self) -> bool:
        """Say so."""
        return self.is_terminal


@pytest.mark.parametrize(
    ("is_terminal", "environ", "expected"),
    [
        (True, {}, True),
        (True, {"TERM": "xterm"}, True),
        (True, {"TERM": "dumb"}, False),
        (True, {"NO_COLOR": "1"}, False),
        (True, {"NO_COLOR": ""}, True),
        (True, {"NO_COLOR": "0"}, False),
        (False, {}, False),
        (False, {"FORCE_COLOR": "1"}, True),
        (False, {"FORCE_COLOR": ""}, False),
        (False, {"FORCE_COLOR": "1", "NO_COLOR": "1"}, False),
        (True, {"TERM": "dumb", "FORCE_COLOR": "1"}, True),
    ],
)
def test_when_there_is_colour(is_terminal, environ, expected):
    """On a terminal that can, unless NO_COLOR says no; elsewhere only if FORCE_COLOR says so."""
    assert expected is StreamFacts.of(Stream(is_terminal=is_terminal), environ).has_colour


@pytest.mark.parametrize(
    ("is_terminal", "environ", "expected"),
    [
        (False, {}, 80),
        (False, {"COLUMNS": "120"}, 80),
        (True, {"COLUMNS": "120"}, 120),
        (True, {"COLUMNS": "1000"}, 160),
        (True, {"COLUMNS": "wide"}, 80),
        (True, {"COLUMNS": "0"}, 80),
        (True, {}, 80),
    ],
)
def test_how_wide_it_is(is_terminal, environ, expected):
    """A pipe has 80 columns; a terminal what it says, within reason."""
    assert expected == StreamFacts.of(Stream(is_terminal=is_terminal), environ).width


def test_a_stream_that_does_not_say_its_encoding_gets_ascii():
    """Anything may stand in for stdout."""

    class Bare:
        def isatty(self) -> bool:
            return False

    assert "ascii" == StreamFacts.of(Bare(), {}).encoding  # type: ignore[arg-type]


def test_what_the_stream_cannot_encode_is_a_question_mark():
    """A job on a machine without a locale still shows its table."""
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    show(REPORT, stream, {})
    assert True is any(line.startswith(b"??? ") for line in raw.getvalue().splitlines())


class Broken(Stream):
    """A stream that raises where it is told to."""

    def __init__(self, method: str, error: BaseException) -> None:
        super().__init__(is_terminal=True)

        def fail(*_: Any) -> None:
            raise error

        setattr(self, method, fail)


@pytest.mark.parametrize("method", ["isatty", "write", "flush", "fileno"])
@pytest.mark.parametrize("error", [BrokenPipeError(), ValueError("closed"), RuntimeError("replaced")])
def test_a_broken_stream_loses_the_table_and_nothing_else(method, error):
    """The session has ended in order, whatever stdout is."""
    show(REPORT, Broken(method, error), {})


def test_no_stream_at_all():
    """Some processes have no stdout."""
    show(REPORT, None, {})


def test_without_rich_the_table_is_plain(monkeypatch):
    """With colours all the same."""
    monkeypatch.setitem(sys.modules, "rich.console", None)
    stream = Stream(is_terminal=True)
    show(REPORT, stream, {})
    assert ("\x1b[31m1F\x1b[0m" in stream.getvalue(), "░" in stream.getvalue()) == (True, False)


PROGRAM = """
import sys
from stormphase import PhaseTracker
with PhaseTracker("job", bridge=None, session_id="s", summary=True) as tracker:
    with tracker.enter_phase("train"):
        for name in ("load", "step"):
            with tracker.enter_phase(name): pass
print("rich" in sys.modules)
"""


def on_a_terminal(*, width: int, **environ: str) -> str:
    """Run the program on a real terminal, and return what it wrote there."""
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, width, 0, 0))
    inherited = {
        name: value for name, value in os.environ.items() if name not in ("COLUMNS", "NO_COLOR", "FORCE_COLOR")
    }
    child = subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=subprocess.PIPE,
        env={**inherited, "TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8", **environ},
    )
    os.close(theirs)
    written = b""
    try:
        while piece := os.read(ours, 65_536):
            written += piece
    except OSError:  # So does Linux say that nobody holds the other end any more.
        pass
    finally:
        os.close(ours)
    assert (b"", 0) == (child.communicate(timeout=60)[1], child.returncode)
    return written.decode()


def widest(text: str) -> int:
    """Return how wide the widest line is, without styles."""
    return max(columns(line.rstrip()) for line in re.sub(r"\x1b\[[\d;]*m", "", text).splitlines())


def test_on_a_real_terminal_rich_draws():
    """Guides, bars and styles, as wide as the terminal lets it."""
    text = on_a_terminal(width=120)
    assert (True, True, True) == ("└ " in text, "\x1b[" in text, "█ own" in text)
    assert text.endswith("True\r\n")
    assert widest(text) <= 120


def test_a_narrow_terminal_is_kept_to():
    """Numbers are left out rather than lines broken."""
    assert widest(on_a_terminal(width=50)) <= 50


def test_no_color_on_a_real_terminal():
    """No colour at all; bold and dim are none."""
    assert [] == re.findall(r"\x1b\[[\d;]*(?:3|9)\dm", on_a_terminal(width=100, NO_COLOR="1"))


def test_a_dumb_terminal_gets_plain_text():
    """Not one escape."""
    assert "\x1b" not in on_a_terminal(width=100, TERM="dumb")


def test_piped_it_is_plain_text_of_eighty_columns_and_rich_is_not_loaded(run_python):
    """What a log file gets is what it can keep."""
    text = run_python(PROGRAM, env={"COLUMNS": "150", "FORCE_COLOR": "", "NO_COLOR": ""}).stdout
    assert ("\x1b" in text, "False\n") == (False, text[-6:])
    assert widest(text) <= 80
    assert "\n  step " in text
