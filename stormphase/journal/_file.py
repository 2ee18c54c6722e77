"""One open journal: created, mapped whole, and given room on the disk piece by piece before anything is stored there.

Everything that is ever stored goes through `put_enter`, `put_exit`, `words` and `buffer`, so that tests can put others
in their place and stop a process at each single store.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import itertools
import os
import struct
import sys
import threading
import time
import zlib
from typing import TYPE_CHECKING, Any, Final

from stormphase import _native
from stormphase.journal import _format
from stormphase.journal._mapping import MappedFile

if sys.platform != "win32":
    import resource

if TYPE_CHECKING:
    import mmap
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from stormphase._clock import ClockAnchor
    from stormphase._model import ProcessIdentity

CHUNK_SEGMENTS: Final = 64
MIN_BYTES: Final = CHUNK_SEGMENTS * _format.SEGMENT
_MASK: Final = 0xFFFFFFFFFFFFFFFF
_PAGE: Final = 4_096
_PAGES_AT_ONCE: Final = 64
_MODE: Final = 0o600
_ID_BASE_WORD: Final = 3
_MAGIC_WORD: Final = int.from_bytes(_format.MAGIC, "little")
_RESIZE_WAIT_S: Final = 2.0
_NO_FALLOCATE: Final = frozenset({errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS})


class JournalFile:
    """A journal that this process writes. It may be stored into from any thread; `grow` is called by one.

    Attributes:
        words: the file as u64; to store one is to store it whole, or not at all.
        buffer: the file as bytes.
        put_enter: stores the first half of a slot, its last word last: offset of the slot, then the fields of `ENTER`.
        put_exit: likewise the second half: offset of the slot, then the fields of `EXIT`.
        is_lost: whether somebody has cut it short, so that it must not be touched any more.

    Args:
        path: where; must not exist.
        max_bytes: how long the file may become, at least `MIN_BYTES`; rounded down to whole segments, and to what the
            process may write.

    Raises:
        OSError: if it cannot be created, or there is no room for the first `MIN_BYTES`; nothing is left behind then.
    """

    def __init__(self, path: Path, max_bytes: int) -> None:
        """Create, allocate and map it; `complete` makes it valid."""
        self.path = path
        self._max_segments = _within_limit(max_bytes) // _format.SEGMENT
        self.segments = 0
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0), _MODE)
        try:
            # The whole length at once and no room yet: one mapping stays valid however the file fills up.
            os.ftruncate(self._fd, self._max_segments * _format.SEGMENT)
            _allocate(self._fd, 0, MIN_BYTES)
            self._map: MappedFile | None = MappedFile(self._fd, self._max_segments * _format.SEGMENT)
        except BaseException:
            os.close(self._fd)
            path.unlink()
            raise
        self._slot_stores = _slot_stores(self._map)
        self.put_enter, self.put_exit = self._slot_stores
        self.buffer: MappedFile | Gone = self._map
        self.words: memoryview | Gone = memoryview(self._map).cast("Q")
        self.is_lost = False
        self._beats = 0
        self._id_base = 0
        self._resizing = threading.Lock()
        self._is_closing = False
        self._touch(0, CHUNK_SEGMENTS)
        self.segments = CHUNK_SEGMENTS

    def complete(
        self, *, id_base: int, anchor: ClockAnchor, process: ProcessIdentity, facts: bytes, now: tuple[int, int]
    ) -> None:
        """Write the header: from now on the file is a journal.

        Args:
            id_base: what scope ids are counted from.
            anchor: relates monotonic to wall times.
            process: who writes.
            facts: the facts object, as JSON of at most `MAX_FACTS` bytes.
            now: monotonic and wall time, for the first heartbeat.
        """
        self._id_base = id_base
        self.put_bytes(_format.FACTS_AT, facts)
        header = _format.HEADER.pack(
            _format.MAGIC,
            _format.VERSION,
            _format.SEGMENT,
            _format.SLOT,
            0,
            id_base,
            anchor.monotonic_ns,
            anchor.wall_ns,
            process.pid,
            process.started or 0,
            process.pid_namespace or 0,
            bytes.fromhex((process.boot_id or "").replace("-", "")) or bytes(16),
            len(facts),
            zlib.crc32(facts),
        )
        self.put_bytes(0, header)
        self.put_word(_format.STEP, _format.NO_STEP)
        self.put_word(_format.ALLOCATED, self.segments)
        self.beat(*now)
        self.put_word(_format.IS_COMPLETE, 1)

    def beat(self, monotonic_ns: int, wall_ns: int) -> None:
        """Say that the process lives; the two places are written in turn, so that one always stands."""
        self._beats += 1
        place = _format.HEARTBEATS[self._beats % 2]
        # Invalid while its times change.
        for offset, value in ((16, 0), (0, monotonic_ns), (8, wall_ns), (16, self._beats)):
            self.put_word(place + offset, value)

    def put_together(self, stores: Sequence[tuple[int, int]]) -> None:
        """Store words at offsets, all of them or none, whatever happens meanwhile; by one caller at a time.

        At most `MAX_REDO_PAIRS` of them. A reader that finds the log filled stores them itself, so they stand from the
        moment when their number is stored; where a call was interrupted after that, the next one ends it.
        """
        self.end_interrupted_stores()
        folds = self.word(_format.FOLDS) | 1
        self.put_word(_format.FOLDS, folds)
        pairs = itertools.chain.from_iterable((offset, value & _MASK) for offset, value in stores)
        self.put_bytes(_format.REDO_PAIRS_AT, struct.pack(f"<{2 * len(stores)}Q", *pairs))
        self.put_word(_format.REDO_AT, len(stores))
        for offset, value in stores:
            self.put_word(offset, value)
        self.put_word(_format.REDO_AT, 0)
        self.put_word(_format.FOLDS, folds + 1)

    def end_interrupted_stores(self) -> None:
        """Store what an interrupted `put_together` had promised."""
        count = self.word(_format.REDO_AT)
        if count:
            for offset, value in struct.iter_unpack("<QQ", self.bytes_at(_format.REDO_PAIRS_AT, 16 * count)):
                self.put_word(offset, value)
            self.put_word(_format.REDO_AT, 0)

    def put_end_note(self, note: bytes, *, owners_are_unsent: bool = False) -> None:
        """Say how the process ended: JSON of at most `MAX_END_NOTE` bytes."""
        self.put_word(_format.END_NOTE, 0)
        self.put_bytes(_format.END_NOTE_AT, note)
        self.put_word(_format.OWNERS_UNSENT, int(owners_are_unsent))  # Before the note that it is a part of.
        self.put_word(_format.END_NOTE, zlib.crc32(note) << 32 | len(note))

    def has_been_cut(self) -> bool:
        """Whether somebody has taken of it what was there when it was made, or put another file's bytes into it."""
        mapped = self._map
        if mapped is None:
            return False
        if mapped.has_faulted:
            return True
        mapped.guard_again()
        with self._descriptor() as fd:
            if fd < 0:
                return False
            size = os.fstat(fd).st_size
        if size < self._max_segments * _format.SEGMENT:
            return True
        # Cut and made long again: then it has zeros, or is another journal. Whoever cuts it at this moment may be
        # noticed by a fault.
        is_own = self.words[0] == _MAGIC_WORD and self.words[_ID_BASE_WORD] == self._id_base
        return not is_own or mapped.has_faulted

    def leave_lost(self, now_ns: int) -> None:
        """Say in what is left of the header that nothing is written since `now_ns`, and touch the mapping no more.

        The heartbeat and the end note are still written, by calls that cannot fault: the process lives.
        """
        self.is_lost = True
        self._write_left(_format.LOST_NS, struct.pack("<q", now_ns))

    def put_word(self, offset: int, value: int) -> None:
        """Store a u64, or an i64, at an offset that is a multiple of 8."""
        if self.is_lost:
            self._write_left(offset, struct.pack("<Q", value & _MASK))
            return
        self.words[offset >> 3] = value & _MASK

    def put_bytes(self, offset: int, data: bytes) -> None:
        """Store bytes at an offset."""
        if self.is_lost:
            self._write_left(offset, data)
            return
        self.buffer[offset : offset + len(data)] = data

    def _write_left(self, offset: int, data: bytes) -> None:
        """Write into the header of a lost file, where that is left."""
        with self._descriptor() as fd, contextlib.suppress(OSError):
            if fd >= 0 and offset < _format.SEGMENT and self._has_header(fd):
                os.pwrite(fd, data, offset)

    def _has_header(self, fd: int) -> bool:
        if os.fstat(fd).st_size < _format.SEGMENT:
            return False
        head = os.pread(fd, 8 * (_ID_BASE_WORD + 1), 0)
        return head[:8] == _format.MAGIC and int.from_bytes(head[-8:], "little") == self._id_base

    @contextlib.contextmanager
    def _descriptor(self) -> Iterator[int]:
        """Give the descriptor, which nobody gives back meanwhile, so that no other file gets its number.

        It is -1 where the file is closed, or just growing or being closed: nobody waits for that, neither a stop for a
        disk that hangs nor a signal handler for the thread that it interrupts.
        """
        if not self._resizing.acquire(blocking=False):
            yield -1
            return
        try:
            yield self._fd
        finally:
            self._resizing.release()

    def word(self, offset: int) -> int:
        """Return the u64 at an offset."""
        return self.words[offset >> 3]

    def bytes_at(self, offset: int, length: int) -> bytes:
        """Return a copy of so many bytes."""
        return self.buffer[offset : offset + length]

    @property
    def may_grow(self) -> bool:
        """Whether its length still allows another segment."""
        return self._fd >= 0 and self.segments < self._max_segments

    @property
    def is_deleted(self) -> bool:
        """Whether it has no name any more, so that nobody else can read it."""
        return self._fd >= 0 and os.fstat(self._fd).st_nlink == 0

    def grow(self) -> range:
        """Give the next segments room on the disk, and return their numbers; none once the file was closed.

        Raises:
            OSError: if there is no room; the file stays as it was.
        """
        with self._resizing:
            grown = self._grow() if self.may_grow else range(0)
        if self._is_closing:
            self.close()
        return grown

    def _grow(self) -> range:
        first = self.segments
        last = min(first + CHUNK_SEGMENTS, self._max_segments)
        _allocate(self._fd, first * _format.SEGMENT, (last - first) * _format.SEGMENT)
        self._touch(first, last)
        self.segments = last
        self.put_word(_format.ALLOCATED, last)
        return range(first, last)

    def close(self) -> None:
        """Give back what was never used. The mapping stays until `let_go`.

        Where another thread is about to grow the file, that is waited for: to cut off what it has just been given, and
        stores into, would be a SIGBUS. If it takes too long, that thread closes the file when it is done.
        """
        self._is_closing = True
        if not self._resizing.acquire(timeout=_RESIZE_WAIT_S):
            return
        try:
            if self._fd >= 0:
                fd, self._fd = self._fd, -1
                try:
                    if not self.is_lost:  # Nor made longer again.
                        os.ftruncate(fd, self.segments * _format.SEGMENT)
                finally:
                    os.close(fd)
        finally:
            self._resizing.release()

    def let_go(self) -> None:
        """Drop the mapping: it ends, and so does its descriptor, as soon as no call that is under way stores into it.

        From then on what is stored goes nowhere, and what is read is zeros; nobody is told, and nothing raises. Dropped
        and not closed, since another thread may be just about to store; nobody else may hold `words` or `buffer`.
        """
        self.buffer = self.words = GONE
        for store in self._slot_stores:
            _empty(store)
        self._map = None

    def forget(self) -> None:
        """Close the descriptor alone, and drop the mapping: in a forked child the file is the parent's."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)
        self.let_go()

    def _touch(self, first: int, last: int) -> None:
        """Have the kernel map the pages now, so that no training thread waits for that; lets others in between."""
        words = self.words
        end = last * _format.SEGMENT
        for start in range(first * _format.SEGMENT, end, _PAGES_AT_ONCE * _PAGE):
            for offset in range(start, min(end, start + _PAGES_AT_ONCE * _PAGE), _PAGE):
                words[offset >> 3] = 0
            time.sleep(0)  # noqa: TID251 - waits for nothing: training may want the GIL


class Gone:
    """Stands where a mapping was."""

    __slots__ = ()

    def __setitem__(self, place: int | slice, value: object) -> None:
        """Store nothing."""

    def __getitem__(self, place: Any) -> Any:
        """Return zero, or as many as a slice has bytes."""
        return bytes(len(range(place.start, place.stop, place.step or 1))) if isinstance(place, slice) else 0


GONE: Final = Gone()


def _nothing(*fields: object) -> None:
    """Store nothing."""


def _empty(store: Callable[..., None]) -> None:
    """Make what stores into a mapping let go of it and do nothing, for whoever holds it."""
    emptied: Any = store
    if isinstance(store, functools.partial):
        emptied.__setstate__((_nothing, (), {}, {}))
    else:
        emptied.let_go()


def _slot_stores(mapped: mmap.mmap) -> tuple[Callable[..., None], Callable[..., None]]:
    if _native.speedups is not None:
        stores: tuple[Callable[..., None], Callable[..., None]] = _native.speedups.slot_stores(mapped)
        return stores
    # Where a slot's second half begins, so that both halves are stored by the slot's own offset.
    second_halves = memoryview(mapped)[_format.EXIT_AT :]
    put_enter = functools.partial(_format.ENTER.pack_into, mapped)
    return put_enter, functools.partial(_format.EXIT.pack_into, second_halves)


def _within_limit(max_bytes: int) -> int:
    """Return how long the file may become under this process's limit (RLIMIT_FSIZE), if that leaves room for one."""
    if sys.platform == "win32":
        return max_bytes
    limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    return min(max_bytes, limit) if limit >= MIN_BYTES else max_bytes


def _allocate(fd: int, offset: int, length: int) -> None:
    """Have the file system reserve room: what is only a hole could turn out to be a SIGBUS when it is stored to.

    Raises:
        OSError: if it does not.
    """
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(fd, offset, length)
        except OSError as error:
            if error.errno not in _NO_FALLOCATE:
                raise
        else:
            return
    zeros = bytes(_PAGES_AT_ONCE * _PAGE)
    for start in range(offset, offset + length, len(zeros)):
        piece = zeros[: offset + length - start]
        if os.pwrite(fd, piece, start) != len(piece):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
