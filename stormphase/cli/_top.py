"""`stormphase top DIR`: a live screen of a running job, from outside and without touching it."""

from __future__ import annotations

import contextlib
import os
import select as waiting
import shutil
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import attrs

from stormphase._clock import SystemClock
from stormphase.analysis._places import DEFAULT_HANG_NS, SECOND_NS
from stormphase.cli._exit_codes import WELL, told
from stormphase.cli._output import Page, seconds
from stormphase.cli._top_view import Choices, Order, Piece, screen_of, would_group
from stormphase.cli._top_watch import Watch
from stormphase.exceptions import StormphaseError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator

    from rich.console import Console, RenderableType

    from stormphase.typing import Clock

FIND_NS: Final = 5 * SECOND_NS
PAGE: Final = 10
_ARROWS: Final = {b"\x1b[A": "k", b"\x1b[B": "j", b"\x1bOA": "k", b"\x1bOB": "j", b"\x1b[5~": "k", b"\x1b[6~": "j"}
_ANSI: Final = {"bold": "1", "dim": "2", "red": "31", "yellow": "33", "green": "32", "cyan": "36"}


class MissingExtraError(StormphaseError, ImportError):
    """A package is not installed that only an extra brings."""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    """Add the subcommand; returns its parser."""
    parser = subparsers.add_parser(
        "top",
        help="a live screen of what every rank is doing",
        description="Watch the journals of a running job: slowest and suspect ranks first. Needs the extra `cli`. "
        "Where the output is no terminal, one screen is printed, as by --once.",
        epilog="keys: q quits; h, r, s, t sort by heat, rank, step, time; g groups ranks or not; j and k scroll. "
        + told("top").capitalize(),
    )
    parser.add_argument("directory", metavar="DIR", type=Path, help="what was given as `journal` or STORMPHASE_DIR")
    parser.add_argument("--once", action="store_true", help="print one screen, as long as need be, and end")
    parser.add_argument("--session", metavar="ID", help="another session than the newest in DIR")
    parser.add_argument("--attempt", metavar="N", type=int, help="another attempt than the session's newest")
    parser.add_argument("--sort", choices=[order.value for order in Order], default="hot", help="default: %(default)s")
    parser.add_argument("--interval-s", metavar="S", type=seconds, default=1.0, help="default: %(default)g s")
    parser.add_argument(
        "--hang-s",
        metavar="S",
        type=seconds,
        default=DEFAULT_HANG_NS / SECOND_NS,
        help="how long ranks may wait for each other where it is not known what is usual (default: %(default)g s)",
    )
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Show the screen until `q`, or print it once where it cannot be drawn anew; return 0.

    Raises:
        StormphaseError: if there is nothing to watch, or rich is missing.
    """
    clock = SystemClock()
    hang_ns = int(arguments.hang_s * SECOND_NS)
    watch = Watch(arguments.directory, clock, session_id=arguments.session, attempt=arguments.attempt, hang_ns=hang_ns)
    choices = Choices(order=Order(arguments.sort))
    # In a pipe or a file rich shows nothing until the end, which only a key brings.
    if arguments.once or not _can_be_drawn_anew():
        print_once(watch, choices, hang_ns)
        return WELL
    interval_ns = int(max(0.1, arguments.interval_s) * SECOND_NS)
    with Keyboard.open() as keyboard:
        Screen(watch, clock, choices, interval_ns=interval_ns, hang_ns=hang_ns).show(_console(), keyboard.wait)
    return WELL


def print_once(watch: Watch, choices: Choices, hang_ns: int) -> None:
    """Print one screen; on a terminal ranks are grouped if they do not fit, and in a pipe if they are many."""
    watch.look()
    page = Page(sys.stdout, os.environ)
    snapshot = watch.snapshot()
    rows = shutil.get_terminal_size().lines
    is_grouped = len(snapshot.postmortem.ranks) > max(rows - 8, 16)
    chosen = attrs.evolve(choices, is_grouped=is_grouped)
    for line in screen_of(snapshot, chosen, width=page.facts.width, height=None, hang_ns=hang_ns):
        page.pieces([(piece.text, _ANSI.get(piece.style, "")) for piece in line])
    page.show()


class Screen:
    """The loop: look, draw, wait for a key; `choices` are those of the moment.

    Args:
        watch: what is looked at.
        clock: where times come from.
        choices: how it is shown at first.
        interval_ns: how often to look.
        hang_ns: as given to `watch`.
    """

    def __init__(self, watch: Watch, clock: Clock, choices: Choices, *, interval_ns: int, hang_ns: int) -> None:
        """Show nothing yet."""
        self._watch = watch
        self._clock = clock
        self.choices = choices
        self._interval_ns = interval_ns
        self._hang_ns = hang_ns
        self._ranks = 0

    def show(self, console: Console, wait_for_key: Callable[[float], str]) -> None:
        """Show the screen until `q`.

        Args:
            console: where.
            wait_for_key: waits for so many seconds, and returns the key that was pressed, or "".
        """
        from rich.live import Live  # noqa: PLC0415 - an optional package

        found_ns = self._clock.monotonic_ns()
        self._watch.look()
        with Live(console=console, screen=True, auto_refresh=False, transient=True) as live:
            looked_ns = self._clock.monotonic_ns()
            while True:
                live.update(self.drawn(console), refresh=True)
                left_ns = self._interval_ns - (self._clock.monotonic_ns() - looked_ns)
                key = wait_for_key(max(0, left_ns) / SECOND_NS)
                if key == "q":
                    return
                self.choices = chosen(self.choices, key, ranks=self._ranks, height=console.size.height)
                now_ns = self._clock.monotonic_ns()
                if now_ns - looked_ns < self._interval_ns:
                    continue
                looked_ns = now_ns
                if now_ns - found_ns >= FIND_NS:
                    self._watch.find()
                    # To look through thousands of headers must not become all that is done.
                    found_ns = now_ns + 10 * (self._clock.monotonic_ns() - now_ns)
                self._watch.look(self._interval_ns // 2)

    def drawn(self, console: Console) -> RenderableType:
        """Return the screen for a console of this size."""
        from rich.console import Group  # noqa: PLC0415
        from rich.text import Text  # noqa: PLC0415

        width, height = console.size
        snapshot = self._watch.snapshot()
        self._ranks = len(snapshot.postmortem.ranks)
        lines = screen_of(snapshot, self.choices, width=width, height=height, hang_ns=self._hang_ns)
        return Group(*(Text.assemble(*_parts(line), no_wrap=True, overflow="crop") for line in lines))


def _parts(line: list[Piece]) -> list[tuple[str, str]]:
    return [(piece.text, piece.style) for piece in line]


def chosen(choices: Choices, key: str, *, ranks: int, height: int) -> Choices:
    """Return the choices after a key was pressed before a screen of so many ranks and lines."""
    for order in Order:
        if key == order.value[0]:
            return attrs.evolve(choices, order=order, scrolled=0)
    if key == "g":
        was = would_group(ranks, height) if choices.is_grouped is None else choices.is_grouped
        return attrs.evolve(choices, is_grouped=not was, scrolled=0)
    if key in ("j", "k"):
        scrolled = choices.scrolled + (PAGE if key == "j" else -PAGE)
        return attrs.evolve(choices, scrolled=max(0, min(scrolled, ranks)))
    return choices


def _can_be_drawn_anew() -> bool:
    return sys.stdout.isatty() and os.environ.get("TERM", "").lower() not in ("dumb", "unknown")


def _console() -> Console:
    try:
        from rich.console import Console  # noqa: PLC0415 - an optional package
    except ImportError as error:
        raise MissingExtraError(
            "`stormphase top` draws its screen with rich, which is not installed. "
            "Run `pip install 'stormphase[cli]'`, or print one screen with `--once`."
        ) from error
    return Console(highlight=False)


class Keyboard:
    """Keys as they are pressed, from a terminal; without one nothing is ever pressed."""

    def __init__(self, fd: int | None) -> None:
        """Read from `fd`, which must be set up already."""
        self._fd = fd
        self._never = threading.Event()

    @classmethod
    @contextlib.contextmanager
    def open(cls) -> Iterator[Keyboard]:
        """Have the terminal give keys at once and unseen; it is as before at the end."""
        try:
            import termios  # noqa: PLC0415 - only on POSIX
            import tty  # noqa: PLC0415

            fd = sys.stdin.fileno()
            before: list[Any] = termios.tcgetattr(fd)
        except (ImportError, OSError, ValueError, AttributeError, termios.error):
            yield cls(None)
            return
        try:
            tty.setcbreak(fd)
            yield cls(fd)
        finally:
            termios.tcsetattr(fd, termios.TCSADRAIN, before)

    def wait(self, timeout_s: float) -> str:
        """Wait for a key and return it in lower case; "" after `timeout_s` seconds."""
        if self._fd is None:
            self._never.wait(timeout_s)
            return ""
        if not waiting.select([self._fd], [], [], timeout_s)[0]:
            return ""
        pressed = os.read(self._fd, 64)
        if not pressed:
            return "q"  # The terminal has gone: it is always readable, and gives nothing.
        # Arrows and the like are sequences that begin with ESC, and hold letters.
        return _ARROWS.get(pressed, "") if pressed.startswith(b"\x1b") else chr(pressed[0]).lower()
