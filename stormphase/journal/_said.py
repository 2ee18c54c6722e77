"""What a process said last: a small file beside its journal, so that it is known of one that was killed.

How it is laid out and read stands in `_said_lines`.
"""

from __future__ import annotations

import itertools
import os
import struct
from typing import TYPE_CHECKING, Final

from stormphase._said_lines import (
    HEADER,
    HEADER_BYTES,
    LINES,
    MAGIC,
    MAX_LINE_BYTES,
    SIZE,
    SLOT,
    SLOT_BYTES,
    STREAMS,
    SUFFIX,
    VERSION,
    SaidLine,
    read_said,
    said_path,
)
from stormphase.journal._mapping import MappedFile

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["LINES", "MAX_LINE_BYTES", "STREAMS", "SUFFIX", "LastLines", "SaidLine", "read_said", "said_path"]

_NUMBER: Final = struct.Struct("<Q")


class LastLines:
    """The file while its process writes it. Thread- and signal-safe: each line has a slot of its own.

    Args:
        path: must not exist.

    Raises:
        OSError: if it cannot be made in full: a hole in it would kill the process later, on a disk that is full.
    """

    def __init__(self, path: Path) -> None:
        """Make it, for its owner alone."""
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0)
        descriptor = os.open(path, flags, 0o600)
        try:
            head = HEADER.pack(MAGIC, VERSION, SLOT_BYTES, LINES)
            if os.write(descriptor, head.ljust(SIZE, b"\0")) != SIZE:
                raise OSError(28, "No space left on device", str(path))
            self._map = MappedFile(descriptor, SIZE)
        finally:
            os.close(descriptor)
        self._numbers = itertools.count(1)

    def has_been_cut(self) -> bool:
        """Whether somebody has cut the file short, so that it must not be touched any more."""
        found = self._map
        return found.has_faulted or found.size() < SIZE or found[: len(MAGIC)] != MAGIC or found.has_faulted

    def put(self, time_ns: int, sequence: int, stream: str, text: str) -> None:
        """Write one line in the place of the oldest."""
        data = text.encode("utf-8", "replace")[:MAX_LINE_BYTES]
        number = next(self._numbers)
        at = HEADER_BYTES + number % LINES * SLOT_BYTES
        found = self._map
        _NUMBER.pack_into(found, at, 0)
        SLOT.pack_into(found, at, 0, time_ns, sequence, STREAMS.index(stream), 0, len(data))
        found[at + SLOT.size : at + SLOT.size + len(data)] = data
        _NUMBER.pack_into(found, at, number)
