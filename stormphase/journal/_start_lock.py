"""Of processes that start as one rank of one session at the same time, one looks and begins before the next one looks.

A lock on one byte of a file in the session's directory, the byte of the rank: held from the look at the journals that
are there until the own one is there, too. The kernel gives it back when its process dies, forked children do not have
it, and ranks do not wait for each other.
"""

from __future__ import annotations

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

LOCK_NAME: Final = "start.lock"
WAIT_S: Final = 0.8
_PAUSE_S: Final = 0.005
_MODE: Final = 0o600


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
        self._descriptor = -1
        if sys.platform == "win32":
            return
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            self._descriptor = os.open(directory / LOCK_NAME, flags, _MODE)
            is_ours = self._take(identity.rank)
        except OSError:
            self.release()
            return
        if not is_ours:
            self.release()
            raise running_already(identity, "another process that is just starting")

    def _take(self, rank: int) -> bool:
        until_ns = SystemClock.monotonic_ns() + int(WAIT_S * 1e9)
        while True:
            try:
                fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, rank)
            except (BlockingIOError, PermissionError):  # As POSIX has it, either.
                if SystemClock.monotonic_ns() >= until_ns:
                    return False
                select.select((), (), (), _PAUSE_S)
            else:
                return True

    def __del__(self) -> None:
        """Give it up where a start failed in between."""
        self.release()

    def release(self) -> None:
        """Give it up; may be called again."""
        descriptor, self._descriptor = getattr(self, "_descriptor", -1), -1
        if descriptor >= 0:
            os.close(descriptor)
