"""What a process said last: a small file beside its journal, so that it is known of one that was killed.

`NAME.journal.said` is a header and a ring of slots, each with one line. A slot's number is written last and taken back
first: a torn line looks like none. Little-endian; numbers count from 1.

    header  64 bytes: magic (8), version u32, slot size u32, slots u32
    slot    number u64, time i64 (ns since the Unix epoch), the phase's sequence u64 (0 outside of all), stream u8,
            zero u8, length u16, then so many bytes of UTF-8
"""

from __future__ import annotations

import itertools
import mmap
import os
import struct
from contextlib import closing
from typing import TYPE_CHECKING, Final

import attrs

from stormphase.exceptions import JournalError
from stormphase.journal._source import FileSource

if TYPE_CHECKING:
    from pathlib import Path

SUFFIX: Final = ".said"
LINES: Final = 128
MAX_LINE_BYTES: Final = 484
STREAMS: Final = ("stdout", "stderr", "log", "warning", "traceback", "cut")
_MAGIC: Final = b"\x89SPS\r\n\x1a\n"
_VERSION: Final = 1
_HEADER: Final = struct.Struct("<8sIII")
_HEADER_BYTES: Final = 64
_SLOT: Final = struct.Struct("<QqQBBH")
_SLOT_BYTES: Final = 512
_SIZE: Final = _HEADER_BYTES + LINES * _SLOT_BYTES
_NUMBER: Final = struct.Struct("<Q")


@attrs.frozen
class SaidLine:
    """One line that a process said.

    Attributes:
        time_ns: when, in nanoseconds since the Unix epoch.
        sequence: the number of the phase in which, in its process; 0 outside of all.
        stream: "stdout", "stderr", "log", "warning", "traceback" or "cut".
        text: the line, cut where it was too long.
    """

    time_ns: int
    sequence: int
    stream: str
    text: str


def said_path(journal: Path) -> Path:
    """Return where the last lines of a journal's process stand."""
    return journal.with_name(journal.name + SUFFIX)


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
            head = _HEADER.pack(_MAGIC, _VERSION, _SLOT_BYTES, LINES)
            if os.write(descriptor, head.ljust(_SIZE, b"\0")) != _SIZE:
                raise OSError(28, "No space left on device", str(path))
            self._map = mmap.mmap(descriptor, _SIZE)
        finally:
            os.close(descriptor)
        self._numbers = itertools.count(1)

    def put(self, time_ns: int, sequence: int, stream: str, text: str) -> None:
        """Write one line in the place of the oldest."""
        data = text.encode("utf-8", "replace")[:MAX_LINE_BYTES]
        number = next(self._numbers)
        at = _HEADER_BYTES + number % LINES * _SLOT_BYTES
        found = self._map
        _NUMBER.pack_into(found, at, 0)
        _SLOT.pack_into(found, at, 0, time_ns, sequence, STREAMS.index(stream), 0, len(data))
        found[at + _SLOT.size : at + _SLOT.size + len(data)] = data
        _NUMBER.pack_into(found, at, number)


def read_said(journal: Path) -> list[SaidLine]:
    """Return what the process of a journal said last, in order; nothing if that is not known. Never raises."""
    try:
        with closing(FileSource(said_path(journal))) as source:
            data = source.read(0, _SIZE)
    except (JournalError, OSError):
        return []
    if len(data) < _HEADER_BYTES or _HEADER.unpack_from(data) != (_MAGIC, _VERSION, _SLOT_BYTES, LINES):
        return []
    found: dict[int, SaidLine] = {}
    for at in range(_HEADER_BYTES, len(data) - _SLOT_BYTES + 1, _SLOT_BYTES):
        number, time_ns, sequence, stream, _, length = _SLOT.unpack_from(data, at)
        if number and stream < len(STREAMS) and length <= MAX_LINE_BYTES:
            start = at + _SLOT.size
            text = data[start : start + length].decode("utf-8", "ignore")
            found[number] = SaidLine(time_ns, sequence, STREAMS[stream], text)
    return [found[number] for number in sorted(found)]
