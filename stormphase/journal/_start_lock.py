"""Of processes that start as one rank of one session at the same time, one looks and begins before the next one looks.

A lock on a file in the session's directory, held from the look at the journals that are there until the own one is
there, too. The kernel gives it back when its process dies, and forked children do not have it. Who has it removes the
file; whoever gets it on a file that has no name any more tries again on the next one.
"""

from __future__ import annotations

import contextlib
import os
import select
import sys
from typing import TYPE_CHECKING, Final

from stormphase._attempts import running_already
from stormphase._clock import SystemClock

if sys.platform != "win32":
    import fcntl

if TYPE_CHECKING:
    from pathlib import Path

    from stormphase._model import RankIdentity

WAIT_S: Final = 0.8
_PAUSE_S: Final = 0.005
_MODE: Final = 0o600


def lock_name(rank: int) -> str:
    """Return the name of the file for a rank."""
    return f"rank-{rank:05d}.start.lock"


class StartLock:
    """The right to begin as one rank of a session, from construction to `release`.

    Where the file system has no locks nobody waits, and of two that start within some milliseconds both begin.

    Args:
        directory: the session's.
        identity: the rank.

    Raises:
        ConfigurationError: if another process has it, and keeps it for `WAIT_S`.
    """

    def __init__(self, directory: Path, identity: RankIdentity) -> None:
        """Take it."""
        self._path = directory / lock_name(identity.rank)
        self._descriptor = -1
        self._pid = os.getpid()
        if sys.platform == "win32":
            return
        until_ns = SystemClock.monotonic_ns() + int(WAIT_S * 1e9)
        try:
            while not self._take():
                if SystemClock.monotonic_ns() >= until_ns:
                    raise running_already(identity, "another process that is just starting")
                select.select((), (), (), _PAUSE_S)
        except OSError:  # No locks here, or no file can be made.
            return

    def _take(self) -> bool:
        """Take it if nobody has it, and its file is still the one that others find."""
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, _MODE)
        try:
            with contextlib.suppress(BlockingIOError, PermissionError, FileNotFoundError):
                fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.path.samestat(os.fstat(descriptor), self._path.stat()):
                    self._descriptor, descriptor = descriptor, -1
                    return True
        finally:
            if descriptor >= 0:
                os.close(descriptor)
        return False

    def __del__(self) -> None:
        """Give it up where a start failed in between."""
        self.release()

    def release(self) -> None:
        """Give it up; may be called again, and in a forked child, which leaves it to its parent."""
        descriptor, self._descriptor = getattr(self, "_descriptor", -1), -1
        if descriptor >= 0:
            if self._pid == os.getpid():  # Else it is the parent's, as is the file.
                with contextlib.suppress(OSError):
                    self._path.unlink()
            os.close(descriptor)
