"""Has a journal tell of every single store, the torn ones included: whatever it stores goes through four doors.

`struct.pack_into` zeroes what it is about to store and then stores field by field, and a copy of bytes may be broken
off in its middle, from either end. So one call through a door is several stores here.
"""

from __future__ import annotations

from stormphase import _native
from stormphase.journal import _format
from stormphase.journal._file import JournalFile

COMMIT_BYTES = 8


class _Words:
    """The file as u64."""

    def __init__(self, words, tell):
        self._words = words
        self._tell = tell

    def __getitem__(self, index):
        return self._words[index]

    def __setitem__(self, index, value):
        self._words[index] = value
        self._tell()


class _Bytes:
    """The file as bytes."""

    def __init__(self, buffer, tell):
        self._buffer = buffer
        self._tell = tell

    def __getitem__(self, index):
        return self._buffer[index]

    def __setitem__(self, index, data):
        start, end = index.start, index.stop
        middle = start + len(data) // 2
        before = self._buffer[start:end]
        if len(data) > 1:
            self._buffer[start:middle] = data[: middle - start]
            self._tell()
            self._buffer[start:end] = before[: middle - start] + data[middle - start :]
            self._tell()
        self._buffer[start:end] = data
        self._tell()


class TellingFile(JournalFile):
    """A journal's file that calls `told` with the number of each store, right after it, from 1 on."""

    told = None

    def __init__(self, path, max_bytes):
        """Open the doors."""
        super().__init__(path, max_bytes)
        self.stores = 0
        self.words = _Words(self.words, self._tell)
        self.buffer = _Bytes(self._map, self._tell)
        self.put_enter = self._put_enter
        self.put_exit = self._put_exit

    def let_go(self):
        """Have nobody told any more."""

    def content(self):
        """Return what stands in the file now, as a reader would find it, were the process dead."""
        return self._map[: self.segments * _format.SEGMENT]

    def _tell(self):
        self.stores += 1
        if self.told is not None:
            self.told(self.stores)

    def _put(self, start, data):
        commit = len(data) - COMMIT_BYTES
        for part in (bytes(len(data)), data[:commit], data):
            self._map[start : start + len(part)] = part
            self._tell()

    def _put_enter(self, slot, *fields):
        self._put(slot, _format.ENTER.pack(*fields))

    def _put_exit(self, slot, *fields):
        self._put(slot + _format.EXIT_AT, _format.EXIT.pack(*fields))


class CompiledTellingFile(TellingFile):
    """The same with the compiled doors for slots: they tell of each word, and of each half of a blob."""

    def __init__(self, path, max_bytes):
        """Have the compiled doors tell, until `let_go`."""
        super().__init__(path, max_bytes)
        self.put_enter, self.put_exit = _native.speedups.slot_stores(self._map)
        _native.speedups.watch_stores(self._tell)

    def let_go(self):
        """Have nobody told any more: there is one watcher for all files."""
        _native.speedups.watch_stores(None)


DOORS = (
    {"python": TellingFile} if _native.speedups is None else {"python": TellingFile, "compiled": CompiledTellingFile}
)
"""What a journal's file may be stored into through, by name."""
