"""Who may recover a session now, and which of its journals have been: a lock and small files beside the journals.

The lock is the kernel's (flock), so it goes with the process that holds it, however that ends. A mark is written only
once everything of a journal was confirmed, in one step, and names the process whose journal it is about: it counts for
no other file that should come to have the same name.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, Self

import attrs

from stormphase.exceptions import StormphaseError

if TYPE_CHECKING:
    from pathlib import Path

    from stormphase.journal._image import JournalImage

LOCK_NAME: Final = "recover.lock"
MARK_SUFFIX: Final = ".sent"
_VERSION: Final = 1
_MODE: Final = 0o600
_MAX_BYTES: Final = 1 << 16
_FLAGS: Final = os.O_CLOEXEC | os.O_NOFOLLOW


class RecoveryLockedError(StormphaseError):
    """Another recovery of the session is running.

    Attributes:
        holder: who that is, as far as it says.
    """

    def __init__(self, path: Path, holder: str) -> None:
        """Say who it is and what to do."""
        super().__init__(
            f"Another recovery of {path.parent.name!a} is running{f', {holder}' if holder else ''}. Wait until it has "
            "ended, and run this again: what it has sent by then is not sent twice."
        )
        self.holder = holder


class SessionLock:
    """The right to recover one session's journals, from construction to `release`; also a context manager.

    Args:
        directory: the session's.

    Raises:
        RecoveryLockedError: if another process, or another lock of this one, has it.
        OSError: if the directory cannot be written to.
    """

    def __init__(self, directory: Path) -> None:
        """Take it, or fail at once."""
        path = directory / LOCK_NAME
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | _FLAGS, _MODE)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Only for people: who reads it while it is being written sees nothing.
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
        except BlockingIOError:
            holder = _printable(os.pread(self._descriptor, 200, 0))
            os.close(self._descriptor)
            raise RecoveryLockedError(path, holder) from None
        except BaseException:
            os.close(self._descriptor)
            raise

    def release(self) -> None:
        """Give it up; may be called again."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            with suppress(OSError):
                os.ftruncate(descriptor, 0)
            os.close(descriptor)

    def __enter__(self) -> Self:
        """Return it: it is held already."""
        return self

    def __exit__(self, *_: object) -> None:
        """Give it up."""
        self.release()


@attrs.frozen(kw_only=True)
class Mark:
    """What is known of a journal that was recovered.

    Attributes:
        digest: SHA-256 of all that was sent, in hex.
        spans: how many there were.
        endpoint: where they went.
    """

    digest: str
    spans: int
    endpoint: str


def mark_path(journal: Path) -> Path:
    """Return where a journal's mark stands."""
    return journal.with_name(journal.name + MARK_SUFFIX)


def read_mark(image: JournalImage) -> Mark | None:
    """Return the mark of a journal; None if there is none, or it is damaged, or about another process's journal."""
    try:
        descriptor = os.open(mark_path(image.file), os.O_RDONLY | os.O_NONBLOCK | _FLAGS)  # It may be a pipe.
        try:
            found = json.loads(os.read(descriptor, _MAX_BYTES))
        finally:
            os.close(descriptor)
        if found["version"] != _VERSION or found["journal"] != _whose(image):
            return None
        return Mark(digest=str(found["digest"]), spans=int(found["spans"]), endpoint=str(found["endpoint"]))
    except (OSError, ValueError, KeyError, TypeError, RecursionError, OverflowError):
        return None


def write_mark(image: JournalImage, mark: Mark) -> None:
    """Write the mark of a journal that was sent in full. It is there wholly or not at all, also after a power cut.

    The caller holds the session's lock.

    Raises:
        OSError: if it cannot be written; then it is not there.
    """
    path = mark_path(image.file)
    fresh = path.with_name(path.name + ".new")
    content = json.dumps({"version": _VERSION, "journal": _whose(image), **attrs.asdict(mark)}, sort_keys=True) + "\n"
    with suppress(FileNotFoundError):
        fresh.unlink()  # Left by a recovery that was killed.
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _FLAGS, _MODE)
    try:
        try:
            os.write(descriptor, content.encode())
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        fresh.replace(path)
    except OSError:
        with suppress(OSError):
            fresh.unlink()
        raise
    _sync_directory(path.parent)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with suppress(OSError):  # Some file systems cannot.
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _whose(image: JournalImage) -> dict[str, Any]:
    """Return what tells the journal from every other, also from one of the same name."""
    identity, process = image.identity, image.process
    return {
        "session_id": identity.session_id,
        "attempt": identity.attempt,
        "rank": identity.rank,
        "host": process.host,
        "pid": process.pid,
        "started": process.started,
        "started_ns": image.started_ns,
    }


def _printable(data: bytes) -> str:
    text = data.decode("utf-8", "replace")
    return "".join(char if char.isprintable() else "?" for char in text)
