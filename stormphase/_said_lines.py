"""The last lines of a process, as a file beside its journal has them: the format, and how it is read.

Written by `journal._said`, read by whoever tells of a dead process: journals' readers and record stores alike.

`NAME.journal.said` is a header and a ring of slots, each with one line. A slot's number is written last and taken back
first: a torn line looks like none. Little-endian; numbers count from 1.

    header  64 bytes: magic (8), version u32, slot size u32, slots u32
    slot    number u64, time i64 (ns since the Unix epoch), the phase's sequence u64 (0 outside of all), stream u8,
            zero u8, length u16, then so many bytes of UTF-8
"""

from __future__ import annotations

import os
import stat
import struct
from typing import TYPE_CHECKING, Final

import attrs

if TYPE_CHECKING:
    from pathlib import Path

SUFFIX: Final = ".said"
LINES: Final = 128
MAX_LINE_BYTES: Final = 484
STREAMS: Final = ("stdout", "stderr", "log", "warning", "traceback", "cut")
MAGIC: Final = b"\x89SPS\r\n\x1a\n"
VERSION: Final = 1
HEADER: Final = struct.Struct("<8sIII")
HEADER_BYTES: Final = 64
SLOT: Final = struct.Struct("<QqQBBH")
SLOT_BYTES: Final = 512
SIZE: Final = HEADER_BYTES + LINES * SLOT_BYTES


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


def read_said(journal: Path) -> list[SaidLine]:
    """Return what the process of a journal said last, in order; nothing if that is not known. Never raises."""
    try:
        data = _content(said_path(journal))
    except (OSError, ValueError):
        return []
    if len(data) < HEADER_BYTES or HEADER.unpack_from(data) != (MAGIC, VERSION, SLOT_BYTES, LINES):
        return []
    found: dict[int, SaidLine] = {}
    for at in range(HEADER_BYTES, len(data) - SLOT_BYTES + 1, SLOT_BYTES):
        number, time_ns, sequence, stream, _, length = SLOT.unpack_from(data, at)
        if number and stream < len(STREAMS) and length <= MAX_LINE_BYTES:
            start = at + SLOT.size
            text = data[start : start + length].decode("utf-8", "ignore")
            found[number] = SaidLine(time_ns, sequence, STREAMS[stream], text)
    return [found[number] for number in sorted(found)]


def _content(path: Path) -> bytes:
    """Return the file's bytes; nothing of what is no regular file. Not mapped: a cut would kill the reader."""
    # Without O_NONBLOCK, opening a pipe would wait for somebody to write to it.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOCTTY", 0)
    descriptor = os.open(path, flags)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return b""
        data = os.pread(descriptor, SIZE, 0)
        while len(data) < SIZE and (more := os.pread(descriptor, SIZE - len(data), len(data))):
            data += more
        return data
    finally:
        os.close(descriptor)
