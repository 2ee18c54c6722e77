"""What captured descriptors need of the system: descriptors, shared memory, and C's own streams."""

from __future__ import annotations

import contextlib
import functools
import os
import select
import sys
import tempfile
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def c_flush() -> Callable[[], object]:
    """Return what flushes C's stdout and stderr; nothing where C cannot be called."""
    try:
        with above_standard():  # Where libffi was built so, it keeps a descriptor open for good.
            import ctypes  # noqa: PLC0415

        library = ctypes.CDLL(None)
        flush = library.fflush
        # Only these: another thread may wait for input with stdin locked.
        streams = [_c_stream(library, name) for name in ("stdout", "stderr")]
    except (ImportError, OSError, AttributeError, TypeError, ValueError):
        return lambda: None
    flush.argtypes = [ctypes.c_void_p]

    def flush_both() -> None:
        for stream in streams:
            flush(stream)

    return flush_both


def _c_stream(library: Any, name: str) -> Any:
    import ctypes  # noqa: PLC0415

    return ctypes.c_void_p.in_dll(library, f"__{name}p" if sys.platform == "darwin" else name)


def buffer_c_by_lines() -> None:
    """Have C's stdout written at each newline, as it is in a terminal, though it finds a pipe there."""
    with contextlib.suppress(Exception):  # Where C's library names it otherwise, it is flushed at boundaries only.
        import ctypes  # noqa: PLC0415

        library = ctypes.CDLL(None)
        library.setvbuf(_c_stream(library, "stdout"), None, 1, ctypes.c_size_t(0))


def readiness(
    descriptors: list[int], timeout_s: float = 0
) -> tuple[Callable[[], list[tuple[int, int]]], Callable[[], object], int]:
    """Return what says which descriptors have something to read, in any thread, how to let go of it, and its number."""
    if hasattr(select, "epoll"):
        watch = select.epoll()
        for descriptor in descriptors:
            watch.register(descriptor, select.EPOLLIN)
        return functools.partial(watch.poll, timeout_s), watch.close, watch.fileno()

    def ready() -> list[tuple[int, int]]:
        poll = select.poll()  # Made anew, since two threads may not use one at once.
        for descriptor in descriptors:
            poll.register(descriptor, select.POLLIN)
        return poll.poll(timeout_s * 1_000)

    return ready, lambda: None, -1


@contextlib.contextmanager
def above_standard() -> Iterator[None]:
    """Have every descriptor that is made inside lie above 0 to 2, though some of these are closed.

    A program started later is given something else as its 0, and would find that in the place of ours.
    """
    placeholders = []
    try:
        while (descriptor := os.open(os.devnull, os.O_RDONLY)) <= 2:  # noqa: PLR2004 - stderr
            placeholders.append(descriptor)
        os.close(descriptor)
        yield
    finally:
        for placeholder in placeholders:
            os.close(placeholder)


def pipe(size_bytes: int) -> tuple[int, int]:
    """Return the ends of a pipe, to read and to write, that holds so much where the system grants it."""
    read, write = os.pipe()
    with contextlib.suppress(ImportError, AttributeError, OSError):
        import fcntl  # noqa: PLC0415 - nobody has it on Windows

        fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, size_bytes)
    return read, write


def page(size_bytes: int) -> int:
    """Return a descriptor of zeroed memory that two processes can map."""
    if hasattr(os, "memfd_create"):
        page = os.memfd_create("stormphase-capture")
    else:
        page, path = tempfile.mkstemp(prefix="stormphase-capture-")
        os.unlink(path)  # noqa: PTH108 - a string is what is given
    os.ftruncate(page, size_bytes)
    return page


def identity(descriptor: int) -> tuple[int, int]:
    """Return what is the same of two descriptors that lead to the same file or pipe.

    Raises:
        OSError: if it is closed.
    """
    found = os.fstat(descriptor)
    return (found.st_dev, found.st_ino)


def leads_to(descriptor: int, file: tuple[int, int]) -> bool:
    """Whether a descriptor leads to the file or pipe of this `identity`."""
    try:
        return identity(descriptor) == file
    except OSError:
        return False


def descriptors() -> list[int]:
    """Return the descriptors of this process: all where the system tells of them, else stdout and stderr."""
    for folder in ("/proc/self/fd", "/dev/fd"):
        with contextlib.suppress(OSError, ValueError):
            return [int(name) for name in os.listdir(folder)]  # noqa: PTH208 - names are what is wanted
    return [1, 2]
