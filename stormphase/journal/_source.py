"""Where a journal's bytes come from: a file that its process may still be writing, or bytes in memory."""

from __future__ import annotations

import os
import select
import stat
from typing import TYPE_CHECKING, Any, Protocol

from stormphase.exceptions import JournalError

if TYPE_CHECKING:
    from pathlib import Path


class Source(Protocol):
    """Bytes by offset, as they are at the moment of the call."""

    def size(self) -> int:
        """Return how many bytes there are."""
        ...

    def read(self, offset: int, length: int) -> bytes:
        """Return `length` bytes from `offset` on; fewer where the source ends."""
        ...

    def wait(self) -> None:
        """Let the writer go on for a moment."""
        ...


class BytesSource:
    """A journal in memory."""

    def __init__(self, data: bytes) -> None:
        """Serve `data`."""
        self._data = data

    def size(self) -> int:
        """Return how many bytes there are."""
        return len(self._data)

    def read(self, offset: int, length: int) -> bytes:
        """Return the bytes, fewer at the end."""
        return self._data[offset : offset + length]

    def wait(self) -> None:
        """Nobody writes, so there is nothing to wait for."""


class FileSource:
    """A journal on disk, read without mapping it: a mapped file that is cut meanwhile would kill the reader.

    Close it after use. Never waits for a writer, and never reads from a device or a pipe.

    Raises:
        JournalError: if it cannot be opened, or is no regular file.
    """

    def __init__(self, path: Path) -> None:
        """Open `path`."""
        self._path = path
        # Without O_NONBLOCK, opening a pipe would wait for somebody to write to it.
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOCTTY", 0)
        try:
            self._fd = os.open(path, flags)
        except (OSError, ValueError) as error:
            raise unreadable(path, error) from error
        if not stat.S_ISREG(os.fstat(self._fd).st_mode):
            os.close(self._fd)
            raise JournalError("it is no regular file.", file=str(path), fix="Give a file that stormphase wrote.")

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)

    def size(self) -> int:
        """Return how long the file is by now."""
        return os.fstat(self._fd).st_size

    def read(self, offset: int, length: int) -> bytes:
        """Return the bytes, fewer at the end.

        Raises:
            JournalError: if the system cannot read them.
        """
        try:
            data = os.pread(self._fd, length, offset)
            while len(data) < length:
                more = os.pread(self._fd, length - len(data), offset + len(data))
                if not more:
                    break
                data += more
        except OSError as error:
            raise unreadable(self._path, error) from error
        return data

    def wait(self) -> None:
        """Let the writer go on for a millisecond."""
        select.select((), (), (), 0.001)


def unreadable(path: Any, error: Exception) -> JournalError:
    """Return the error that says what the system said, and what to do."""
    if isinstance(error, (FileNotFoundError, NotADirectoryError)):
        fix = "Check the path: it is the directory that was given as `journal`, or STORMPHASE_DIR."
    elif isinstance(error, PermissionError):
        fix = "Journals are readable by their owner only: run this as the user who ran the job, or as root."
    else:
        fix = "Check that the disk or network file system is there, and try again."
    what = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return JournalError(f"{what}.", file=str(path), fix=fix)
