"""Forks and SQLite: a child must not inherit a lock of SQLite's that another thread of its parent holds."""

from __future__ import annotations

import os
import threading
import weakref
from typing import Final

from stormphase._clock import SystemClock

# How long a fork waits, at most. Who is inside for longer waits for another process's lock, and holds none of SQLite's.
LONGEST_WAIT_S: Final = 0.25

_gates: weakref.WeakSet[ForkGate] = weakref.WeakSet()
_held: Final[list[threading.RLock]] = []
_fork_guard: Final[list[bool]] = []


class ForkGate:
    """Two locks, each held while a thread of this process is inside SQLite: one by the writer, one by who reads.

    A fork waits for them. They are for the process that made the gate; a forked child makes a new one.
    """

    __slots__ = ("__weakref__", "pid", "reading", "writing")

    def __init__(self) -> None:
        """Let forks wait from now on."""
        self.pid = os.getpid()
        self.reading = threading.RLock()
        self.writing = threading.RLock()
        _gates.add(self)
        if not _fork_guard and hasattr(os, "register_at_fork"):
            _fork_guard.append(True)
            os.register_at_fork(before=_before, after_in_parent=_after_in_parent, after_in_child=_after_in_child)


def _before() -> None:
    now = SystemClock.monotonic_ns
    until_ns = now() + int(LONGEST_WAIT_S * 1e9)
    pid = os.getpid()
    for gate in tuple(_gates):
        if gate.pid == pid:
            for lock in (gate.writing, gate.reading):
                if lock.acquire(timeout=max(0.0, (until_ns - now()) / 1e9)):
                    _held.append(lock)


def _after_in_parent() -> None:
    while _held:
        _held.pop().release()


def _after_in_child() -> None:
    _held.clear()
    _gates.clear()
