"""The journal's strings, each stored once: the names of paths, by number of the path above, and of threads."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final

from stormphase.journal import _format

if TYPE_CHECKING:
    from stormphase._paths import PathNode, PathTable
    from stormphase.journal._file import JournalFile
    from stormphase.journal._segments import Segments

UNNUMBERED: Final = 0
_MAX_NAME_BYTES: Final = 1_024


class StringTable:
    """Numbers strings from 1 as they are first seen, in any thread and in signal handlers.

    Once a number is returned, its string stands in the file, and so do all with lower numbers.
    """

    def __init__(self, file: JournalFile, segments: Segments) -> None:
        """Start with none."""
        self._file = file
        self._segments = segments
        self._lock = threading.RLock()  # A signal handler may see a name for the first time, too.
        self._segment = 0  # offset in the file; 0 for none yet
        self._end = _format.SEGMENT  # offset within the segment
        self._count = 0
        self._path_count = 0
        # What has a number and its place, and may not stand there yet: segment, offset in it, entry.
        self._waiting: tuple[tuple[int, int, bytes], ...] = ()
        self._thread_names: dict[str, int] = {}

    def number_paths(self, paths: PathTable) -> None:
        """Number what is known already, parents first, and from now on each path when it is first seen."""
        paths.on_new = self._number_path
        waiting = list(dict.fromkeys(paths.root.below.values()))
        while waiting:
            node = waiting.pop()
            self._number_path(node)
            waiting.extend(dict.fromkeys(node.below.values()))

    def leave_paths(self, paths: PathTable) -> None:
        """Number no more of them."""
        if getattr(paths.on_new, "__self__", None) is self:
            paths.on_new = None

    def _number_path(self, node: PathNode) -> None:
        """Give a path its number: 0 if there is no more, and then phases must say their name themselves."""
        parent = node.parent
        is_first = parent is None or parent.parent is None
        node.number = UNNUMBERED
        if self._path_count >= _format.MAX_PATHS or (not is_first and parent is not None and not parent.number):
            return
        self._path_count += 1
        node.number = self._append(0 if is_first or parent is None else parent.number, node.name)

    def of_thread(self, name: str) -> int:
        """Return the number of a thread's name, or 0 if there is none left."""
        number = self._thread_names.get(name)
        if number is None:
            number = self._append(_format.THREAD_NAME, name)
            if number:
                self._thread_names[name] = number
        return number

    def _append(self, parent: int, text: str) -> int:
        if self._file.is_lost:
            return UNNUMBERED
        data = text.encode("utf-8", "surrogatepass")[:_MAX_NAME_BYTES]
        entry = _format.STRING.pack(parent, len(data)) + data
        entry += bytes(-len(entry) % 8)
        with self._lock:
            number = self._place(entry)
            self._store()
        return number

    def _place(self, entry: bytes) -> int:
        """Give an entry its number and its place. Strings are numbered by segment: none goes back to an older one."""
        size = len(entry)
        while self._count < _format.MAX_STRINGS:
            # No call from here to the last store: a signal handler's entry comes before this one, or after it.
            segment = self._segment
            start = self._end
            end = start + size
            if end <= _format.SEGMENT:
                self._end = end
                self._count = number = self._count + 1
                self._waiting = (*self._waiting, (segment, start, entry))
                return number
            taken = self._segments.take(_format.STRINGS)
            if taken is None:
                break
            if self._segment == segment:  # Likewise no call.
                self._segment = taken
                self._end = _format.FIRST_SLOT
            else:
                self._segments.give_back(taken)
        return UNNUMBERED

    def _store(self) -> None:
        """Store all that waits, in order, also what a signal handler found half done: the same bytes once more."""
        words = self._file.words
        while self._waiting:
            waiting = self._waiting
            segment, start, entry = waiting[0]
            self._file.put_bytes(segment + start, entry)
            length_at = (segment + _format.TEXT_LENGTH) >> 3
            length = start + len(entry) - _format.FIRST_SLOT
            # No call from here to the last store: a handler's may have gone further.
            if words[length_at] < length:  # noqa: PLR1730 - see above
                words[length_at] = length
            if self._waiting is waiting:
                self._waiting = waiting[1:]
