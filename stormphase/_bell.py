"""Waking and waiting with one C call each, so that a signal handler may do it whatever it interrupted.

`threading.Event` takes a lock around each call: a handler that sets an event which the interrupted thread was setting
waits for itself for ever. A bare lock has no such state between two bytecodes.
"""

from __future__ import annotations

import contextlib
import threading


class Bell:
    """Rung by anyone, heard by one: each `wait` that returns True uses the ringing up.

    Thread- and signal-safe. Make a new one in a forked child.
    """

    __slots__ = ("_silence",)

    def __init__(self) -> None:
        """Start silent."""
        self._silence = threading.Lock()
        self._silence.acquire()

    def ring(self) -> None:
        """Wake who waits, or the next one who will; ringing twice is ringing once."""
        with contextlib.suppress(RuntimeError):  # It rings already.
            self._silence.release()

    def wait(self, timeout_s: float) -> bool:
        """Return whether it rang within so many seconds; signal handlers run meanwhile."""
        return self._silence.acquire(timeout=timeout_s)


class Latch:
    """Opened once, for good: every wait passes from then on. Thread- and signal-safe."""

    __slots__ = ("_bell", "is_open")

    def __init__(self) -> None:
        """Start closed."""
        self._bell = Bell()
        self.is_open = False

    def open(self) -> None:
        """Let all pass."""
        self.is_open = True
        self._bell.ring()

    def wait(self, timeout_s: float) -> bool:
        """Return whether it was open, or opened within so many seconds."""
        if not self.is_open and self._bell.wait(timeout_s):
            self._bell.ring()  # For the next one who waits.
        return self.is_open
