"""`stormphase top`: its loop with keys, a real terminal, and without rich."""

from __future__ import annotations

import io
import os
import select
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from rich.console import Console

from stormphase._clock import SystemClock
from stormphase.cli._top import Keyboard, Screen, chosen
from stormphase.cli._top_view import Choices, Order
from stormphase.cli._top_watch import Watch

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from conftest import RunPython

    from stormphase._tracker import PhaseTracker

    Command = Callable[..., tuple[int, str, str]]

PATIENCE_S = 60
SECOND = 1_000_000_000


@pytest.fixture
def tracker(make_tracker: Callable[..., PhaseTracker], runs: Path) -> PhaseTracker:
    """Return rank 0 of session job-1, running in this process, with train open."""
    tracker = make_tracker("job", session_id="job-1", rank=0, world_size=2, journal=runs)
    tracker.start()
    tracker.enter("train")
    return tracker


def test_once_prints_and_ends(tracker: PhaseTracker, killed_rank: None, command: Command) -> None:
    """One screen in plain text, as long as need be."""
    code, out, _ = command("top", "--once")
    head = out.splitlines()
    assert (0, "stormphase top: session job-1, attempt 0, 2 of 2 ranks") == (code, head[0])
    assert head[1].startswith("1 killed  1 running  ")
    assert ["1", "killed", "20"] == head[3].split()[:3]
    assert ["0", "running"] == head[4].split()[:2]
    assert "train" == head[4].split()[-1]
    assert head[5].startswith("rank 1: killed, process ")
    assert "\x1b" not in out


@pytest.mark.parametrize("is_dumb", [False, True])
def test_where_nothing_can_be_drawn_anew_it_is_as_once(tracker: PhaseTracker, runs: Path, is_dumb: bool) -> None:
    """In a pipe, and on a terminal that moves no cursor, one screen is printed: no key would ever end it."""
    ours, theirs = os.openpty()
    outcome = subprocess.run(
        [sys.executable, "-m", "stormphase.cli", "top", str(runs)],
        stdin=theirs,
        stdout=theirs if is_dumb else subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "TERM": "dumb" if is_dumb else "xterm-256color"},
        timeout=PATIENCE_S,
        check=False,
    )
    said = os.read(ours, 65_536) if is_dumb else outcome.stdout
    os.close(ours)
    os.close(theirs)
    assert (0, b"") == (outcome.returncode, outcome.stderr)
    assert said.startswith(b"stormphase top: session job-1")
    assert b"\x1b" not in said


def test_nothing_to_watch_is_two(runs: Path, command: Command) -> None:
    """As for any unreadable directory."""
    code, _, err = command("top", "--once")
    assert 2 == code
    assert "No such file or directory" in err


def test_keys_change_what_is_shown() -> None:
    """Each letter sorts; g turns groups over, from what is shown; j and k scroll within bounds."""
    choices = Choices()
    for key, order in (("r", Order.RANK), ("s", Order.STEP), ("t", Order.TIME), ("h", Order.HOT)):
        assert order is chosen(choices, key, ranks=4, height=24).order
    assert [True, False] == [chosen(choices, "g", ranks=ranks, height=24).is_grouped for ranks in (4, 400)]
    assert not chosen(Choices(is_grouped=True), "g", ranks=4, height=24).is_grouped
    down = chosen(choices, "j", ranks=15, height=24)
    assert [10, 15, 0] == [
        each.scrolled
        for each in (
            down,
            chosen(down, "j", ranks=15, height=24),
            chosen(down, "k", ranks=15, height=24),
        )
    ]
    assert choices == chosen(choices, "x", ranks=4, height=24) == chosen(choices, "", ranks=4, height=24)


class SteppedClock(SystemClock):
    """The machine's clock, put forward by whoever waits."""

    def __init__(self) -> None:
        self.ahead_ns = 0

    def monotonic_ns(self) -> int:  # type: ignore[override]
        """Return a later time."""
        return SystemClock.monotonic_ns() + self.ahead_ns


def test_the_screen_follows_the_job_until_q(tracker: PhaseTracker, runs: Path) -> None:
    """It looks again after each interval, finds new journals, and draws at once after a key."""
    clock = SteppedClock()
    drawn = io.StringIO()
    console = Console(file=drawn, width=80, height=24, force_terminal=True, color_system=None)
    script = iter([("", 1), ("r", 0), ("", 1), *[("", 1)] * 6, ("q", 0)])
    waited: list[float] = []

    def wait(timeout_s: float) -> str:
        waited.append(timeout_s)
        key, seconds = next(script)
        clock.ahead_ns += seconds * SECOND
        if len(waited) == 3:
            tracker.enter("evaluate")
        return key

    watch = Watch(runs, clock)
    Screen(watch, clock, Choices(), interval_ns=SECOND, hang_ns=60 * SECOND).show(console, wait)
    screens = drawn.getvalue().split("stormphase top:")
    assert 10 == len(waited) == len(screens) - 1
    assert all(0 <= timeout_s <= 1 for timeout_s in waited)
    assert "train / evaluate" not in screens[3]
    assert "train / evaluate" in screens[4]
    assert drawn.getvalue().startswith("\x1b[?1049h")
    assert "\x1b[?1049l" in screens[-1]


def test_keys_go_by_the_ranks_that_are_shown(tracker: PhaseTracker, killed_rank: None, runs: Path) -> None:
    """Where not all fit, j scrolls, and g takes apart the groups that they are shown in."""
    seen: list[tuple[bool | None, int]] = []
    keys = iter("jgq")
    console = Console(file=io.StringIO(), width=80, height=9, force_terminal=True, color_system=None)
    screen = Screen(Watch(runs, SystemClock()), SystemClock(), Choices(), interval_ns=3600 * SECOND, hang_ns=SECOND)

    def wait(_timeout_s: float) -> str:
        seen.append((screen.choices.is_grouped, screen.choices.scrolled))
        return next(keys)

    screen.show(console, wait)
    assert [(None, 0), (None, 2), (False, 0)] == seen


def read_until(fd: int, wanted: bytes) -> bytes:
    """Read from a terminal until something stands there."""
    found = b""
    while wanted not in found:
        assert select.select([fd], [], [], PATIENCE_S)[0], found
        try:
            found += os.read(fd, 65_536)
        except OSError:  # Linux's way to say that the other side has closed.
            break
    assert wanted in found
    return found


def test_it_runs_in_a_real_terminal(tracker: PhaseTracker, runs: Path) -> None:
    """Keys are taken one by one and unseen; at the end the terminal is as it was."""
    import termios

    ours, theirs = os.openpty()
    before = termios.tcgetattr(theirs)
    with subprocess.Popen(
        [sys.executable, "-m", "stormphase.cli", "top", str(runs), "--interval-s", "3600"],
        stdin=theirs,
        stdout=theirs,
        stderr=subprocess.PIPE,
        env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "80", "LINES": "24"},
    ) as process:
        found = read_until(ours, b"scroll")
        assert b"\x1b[?1049h" in found
        assert b"running" in found
        os.write(ours, b"\x1b[B")
        read_until(ours, b"scroll")
        os.write(ours, b"q")
        read_until(ours, b"\x1b[?1049l")
        assert (0, b"") == (process.wait(PATIENCE_S), process.stderr.read() if process.stderr else b"")
    assert before == termios.tcgetattr(theirs)
    os.close(ours)
    os.close(theirs)


def test_without_a_terminal_no_key_is_pressed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the input is something else, the screen goes on until it is interrupted."""
    monkeypatch.setattr("sys.stdin", io.StringIO())
    with Keyboard.open() as keyboard:
        assert "" == keyboard.wait(0)


@pytest.mark.parametrize(
    ("pressed", "expected"),
    [(b"Q", "q"), (b"\x1b[A", "k"), (b"\x1bOB", "j"), (b"\x1bOQ", ""), (b"", "q"), (b"\xff", "\xff")],
)
def test_sequences_are_no_letters(pressed: bytes, expected: str) -> None:
    """F2 holds a Q, and does not quit; a terminal that has gone does."""
    read, write = os.pipe()
    os.write(write, pressed)
    os.close(write)
    assert expected == Keyboard(read).wait(PATIENCE_S)
    os.close(read)


def test_without_rich_the_error_names_the_extra(tracker: PhaseTracker, runs: Path, run_python: RunPython) -> None:
    """What to install, and what works without."""
    source = (
        "import sys; sys.modules['rich.console'] = None; sys.modules['rich'] = None\n"
        "from stormphase.cli import main\n"
        "assert main(['top', sys.argv[1], '--once']) == 0\n"
        "sys.stdout.isatty = lambda: True\n"
        "sys.exit(main(['top', sys.argv[1]]))"
    )
    child: Any = run_python(source, str(runs), check=False, env={"TERM": "xterm"})
    assert 2 == child.returncode, child.stderr
    assert "pip install 'stormphase[cli]'" in child.stderr
    assert "Traceback" not in child.stderr
